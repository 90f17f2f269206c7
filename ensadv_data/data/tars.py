"""WebDataset tars: ``ROOT/SPLIT/*.tar``, members of one key beside each other, an image and a class number among them.

Only headers are read to index a tar: of each sample the place of its image, so that rows can be read at random. A
sample is ``KEY.EXT`` members: one of jpg, jpeg, png or webp, and ``cls`` with a number in ASCII; other members are left
alone, and nothing is ever unpacked. The canonical order is that of the sorted tars and of the members in each.

``ROOT`` may be a URL. A bucket is asked what it has; behind a web server a list stands beside the tars, ``shards.txt``
with a name a line.
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import BinaryIO, cast

from ensadv_data.data.listing import SPLIT_FOLDERS, find_split, no_split, only_split
from ensadv_data.data.packed import Packed, Sample, Shards, opened_shard, packed_table, shard_size, shards_of
from ensadv_data.data.tables import Table
from ensadv_data.errors import DataError
from ensadv_data.objects import far_objects
from ensadv_data.untrusted import quoted

__all__ = ["open_tars", "samples_of"]

_IMAGES = ("jpg", "jpeg", "png", "webp")
_LABEL = "cls"
_MOST_DIGITS = 7
_END = bytes(1024)  # two empty blocks
_HEADER = 1 << 20  # bytes that are read of a header, extended ones included


def open_tars(root: Path | str, split: str, *, home: Path | None = None) -> Packed:
    """List the samples of a split's tars, or read the list that was kept.

    Parameters
    ----------
    root
        A folder, or a URL.
    home
        Folder of the index; this user's cache unless given.

    Raises
    ------
    DataError
        There is no tar, one is damaged, or a sample has no image or no class; the message names tar and key.
    IntegrityError
        A tar changed since it was indexed.
    InputError
        A URL cannot be reached.
    """
    place = _split(root, split)
    if place is None:
        raise no_split(root, split)
    path, table = _table(place, root, split, home)
    highest = [int(table.about["highest"])]
    other = "test" if split == "train" else "train"
    beside = _split(root, other)
    if beside is not None:  # the number of classes is that of both
        highest.append(int(_table(beside, root, other, home)[1].about["highest"]))
    return Packed(place, path, table, max(highest) + 1)


def _split(root: Path | str, split: str) -> Shards | None:
    """Where the tars of a split are."""
    if isinstance(root, Path):
        return find_split(root, split)
    places = [far_objects(f"{root.rstrip('/')}/{name}") for name in SPLIT_FOLDERS[split]]
    return only_split(root, split, [place for place in places if shards_of(place, ".tar")])


def _table(place: Shards, root: Path | str, split: str, home: Path | None) -> tuple[Path, Table]:
    names = shards_of(place, ".tar")
    if not names:
        raise DataError(f"{place}: expected .tar files, uncompressed, found none")
    what = root.resolve().name if isinstance(root, Path) else Path(root).name
    return packed_table(place, f"{what}-{split}", "wds", names, partial(_listed, place), home=home)


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


def _listed(place: Shards, name: str) -> list[Sample]:
    where = f"{place}/{name}"
    try:
        with opened_shard(place, name) as file:
            return list(samples_of(file, where))
    except OSError as error:
        raise DataError(f"{where}: expected an uncompressed tar that can be read, got: {quoted(error)}") from None


def samples_of(file: BinaryIO, where: str) -> Iterator[Sample]:
    """Each sample of an open tar.

    Raises
    ------
    DataError
        It is no whole uncompressed tar of such samples.
    """
    seen = set[str]()
    try:
        if _at(file, max(0, shard_size(file) - len(_END)), len(_END)) != _END:
            raise DataError(f"{where}: expected a whole tar, got one without an end; copy it again")
        with tarfile.open(fileobj=cast(BinaryIO, _Headers(file)), mode="r:") as tar:
            for key, group in groupby(_members(tar), key=lambda member: _key(member.name)[0]):
                sample = {_key(member.name)[1]: _regular(where, member) for member in group}
                if key in seen:
                    raise DataError(f"{where}: expected the members of {quoted(key)} beside each other, got them apart")
                seen.add(key)
                images = [name for name in _IMAGES if name in sample]
                if len(images) != 1 or _LABEL not in sample:
                    raise DataError(
                        f"{where}: {quoted(key)}: expected one image ({', '.join(_IMAGES)}) and its class ({_LABEL}), "
                        f"got {quoted(', '.join(sorted(sample)))}"
                    )
                image, label = sample[images[0]], sample[_LABEL]
                text = _at(file, label.offset_data, min(label.size, 64)).strip()
                if not text.isdigit() or len(text) > _MOST_DIGITS:
                    raise DataError(f"{where}: {quoted(key)}.{_LABEL}: expected a class from 0 on, got {text[:20]!r}")
                yield os.fsencode(image.name), int(text), image.offset_data, image.size
    except (tarfile.TarError, ValueError, OverflowError, RecursionError) as error:
        raise DataError(f"{where}: expected an uncompressed tar that can be read, got: {quoted(error)}") from None


def _at(file: BinaryIO, offset: int, size: int) -> bytes:
    """Some bytes of a file; where it is read next does not change."""
    here = file.tell()
    file.seek(offset)
    data = file.read(size)
    file.seek(here)
    return data


def _key(name: str) -> tuple[str, str]:
    """Key and extension: a name's last part is divided at its first dot."""
    folder, slash, last = name.rpartition("/")
    stem, _, extension = last.partition(".")
    return f"{folder}{slash}{stem}", extension.lower()


def _regular(path: str, member: tarfile.TarInfo) -> tarfile.TarInfo:
    if not member.isreg() or member.issparse():
        raise DataError(f"{path}: {quoted(member.name)}: expected regular members only, got a link or something else")
    return member
