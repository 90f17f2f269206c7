"""Arrays by name in one file that is whole or absent, read as memory maps: what is not asked for is not in memory.

    one line of JSON: {"about": {…}, "arrays": {NAME: [dtype, shape, offset]}, "bytes": B, "sha256": HEX} and spaces
    B bytes: the arrays in C order, little-endian, each at its offset, a multiple of 64

The line is padded so that the arrays begin at a multiple of 64 as well. The SHA-256 is of the B bytes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ensadv_data.errors import IntegrityError
from ensadv_data.files import write_atomic

__all__ = ["Table", "read_table", "write_table"]

_ALIGN = 64


@dataclass(frozen=True)
class Table:
    """What a file holds: JSON about it, its arrays as read-only memory maps, and the SHA-256 of their bytes."""

    about: Mapping[str, Any]
    arrays: Mapping[str, npt.NDArray[Any]]
    digest: str


def write_table(path: Path, about: Mapping[str, Any], arrays: Mapping[str, npt.NDArray[Any]]) -> Table:
    """Write a table and read it back.

    Raises
    ------
    OutputError
        The folder cannot be written.
    """
    places: dict[str, tuple[str, list[int], int]] = {}
    parts, at, digest = [], 0, hashlib.sha256()
    for name, array in arrays.items():
        whole = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
        data = memoryview(whole.reshape(-1).view(np.uint8).data)
        places[name] = (whole.dtype.str, list(whole.shape), at)
        for part in (data, memoryview(bytes(-len(data) % _ALIGN))):
            parts.append(part)
            digest.update(part)
            at += len(part)
    head = json.dumps({"about": dict(about), "arrays": places, "bytes": at, "sha256": digest.hexdigest()})
    line = head.encode()
    write_atomic(path, line + b" " * (-(len(line) + 1) % _ALIGN) + b"\n", *parts)
    return read_table(path)


def read_table(path: Path) -> Table:
    """Read a table, and compare its bytes with their digest.

    Raises
    ------
    IntegrityError
        It is damaged.
    FileNotFoundError
        There is none.
    """
    with path.open("rb") as file:
        line = file.readline()
        start, digest, read = len(line), hashlib.sha256(), 0
        while part := file.read(2**20):  # not through the map: its pages would count as this process's
            digest.update(part)
            read += len(part)
    try:
        head = json.loads(line)
        if (read, digest.hexdigest()) != (head["bytes"], head["sha256"]):
            raise ValueError("its bytes are others than its digest's")
        whole = np.memmap(path, np.uint8, "r", offset=start, shape=(read,)) if read else np.empty(0, np.uint8)
        arrays = {
            name: whole[at : at + int(np.dtype(dtype).itemsize * np.prod(shape, dtype=np.int64))]
            .view(dtype)
            .reshape(shape)
            for name, (dtype, shape, at) in head["arrays"].items()
        }
        return Table(head["about"], arrays, head["sha256"])
    except (ValueError, KeyError, TypeError) as error:
        raise IntegrityError(f"{path}: expected an index of images, got a damaged one ({error}); delete it") from None
