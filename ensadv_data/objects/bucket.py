"""Objects of an object store."""

from __future__ import annotations

import os
import posixpath
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import numpy.typing as npt
import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, PermissionDeniedError, UnauthenticatedError
from obstore.store import from_url

from ensadv_data.errors import InputError, OutputError
from ensadv_data.objects.base import Part, check_size
from ensadv_data.objects.requesting import Far, at_once, checked_url

__all__ = ["ASKED", "Bucket"]

T = TypeVar("T")

ASKED = 64  # objects whose sizes are asked for one by one; those of more are had from a list, a thousand an answer
_ATTEMPTS = 5  # at a request whose answer was cut short; the client retries errors of the server by itself
# The first is of a whole request: a chunk has 32 MiB.
_OPTIONS = {"timeout": timedelta(minutes=10), "connect_timeout": timedelta(seconds=10)}
_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT", "AZURE_STORAGE_ENDPOINT", "GOOGLE_BASE_URL")
# Where a machine of a cloud asks for its role's credentials; that is done where the environment has none.
_ROLES = ("/latest/api/token", "/latest/meta-data/", "/computeMetadata/", "/metadata/identity/")
_RETRY: Any = {"max_retries": 8, "retry_timeout": timedelta(minutes=2)}


class Bucket(Far):
    """Objects below a prefix of an object store.

    Raises
    ------
    InputError
        The URL is not one of those above, or the environment lacks what it needs.
    """

    def __init__(self, url: str) -> None:
        parts = checked_url(url)
        self._url, self.name = url.rstrip("/"), Path(parts.path).name or parts.netloc
        options: Any = dict(_OPTIONS)
        if any(os.environ.get(name, "").startswith("http://") for name in _ENDPOINTS):
            options["allow_http"] = True  # whoever names such an endpoint means it
        with self._told("open"):
            self._store = from_url(self._url, client_options=options, retry_config=_RETRY)

    def __str__(self) -> str:
        return self._url

    def read(self, key: str) -> bytes:
        """The bytes of an object; asked for again where the answer is cut short."""
        return bytes(self._got(key))

    def read_at_most(self, key: str, limit: int) -> bytes:
        """The bytes of an object of no more than ``limit``; the answer's announced size is looked at first."""

        def request() -> bytes:
            answer = obstore.get(self._store, key)
            check_size(answer.meta["size"], limit, f"{self}/{key}")
            return bytes(answer.bytes())

        return self._again("read", key, request)

    def census(self) -> dict[str, int]:
        """Bytes of every object below the prefix."""
        return self.listed()

    def array(self, key: str) -> npt.NDArray[np.uint8]:
        """An object in memory, as it arrived: not copied once more."""
        return np.frombuffer(self._got(key), np.uint8)

    def part(self, key: str, begin: int, size: int) -> npt.NDArray[np.uint8]:
        """A part of an object in memory."""
        data = self._again("read", key, lambda: obstore.get_range(self._store, key, start=begin, length=size))
        return np.frombuffer(memoryview(data), np.uint8)

    def sizes(self, keys: Iterable[str]) -> dict[str, int]:
        """Bytes of those objects that are there: some requests at once, or a list where there are many."""
        keys = list(keys)
        if len(keys) > ASKED:
            common = posixpath.commonpath(keys)
            there = self.listed(f"{common}/" if common else "")
            return {key: there[key] for key in keys if key in there}
        return super().sizes(keys)

    def states(self, keys: Iterable[str]) -> dict[str, tuple[int, str]]:
        """Bytes of those objects that are there, and what is another text when an object is another one."""

        def state(key: str) -> tuple[str, tuple[int, str]] | None:
            try:
                about = self._again("read", key, lambda: obstore.head(self._store, key))
            except FileNotFoundError:
                return None
            return key, (int(about["size"]), str(about["e_tag"] or about["last_modified"]))

        return at_once(state, keys)

    def listed(self, prefix: str = "") -> dict[str, int]:
        """Bytes of everything below a prefix."""
        pages = self._again("list", prefix, lambda: list(obstore.list(self._store, prefix)))
        return dict(sorted((about["path"], int(about["size"])) for page in pages for about in page))

    def write(self, key: str, *parts: Part) -> None:
        """Put an object; one that is there already stays if it has these bytes, and is put anew if it has not."""
        data = b"".join(parts)
        try:
            self._again("write", key, lambda: obstore.put(self._store, key, data, mode="create", use_multipart=False))
        except FileExistsError:
            if self._got(key, what="write") != data:
                self._again("write", key, lambda: obstore.put(self._store, key, data, use_multipart=False))

    def claim(self, key: str, data: bytes) -> bytes:
        """Put an object unless it is there."""
        with suppress(FileExistsError):
            self._again("write", key, lambda: obstore.put(self._store, key, data, mode="create", use_multipart=False))
        return self.read(key)

    def delete(self, prefix: str) -> None:
        """Delete everything below a prefix."""
        if keys := self.keys(prefix):
            self._again("delete", prefix, lambda: obstore.delete(self._store, keys))

    def is_free(self) -> bool:
        """Whether no key begins with the prefix."""
        return not self._again("list", "", lambda: next(iter(obstore.list(self._store, chunk_size=1)), None))

    def _got(self, key: str, *, what: str = "read") -> Any:
        return self._again(what, key, lambda: obstore.get(self._store, key).bytes())

    def _again(self, what: str, key: str, request: Callable[[], T]) -> T:
        """The answer to a request, which is made again where it was cut short. Ctrl-C does not wait for it."""
        for attempt in range(_ATTEMPTS):
            try:
                with self._told(what, key, is_last=attempt + 1 == _ATTEMPTS):
                    return request() if threading.current_thread() is not threading.main_thread() else _waited(request)
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
            if what != "write":
                raise
            raise self._lacking(what) from None
        except AlreadyExistsError as error:
            raise FileExistsError(key) from error
        except (PermissionDeniedError, UnauthenticatedError):
            raise kind(
                f"cannot {what} {where}: access was denied; are the credentials in the environment those of an account "
                "that may?"
            ) from None
        except BaseError as error:
            if any(path in str(error) for path in _ROLES):
                raise kind(
                    f"cannot {what} {where}: expected credentials in the environment (AWS_ACCESS_KEY_ID and its like), "
                    "or a role of this machine, found neither; set them"
                ) from None
            if not is_last:
                raise
            if "NoSuchBucket" in str(error):
                raise self._lacking(what) from None
            cause = str(error).partition("\n")[0]
            raise kind(f"cannot {what} {where}: {cause}; the same command goes on when it can be reached") from None

    def _lacking(self, what: str) -> OutputError:
        return OutputError(f"cannot {what} {self}: expected a bucket that exists; make it first")


def _waited(request: Callable[[], T]) -> T:
    """What a request gives, made in a thread: the client's code does not look at signals, and this thread has to."""
    answer: queue.SimpleQueue[tuple[T | None, Exception | None]] = queue.SimpleQueue()

    def ask() -> None:
        try:
            answer.put((request(), None))
        except Exception as error:
            answer.put((None, error))

    threading.Thread(target=ask, daemon=True, name="request").start()
    while True:
        try:
            found, error = answer.get(timeout=1)
        except queue.Empty:
            continue
        if error is not None:
            raise error
        return cast(T, found)
