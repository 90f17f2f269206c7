"""Copies of far objects on a disk of this machine, each checked when it arrives.

    DIR/AB/ABCD…                             an object's bytes under their own SHA-256

So the same object is there once, whichever store or process wanted it, and a copy can never be out of date. What was
used longest ago makes place.
"""

from __future__ import annotations

import hashlib
import os
import re
import threading
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ensadv_data.errors import ChunkError
from ensadv_data.files import naming_trouble, write_atomic
from ensadv_data.objects.base import Objects, Part

__all__ = ["Kept", "Shelf"]

_DIGEST = re.compile("[0-9a-f]{64}")


class Shelf:
    """A folder of copies. Any number of stores and processes may share it.

    Parameters
    ----------
    folder
        Where; made when the first store wants it.
    limit
        Bytes. One object is kept even where it is larger.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder, self.limit = folder, limit
        self.promised = 0  # bytes of the stores of this process that fit as a whole
        self._lock, self._held = threading.Lock(), -1  # -1: not looked at yet

    def prepare(self) -> None:
        """Make the folder, before anything is fetched for it.

        Raises
        ------
        OutputError
            A file is in its place, or none can be made there.
        """
        with naming_trouble(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)

    def promise(self, size: int) -> bool:
        """Whether a store of so many bytes fits beside those that were promised room before."""
        fits = self.promised + size <= self.limit
        self.promised += size if fits else 0
        return fits

    def path(self, digest: str) -> Path:
        """Where the copy of an object is, or would be."""
        return self.folder / digest[:2] / digest

    def put(self, digest: str, data: bytes) -> None:
        """Keep a copy; what was used longest ago goes, if it must.

        Raises
        ------
        OutputError
            The disk is full, or the folder cannot be written.
        """
        with self._lock:
            held = self._sum() if self._held < 0 else self._held
            if held + len(data) > self.limit:  # others may have put copies there, or taken some away
                held = self._make_room(len(data))
            write_atomic(self.path(digest), data)
            self._held = held + len(data)

    def drop(self, digest: str) -> None:
        """Give up a copy that has gone bad."""
        with suppress(FileNotFoundError):
            self.path(digest).unlink()

    def _copies(self) -> list[tuple[float, int, Path]]:
        """When each was last used, its bytes, and the file; files that are not copies are none of ours."""
        found = []
        for path in self.folder.glob("[0-9a-f][0-9a-f]/*"):
            if _DIGEST.fullmatch(path.name) and path.name.startswith(path.parent.name):
                with suppress(FileNotFoundError):  # another process took it away
                    about = path.stat()
                    found.append((about.st_mtime, about.st_size, path))
        return sorted(found)

    def _sum(self) -> int:
        return sum(size for _, size, _ in self._copies())

    def _make_room(self, size: int) -> int:
        copies = self._copies()
        held = sum(size for _, size, _ in copies)
        with naming_trouble(self.folder):
            for _, gone, path in copies:
                if held + size <= self.limit:
                    break
                path.unlink(missing_ok=True)
                held -= gone
        return held


class Kept(Objects):
    """Far objects, of which a shelf keeps copies.

    Parameters
    ----------
    far
        Where they come from.
    shelf
        Where the copies are.
    known
        Bytes and SHA-256 of the objects that may be kept, by key; all others are asked for each time.

    Raises
    ------
    ValueError
        A digest is none.
    OutputError
        The shelf's folder cannot be made.
    """

    is_local = False

    def __init__(self, far: Objects, shelf: Shelf, known: Mapping[str, tuple[int, str]]) -> None:
        for digest in (digest for _, digest in known.values() if not _DIGEST.fullmatch(digest)):
            raise ValueError(f"expected a SHA-256, got {digest[:80]!r}")  # it becomes the name of a file
        shelf.prepare()
        self.far, self.name = far, far.name
        self._shelf, self._known = shelf, known
        self.is_mapped = shelf.promise(sum(size for size, _ in known.values()))

    def __str__(self) -> str:
        return str(self.far)

    def read(self, key: str) -> bytes:
        """The bytes of an object."""
        if key not in self._known:
            return self.far.read(key)
        _, digest = self._known[key]
        path = self._shelf.path(digest)
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return self._fetched(key)
        _touch(path)
        return data

    def read_at_most(self, key: str, limit: int) -> bytes:
        """The bytes of a far object of no more than ``limit``; no copy is kept."""
        return self.far.read_at_most(key, limit)

    def census(self) -> dict[str, int] | None:
        """Bytes of every far object."""
        return self.far.census()

    def array(self, key: str) -> npt.NDArray[np.uint8]:
        """An object, mapped from its copy."""
        if key not in self._known:
            return self.far.array(key)
        size, digest = self._known[key]
        path = self._shelf.path(digest)
        if not size:
            return np.frombuffer(self.read(key), np.uint8)
        try:
            mapped = np.memmap(path, np.uint8, mode="r")
        except (FileNotFoundError, ValueError):  # ValueError: an empty file, which is not this object
            data = self._fetched(key)
            try:
                return np.memmap(path, np.uint8, mode="r")
            except FileNotFoundError:  # another process needed the place
                return np.frombuffer(data, np.uint8)
        _touch(path)
        return mapped

    def part(self, key: str, begin: int, size: int) -> npt.NDArray[np.uint8]:
        """A part of an object, of its copy where one is kept."""
        return self.array(key)[begin : begin + size] if key in self._known else self.far.part(key, begin, size)

    def forget(self, key: str) -> None:
        """Give up the copy of an object that was found damaged."""
        if key in self._known:
            self._shelf.drop(self._known[key][1])

    def sizes(self, keys: Iterable[str]) -> dict[str, int]:
        """Bytes of those objects that are there."""
        return self.far.sizes(keys)

    def listed(self, prefix: str = "") -> dict[str, int]:
        """Bytes of everything below a prefix."""
        return self.far.listed(prefix)

    def write(self, key: str, *parts: Part) -> None:
        """Write an object; no copy is kept."""
        self.far.write(key, *parts)

    def claim(self, key: str, data: bytes) -> bytes:
        """Write an object unless it is there."""
        return self.far.claim(key, data)

    def delete(self, prefix: str) -> None:
        """Delete everything below a prefix."""
        self.far.delete(prefix)

    def is_free(self) -> bool:
        """Whether there is nothing."""
        return self.far.is_free()

    def _fetched(self, key: str) -> bytes:
        size, digest = self._known[key]
        data = self.far.read_at_most(key, size)
        if (found := hashlib.sha256(data).hexdigest()) != digest:
            raise ChunkError(
                f"{self}/{key}: expected {size} bytes with SHA-256 {digest[:16]}…, as the manifest has it, got "
                f"{len(data)} with {found[:16]}…; the object is damaged or another one: publish the store again"
            )
        self._shelf.put(digest, data)
        return data


def _touch(path: Path) -> None:
    """It was used now; of no consequence where that cannot be noted."""
    with suppress(OSError):
        os.utime(path)
