"""Data sets: what every one of them offers, and one that lives in memory.

Two digests tie a perturbation to the pixels that it was made for. An example's digest is the first 8 bytes,
read as a little-endian uint64, of the SHA-256 over::

    C (uint32, little-endian) | H (uint32) | W (uint32) | C·H·W bytes: the pixels of one image in C order
    4 bytes                   | 4 bytes    | 4 bytes    | e.g. 784 bytes

A data set's digest is the SHA-256 (hexadecimal) over the example digests of the whole split, in order, as
little-endian uint64::

    digest of example 0 (8 bytes) | digest of example 1 (8 bytes) | …
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from ensadv_data.data.idx import SPLITS
from ensadv_data.errors import InputError, QuantityError, UnknownNameError

__all__ = ["ArrayDataset", "Dataset", "digest_examples", "digest_of", "require_limit", "require_rows"]


@runtime_checkable
class Dataset(Protocol):
    """Images of one split with their true labels, addressed by index.

    Attributes
    ----------
    name, split
        Which data set, and ``"train"`` or ``"test"``.
    shape
        (C, H, W) of every image.
    classes
        Number of classes; labels are in [0, classes).
    digest
        SHA-256 over the example digests of the whole split, hexadecimal. A limit does not change it: it says
        which data set this is, and an index means the same image with a limit and without.
    """

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def split(self) -> str: ...  # noqa: D102
    @property
    def shape(self) -> tuple[int, int, int]: ...  # noqa: D102
    @property
    def classes(self) -> int: ...  # noqa: D102
    @property
    def digest(self) -> str: ...  # noqa: D102

    def __len__(self) -> int:
        """Number of examples, N."""
        ...

    def read(self, indices: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
        """Copy the examples at ``indices`` (in [0, N), any order, repeats allowed).

        Returns
        -------
        tuple of numpy.ndarray
            Images, uint8 (B, C, H, W), and true labels, int64 (B,).

        Raises
        ------
        QuantityError
            When an index is outside [0, N).
        InputError
            When ``indices`` is not a one-dimensional array of integers.
        """
        ...

    def labels(self) -> npt.NDArray[np.int64]:
        """True label of every example, int64 (N,), to be left unchanged; no image is read for it."""
        ...

    def example_digests(self) -> npt.NDArray[np.uint64]:
        """Digest of every example, uint64 (N,), read-only; computed once."""
        ...

    def preparation(self) -> Mapping[str, Any]:
        """How encoded images became these arrays, as JSON for records; empty where they were arrays before."""
        ...


def digest_examples(images_NCHW: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint64]:
    """Digest of every image; the bytes are drawn at the top of this module.

    Parameters
    ----------
    images_NCHW
        uint8 (N, C, H, W), any memory layout.

    Returns
    -------
    numpy.ndarray
        uint64 (N,).

    Raises
    ------
    InputError
        When the images are not uint8 of four dimensions.
    """
    _require_images(images_NCHW)
    if not images_NCHW.size:
        return np.empty(0, np.uint64)
    begun, whole, d = sha256(struct.pack("<3I", *images_NCHW.shape[1:])), [], images_NCHW[0].size
    pixels = np.ascontiguousarray(images_NCHW).reshape(-1).data  # C order, whatever the memory layout
    for start in range(0, len(pixels), d):
        digest = begun.copy()
        digest.update(pixels[start : start + d])
        whole.append(digest.digest())
    return np.frombuffer(b"".join(whole), "<u8").reshape(-1, 4)[:, 0].astype(np.uint64)


def digest_of(parts: Iterable[npt.NDArray[np.uint64]]) -> str:
    """Hexadecimal SHA-256 over example digests, uint64 (N,) a part, written as little-endian uint64.

    Parts follow each other, and none is kept.

    Raises
    ------
    InputError
        When they are not uint64 of one dimension.
    """
    whole = sha256()
    for part in parts:
        if part.dtype != np.uint64 or part.ndim != 1:
            raise InputError(
                f"expected uint64 example digests of shape (N,), got {part.dtype} of shape {part.shape}; "
                "pass what digest_examples returns"
            )
        whole.update(part.astype("<u8").tobytes())
    return whole.hexdigest()


@dataclass(frozen=True, eq=False)
class ArrayDataset:
    """A :class:`Dataset` whose images are in memory.

    Parameters
    ----------
    images_NCHW
        uint8 (N, C, H, W) of the whole split; not copied, so leave it unchanged.
    labels_N
        int64 (N,), in [0, classes).
    name, split, classes
        See :class:`Dataset`.
    limit
        Offer the first ``limit`` examples only.

    Raises
    ------
    InputError
        When the arrays do not fit this description or each other.
    UnknownNameError
        When ``split`` is neither ``"train"`` nor ``"test"``.
    QuantityError
        When ``limit`` is outside [1, N], or ``classes`` is below 1.
    """

    images_NCHW: npt.NDArray[np.uint8] = field(repr=False)
    labels_N: npt.NDArray[np.int64] = field(repr=False)
    name: str = field(kw_only=True)
    split: str = field(kw_only=True)
    classes: int = field(kw_only=True)
    limit: int | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        """Refuse arrays that cannot be a data set."""
        _require_images(self.images_NCHW)
        count = len(self.images_NCHW)
        if self.split not in SPLITS:
            raise UnknownNameError("split", self.split, SPLITS)
        if self.classes < 1:
            raise QuantityError(f"expected at least 1 class, got {self.classes}; pass the number of classes")
        if self.labels_N.dtype != np.int64 or self.labels_N.shape != (count,) or count == 0:
            raise InputError(
                f"expected int64 labels of shape ({count},), one for each of at least 1 image, got "
                f"{self.labels_N.dtype} of shape {self.labels_N.shape}; do images and labels belong together?"
            )
        lowest, highest = int(self.labels_N.min()), int(self.labels_N.max())
        if lowest < 0 or highest >= self.classes:
            raise InputError(
                f"expected labels in [0, {self.classes}), got labels from {lowest} to {highest}; "
                "is the number of classes right?"
            )
        require_limit(self.limit, count, self.name, self.split)

    def __len__(self) -> int:
        """Number of examples offered, N."""
        return len(self.images_NCHW) if self.limit is None else self.limit

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of every image."""
        _, channels, height, width = self.images_NCHW.shape
        return channels, height, width

    @cached_property
    def digest(self) -> str:
        """SHA-256 over the example digests of the whole split, whatever the limit; none of them is kept."""
        starts = range(0, len(self.images_NCHW), 4096)
        return digest_of(digest_examples(self.images_NCHW[start : start + 4096]) for start in starts)

    @cached_property
    def _whole_digests(self) -> npt.NDArray[np.uint64]:
        digests = digest_examples(self.images_NCHW)
        digests.flags.writeable = False
        return digests

    def read(self, indices: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
        """Copy the examples at ``indices``; see :meth:`Dataset.read`."""
        rows = require_rows(indices, len(self), self.name, self.split)
        return self.images_NCHW[rows], self.labels_N[rows]

    def labels(self) -> npt.NDArray[np.int64]:
        """True label of every example offered, int64 (N,)."""
        return self.labels_N[: len(self)]

    def example_digests(self) -> npt.NDArray[np.uint64]:
        """Digest of every example offered, uint64 (N,), read-only; computed once."""
        return self._whole_digests[: len(self)]

    def preparation(self) -> Mapping[str, Any]:
        """Nothing: these were arrays before."""
        return {}


def require_limit(limit: int | None, count: int, name: str, split: str) -> None:
    """Refuse a limit outside [1, ``count``]; raises QuantityError."""
    if limit is not None and not 1 <= limit <= count:
        raise QuantityError(
            f"expected a limit from 1 to {count}, the examples of {name}'s split {split!r}, "
            f"got {limit}; choose another limit, or leave it out for all of them"
        )


def require_rows(indices: npt.NDArray[np.int64], count: int, name: str, split: str) -> npt.NDArray[np.int64]:
    """Indices as an array of integers in [0, ``count``); raises as :meth:`Dataset.read` does."""
    rows = np.asarray(indices)
    if rows.ndim != 1 or rows.dtype.kind not in "iu":
        raise InputError(
            f"expected integer indices of shape (B,), got {rows.dtype} of shape {rows.shape}; "
            "pass integers in one dimension, for example numpy.arange(8)"
        )
    outside = (rows < 0) | (rows >= count)
    if outside.any():
        raise QuantityError(
            f"expected indices from 0 to {count - 1} ({name}, split {split!r}), "
            f"got {int(rows[outside][0])}; was this made for another data set or limit?"
        )
    return rows


def _require_images(images_NCHW: npt.NDArray[np.uint8]) -> None:
    if images_NCHW.dtype != np.uint8 or images_NCHW.ndim != 4:
        raise InputError(
            f"expected uint8 images of shape (N, C, H, W), got {images_NCHW.dtype} of shape "
            f"{images_NCHW.shape}; pixels are stored as bytes from 0 to 255, channels first"
        )
