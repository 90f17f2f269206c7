"""What a training leaves on the disk: its state in the middle, in one file, and the record that it is known by."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn

from ensadv_data.data import Dataset
from ensadv_data.errors import ModelError, OutputError
from ensadv_data.files import write_atomic
from ensadv_data.manifest import read_manifest
from ensadv_data.models import Model, read_metadata
from ensadv_data.spec import TrainSpec

__all__ = ["digest_of_finished", "load_state", "read_checkpoint", "record_of", "state_of", "write_checkpoint"]


def state_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Every tensor of a model and its optimizer, by names that a checkpoint has."""
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": value for name, value in state.items()}
    return tensors


def load_state(model: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put back what :func:`state_of` took."""
    model.load_state_dict({k[6:]: v for k, v in tensors.items() if k.startswith("model.")})
    state: dict[int, dict[str, Tensor]] = {}
    for key in (key for key in tensors if key.startswith("optimizer.")):
        _, index, name = key.split(".")
        state.setdefault(int(index), {})[name] = tensors[key]
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def write_checkpoint(path: Path, tensors: Mapping[str, Tensor], *, number: int, record: Mapping[str, Any]) -> None:
    """Write tensors by name, whole or not at all.

    Parameters
    ----------
    number
        The step that comes next.
    record
        How the run came to be; only a run of an equal record reads the file.

    Raises
    ------
    OutputError
        It cannot be written.
    """
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    about = json.dumps({"number": number, "record": record}, sort_keys=True)
    write_atomic(path, save(whole, metadata={"ensadv_data": about}))


def read_checkpoint(path: Path, *, record: Mapping[str, Any]) -> tuple[int, dict[str, Tensor]] | None:
    """The step that comes next, and the tensors by name; None where there is no file.

    Raises
    ------
    OutputError
        The file is no checkpoint, or one of another run.
    """
    if not path.exists():
        return None
    try:
        with safe_open(str(path), framework="pt") as file:
            about = json.loads((file.metadata() or {})["ensadv_data"])
        tensors = load_file(str(path))
    except (SafetensorError, KeyError, ValueError, OSError) as error:
        raise OutputError(f"{path}: expected a checkpoint of ensadv-data: {error}; delete it to start anew") from None
    if about["record"] != record:
        raise OutputError(f"{path} is the checkpoint of another run; choose another --out, or delete it to start anew")
    return int(about["number"]), tensors


def record_of(
    spec: TrainSpec,
    dataset: Dataset,
    static: Sequence[Model],
    *,
    stores: Sequence[tuple[str, Iterable[str]]] | None = None,
) -> dict[str, Any]:
    """How the model comes to be: no paths, no times, so that equal runs give equal files.

    Parameters
    ----------
    stores
        Digest of each store of the spec, and its sources; None: as their manifests tell.

    Raises
    ------
    InputError
        A store has no manifest.
    """
    how = json.loads(spec.model_dump_json(exclude={"shards", "device"}))
    if static:
        how["static"] = {model.name: model.digest for model in static}
    if stores is None:
        manifests = [read_manifest(path) for path in spec.shards]
        stores = [(manifest.digest, [source.name for source in manifest.sources]) for manifest in manifests]
    how["shards"] = [{"digest": digest, "sources": sorted(sources)} for digest, sources in stores]
    data = {"name": dataset.name, "split": dataset.split, "n": len(dataset), "digest": dataset.digest}
    software = {name: version(name) for name in ("ensadv-data", "torch")}
    return {"training": how, "data": data, "device": torch.device(spec.device).type, "software": software}


def digest_of_finished(out: Path, record: Mapping[str, Any]) -> str | None:
    """The digest of the weights at ``out``, if they are of a run with this record; None where there is no file.

    Raises
    ------
    OutputError
        Something else is there.
    """
    if not out.exists():
        return None
    try:
        about = read_metadata(out)
    except ModelError:
        about = {"record": None}
    if about["record"] != record:
        raise OutputError(f"{out} exists and is not the model of this run; it was not touched: choose another --out")
    return str(about["digest"])
