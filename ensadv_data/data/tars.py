"""WebDataset tars: ``ROOT/SPLIT/*.tar``, members of one key beside each other, an image and a class number among them.

Only headers are read to index a tar: of each sample the place of its image, so that rows can be read at random. A
sample is ``KEY.EXT`` members: one of jpg, jpeg, png or webp, and ``cls`` with a number in ASCII; other members are left
alone, and nothing is ever unpacked. The canonical order is that of the sorted tars and of the members in each.
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import numpy.typing as npt

from ensadv_data.data.listing import Blob, Entries, find_split, index_path, kept_table, name_at, split_folder, stamp_of
from ensadv_data.data.tables import Table
from ensadv_data.errors import DataError, IntegrityError
from ensadv_data.untrusted import quoted

__all__ = ["Tars", "open_tars", "samples_of"]

_IMAGES = ("jpg", "jpeg", "png", "webp")
_LABEL = "cls"
_MOST_DIGITS = 7
_END = bytes(1024)  # two empty blocks
_HEADER = 1 << 20  # bytes that are read of a header, extended ones included


@dataclass(frozen=True)
class Tars:
    """A :class:`~ensadv_data.data.listing.Listing` of samples in tars."""

    root: Path  # of the split
    index: Path
    table: Table
    classes: int

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.table.arrays["ends"])

    @property
    def labels(self) -> npt.NDArray[np.int32]:
        """Class of each sample."""
        return self.table.arrays["label"]

    @property
    def digest(self) -> str:
        """Of keys, places, sizes and times."""
        return self.table.digest

    def name(self, row: int) -> str:
        """The tar, and the member in it."""
        shard, _, _ = self._shard(row)
        return f"{shard}/{os.fsdecode(name_at(self.table, row))}"

    def stamp(self, row: int) -> int:
        """Of the member's place, and of the tar's size and time."""
        return stamp_of(self.name(row), *self.table.arrays["place"][row].tolist(), *self._shard(row)[1:])

    def blob(self, row: int, most: int) -> Blob:
        """Read a member; see :meth:`Listing.blob`."""
        shard, *about = self._shard(row)
        offset, size = (int(number) for number in self.table.arrays["place"][row])
        with (self.root / shard).open("rb") as file:
            now = os.fstat(file.fileno())
            data = os.pread(file.fileno(), min(size, most + 1), offset)
        return Blob(data, [now.st_size, now.st_mtime_ns] != about)

    def _shard(self, row: int) -> tuple[str, int, int]:
        name, size, mtime = self.table.about["shards"][int(self.table.arrays["shard"][row])]
        return str(name), int(size), int(mtime)


def open_tars(root: Path, split: str, *, home: Path | None = None) -> Tars:
    """List the samples of a split's tars, or read the list that was kept.

    Parameters
    ----------
    home
        Folder of the index; this user's cache unless given.

    Raises
    ------
    DataError
        There is no tar, one is damaged, or a sample has no image or no class; the message names tar and key.
    IntegrityError
        A tar changed since it was indexed.
    """
    folder = split_folder(root, split)
    path, table = _table(root, split, folder, home)
    highest = [int(table.about["highest"])]
    other = "test" if split == "train" else "train"
    beside = find_split(root, other)
    if beside is not None:  # the number of classes is that of both
        highest.append(int(_table(root, other, beside, home)[1].about["highest"]))
    return Tars(folder, path, table, max(highest) + 1)


def _table(root: Path, split: str, folder: Path, home: Path | None) -> tuple[Path, Table]:
    tars = sorted(folder.glob("*.tar"))
    if not tars:
        raise DataError(f"{folder}: expected .tar files, uncompressed, found none")
    shards = [[tar.name, tar.stat().st_size, tar.stat().st_mtime_ns] for tar in tars]
    path = index_path(home, f"{root.resolve().name}-{split}", "wds", str(folder.resolve())).with_suffix(".index")
    table = kept_table(path)
    if table is None:
        entries, highest = Entries.none(), 0
        for number, tar in enumerate(tars):
            found = list(samples_of(tar))
            entries.add(found, shard=number)
            highest = max([highest, *(label for _, label, *_ in found)])
        if not entries.names:
            raise DataError(f"{folder}: expected samples in the tars, found none")
        return path, entries.write(path, {"shards": shards, "highest": highest, "root": str(folder.resolve())})
    before = {name: about for name, *about in table.about["shards"]}
    now: dict[str, list[Any]] = {str(name): about for name, *about in shards}
    for name in sorted({*before, *now}):
        if before.get(name) != now.get(name):
            state = "is new" if name not in before else "is gone" if name not in now else "changed"
            raise IntegrityError(
                f"{folder}: {name} {state} since it was indexed; if that is meant, delete {path} and run the same "
                "command again"
            )
    return path, table


class _Headers:
    """A tar's file, of which headers are read and nothing else: an extended one that says it is large is refused."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int = -1) -> bytes:
        """So many bytes from here on."""
        if not 0 <= size <= _HEADER:
            raise tarfile.ReadError(f"a header of {size:,} bytes")
        return self._file.read(size)


