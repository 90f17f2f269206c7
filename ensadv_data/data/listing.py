"""What lies where: the names, labels and places of encoded images, listed once and kept in a file.

A listing has, for N images in canonical order,

    names     uint8 (B,)     all names one after the other, as the file system's bytes
    ends      int64 (N,)     where each name ends
    label     int32 (N,)     class, in [0, classes)
    place     int64 (N, 2)   of a folder: size of the file, and its mtime in ns; of tars: offset and size in one
    shard     int32 (N,)     of tars: which one

All of it is memory-mapped: an image whose row is not asked for takes no memory.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from ensadv_data.data.fetch import cache_home
from ensadv_data.data.tables import Table, read_table, write_table
from ensadv_data.errors import DataError

__all__ = [
    "SPLIT_FOLDERS",
    "Blob",
    "Entries",
    "Listing",
    "Tabled",
    "find_split",
    "index_path",
    "kept_table",
    "name_at",
    "no_split",
    "only_split",
    "split_folder",
    "stamp_of",
]

P = TypeVar("P")

# A data set of one's own has a folder for each split; ImageNet's test labels are not public: val stands for them.
SPLIT_FOLDERS: Mapping[str, tuple[str, ...]] = {"train": ("train",), "test": ("test", "val")}


class Blob(NamedTuple):
    """The bytes of one encoded image, and whether they may be others than when they were listed."""

    data: bytes
    changed: bool


class Tabled:
    """What a listing's table tells of all its images."""

    table: Table

    def __len__(self) -> int:
        """Number of images."""
        return len(self.table.arrays["ends"])

    @property
    def labels(self) -> npt.NDArray[np.int32]:
        """Class of each image."""
        return self.table.arrays["label"]

    @property
    def digest(self) -> str:
        """Of names and places, sizes and times."""
        return self.table.digest


class Listing(Protocol):
    """Encoded images of one split in canonical order."""

    @property
    def classes(self) -> int: ...  # noqa: D102
    @property
    def labels(self) -> npt.NDArray[np.int32]: ...  # noqa: D102
    @property
    def digest(self) -> str: ...  # noqa: D102
    @property
    def index(self) -> Path: ...  # noqa: D102

    def __len__(self) -> int: ...

    def name(self, row: int) -> str:
        """What to call an image in a message, relative to the data set."""
        ...

    def stamp(self, row: int) -> int:
        """64 bits of name, size and time, by which an image is known again in another listing."""
        ...

    def blob(self, row: int, most: int) -> Blob:
        """Read an image, unless it has more than ``most`` bytes.

        Raises
        ------
        OSError
            It cannot be read.
        """
        ...


@dataclass
class Entries:
    """Names, labels and places as they are found, without an object for each."""

    names: bytearray
    ends: list[npt.NDArray[np.int64]]
    labels: list[npt.NDArray[np.int32]]
    places: list[npt.NDArray[np.int64]]
    shards: list[npt.NDArray[np.int32]]

    @classmethod
    def none(cls) -> Entries:
        """No entries yet."""
        return cls(bytearray(), [], [], [], [])

    def add(self, rows: Iterable[tuple[bytes, int, int, int]], *, shard: int = 0) -> None:
        """Names with their labels and two numbers of their places, in canonical order."""
        found = list(rows)
        sizes = np.array([len(name) for name, *_ in found], np.int64)
        self.ends.append(len(self.names) + np.cumsum(sizes))
        self.names += b"".join(name for name, *_ in found)
        self.labels.append(np.array([label for _, label, *_ in found], np.int32))
        self.places.append(np.array([(a, b) for *_, a, b in found], np.int64).reshape(-1, 2))
        self.shards.append(np.full(len(found), shard, np.int32))

    def write(self, path: Path, about: dict[str, Any]) -> Table:
        """Keep them; raises as :func:`~ensadv_data.data.tables.write_table` does."""
        arrays: dict[str, npt.NDArray[Any]] = {
            "names": np.frombuffer(bytes(self.names), np.uint8),
            "ends": np.concatenate([np.empty(0, np.int64), *self.ends]),
            "label": np.concatenate([np.empty(0, np.int32), *self.labels]),
            "place": np.concatenate([np.empty((0, 2), np.int64), *self.places]),
            "shard": np.concatenate([np.empty(0, np.int32), *self.shards]),
        }
        return write_table(path, about, arrays)


def name_at(table: Table, row: int) -> bytes:
    """The name of one image."""
    ends = table.arrays["ends"]
    return table.arrays["names"][int(ends[row - 1]) if row else 0 : int(ends[row])].tobytes()


def stamp_of(*about: Any) -> int:
    """64 bits of the SHA-256 of what tells one image from another."""
    return int.from_bytes(hashlib.sha256(json.dumps(about).encode()).digest()[:8], "little")


def kept_table(path: Path) -> Table | None:
    """A table that was kept; None where there is none yet."""
    try:
        return read_table(path)
    except FileNotFoundError:
        return None


def index_path(home: Path | None, what: str, *parts: Any) -> Path:
    """Where an index is kept: in ``home``, else in this user's cache; the name says what it is of.

    ``parts``, as JSON, tell one index from another.
    """
    key = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
    return (home or cache_home() / "indexes") / f"{what}-{key}"


def find_split(root: Path, split: str, known: Mapping[str, tuple[str, ...]] = SPLIT_FOLDERS) -> Path | None:
    """The folder of a split: ``train``; ``test`` or ``val``; None where there is none.

    Raises
    ------
    DataError
        There are both of two.
    """
    return only_split(root, split, [root / name for name in known[split] if os.path.isdir(root / name)], known)


def only_split(
    root: Path | str, split: str, found: Sequence[P], known: Mapping[str, tuple[str, ...]] = SPLIT_FOLDERS
) -> P | None:
    """The one place that was found for a split; None where none was. Raises as :func:`find_split` does."""
    if len(found) > 1:
        wanted = " or ".join(f"{name}/" for name in known[split])
        raise DataError(f"{root}: expected {wanted} with the images of split {split!r}, got both; move one away")
    return found[0] if found else None


def split_folder(root: Path, split: str, known: Mapping[str, tuple[str, ...]] = SPLIT_FOLDERS) -> Path:
    """The folder of a split.

    Raises
    ------
    DataError
        There is none, or there are both of two.
    """
    folder = find_split(root, split, known)
    if folder is None:
        raise no_split(root, split, known)
    return folder


def no_split(root: Path | str, split: str, known: Mapping[str, tuple[str, ...]] = SPLIT_FOLDERS) -> DataError:
    """What to say where a split is missing."""
    wanted = " or ".join(f"{name}/" for name in known[split])
    beside = " (and, behind a web server, a list shards.txt in it)" if str(root).startswith("http") else ""
    return DataError(f"{root}: expected a folder {wanted} with the images of split {split!r}{beside}, found none")
