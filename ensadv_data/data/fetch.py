"""Fetch a data set from a list of mirrors; a file gets its name only after its SHA-256 is right."""

from __future__ import annotations

import gzip
import io
import os
import sys
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path

from ensadv_data.data.idx import EMBEDDED, GZIP_MAGIC, SOURCES, Source, find_file, read_known, verify_content
from ensadv_data.errors import DataError, InputError, UnknownNameError
from ensadv_data.files import naming_trouble, write_atomic

__all__ = ["HOME_VARIABLE", "MIRRORS", "MIRRORS_VARIABLE", "cache_home", "fetch"]

HOME_VARIABLE = "ENSADV_DATA_HOME"
MIRRORS_VARIABLE = "ENSADV_MIRRORS"

# Base addresses; a file is at BASE + its canonical name + ".gz". Plain http is safe here: what counts is
# the digest of what arrives.
MIRRORS: Mapping[str, tuple[str, ...]] = {
    "mnist": (
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        "https://storage.googleapis.com/cvdf-datasets/mnist/",
    ),
    "fashion-mnist": (
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
    ),
}

_CONNECT_SECONDS, _READ_SECONDS = 10, 30
_CHUNK_BYTES = 1 << 16


def cache_home() -> Path:
    """Folder of this user's cache that holds fetched data sets, one folder each; it need not exist."""
    import pooch  # here, not above: it takes 0.2 s that only a search that reaches the cache should pay

    return Path(pooch.os_cache("ensadv-data"))


def fetch(
    name: str,
    *,
    mirrors: Sequence[str] | None = None,
    home: Path | None = None,
    progress: bool = False,
) -> Path:
    """Make sure that the files of a data set are in ``home/NAME``, each with its known SHA-256.

    A file that is there and right is left alone, without touching the network. Every other one is asked
    from one mirror after the other, until one sends the right content.

    Parameters
    ----------
    name
        A data set; ``mnist-mini`` needs no fetching.
    mirrors
        Base addresses (http or https) instead of the built-in ones. Those in ``$ENSADV_MIRRORS``, separated
        by commas, always go first; they are tried with and without a folder named after the data set.
    home
        Folder of data sets; default ``$ENSADV_DATA_HOME``, else the user's cache.
    progress
        Report the bytes received on standard error.

    Returns
    -------
    pathlib.Path
        The folder that holds the files.

    Raises
    ------
    UnknownNameError
        When there is no such data set.
    InputError
        When a mirror is not an http or https address.
    DataError
        When every mirror failed for a file; the message gives each one's reason.
    OutputError
        When the folder cannot be written.
    """
    if name not in SOURCES:
        raise UnknownNameError("data set", name, SOURCES)
    if name == EMBEDDED:
        return Path(str(resources.files("ensadv_data.data").joinpath(name)))
    source = SOURCES[name]
    folder = (home or _default_home()) / name
    bases = _mirror_bases(name, mirrors)
    with naming_trouble(folder, hint=f" with --data-dir or ${HOME_VARIABLE}"):
        folder.mkdir(parents=True, exist_ok=True)
    for file in source.files:
        if not _is_right(folder, source, file):
            data, base = _receive(source, file, bases, folder=folder, progress=progress)
            write_atomic(folder / f"{file}.gz", data)
            # One dead mirror should cost its timeout once, not once per file.
            bases = [base, *(other for other in bases if other != base)]
    return folder


def _default_home() -> Path:
    home = os.environ.get(HOME_VARIABLE)
    return Path(home).expanduser() if home else cache_home()


def _mirror_bases(name: str, mirrors: Sequence[str] | None) -> list[str]:
    """Base addresses in the order to try them, each ending with a slash."""
    texts = [text.strip() for text in os.environ.get(MIRRORS_VARIABLE, "").split(",")]
    first = [text for text in texts if text]
    then = MIRRORS.get(name, ()) if mirrors is None else mirrors
    for base in (*first, *then):
        if not base.startswith(("http://", "https://")):
            raise InputError(
                f"expected mirrors that begin with http:// or https://, got {base!r}; "
                f"correct the mirrors or ${MIRRORS_VARIABLE}"
            )
    # The files of all data sets have the same names, so a mirror of several must keep them in folders.
    foldered = [address for base in first for address in (f"{base.rstrip('/')}/{name}", base)]
    return [base.rstrip("/") + "/" for base in (*foldered, *then)]


def _is_right(folder: Path, source: Source, file: str) -> bool:
    path = find_file(folder, file)
    if path is None:
        return False
    try:
        read_known(path, source=source, file=file, remedy="fetch it again")
    except DataError:
        return False
    return True


def _receive(
    source: Source,
    file: str,
    bases: Sequence[str],
    *,
    folder: Path,
    progress: bool,
) -> tuple[bytes, str]:
    """Gzip bytes of a file whose content is proved right, and the mirror that they are from."""
    most = source.files[file].size
    reasons: list[str] = []
    for base in bases:
        url = f"{base}{file}.gz"
        try:
            data = _download(url, most=most + most // 100 + 4096, label=file if progress else None)
            content = verify_content(data, source=source, file=file)
        # requests' errors are OSErrors; urllib3 lets some ValueErrors about addresses through
        except (OSError, ValueError) as error:
            reasons.append(f"{url}: {' '.join(str(error).split())}")
            continue
        # A server may declare gzip as the transfer's encoding: then what arrives is decompressed already.
        return (data if data.startswith(GZIP_MAGIC) else gzip.compress(content, 6, mtime=0)), base
    raise DataError(
        f"{file} of {source.name}: expected it from one of {len(bases)} mirrors, got: "
        f"{'; '.join(reasons) or 'no mirror to ask'}; check the network, set ${MIRRORS_VARIABLE} to a mirror "
        f"that works, or put the file into {folder}"
    )


def _download(url: str, *, most: int, label: str | None) -> bytes:
    import pooch

    downloader = pooch.HTTPDownloader(chunk_size=_CHUNK_BYTES, timeout=(_CONNECT_SECONDS, _READ_SECONDS))
    sink = _Sink(most=most, label=label)
    try:
        downloader(url, sink, None)
    finally:
        sink.close()
    return sink.buffer.getvalue()


class _Sink:
    """Where a download is written to: memory, up to ``most`` bytes, so that no mirror can fill it."""

    def __init__(self, *, most: int, label: str | None) -> None:
        self.buffer = io.BytesIO()
        self.most = most
        self.label = label

    def write(self, chunk: bytes) -> None:
        self.buffer.write(chunk)
        if self.buffer.tell() > self.most:
            raise ValueError(f"expected at most {self.most} bytes, got more")

    def flush(self) -> None:
        """Called by the downloader after every chunk."""
        if self.label:
            sys.stderr.write(f"\r{self.label}: {self.buffer.tell() / 1e6:.1f} MB")
            sys.stderr.flush()

    def close(self) -> None:
        if self.label and self.buffer.tell():
            sys.stderr.write("\n")