def _members(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """The members but folders, none of them kept."""
    while (member := tar.next()) is not None:
        tar.members.clear()  # type: ignore[attr-defined]
        if member.size < 0:  # the next one would be before it
            raise tarfile.ReadError(f"a member of {member.size:,} bytes")
        if not member.isdir():
            yield member


def samples_of(path: Path) -> Iterator[tuple[bytes, int, int, int]]:
    """Name of the image's member, class, offset and size of the image, for each sample of a tar.

    Raises
    ------
    DataError
        It is no whole uncompressed tar of such samples.
    """
    seen = set[str]()
    try:
        with path.open("rb") as file, tarfile.open(fileobj=cast(BinaryIO, _Headers(file)), mode="r:") as tar:
            size = os.fstat(file.fileno()).st_size
            if os.pread(file.fileno(), len(_END), max(0, size - len(_END))) != _END:
                raise DataError(f"{path}: expected a whole tar, got one without an end; copy it again")
            for key, group in groupby(_members(tar), key=lambda member: _key(member.name)[0]):
                sample = {_key(member.name)[1]: _regular(path, member) for member in group}
                if key in seen:
                    raise DataError(f"{path}: expected the members of {quoted(key)} beside each other, got them apart")
                seen.add(key)
                images = [name for name in _IMAGES if name in sample]
                if len(images) != 1 or _LABEL not in sample:
                    raise DataError(
                        f"{path}: {quoted(key)}: expected one image ({', '.join(_IMAGES)}) and its class ({_LABEL}), "
                        f"got {quoted(', '.join(sorted(sample)))}"
                    )
                image, label = sample[images[0]], sample[_LABEL]
                text = os.pread(file.fileno(), min(label.size, 64), label.offset_data).strip()
                if not text.isdigit() or len(text) > _MOST_DIGITS:
                    raise DataError(f"{path}: {quoted(key)}.{_LABEL}: expected a class from 0 on, got {text[:20]!r}")
                yield os.fsencode(image.name), int(text), image.offset_data, image.size
    except (tarfile.TarError, OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: expected an uncompressed tar that can be read, got: {quoted(error)}") from None


def _key(name: str) -> tuple[str, str]:
    """Key and extension: a name's last part is divided at its first dot."""
    folder, slash, last = name.rpartition("/")
    stem, _, extension = last.partition(".")
    return f"{folder}{slash}{stem}", extension.lower()


def _regular(path: Path, member: tarfile.TarInfo) -> tarfile.TarInfo:
    if not member.isreg() or member.issparse():
        raise DataError(f"{path}: {quoted(member.name)}: expected regular members only, got a link or something else")
    return member
