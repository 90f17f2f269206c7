"""What a place for objects can do, and the one on a disk: a folder."""

from __future__ import annotations

import os
import shutil
import stat
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ensadv_data.errors import IntegrityError, OutputError
from ensadv_data.files import is_leftover, naming_trouble, write_atomic

__all__ = ["Folder", "Objects", "Part", "check_size"]

Part = bytes | memoryview


class Objects(ABC):
    """What stores are made of. ``str`` of it is the path or the URL, without any secret."""

    name: str  # the last part of the path
    is_local: bool
    is_mapped: bool  # arrays are maps of files: holding them takes no memory

    @abstractmethod
    def read(self, key: str, *, at_most: int | None = None) -> bytes:
        """The bytes of an object.

        Parameters
        ----------
        at_most
            Bytes that it may have; a larger one is not read.

        Raises
        ------
        FileNotFoundError
            There is none.
        IntegrityError
            It has more bytes.
        InputError
            It cannot be reached, or may not be read.
        """

    def read_all(self, keys: Iterable[str]) -> dict[str, bytes]:
        """The bytes of those of the objects that are there."""
        return dict(filter(None, map(self._read_if_there, keys)))

    def _read_if_there(self, key: str) -> tuple[str, bytes] | None:
        try:
            return key, self.read(key)
        except FileNotFoundError:
            return None

    @abstractmethod
    def array(self, key: str) -> npt.NDArray[np.uint8]:
        """The bytes of an object, memory-mapped where it is a file; raises as :meth:`read`."""

    @abstractmethod
    def part(self, key: str, begin: int, size: int) -> npt.NDArray[np.uint8]:
        """So many bytes of an object from there on, or as many as there are; raises as :meth:`read`."""

    @abstractmethod
    def sizes(self, keys: Iterable[str]) -> dict[str, int]:
        """Bytes of those of the objects that are there."""

    @abstractmethod
    def listed(self, prefix: str = "") -> dict[str, int]:
        """Bytes of everything below a prefix that ends with ``/``, by key, sorted."""

    def keys(self, prefix: str) -> list[str]:
        """Keys below a prefix that ends with ``/``, sorted."""
        return list(self.listed(prefix))

    @abstractmethod
    def write(self, key: str, *parts: Part) -> None:
        """Write an object, its parts one after the other.

        Raises
        ------
        OutputError
            It cannot be written; nothing is there then that was not there before.
        """

    @abstractmethod
    def claim(self, key: str, data: bytes) -> bytes:
        """Write a small object unless it is there; what is there then. Of several at once, one gets its bytes there.

        Raises
        ------
        OutputError
            It cannot be written.
        """

    @abstractmethod
    def delete(self, prefix: str) -> None:
        """Delete everything below a prefix that ends with ``/``."""

    @abstractmethod
    def is_free(self) -> bool:
        """Whether there is nothing but what killed runs left.

        Raises
        ------
        OutputError
            No folder can be here.
        """

    def forget(self, key: str) -> None:  # noqa: B027 - only copies can be forgotten
        """Keep no copy of an object, since it was found damaged."""

    def has(self, key: str) -> bool:
        """Whether an object is there."""
        return key in self.sizes([key])

    def sweep(self) -> None:  # noqa: B027 - only files have leftovers
        """Delete what killed runs left."""


class Folder(Objects):
    """Files of a folder, which need not exist yet."""

    is_local = is_mapped = True

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = path.name

    def __str__(self) -> str:
        return str(self.path)

    def read(self, key: str, *, at_most: int | None = None) -> bytes:
        """The bytes of a file."""
        try:
            with (self.path / key).open("rb") as file:
                check_size(f"{self}/{key}", os.fstat(file.fileno()).st_size, at_most)
                return file.read()
        except NotADirectoryError as error:
            raise FileNotFoundError(*error.args) from None

    def array(self, key: str) -> npt.NDArray[np.uint8]:
        """A file, memory-mapped."""
        path = self.path / key
        return np.memmap(path, np.uint8, mode="r") if path.stat().st_size else np.zeros(0, np.uint8)

    def part(self, key: str, begin: int, size: int) -> npt.NDArray[np.uint8]:
        """A part of a file, memory-mapped."""
        return self.array(key)[begin : begin + size]

    def sizes(self, keys: Iterable[str]) -> dict[str, int]:
        """Bytes of those files that are there."""
        found = {}
        for key in keys:
            try:
                found[key] = (self.path / key).stat().st_size
            except OSError:
                continue
        return found

    def listed(self, prefix: str = "") -> dict[str, int]:
        """Bytes of the files below a folder."""
        found = {}
        for folder, _, names in os.walk(self.path / prefix):  # what somebody deletes meanwhile is not there
            for file in (Path(folder, name) for name in names):
                with suppress(FileNotFoundError):
                    about = file.stat()
                    if stat.S_ISREG(about.st_mode) and not is_leftover(file):
                        found[file.relative_to(self.path).as_posix()] = about.st_size
        return dict(sorted(found.items()))

    def write(self, key: str, *parts: Part) -> None:
        """Write a file."""
        write_atomic(self.path / key, *parts)

    def claim(self, key: str, data: bytes) -> bytes:
        """Write a file unless it is there."""
        path = self.path / key
        mine = path.with_name(f".partial-{os.getpid()}-{threading.get_ident()}-{path.name}")
        write_atomic(mine, data)
        try:
            with naming_trouble(path), suppress(FileExistsError):
                os.link(mine, path)  # whole, and only if the name is free
        finally:
            mine.unlink()
        return path.read_bytes()

    def delete(self, prefix: str) -> None:
        """Delete a folder."""
        shutil.rmtree(self.path / prefix, ignore_errors=True)

    def is_free(self) -> bool:
        """Whether the folder has no file, or does not exist."""
        if self.path.exists() and not self.path.is_dir():
            raise OutputError(f"expected a folder for the store at {self}, found a file; choose another --out")
        return not self.path.is_dir() or all(is_leftover(path) for path in self.path.iterdir())

    def sweep(self) -> None:
        """Delete temporary files."""
        with naming_trouble(self.path):
            for left in filter(is_leftover, self.path.rglob("*.partial*")):
                left.unlink(missing_ok=True)


def check_size(where: str, size: int, at_most: int | None) -> None:
    """Refuse to read more than there may be.

    Raises
    ------
    IntegrityError
        The message has both sizes.
    """
    if at_most is not None and size > at_most:
        raise IntegrityError(f"{where}: expected at most {at_most:,} bytes, found {size:,}; it was not read")
