"""IDX files, the format of MNIST: parse them, and prove that a file is what its name says.

The bytes, all sizes big-endian uint32::

    images   00 00 08 03 | N | H | W | N·H·W bytes, image after image, row after row
    labels   00 00 08 01 | N | N bytes, one class each

A file may be gzip-compressed; that is told from its first two bytes (1f 8b), not from its name. What is
proved is the SHA-256 of the *decompressed* bytes, since each mirror compresses in its own way.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import math
import os
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ensadv_data.errors import DataError

__all__ = [
    "EMBEDDED",
    "GZIP_MAGIC",
    "SOURCES",
    "SPLITS",
    "KnownFile",
    "Source",
    "find_file",
    "parse_idx",
    "parse_images",
    "parse_labels",
    "read_idx",
    "read_known",
    "split_files",
    "verify_content",
]

IMAGES_MAGIC = 0x0000_0803
LABELS_MAGIC = 0x0000_0801
GZIP_MAGIC = b"\x1f\x8b"

EMBEDDED = "mnist-mini"
"""The data set that comes inside the package."""

# split → the word that its files begin with
SPLITS: Mapping[str, str] = {"train": "train", "test": "t10k"}


@dataclass(frozen=True)
class KnownFile:
    """What an IDX file must be, once decompressed: its size in bytes and its SHA-256 (hexadecimal)."""

    size: int
    sha256: str


@dataclass(frozen=True)
class Source:
    """A data set made of four IDX files: their canonical names (without ``.gz``) → what they must hold."""

    name: str
    classes: int
    files: Mapping[str, KnownFile]


# Not frozen, so that a test can put a data set of a few images here for its own duration.
SOURCES: dict[str, Source] = {
    "mnist-mini": Source(
        name="mnist-mini",
        classes=10,
        files={
            "train-images-idx3-ubyte": KnownFile(
                7_840_016, "b1adf29851e8b592812ff56ab2ace5b3620bd38516012495e98246711cd473da"
            ),
            "train-labels-idx1-ubyte": KnownFile(
                10_008, "180aa2158ee0cc5f0a1b8dd25b8b551e279c4caeb60c38ac1b6e9d3d9e00c122"
            ),
            "t10k-images-idx3-ubyte": KnownFile(
                1_568_016, "80ee2df34eb32ced3d7ec5639d23f24765e085aca3c5edc36fc060478c757080"
            ),
            "t10k-labels-idx1-ubyte": KnownFile(
                2_008, "c5d45c89be83858a1f0a9446ce94307af8c1efacd6c5fe76c9435a6e8487c96a"
            ),
        },
    ),
    "mnist": Source(
        name="mnist",
        classes=10,
        files={
            "train-images-idx3-ubyte": KnownFile(
                47_040_016, "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db"
            ),
            "train-labels-idx1-ubyte": KnownFile(
                60_008, "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5"
            ),
            "t10k-images-idx3-ubyte": KnownFile(
                7_840_016, "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7"
            ),
            "t10k-labels-idx1-ubyte": KnownFile(
                10_008, "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2"
            ),
        },
    ),
    "fashion-mnist": Source(
        name="fashion-mnist",
        classes=10,
        files={
            "train-images-idx3-ubyte": KnownFile(
                47_040_016, "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888"
            ),
            "train-labels-idx1-ubyte": KnownFile(
                60_008, "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9"
            ),
            "t10k-images-idx3-ubyte": KnownFile(
                7_840_016, "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b"
            ),
            "t10k-labels-idx1-ubyte": KnownFile(
                10_008, "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34"
            ),
        },
    ),
}


def split_files(split: str) -> tuple[str, str]:
    """Canonical names of the images file and the labels file of a split (``"train"`` or ``"test"``)."""
    prefix = SPLITS[split]
    return f"{prefix}-images-idx3-ubyte", f"{prefix}-labels-idx1-ubyte"


def parse_idx(data: bytes, *, name: str) -> npt.NDArray[np.uint8] | npt.NDArray[np.int64]:
    """Decode the bytes of one uncompressed IDX file, images or labels.

    Parameters
    ----------
    data
        The whole file.
    name
        What to call it in a message, usually its path.

    Returns
    -------
    numpy.ndarray
        Images: uint8 (N, 1, H, W), read-only, sharing memory with ``data``. Labels: int64 (N,).

    Raises
    ------
    DataError
        When the magic number, the header or the byte count is not that of such a file.
    """
    if len(data) >= 4 and struct.unpack_from(">I", data)[0] == LABELS_MAGIC:
        return parse_labels(data, name=name)
    return parse_images(data, name=name)


def parse_images(data: bytes, *, name: str) -> npt.NDArray[np.uint8]:
    """Decode an uncompressed IDX file of images: uint8 (N, 1, H, W), read-only. See :func:`parse_idx`."""
    count, height, width = _parse_header(data, IMAGES_MAGIC, "images", 3, name=name)
    return np.frombuffer(data, np.uint8, offset=16).reshape(count, 1, height, width)


def parse_labels(data: bytes, *, name: str) -> npt.NDArray[np.int64]:
    """Decode an uncompressed IDX file of labels: int64 (N,). See :func:`parse_idx`."""
    _parse_header(data, LABELS_MAGIC, "labels", 1, name=name)
    return np.frombuffer(data, np.uint8, offset=8).astype(np.int64)


def _parse_header(data: bytes, magic: int, what: str, ndim: int, *, name: str) -> tuple[int, ...]:
    remedy = "is the file truncated, renamed or damaged? get it again"
    header = 4 * (1 + ndim)
    if len(data) < header:
        raise DataError(
            f"{name}: expected an IDX file of {what} with a header of {header} bytes, "
            f"got {len(data)} bytes in all; {remedy}"
        )
    got, *dims = struct.unpack_from(f">{1 + ndim}I", data)
    if got != magic:
        raise DataError(f"{name}: expected IDX {what} (magic 0x{magic:08x}), got magic 0x{got:08x}; {remedy}")
    expected = header + math.prod(dims)
    if len(data) != expected:
        shape = "×".join(str(dim) for dim in dims)
        raise DataError(
            f"{name}: expected {expected} bytes for IDX {what} of shape {shape} (from its header), "
            f"got {len(data)} bytes; {remedy}"
        )
    return tuple(dims)


def read_idx(path: Path) -> npt.NDArray[np.uint8] | npt.NDArray[np.int64]:
    """Read one IDX file, raw or gzip-compressed, without asking which data set it belongs to.

    Returns
    -------
    numpy.ndarray
        Images: uint8 (N, 1, H, W). Labels: int64 (N,).

    Raises
    ------
    DataError
        When the file cannot be read, its gzip stream is damaged, or it is not an IDX file.
    """
    raw = _read_bytes(path)
    try:
        content = _decompress(raw)
    except ValueError as error:
        raise DataError(f"{path}: {error}; get the file again") from error
    return parse_idx(content, name=str(path))


def find_file(folder: Path, file: str) -> Path | None:
    """Path of a file in ``folder`` by its canonical name: raw or ``.gz``, ``-idx`` or ``.idx``; else None.

    The name that :mod:`ensadv_data.data.fetch` writes comes first: a fetch then always heals a folder.
    """
    dotted = file.replace("-idx", ".idx")
    for variant in (f"{file}.gz", file, f"{dotted}.gz", dotted):
        # os.path: unlike Path.is_file on Python 3.11, it answers "no" for a folder that may not be entered
        if os.path.isfile(folder / variant):
            return folder / variant
    return None


def read_known(path: Path, *, source: Source, file: str, remedy: str) -> bytes:
    """Decompressed content of ``path``, proved to be ``file`` of ``source``.

    Raises
    ------
    DataError
        When the file cannot be read or is not that file; the message ends with ``remedy``.
    """
    try:
        return verify_content(_read_bytes(path, most=_most_stored()), source=source, file=file)
    except ValueError as error:
        raise DataError(f"{path}: {error}; {remedy}") from error


def verify_content(raw: bytes, *, source: Source, file: str) -> bytes:
    """Decompressed content of ``raw`` (stored or sent bytes), proved to be ``file`` of ``source``.

    Raises
    ------
    ValueError
        With one line that gives the size and SHA-256 expected and found. The caller knows where the bytes
        are from and what can be done, and makes a :class:`~ensadv_data.errors.DataError` of it.
    """
    known = source.files[file]
    # The largest known file, not this one, bounds the content: a renamed file can then be recognised.
    most = max(one.size for other in (*SOURCES.values(), source) for one in other.files.values())
    content = _decompress(raw, most=most)
    digest = hashlib.sha256(content).hexdigest()
    if digest == known.sha256:
        return content
    if len(content) > most:
        found = f"more than {most} bytes"
    else:
        found = f"{len(content)} bytes, SHA-256 {digest}"
        twin = _recognise(digest)
        found += f", which is {twin}" if twin else ""
    expected = f"{file} of {source.name} ({known.size} bytes, SHA-256 {known.sha256})"
    raise ValueError(f"expected {expected}, got {found}")


def _recognise(digest: str) -> str | None:
    for source in SOURCES.values():
        for file, known in source.files.items():
            if known.sha256 == digest:
                return f"{file} of {source.name}"
    return None


def _most_stored() -> int:
    """More bytes than any known file has, raw or compressed (deflate grows what it cannot shrink)."""
    most = max(known.size for source in SOURCES.values() for known in source.files.values())
    return most + most // 100 + 4096


def _read_bytes(path: Path, *, most: int | None = None) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(-1 if most is None else most)
    except OSError as error:
        raise DataError(
            f"{path}: expected an IDX file that can be read, got: {error.strerror}; "
            "check that the path is right and that this user may read it"
        ) from error


def _decompress(raw: bytes, *, most: int | None = None) -> bytes:
    """Undo gzip if ``raw`` begins like it; at most ``most`` + 1 bytes, so that a bomb stays small.

    Raises
    ------
    ValueError
        When the gzip stream is damaged, ends early, or is followed by something else.
    """
    if not raw.startswith(GZIP_MAGIC):
        return raw
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(raw)) as stream:
            return stream.read(-1 if most is None else most + 1)
    except (EOFError, OSError, zlib.error) as error:
        raise ValueError(f"expected a whole gzip stream, got a damaged one ({error})") from error
