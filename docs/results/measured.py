"""What was measured: the files of data/, by stage, and the figures in them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

Json = Mapping[str, Any]
# Stages of an earlier run, whose models of the same names have other weights; all others are of one run.
EARLIER = {
    *("draws", "draws-masking", "rounding", "rounding-ce"),
    *("rounding-signs", "rounding-ratio-ce", "rounding-trained", "rounding-stores"),
}


class Results:
    """What was measured, by name of the stage; None where it was not."""

    def __init__(self, folder: Path) -> None:
        self.files = {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}
        self.run = self.files.pop("run", {"seconds": {}, "machine": "–"})

    def target(self, name: str, *stages: str) -> Json | None:
        """The measurements of a target, from the first stage that has it."""
        return self._found("targets", name, stages)

    def model(self, name: str, *stages: str) -> Json | None:
        """The diagnosis of a model, likewise."""
        return self._found("models", name, stages)

    def seeds(self, name: str, *stages: str, key: str = "targets") -> list[Json]:
        """The measurements of NAME and of NAME.SEED, for all seeds; diagnoses where the key is models."""
        names = {n for s in stages for n in self.files.get(s, {}).get(key, {})}
        members = sorted(n for n in names if is_seed(n, name))
        return [row for member in members if (row := self._found(key, member, stages)) is not None]

    def _found(self, key: str, name: str, stages: Iterable[str]) -> Json | None:
        rows = (self.files.get(stage, {}).get(key, {}).get(name) for stage in stages)
        return next((row for row in rows if row is not None), None)


def is_seed(name: str, of: str) -> bool:
    """Whether a name is NAME, or NAME.SEED."""
    return name == of or (name.startswith(f"{of}.") and name[len(of) + 1 :].isdigit())


def by_name(rates: Json, attack: str) -> Json | None:
    """The rate of an attack of that name, whatever its loss."""
    return next((rate for label, rate in rates.items() if label.partition(":")[0] == attack), None)


def clean(row: Json) -> float:
    """Error on images that nobody perturbed."""
    return float(row["clean"]["error"])


def fgsm(row: Json) -> float:
    """White-box FGSM error."""
    return float((by_name(row["white_box"], "fgsm") or {})["error"])


def r_fgsm(row: Json) -> float:
    """White-box R+FGSM error."""
    return float((by_name(row["white_box"], "r-fgsm") or {})["error"])


def worst(row: Json) -> float:
    """Error under the strongest transferred attack."""
    return float(row["worst_black_box"]["error"])


def mean(row: Json) -> float:
    """Mean error over the transferred attacks."""
    return float(row["mean_black_box"])
