"""Objects behind a web server, for reading.

Whoever publishes a store says where requests are redirected to, and may mean harm: to reach a server that only this
machine can reach. So another host than the one that the user named has to have a public address, which is looked at
after the connection is made, when no name server can tell another one; no redirect leads from https to http; and what
the user's name at the hub allows goes to the hub alone.

    http://HOST/PATH, https://HOST/PATH
    hf://datasets/OWNER/NAME[@REVISION][/PATH]     a data set of the Hugging Face Hub, or of ``HF_ENDPOINT``
"""

from __future__ import annotations

import os
import re
import socket
import threading
import time
import urllib.request
from collections.abc import Iterable, Mapping
from contextlib import suppress
from ipaddress import IPv6Address, ip_address
from typing import Any
from urllib.parse import quote, urljoin, urlsplit

import numpy as np
import numpy.typing as npt
import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import HTTPError

from ensadv_data.errors import InputError, IntegrityError, OutputError
from ensadv_data.objects.base import Part, check_size
from ensadv_data.objects.requesting import AT_ONCE, HUB, WEB, Far, at_once, checked_url

__all__ = ["Web"]

_ATTEMPTS = 8  # at a request that failed for a reason that may pass: half a minute of waiting
_HOPS = 5  # from one address to the next
_TIMEOUT = urllib3.Timeout(connect=10, read=60)
_MOVED, _MAY_PASS = frozenset((301, 302, 303, 307, 308)), frozenset((408, 429, 500, 502, 503, 504))
_MOST = 1 << 31  # bytes of an object whose size nobody knows beforehand
_OBJECT = re.compile(r"^<[^>]*>: ")  # what the client calls its connection
_ON_HUB = re.compile(
    r"hf://datasets/(?P<name>[\w.-]+/[\w.-]+?)(?:@(?P<revision>[\w.-]+))?(?P<path>(?:/[\w.*+-]+)*)/?", re.A
)


class Web(Far):
    """Objects below an address.

    Raises
    ------
    InputError
        The URL is not one of those above.
    """

    def __init__(self, url: str) -> None:
        parts = checked_url(url)
        self._url, self._headers = url.rstrip("/"), dict[str, str]()
        self._base = self._url
        if parts.scheme == HUB:
            self._base, self._headers = _on_hub(url)
        self.name = urlsplit(self._url).path.rpartition("/")[2] or parts.netloc
        self._named, self._others = _Pools(guarded=False), _Pools(guarded=True)

    def __str__(self) -> str:
        return self._url

    def read(self, key: str) -> bytes:
        """The bytes of an object."""
        return self.read_at_most(key, _MOST)

    def read_at_most(self, key: str, limit: int) -> bytes:
        """The bytes of an object of no more than ``limit``; no more than these are read."""
        _, data = self._answer(key, limit=limit)
        return bytes(data)

    def part(self, key: str, begin: int, size: int) -> npt.NDArray[np.uint8]:
        """A part of an object in memory; of a server that does not give parts, cut out of what comes before it too."""
        if size <= 0:
            return np.zeros(0, np.uint8)
        status, data = self._answer(key, span=(begin, begin + size))
        return np.frombuffer(data if status == 206 else data[begin:], np.uint8)

    def states(self, keys: Iterable[str]) -> dict[str, tuple[int, str]]:
        """Bytes of those objects that are there, and what the server calls their version, or their time."""

        def state(key: str) -> tuple[str, tuple[int, str]] | None:
            with suppress(FileNotFoundError):
                return key, self._answer(key, method="HEAD")[1]
            return None

        return at_once(state, keys)

    def listed(self, prefix: str = "") -> dict[str, int]:
        """Nothing: a web server does not tell."""
        return {}

    def write(self, key: str, *parts: Part) -> None:
        """Refused."""
        raise self._unwritable()

    def claim(self, key: str, data: bytes) -> bytes:
        """Refused."""
        raise self._unwritable()

    def delete(self, prefix: str) -> None:
        """Refused."""
        raise self._unwritable()

    def is_free(self) -> bool:
        """Refused, since it is asked before something is written."""
        raise self._unwritable()

    def check_writable(self) -> None:
        """Refused."""
        raise self._unwritable()

    def _unwritable(self) -> OutputError:
        remedy = (
            "upload the folder with the hub's own tool"
            if self._url.startswith(f"{HUB}:")
            else "choose a folder or bucket"
        )
        return OutputError(f"expected a place that can be written, got {self}; a web server is for reading: {remedy}")

    def _answer(self, key: str, *, method: str = "GET", limit: int = _MOST, span: tuple[int, int] | None = None) -> Any:
        """Status and body (of HEAD, size and version) of an answer; asked for again where the reason may pass."""
        where, why = f"{self._url}/{key}", ""
        for attempt in range(_ATTEMPTS):
            if attempt:
                time.sleep(0.1 * 2**attempt)
            try:
                answer = self._followed(method, f"{self._base}/{quote(key)}", where, span)
                try:
                    if answer.status not in _MAY_PASS:
                        return self._body(answer, where, limit=limit, span=span, method=method)
                    why = f"the server answers {answer.status}"
                finally:
                    _end(answer)
            except (HTTPError, OSError) as error:
                if isinstance(error, FileNotFoundError):
                    raise
                why = _OBJECT.sub("", str(getattr(error, "reason", None) or error).partition("\n")[0])
        raise InputError(f"cannot read {where}: {why}; the same command goes on when it can be reached")

    def _followed(self, method: str, url: str, where: str, span: tuple[int, int] | None) -> Any:
        """The answer of the server that redirects lead to."""
        headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={span[0]}-{span[1] - 1}"} if span else {})
        for _ in range(_HOPS + 1):
            is_named = _origin(url) == _origin(self._base)
            pools = self._named if is_named else self._others
            mine = headers | (self._headers if is_named else {})
            answer = pools.of(url).urlopen(
                method, url, headers=mine, redirect=False, retries=False, preload_content=False, timeout=_TIMEOUT
            )
            if answer.status not in _MOVED or not (to := answer.headers.get("Location")):
                return answer
            _end(answer)
            before, url = url, urljoin(url, to)
            parts = urlsplit(url)
            if parts.scheme not in WEB or "@" in parts.netloc or (before[:6] == "https:" and parts.scheme == "http"):
                raise IntegrityError(
                    f"{where}: expected a redirect to https://…, found one to {parts.scheme}://{parts.hostname}; "
                    "it was not followed"
                )
        raise IntegrityError(f"{where}: expected at most {_HOPS} redirects, found more; ask who publishes it")

    def _body(self, answer: Any, where: str, *, limit: int, span: tuple[int, int] | None, method: str) -> Any:
        if answer.status in (404, 410):
            raise FileNotFoundError(where)
        if answer.status in (401, 403):
            raise InputError(f"cannot read {where}: access was denied; may this user read it?")
        if span and answer.status == 416:  # it ends before
            return 206, b""
        if answer.status not in (200, 206):
            raise InputError(f"cannot read {where}: the server answers {answer.status}; is the address right?")
        announced = answer.headers.get("Content-Length", "")
        size = int(announced) if announced.isascii() and announced.isdigit() else None
        if method == "HEAD":
            if size is None:
                raise InputError(f"cannot read {where}: the server does not tell its size")
            return answer.status, (size, answer.headers.get("ETag") or answer.headers.get("Last-Modified") or "")
        if span:
            limit = span[1] - (span[0] if answer.status == 206 else 0)
            return answer.status, answer.read(limit)
        if size is not None:
            check_size(size, limit, where)
            data = answer.read()
        else:
            data = answer.read(limit + 1)
            check_size(len(data), limit, where)
        if size is not None and len(data) != size:
            raise HTTPError(f"{len(data):,} bytes came instead of {size:,}")
        return answer.status, data


