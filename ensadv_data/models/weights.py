"""Weights on disk: safetensors whose metadata names the architecture and the training record."""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import nn

from ensadv_data.errors import ModelError
from ensadv_data.files import write_atomic
from ensadv_data.models.architectures import Shape

__all__ = ["fill_weights", "matrix_digests", "model_bytes", "read_metadata", "save_model", "weights_digest"]


def matrix_digests(module: nn.Module) -> dict[str, int]:
    """Of each parameter of two or more dimensions a SHA-256, whatever it is called, with the number of its values.

    Parameters that are one number all over are left out: they are alike in models that have nothing in common.
    """
    matrices = (weight.detach() for weight in module.parameters() if weight.dim() > 1 and weight.numel())
    told = (weight for weight in matrices if (weight != weight.flatten()[0]).any())
    return {_digest([("", weight)]): weight.numel() for weight in told}


def weights_digest(module: nn.Module) -> str:
    """SHA-256 over name, dtype, shape and bytes of every parameter and buffer, in order of their names."""
    return _digest(sorted(module.state_dict().items()))


def _digest(tensors: Iterable[tuple[str, torch.Tensor]]) -> str:
    digest = hashlib.sha256()
    for name, tensor in tensors:
        array = tensor.detach().cpu().contiguous()
        digest.update(f"{name}|{array.dtype}|{tuple(array.shape)}|".encode())
        digest.update(array.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def save_model(
    path: Path, module: nn.Module, *, architecture: str, shape: Shape, classes: int, record: Mapping[str, Any]
) -> str:
    """Write weights with their architecture and training record; the same model gives the same bytes.

    Returns
    -------
    str
        The digest of the weights.

    Raises
    ------
    OutputError
        The folder cannot be written.
    """
    data, digest = model_bytes(module, architecture=architecture, shape=shape, classes=classes, record=record)
    write_atomic(path, data)
    return digest


def model_bytes(
    module: nn.Module, *, architecture: str, shape: Shape, classes: int, record: Mapping[str, Any]
) -> tuple[bytes, str]:
    """The file that :func:`save_model` writes, and the digest of the weights."""
    digest = weights_digest(module)
    about = {
        "architecture": architecture,
        "shape": list(shape),
        "classes": classes,
        "digest": digest,
        "record": dict(record),
    }
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in module.state_dict().items()}
    # one key only: safetensors writes several in no fixed order
    return save(tensors, metadata={"ensadv_data": json.dumps(about, sort_keys=True)}), digest


def read_metadata(path: Path) -> dict[str, Any]:
    """Architecture, shape, classes and training record of a file of ours.

    Raises
    ------
    ModelError
        It is missing, or not a safetensors file of ours.
    """
    if not path.is_file():
        raise ModelError(
            f"expected a model at {path}, found no file; a reference is FILE.safetensors, timm:NAME[,weights=FILE] "
            "or python:MODULE:FACTORY"
        )
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
        about: dict[str, Any] = json.loads(metadata["ensadv_data"])
        for key in ("architecture", "shape", "classes", "digest", "record"):
            about[key]
    except (OSError, SafetensorError, KeyError, ValueError, TypeError) as error:
        raise ModelError(
            f"{path}: expected a safetensors file written by ensadv-data, got: {error!r}; "
            "use python:MODULE:FACTORY for a model of your own"
        ) from None
    return about


def fill_weights(
    module: nn.Module, path: Path, *, architecture: str = "", first: Mapping[str, int] | None = None
) -> None:
    """Load a safetensors file into a module that has exactly its tensors.

    Parameters
    ----------
    architecture
        What to call the module in a message.
    first
        Of layers by name: how many rows the file has before those of the module (a background class).

    Raises
    ------
    ModelError
        The file is missing or corrupted, or its tensors are others; the message names some of them.
    """
    what = f"the architecture {architecture}".rstrip()
    try:
        tensors = load_file(str(path))
        wanted = module.state_dict()
        for layer, rows in (first or {}).items():
            for key in (f"{layer}.weight", f"{layer}.bias"):
                if rows and key in tensors and key in wanted and len(tensors[key]) == len(wanted[key]) + rows:
                    tensors[key] = tensors[key][rows:].clone()
        differing = {
            "missing": sorted(wanted.keys() - tensors.keys()),
            "unexpected": sorted(tensors.keys() - wanted.keys()),
            "of another shape": [
                f"{key} {tuple(tensors[key].shape)} for {tuple(wanted[key].shape)}"
                for key in sorted(wanted.keys() & tensors.keys())
                if tensors[key].shape != wanted[key].shape
            ],
        }
        if any(differing.values()):
            told = "; ".join(
                f"{len(keys)} {how} ({', '.join(keys[:2])}{', …' if len(keys) > 2 else ''})"
                for how, keys in differing.items()
                if keys
            )
            raise ModelError(f"{path}: the weights do not fit {what}: tensors {told}; are they of another one?")
        module.load_state_dict(OrderedDict(tensors), strict=True)
    except (OSError, SafetensorError, RuntimeError) as error:
        raise ModelError(f"{path}: the weights do not fit {what}: {error}") from None
