"""What all places have in common whose objects are requested, whoever makes the requests."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar
from urllib.parse import SplitResult, urlsplit

import numpy as np
import numpy.typing as npt

from ensadv_data.errors import InputError
from ensadv_data.objects.base import Objects

__all__ = ["AT_ONCE", "HUB", "SCHEMES", "WEB", "Far", "at_once", "checked_url", "shown"]

WEB, HUB = ("http", "https"), "hf"
SCHEMES = ("s3", "gs", "az", *WEB, HUB)
AT_ONCE = 16  # requests
T = TypeVar("T")


class Far(Objects):
    """Objects that are not on a disk of this machine."""

    is_local = is_mapped = False

    @abstractmethod
    def states(self, keys: Iterable[str]) -> dict[str, tuple[int, str]]:
        """Bytes of those objects that are there, and what is another text when an object is another one."""

    def sizes(self, keys: Iterable[str]) -> dict[str, int]:
        """Bytes of those objects that are there, some requests at once."""
        return {key: size for key, (size, _) in self.states(keys).items()}

    def read_all(self, keys: Iterable[str]) -> dict[str, bytes]:
        """The bytes of those objects that are there, some requests at once."""
        return at_once(self._read_if_there, keys)

    def array(self, key: str) -> npt.NDArray[np.uint8]:
        """An object in memory."""
        return np.frombuffer(self.read(key), np.uint8)


def checked_url(url: str) -> SplitResult:
    """The parts of a URL of objects.

    Raises
    ------
    InputError
        It is of another kind, or has a secret in it.
    """
    parts = urlsplit(url)
    if parts.scheme not in SCHEMES or not parts.netloc:
        raise InputError(
            f"expected a folder, or a URL {', '.join(f'{scheme}://…' for scheme in SCHEMES)}, got {shown(url)}"
        )
    if parts.query or parts.fragment or (parts.scheme != HUB and "@" in parts.netloc):
        raise InputError(
            f"expected a URL without user, query and fragment, got {shown(url)}; credentials are taken from the "
            "environment"
        )
    return parts


def shown(url: str) -> str:
    """A URL without what may be a secret in it."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def at_once(function: Callable[[str], tuple[str, T] | None], keys: Iterable[str]) -> dict[str, T]:
    """A request for each key, some at once; those that gave something, by key. A failure does not wait for the rest."""
    pool = ThreadPoolExecutor(AT_ONCE)
    try:
        return dict(filter(None, pool.map(function, keys)))
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