def _end(answer: Any) -> None:
    """Let the next request have the connection; a new one, where the answer is longer than one cares to read."""
    if not answer.isclosed():
        answer.read(1 << 16)
    if not answer.isclosed():
        answer.close()
    answer.release_conn()


class _Pools:
    """Connections to servers, kept for the next request; guarded ones end where an address is not public."""

    def __init__(self, *, guarded: bool) -> None:
        self._guarded, self._managers, self._lock = guarded, dict[str, Any](), threading.Lock()

    def of(self, url: str) -> Any:
        """The manager of connections for a URL: through the proxy that the environment names, or none."""
        parts = urlsplit(url)
        host = parts.hostname or ""
        proxy = "" if urllib.request.proxy_bypass(host) else urllib.request.getproxies().get(parts.scheme, "")
        if self._guarded and proxy:  # whose address is the connection's; so the name is asked for
            require_public(host, parts.port)
        with self._lock:
            if proxy not in self._managers:
                about: dict[str, Any] = {"num_pools": 8, "maxsize": AT_ONCE}
                made = urllib3.ProxyManager(proxy, **about) if proxy else urllib3.PoolManager(**about)
                if self._guarded and not proxy:
                    made.pool_classes_by_scheme = _GUARDED
                self._managers[proxy] = made
            return self._managers[proxy]


def require_public(host: str, port: int | None) -> None:
    """Refuse a host that has an address of this machine or its network; one that has none is not refused."""
    with suppress(socket.gaierror):
        for *_, address in socket.getaddrinfo(host, port or 443, type=socket.SOCK_STREAM):
            _require_public(str(address[0]), host)


def _require_public(address: str, host: str) -> None:
    found = ip_address(address.partition("%")[0])
    if isinstance(found, IPv6Address) and found.ipv4_mapped:
        found = found.ipv4_mapped
    if not found.is_global or found.is_multicast:
        raise IntegrityError(
            f"expected a redirect to a public address, found one to {host} ({found}); it was not followed"
        )


class _GuardedHttp(HTTPConnection):  # type: ignore[misc]
    def connect(self) -> None:
        super().connect()
        _looked_at(self)


class _GuardedHttps(HTTPSConnection):  # type: ignore[misc]
    def connect(self) -> None:
        super().connect()
        _looked_at(self)


def _looked_at(connection: Any) -> None:
    try:
        _require_public(connection.sock.getpeername()[0], connection.host)
    except IntegrityError:
        connection.close()
        raise


class _HttpPool(urllib3.HTTPConnectionPool):  # type: ignore[misc]
    ConnectionCls = _GuardedHttp


class _HttpsPool(urllib3.HTTPSConnectionPool):  # type: ignore[misc]
    ConnectionCls = _GuardedHttps


_GUARDED: Mapping[str, Any] = {"http": _HttpPool, "https": _HttpsPool}


def _origin(url: str) -> tuple[str, str, int]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname or "", parts.port or {"http": 80, "https": 443}.get(parts.scheme, 0)


def _on_hub(url: str) -> tuple[str, dict[str, str]]:
    """Where the files of a data set are, and what shows who asks."""
    found = _ON_HUB.fullmatch(url)
    if not found:
        raise InputError(f"expected hf://datasets/OWNER/NAME[@REVISION][/PATH], got {url}")
    place = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    token = os.environ.get("HF_TOKEN", "")
    revision = found["revision"] or "main"
    return (
        f"{place}/datasets/{found['name']}/resolve/{revision}{found['path']}",
        {"Authorization": f"Bearer {token}"} if token else {},
    )
