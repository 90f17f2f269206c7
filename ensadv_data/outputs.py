"""What a recipe's folder holds: whose it is, where the output of a stage lies, and whether that is still right."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from ensadv_data.data import open_data
from ensadv_data.errors import OutputError
from ensadv_data.files import sha256_of_file, write_atomic
from ensadv_data.models import outside_files, with_leaves
from ensadv_data.recipe import Recipe, Stage
from ensadv_data.spec import DataSpec

__all__ = ["Outputs", "finished_stages"]


@dataclass(frozen=True)
class Outputs:
    """The outputs of a recipe in a folder."""

    recipe: Recipe
    out: Path

    def path(self, stage: Stage) -> Path:
        """Where the stage's output is to be."""
        return self.out / stage.output

    def state_path(self, stage: Stage) -> Path:
        """Where the state of its last run is."""
        return self.out / "state" / f"{stage.name}.json"

    def state(self, stage: Stage) -> dict[str, Any]:
        """The state of its last run; empty where there was none."""
        try:
            state = json.loads(self.state_path(stage).read_bytes())
        except (OSError, ValueError):
            return {}
        return state if isinstance(state, dict) else {}

    def digest(self, stage: Stage, *, with_device: bool = False) -> str:
        """Of everything that the stage's output depends on.

        The device is how, not what, as the number of workers is: what a GPU has made stays when a laptop goes on. Only
        an unfinished output cannot change it, so that of a stage's beginning is ``with_device``.
        """
        spec = stage.spec and json.loads(stage.spec.model_dump_json())
        if spec and "device" in spec and not with_device:
            spec["device"] = "cpu"
        about = {
            "kind": stage.kind,
            "spec": spec,
            "options": dict(stage.options),
            "data": list(_images_of(self.recipe.data)),
            "inputs": {name: self.fingerprint(self.recipe.stage(name)) for name in stage.inputs},
        }
        files = {path: sha256_of_file(Path(path)) for path in _outside_files(stage) if Path(path).is_file()}
        if files:
            about["files"] = files
        return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()

    def is_unchanged(self, stage: Stage, digest: str) -> bool:
        """Whether the stage's digest and its output are those of its last run."""
        state, output = self.state(stage), self.fingerprint(stage)
        if output is None or state.get("output") != output:
            return False
        if state.get("digest") == digest:
            return True
        return state.get("digest") == self.digest(stage, with_device=True)  # as it was known when the device counted

    def fingerprint(self, stage: Stage) -> str | None:
        """SHA-256 of the stage's output; of its manifest where it is a store."""
        path = self.path(stage)
        path = path / "manifest.json" if stage.kind == "precompute" else path
        return sha256_of_file(path) if path.is_file() else None

    def stores(self, names: Sequence[str]) -> tuple[str, ...]:
        """Where the stores of precompute stages are."""
        return tuple(str(self.path(self.recipe.stage(name))) for name in names)

    def reference(self, name: str) -> str:
        """A model reference in which the names of stages have become the paths of their weights."""
        weights = {stage.name: str(self.path(stage)) for stage in self.recipe.stages if stage.kind == "train"}
        return with_leaves(name, lambda leaf: weights.get(leaf, leaf))

    def claim(self) -> None:
        """Take the folder: it belongs to one recipe from its first run on; raises as :meth:`check_claim`."""
        self.check_claim()
        if not self._marker.is_file():
            write_atomic(self._marker, self._owner)

    def check_claim(self) -> None:
        """Refuse a folder of another recipe, and one that holds something else.

        Raises
        ------
        OutputError
            The message has the folder.
        """
        out, marker = self.out, self._marker
        if out.exists() and not out.is_dir():
            raise OutputError(f"expected a folder at {out}, found a file; choose another --out")
        if marker.is_file():
            if marker.read_bytes() != self._owner:
                raise OutputError(f"{out} holds the outputs of another recipe; choose another --out")
        elif out.is_dir() and any(out.iterdir()):
            raise OutputError(
                f"{out} holds something else than a recipe's outputs; it was not touched: choose another --out"
            )

    @property
    def _marker(self) -> Path:
        return self.out / "state" / "recipe.json"

    @property
    def _owner(self) -> bytes:
        return (json.dumps({"recipe": self.recipe.name}) + "\n").encode()


def finished_stages(recipe: Recipe, out: Path) -> set[str]:
    """Names of the stages that a run into ``out`` would skip, as far as that is certain; nothing is written.

    A stage that reads one which is to run is not among them, though that one may come out as it was.

    Raises
    ------
    OutputError
        ``out`` holds something else.
    """
    outputs, finished = Outputs(recipe, out), set[str]()
    outputs.check_claim()
    for stage in recipe.stages:
        if outputs.fingerprint(stage) is None or not finished.issuperset(stage.inputs):
            continue
        if outputs.is_unchanged(stage, outputs.digest(stage)):
            finished.add(stage.name)
    return finished


@lru_cache(maxsize=4)
def _images_of(spec: DataSpec) -> tuple[str, str, int]:
    """Name, digest and number of the training images; read once for all stages."""
    data = open_data(spec, "train")
    return data.name, data.digest, len(data)


def _outside_files(stage: Stage) -> list[str]:
    """Weights that no stage makes: those of FILE.safetensors and of timm:NAME,weights=FILE."""
    roles = (*stage.options.values(), getattr(stage.spec, "models", None), getattr(stage.spec, "static", None))
    return outside_files(ref for role in roles if isinstance(role, Mapping) for ref in role.values())
