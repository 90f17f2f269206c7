"""Encoded images inside larger files: each is so many bytes of one of a split's files, beginning somewhere.

The files lie in a folder, or below a URL: then each image is a request for its bytes alone, and nothing is kept of it.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from ensadv_data.data.listing import Blob, Entries, Tabled, index_path, kept_table, name_at, stamp_of
from ensadv_data.data.photographs import mapped
from ensadv_data.data.tables import Table
from ensadv_data.errors import DataError, IntegrityError
from ensadv_data.objects import AT_ONCE, Far, Web

__all__ = ["Packed", "Sample", "Shards", "opened_shard", "packed_table", "shard_size", "shards_of"]

LIST = "shards.txt"  # beside the shards of a web server, which does not list its folders
_MOST_LIST = 2**24  # bytes of it
_READ = 2**21  # bytes of a far file that are asked for at once

Sample = tuple[bytes, int, int, int]  # name, class, and offset and size of the image in its file
Shards = Path | Far  # where they are


@dataclass(frozen=True)
class Packed(Tabled):
    """A :class:`~ensadv_data.data.listing.Listing` of images in files."""

    root: Shards  # of the split
    index: Path
    table: Table
    classes: int

    def name(self, row: int) -> str:
        """The file, and what its image is called in it."""
        shard, *_ = self._shard(row)
        return f"{shard}/{os.fsdecode(name_at(self.table, row))}"

    def stamp(self, row: int) -> int:
        """Of the image's place, and of the file's size and time."""
        return stamp_of(self.name(row), *self.table.arrays["place"][row].tolist(), *self._shard(row)[1:])

    def blob(self, row: int, most: int) -> Blob:
        """Read an image; see :meth:`Listing.blob`. Whether a far file changed is asked when the data set is opened."""
        shard, *about = self._shard(row)
        offset, size = (int(number) for number in self.table.arrays["place"][row])
        if isinstance(self.root, Far):
            return Blob(self.root.part(shard, offset, min(size, most + 1)).tobytes() if size else b"", False)
        with (self.root / shard).open("rb") as file:
            now = os.fstat(file.fileno())
            data = os.pread(file.fileno(), min(size, most + 1), offset)
        return Blob(data, [now.st_size, now.st_mtime_ns] != about)

    def _shard(self, row: int) -> tuple[str, int, int | str]:
        name, size, state = self.table.about["shards"][int(self.table.arrays["shard"][row])]
        return str(name), int(size), state


def shards_of(root: Shards, suffix: str) -> list[str]:
    """Names of the files of a split, sorted.

    Raises
    ------
    DataError
        The list of a web server names something else than a file beside it.
    """
    if isinstance(root, Path):
        return sorted(path.name for path in root.glob(f"*{suffix}"))
    if not isinstance(root, Web):
        return sorted(key for key in root.keys("") if key.endswith(suffix) and "/" not in key)
    try:
        text = root.read_at_most(LIST, _MOST_LIST).decode()
    except FileNotFoundError:
        return []
    names = sorted({line.strip() for line in text.splitlines() if line.strip()})
    for name in names:
        if not name.endswith(suffix) or not name.isprintable() or set(name) & set("/\\?#%"):
            raise DataError(f"{root}/{LIST}: expected the names of {suffix} files beside it, one a line, got {name!a}")
    return names


def packed_table(
    root: Shards, what: str, kind: str, names: Sequence[str], found: Callable[[str], list[Sample]], *, home: Path | None
) -> tuple[Path, Table]:
    """The list of the images in some files, and where it is kept; it is read again unless they were listed before.

    Parameters
    ----------
    what
        Data set and split, for the name of the index.
    found
        The samples of one file.

    Raises
    ------
    DataError
        There is no sample, or as ``found`` raises it.
    IntegrityError
        A file changed since it was listed.
    """
    place = str(root) if isinstance(root, Far) else str(root.resolve())
    states = _states(root, names)
    path = index_path(home, what, kind, place).with_suffix(".index")
    table = kept_table(path)
    if table is None:
        entries, highest = Entries.none(), 0
        at_once = AT_ONCE if isinstance(root, Far) else 1
        for number, samples in enumerate(mapped(found, names, threads=at_once)):
            entries.add(samples, shard=number)
            highest = max([highest, *(label for _, label, *_ in samples)])
        if not entries.names:
            raise DataError(f"{root}: expected samples in the {Path(names[0]).suffix} files, found none")
        about = {"shards": [[name, *states[name]] for name in names], "highest": highest, "root": place}
        return path, entries.write(path, about)
    before = {name: tuple(about) for name, *about in table.about["shards"]}
    for name in sorted({*before, *states}):
        if before.get(name) != states.get(name):
            state = "is new" if name not in before else "is gone" if name not in states else "changed"
            raise IntegrityError(
                f"{root}: {name} {state} since it was indexed; if that is meant, delete {path} and run the same "
                "command again"
            )
    return path, table


def _states(root: Shards, names: Sequence[str]) -> dict[str, tuple[int, int | str]]:
    """Size of each file, and its time or its tag."""
    if isinstance(root, Far):
        states: dict[str, tuple[int, int | str]] = {**root.states(names)}
        for name in names:
            if name not in states:
                raise DataError(f"{root}/{name}: expected a file, found none; mend {root}/{LIST}")
        return states
    return {name: ((about := (root / name).stat()).st_size, about.st_mtime_ns) for name in names}


def shard_size(file: BinaryIO) -> int:
    """Bytes of an open file."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    return size


def opened_shard(root: Shards, name: str) -> BinaryIO:
    """A file to be read and sought in; of a far one a piece at a time is in memory."""
    if isinstance(root, Path):
        return (root / name).open("rb")
    size = root.sizes([name]).get(name)
    if size is None:
        raise FileNotFoundError(f"{root}/{name}")
    return cast(BinaryIO, io.BufferedReader(_Far(root, name, size), _READ))


class _Far(io.RawIOBase):
    """An object, read by requests for its parts."""

    def __init__(self, place: Far, key: str, size: int) -> None:
        self._place, self._key, self._size, self._at = place, key, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        count = max(0, min(len(buffer), self._size - self._at))
        if count:
            data = self._place.part(self._key, self._at, count)
            count = len(data)
            buffer[:count] = data.data
        self._at += count
        return count
