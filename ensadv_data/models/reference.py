"""Loading a model from its reference."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import nn

from ensadv_data.errors import IntegrityError, ModelError
from ensadv_data.files import sha256_of_file
from ensadv_data.models.architectures import build_model
from ensadv_data.models.composite import COMPOSITES, leaves, members_of, split, with_leaves
from ensadv_data.models.timm_nets import HUB, build_timm, parse_timm, timm_config, weights_path
from ensadv_data.models.weights import fill_weights, matrix_digests, read_metadata, weights_digest

__all__ = [
    "Model",
    "load_model",
    "load_models",
    "module_files",
    "outside_file",
    "outside_files",
    "reference_name",
    "with_absolute_file",
]


@dataclass(frozen=True)
class Model:
    """A module with its name, where it came from, and the digest of its weights."""

    name: str
    module: nn.Module
    reference: str
    architecture: str
    digest: str
    record: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def parts(self) -> frozenset[str]:
        """Digests of the weights in it: its own, or those of a composite's members."""
        members = members_of(self.module)
        return frozenset([self.digest] if members == [self.module] else map(weights_digest, members))

    @cached_property
    def matrices(self) -> Mapping[str, int]:
        """Digest and number of values of each of its matrices: the same in a wrapper that somebody wrote around it."""
        return matrix_digests(self.module)

    def shares_weights(self, other: Model) -> bool:
        """Whether a composite's member, or a tenth of the values in the matrices of the smaller model, is the other's.

        Less may be what models of one kind have in common: an embedding of positions, a mean and a deviation.
        """
        smaller = min(sum(each.matrices.values()) for each in (self, other))
        both = sum(size for digest, size in self.matrices.items() if digest in other.matrices)
        return bool(self.parts & other.parts) or 10 * both >= smaller > 0


def load_model(
    reference: str,
    *,
    name: str | None = None,
    device: str = "cpu",
    known: Mapping[str, Model] | None = None,
    hub: bool = True,
) -> Model:
    """Load the model that ``reference`` names, in evaluation mode.

    Parameters
    ----------
    known
        Models that need not be loaded, by reference; also of the members of a composite.
    hub
        Whether weights that lie on the hub are asked for; else such a model is untrained, of the same size, with a
        record of the same length.

    Raises
    ------
    ModelError
        It cannot be found or loaded, or is not a torch.nn.Module; the message says what was expected.
    UnknownNameError
        The file names an architecture that this version does not have.
    IntegrityError
        The weights are not those whose digest the file names.
    """
    record: Mapping[str, Any] = {}
    if known and reference in known:
        return replace(known[reference], name=name or known[reference].name)
    composite, members = split(reference)
    if composite:
        return _from_members(
            composite, members, reference, name=name or reference_name(reference), device=device, known=known, hub=hub
        )
    kind, colon, rest = reference.partition(":")
    if colon and kind == "python":
        module, architecture = _from_python(rest), rest
    elif colon and kind == "timm":
        module, architecture, record = _from_timm(rest, hub=hub)
    else:
        module, architecture, record = _from_file(Path(reference))
    return Model(
        name=name or reference_name(reference),
        module=module.eval().to(device),
        reference=reference,
        architecture=architecture,
        digest=weights_digest(module),
        record=record,
    )


def load_models(roles: Sequence[Mapping[str, str]], *, device: str = "cpu") -> list[list[Model]]:
    """Load what several roles name, {name: reference} each; a reference is loaded once, however many names it has.

    Raises as :func:`load_model` does.
    """
    references = dict.fromkeys(reference for role in roles for reference in role.values())
    loaded = {reference: load_model(reference, device=device) for reference in references}
    return [[replace(loaded[reference], name=name) for name, reference in role.items()] for role in roles]


def _from_members(
    kind: str,
    references: list[str],
    whole: str,
    *,
    name: str,
    device: str,
    known: Mapping[str, Model] | None,
    hub: bool,
) -> Model:
    if not all(references):
        raise ModelError(f"expected {kind}:REF{'' if kind == 'binarised' else '+REF…'}, got {whole}")
    members = [load_model(reference, device=device, known=known, hub=hub) for reference in references]
    architectures = "+".join(member.architecture for member in members)
    return Model(
        name=name,
        module=COMPOSITES[kind]([member.module for member in members]).eval(),
        reference=whole,
        architecture=f"{kind}:{architectures}",
        digest=hashlib.sha256("|".join([kind, *(member.digest for member in members)]).encode()).hexdigest(),
        record={"members": [dict(member.record) for member in members]},
    )


