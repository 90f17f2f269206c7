"""The state of a training in the middle: one file of tensors, which says what run it belongs to."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from ensadv_data.errors import OutputError
from ensadv_data.files import write_atomic

__all__ = ["read_checkpoint", "write_checkpoint"]


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
