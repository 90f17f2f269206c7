"""Class folders of image files: ``ROOT/SPLIT/CLASS/FILE``; the sorted relative paths are the canonical order.

Every file of a class folder whose name does not begin with a dot is an example; what cannot be decoded is a bad image.
The index knows the size and the time of each file, and the time of each class folder, so that a change is noticed:
files that came or went when the data set is opened, others when they are read.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ensadv_data.data.listing import (
    Blob,
    Entries,
    Tabled,
    find_split,
    index_path,
    kept_table,
    name_at,
    split_folder,
    stamp_of,
)
from ensadv_data.data.tables import Table
from ensadv_data.errors import DataError, IntegrityError

__all__ = ["Folder", "open_folder"]


@dataclass(frozen=True)
class Folder(Tabled):
    """A :class:`~ensadv_data.data.listing.Listing` of files."""

    root: Path  # of the split
    index: Path
    table: Table

    @property
    def classes(self) -> int:
        """Number of class folders."""
        return len(self.table.about["folders"])

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the class folders, sorted by their bytes: the position of each is its label."""
        return tuple(self.table.about["folders"])

    def name(self, row: int) -> str:
        """Path below the split's folder."""
        return os.fsdecode(name_at(self.table, row))

    def stamp(self, row: int) -> int:
        """Of path, size and time."""
        return stamp_of(self.name(row), *self.table.arrays["place"][row].tolist())

    def blob(self, row: int, most: int) -> Blob:
        """Read a file; see :meth:`Listing.blob`."""
        size, mtime = (int(number) for number in self.table.arrays["place"][row])
        with (self.root / self.name(row)).open("rb") as file:
            now = os.fstat(file.fileno())
            data = file.read(most + 1)
        return Blob(data, (now.st_size, now.st_mtime_ns) != (size, mtime))


def open_folder(root: Path, split: str, *, home: Path | None = None) -> Folder:
    """List the files of a split, or read the list that was kept.

    Parameters
    ----------
    home
        Folder of the index; this user's cache unless given.

    Raises
    ------
    DataError
        There is no such folder, no class folder, no image, or the class folders of train and test differ.
    IntegrityError
        Files came or went since the folder was indexed; the message names the first.
    """
    folder = split_folder(root, split)
    folders = _class_folders(folder)
    _check_classes(root, split, list(folders))
    path = index_path(home, f"{root.resolve().name}-{split}", "folder", str(folder.resolve())).with_suffix(".index")
    table = kept_table(path)
    if table is None:
        about = {"folders": folders, "root": str(folder.resolve())}
        entries = Entries.none()
        classes = list(folders)
        for name in sorted(classes, key=lambda name: os.fsencode(name) + b"/"):  # as the whole paths are sorted
            entries.add((file, classes.index(name), size, time) for file, size, time in _files(folder, name))
        if not entries.names:
            raise DataError(f"{folder}: expected JPEG, PNG or WebP files in class folders, found none")
        table = entries.write(path, about)
    elif table.about["folders"] != folders:
        _refuse_changes(folder, table, folders, path)
    return Folder(folder, path, table)


def _class_folders(folder: Path) -> dict[str, int]:
    """Class folders and their times in ns, sorted by the bytes of their names."""
    with os.scandir(folder) as entries:
        found = {one.name: one.stat().st_mtime_ns for one in entries if one.is_dir() and not one.name.startswith(".")}
    if len(found) < 2:
        raise DataError(f"{folder}: expected two class folders or more, each with its images, found {len(found)}")
    return dict(sorted(found.items(), key=lambda item: os.fsencode(item[0])))


def _check_classes(root: Path, split: str, classes: list[str]) -> None:
    other = "test" if split == "train" else "train"
    folder = find_split(root, other)
    if folder is None:
        return
    theirs = list(_class_folders(folder))
    if theirs != classes:
        only = sorted(set(classes) ^ set(theirs))[0]
        where = split if only in classes else other
        raise DataError(
            f"{root}: expected the same class folders in train and test, got {only!r} only in {where}; add "
            "an empty one, or take it away: a label is a folder's position"
        )


def _files(folder: Path, name: str) -> Iterator[tuple[bytes, int, int]]:
    """Relative path, size and time of each file of a class folder, sorted."""
    found = []
    with os.scandir(folder / name) as entries:
        for one in entries:
            if one.name.startswith("."):
                continue
            about = one.stat()
            if not stat.S_ISREG(about.st_mode):
                raise DataError(f"{one.path}: expected a file in a class folder, got something else; move it away")
            found.append((os.fsencode(f"{name}/{one.name}"), about.st_size, about.st_mtime_ns))
    yield from sorted(found)


def _refuse_changes(folder: Path, table: Table, folders: dict[str, int], index: Path) -> None:
    """Compare the class folders whose times changed with the index; only a file that came or went is refused."""
    before: dict[str, Any] = table.about["folders"]
    remedy = f"if that is meant, delete {index} and run the same command again"
    for name in sorted({*before} ^ {*folders}):
        state = "is new" if name in folders else "is gone"
        raise IntegrityError(f"{folder}: class folder {name!r} {state} since it was indexed; {remedy}")
    labels, classes = table.arrays["label"], list(folders)
    for name in (name for name in folders if folders[name] != before[name]):
        rows = np.flatnonzero(labels == classes.index(name))
        indexed = {name_at(table, int(row)) for row in rows}
        now = {path for path, *_ in _files(folder, name)}
        for path in sorted(indexed ^ now):
            state = "is new" if path in now else "is gone"
            raise IntegrityError(f"{folder}: {os.fsdecode(path)} {state} since it was indexed; {remedy}")
