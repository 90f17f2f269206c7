"""What a place for objects can do, and the one on a disk: a folder."""

from __future__ import annotations

import errno
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

from ensadv_data.errors import InputError, IntegrityError, OutputError
from ensadv_data.files import is_leftover, naming_trouble, write_atomic

__all__ = ["Folder", "Objects", "Part", "check_size"]

Part = bytes | memoryview


class Objects(ABC):
    """What stores are made of. ``str`` of it is the path or the URL, without any secret."""

    name: str  # the last part of the path
    is_local: bool
    is_mapped: bool  # arrays are maps of files: holding them takes no memory

    @abstractmethod
    def read(self, key: str) -> bytes:
        """The bytes of an object.

        Raises
        ------
        FileNotFoundError
            There is none.
        InputError
            It cannot be reached, or may not be read.
        """

    def read_at_most(self, key: str, limit: int) -> bytes:
        """The bytes of an object that a stranger may have made large; raises as :meth:`read`.

        Raises
        ------
        IntegrityError
            It has more bytes than ``limit``; where the place can tell before, they were not read.
        """
        data = self.read(key)
        check_size(len(data), limit, f"{self}/{key}")
        return data

    def census(self) -> dict[str, int] | None:
        """Bytes of every object that is there, by key; None where that cannot be told, as by a web server.

        Raises
        ------
        IntegrityError
            Something else than a plain file is there: a link, a device.
        """
        return None

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

    def check_writable(self) -> None:  # noqa: B027 - most are
        """Refuse a place that is for reading only with an OutputError, before anything is done for it."""

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

    def read(self, key: str) -> bytes:
        """The bytes of a file."""
        try:
            return (self.path / key).read_bytes()
        except NotADirectoryError as error:
            raise FileNotFoundError(*error.args) from None

    def read_at_most(self, key: str, limit: int) -> bytes:
        """The bytes of a plain file of no more than ``limit``."""
        try:
            handle = os.open(self.path / key, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except NotADirectoryError as error:
            raise FileNotFoundError(*error.args) from None
        except PermissionError:
            raise InputError(f"cannot read {self.path / key}: this user may not; change its permissions") from None
        except OSError as error:
            if error.errno != errno.ELOOP:
                raise
            raise IntegrityError(f"{self.path / key}: expected a plain file, found a link") from None
        with os.fdopen(handle, "rb", buffering=0) as file:
            about = os.fstat(handle)
            if not stat.S_ISREG(about.st_mode):
                raise IntegrityError(f"{self.path / key}: expected a plain file, found something else")
            check_size(about.st_size, limit, f"{self}/{key}")
            return file.readall()

    def census(self) -> dict[str, int]:
        """Bytes of every file, those of killed runs among them."""
        found, folders = {}, [""]
        while folders:
            prefix = folders.pop()
            with os.scandir(self.path / prefix) as entries:
                for entry in entries:
                    key = f"{prefix}{entry.name}"
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(f"{key}/")
                    elif entry.is_file(follow_symlinks=False):
                        found[key] = entry.stat(follow_symlinks=False).st_size
                    else:
                        kind = "a link" if entry.is_symlink() else "something else"
                        raise IntegrityError(f"{self}: expected plain files and folders, found {kind} at {key!a}")
        return found

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


def check_size(size: int, limit: int, where: str) -> None:
    """Refuse an object of more than ``limit`` bytes with an IntegrityError, before it is read where that is known."""
    if size > limit:
        raise IntegrityError(f"{where}: expected at most {limit:,} bytes, found {size:,}; it was not read")
