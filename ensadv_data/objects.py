"""Objects by key below one root: files of a folder, or objects of a bucket.

    STORE                                    a folder of this machine
    s3://BUCKET/PREFIX, gs://…, az://…       an object store; credentials from the environment's usual places
    http://…, https://…                      the same objects behind a web server, for reading

A key is a relative path with ``/``. An object is there whole or not at all: a file gets its name when it is on the
disk, and a put that is cut short leaves nothing.
"""

from __future__ import annotations

import os
import shutil
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import numpy as np
import numpy.typing as npt
import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, PermissionDeniedError, UnauthenticatedError
from obstore.store import from_url

from ensadv_data.errors import InputError, OutputError
from ensadv_data.files import is_leftover, naming_trouble, write_atomic

__all__ = ["AT_ONCE", "Bucket", "Folder", "Objects", "is_url", "objects_at"]

SCHEMES = ("s3", "gs", "az", "http", "https")
Part = bytes | memoryview
T = TypeVar("T")

AT_ONCE = 16  # requests
_ATTEMPTS = 5  # at a request whose answer was cut short; the client retries errors of the server by itself
_OPTIONS = {
    "timeout": timedelta(minutes=10),
    "connect_timeout": timedelta(seconds=10),
}  # of a whole request: a chunk has 32 MiB
_RETRY: Any = {"max_retries": 8, "retry_timeout": timedelta(minutes=2)}