def _from_file(path: Path) -> tuple[nn.Module, str, Mapping[str, Any]]:
    about = read_metadata(path)
    shape = tuple(about["shape"])
    module = build_model(about["architecture"], shape=shape, classes=about["classes"])
    fill_weights(module, path)
    if (found := weights_digest(module)) != about["digest"]:
        raise IntegrityError(
            f"{path}: expected weights of digest {about['digest']}, got {found}; the file is corrupted: copy it again"
        )
    return module, about["architecture"], about["record"]


def _from_python(rest: str) -> nn.Module:
    module_name, colon, factory_name = rest.partition(":")
    if not colon or not all(part.isidentifier() for part in [*module_name.split("."), factory_name]):
        raise ModelError(f"expected python:MODULE:FACTORY, got python:{rest}")
    try:
        factory = getattr(importlib.import_module(module_name), factory_name)
    except (ImportError, AttributeError) as error:
        raise ModelError(
            f"python:{rest}: {error}; is the module on the Python path? (add its folder to PYTHONPATH)"
        ) from None
    except Exception as error:  # the user's own module: whatever it raises
        raise ModelError(f"python:{rest}: importing {module_name} failed with {error!r}") from error
    try:
        module = factory() if callable(factory) and not isinstance(factory, nn.Module) else factory
    except Exception as error:
        raise ModelError(f"python:{rest}: the factory failed with {error!r}") from error
    if not isinstance(module, nn.Module):
        raise ModelError(
            f"python:{rest}: expected the factory to return a torch.nn.Module, got {type(module).__name__}"
        )
    return module


def _from_timm(rest: str, *, hub: bool) -> tuple[nn.Module, str, Mapping[str, Any]]:
    asked = parse_timm(rest)
    module = build_timm(asked.name, shape=None, classes=asked.classes)
    config, record = timm_config(asked.name), dict[str, Any]()
    module.resize = asked.resize
    if asked.weights is not None:
        sha256 = "0" * 64
        if hub or asked.weights != HUB:
            path = weights_path(asked)
            offset = {str(config.get("classifier")): int(config.get("label_offset") or 0)}
            fill_weights(module.inner, path, architecture=f"timm:{asked.name}", first=offset)
            sha256 = sha256_of_file(path)
        size = tuple(config.get("input_size", ()))[1:]
        module.only = size if size and asked.resize is None and not asked.any_size else None
        record = {"weights": HUB if asked.weights == HUB else "file", "sha256": sha256}
    if asked.resize is not None:
        record["resize"] = f"bilinear to {asked.resize}×{asked.resize}, inside the model"
    return module, asked.architecture, record


def reference_name(reference: str) -> str:
    """What a model is called that nobody gave a name: after its file, or after its members and how they are joined."""
    return with_leaves(reference, lambda leaf: Path(leaf).stem)


def outside_file(reference: str) -> str | None:
    """The file that a reference reads its weights from; None where it reads none, or another thing than a file."""
    kind, colon, rest = reference.partition(":")
    if colon and kind == "timm":
        weights = parse_timm(rest).weights
        return None if weights == HUB else weights
    return None if colon and kind == "python" else reference


def outside_files(references: Iterable[str]) -> list[str]:
    """The files that references read weights from, those of a composite's members too; see :func:`outside_file`."""
    files = (outside_file(leaf) for reference in references for leaf in leaves(reference))
    return [file for file in files if file is not None]


def module_files(references: Iterable[str]) -> list[str]:
    """The files of the modules that references ``python:MODULE:NAME`` name, as far as they can be found."""
    files = []
    for leaf in (leaf for reference in references for leaf in leaves(reference)):
        kind, _, rest = leaf.partition(":")
        if kind == "python":
            with suppress(Exception):  # it imports the packages around it; loading it says what is wrong
                found = importlib.util.find_spec(rest.partition(":")[0])
                if found is not None and found.origin is not None:
                    files.append(found.origin)
    return files


def with_absolute_file(reference: str) -> str:
    """The same reference for a process with another working folder."""
    file = outside_file(reference)
    if file is None:
        return reference
    absolute = str(Path(file).absolute())
    if not reference.startswith("timm:"):
        return absolute
    return ",".join(f"weights={absolute}" if part == f"weights={file}" else part for part in reference.split(","))