class Objects(ABC):
    """What stores are made of. ``str`` of it is the path or the URL, without any secret."""

    name: str  # the last part of the path
    is_local: bool

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
    def sizes(self, keys: Iterable[str]) -> dict[str, int]:
        """Bytes of those of the objects that are there."""

    @abstractmethod
    def keys(self, prefix: str) -> list[str]:
        """Keys below a prefix that ends with ``/``, sorted."""

    @abstractmethod
    def write(self, key: str, *parts: Part) -> None:
        """Write an object, its parts one after the other.

        Raises
        ------
        OutputError
            It cannot be written; nothing is there then that was not there before.
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

    def has(self, key: str) -> bool:
        """Whether an object is there."""
        return key in self.sizes([key])

    def sweep(self) -> None:  # noqa: B027 - only files have leftovers
        """Delete what killed runs left."""


class Folder(Objects):
    """Files of a folder, which need not exist yet."""

    is_local = True

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

    def array(self, key: str) -> npt.NDArray[np.uint8]:
        """A file, memory-mapped."""
        path = self.path / key
        return np.memmap(path, np.uint8, mode="r") if path.stat().st_size else np.zeros(0, np.uint8)

    def sizes(self, keys: Iterable[str]) -> dict[str, int]:
        """Bytes of those files that are there."""
        found = {}
        for key in keys:
            try:
                found[key] = (self.path / key).stat().st_size
            except OSError:
                continue
        return found

    def keys(self, prefix: str) -> list[str]:
        """Files below a folder."""
        files = (file for file in (self.path / prefix).rglob("*") if file.is_file() and not is_leftover(file))
        return sorted(file.relative_to(self.path).as_posix() for file in files)

    def write(self, key: str, *parts: Part) -> None:
        """Write a file."""
        write_atomic(self.path / key, *parts)

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


class Bucket(Objects):
    """Objects below a prefix of an object store, or behind a web server.

    Raises
    ------
    InputError
        The URL is not one of those above, or the environment lacks what it needs.
    """

    is_local = False

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme not in SCHEMES or not parts.netloc:
            raise InputError(
                f"expected a folder, or a URL {', '.join(f'{scheme}://…' for scheme in SCHEMES)}, got {shown(url)}"
            )
        if parts.query or parts.fragment or "@" in parts.netloc:
            raise InputError(
                f"expected a URL without user, query and fragment, got {shown(url)}; credentials are taken from the "
                "environment"
            )
        self._url, self.name = url.rstrip("/"), Path(parts.path).name or parts.netloc
        self._is_web = parts.scheme in ("http", "https")
        endpoint = os.environ.get("AWS_ENDPOINT_URL", "") if parts.scheme == "s3" else url
        options: Any = {**_OPTIONS, "allow_http": endpoint.startswith("http://")}
        with self._told("open"):
            self._store = from_url(self._url, client_options=options, retry_config=_RETRY)

    def __str__(self) -> str:
        return self._url

    def read(self, key: str) -> bytes:
        """The bytes of an object; asked for again where the answer is cut short."""
        return bytes(self._again("read", key, lambda: obstore.get(self._store, key).bytes()))

    def read_all(self, keys: Iterable[str]) -> dict[str, bytes]:
        """The bytes of those objects that are there, some requests at once."""
        with ThreadPoolExecutor(AT_ONCE) as pool:
            return dict(filter(None, pool.map(self._read_if_there, keys)))

    def array(self, key: str) -> npt.NDArray[np.uint8]:
        """An object in memory."""
        answer: Any = self._again("read", key, lambda: obstore.get(self._store, key).bytes())
        return np.frombuffer(answer, np.uint8)

    def sizes(self, keys: Iterable[str]) -> dict[str, int]:
        """Bytes of those objects that are there, some requests at once."""

        def size(key: str) -> tuple[str, int] | None:
            try:
                return key, int(self._again("read", key, lambda: obstore.head(self._store, key))["size"])
            except FileNotFoundError:
                return None

        with ThreadPoolExecutor(AT_ONCE) as pool:
            return dict(filter(None, pool.map(size, keys)))

    def keys(self, prefix: str) -> list[str]:
        """Keys below a prefix; a web server does not tell."""
        if self._is_web:
            return []
        pages = self._again("list", prefix, lambda: list(obstore.list(self._store, prefix)))
        return sorted(about["path"] for page in pages for about in page)

    def write(self, key: str, *parts: Part) -> None:
        """Put an object; one that is there already stays if it has these bytes, and is put anew if it has not."""
        data = b"".join(parts)
        try:
            self._again("write", key, lambda: obstore.put(self._store, key, data, mode="create", use_multipart=False))
        except FileExistsError:
            if self.read(key) != data:
                self._again("write", key, lambda: obstore.put(self._store, key, data, use_multipart=False))
        except FileNotFoundError:
            raise OutputError(f"cannot write {self}/{key}: expected a bucket that exists; make it first") from None

    def delete(self, prefix: str) -> None:
        """Delete everything below a prefix."""
        if keys := self.keys(prefix):
            self._again("delete", prefix, lambda: obstore.delete(self._store, keys))

    def is_free(self) -> bool:
        """Whether no key begins with the prefix."""
        if self._is_web:
            raise OutputError(f"expected a place that can be written, got {self}; a web server is for reading")
        pages = self._again("list", "", lambda: list(obstore.list(self._store, chunk_size=1)))
        return not any(pages)

    def _again(self, what: str, key: str, request: Callable[[], T]) -> T:
        """The answer to a request, which is made again where it was cut short."""
        for attempt in range(_ATTEMPTS):
            try:
                with self._told(what, key, is_last=attempt + 1 == _ATTEMPTS):
                    return request()
            except BaseError:
                time.sleep(0.05 * 2**attempt)
        raise AssertionError("the last attempt returns or raises")

    @contextmanager
    def _told(self, what: str, key: str = "", *, is_last: bool = True) -> Iterator[None]:
        """What went wrong, in words that a user can act on."""
        where = f"{self._url}/{key}".rstrip("/")
        kind = OutputError if what in ("write", "delete") else InputError
        try:
            yield
        except FileNotFoundError:
            raise
        except AlreadyExistsError as error:
            raise FileExistsError(key) from error
        except (PermissionDeniedError, UnauthenticatedError):
            raise kind(
                f"cannot {what} {where}: access was denied; are the credentials in the environment those of an account "
                "that may?"
            ) from None
        except BaseError as error:
            if not is_last:
                raise
            cause = str(error).partition("\n")[0]
            raise kind(f"cannot {what} {where}: {cause}; the same command goes on when it can be reached") from None


def is_url(reference: Path | str) -> bool:
    """Whether it names objects of another machine rather than a folder."""
    return isinstance(reference, str) and "://" in reference


def objects_at(reference: Objects | Path | str) -> Objects:
    """The objects at a path or URL.

    Raises
    ------
    InputError
        A URL of a kind that cannot be read.
    """
    if isinstance(reference, Objects):
        return reference
    return Bucket(str(reference)) if is_url(reference) else Folder(Path(reference))


def shown(url: str) -> str:
    """A URL without what may be a secret in it."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
