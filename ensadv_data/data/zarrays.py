"""Images that are Zarr arrays: ``ROOT/SPLIT`` is a group of ``images`` uint8 (N, C, H, W) and ``labels`` (N,)."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr

from ensadv_data.data.checking import Elsewhere, check_images
from ensadv_data.data.dataset import digest_examples, digest_of, require_limit, require_rows
from ensadv_data.data.listing import find_split, index_path, split_folder
from ensadv_data.data.photographs import mapped
from ensadv_data.data.tables import Table
from ensadv_data.errors import DataError

__all__ = ["ZarrImages", "open_zarr"]

_ROWS = 256  # read at once for their digests


@dataclass(frozen=True, eq=False)
class ZarrImages:
    """A :class:`~ensadv_data.data.dataset.Dataset` of arrays on the disk, of which the labels alone are in memory.

    Its digests are computed once and kept; they are of files of these sizes and times.
    """

    images: zarr.Array[Any] = field(repr=False)
    labels_N: npt.NDArray[np.int64] = field(repr=False)
    name: str = field(kw_only=True)
    split: str = field(kw_only=True)
    classes: int = field(kw_only=True)
    files: Path = field(kw_only=True)  # of the split
    home: Path | None = field(kw_only=True, default=None)
    threads: int = field(kw_only=True, default=1)  # that digest
    limit: int | None = field(kw_only=True, default=None)
    elsewhere: Elsewhere | None = field(kw_only=True, default=None, repr=False)  # who does, in place of this process

    def __post_init__(self) -> None:
        """Refuse a limit outside its range."""
        require_limit(self.limit, len(self.labels_N), self.name, self.split)

    def __len__(self) -> int:
        """Number of examples offered, N."""
        return len(self.labels_N) if self.limit is None else self.limit

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of every image."""
        _, channels, height, width = self.images.shape
        return channels, height, width

    @property
    def digest(self) -> str:
        """SHA-256 over the example digests of the whole split; reads every image once, as long as no file changes."""
        return digest_of([self._checked.arrays["digest"]])

    def read(self, indices: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
        """Copy the examples at ``indices``; see :meth:`Dataset.read`."""
        rows = require_rows(indices, len(self), self.name, self.split)
        return self._images(rows), self.labels_N[rows]

    def labels(self) -> npt.NDArray[np.int64]:
        """True label of every example offered, int64 (N,)."""
        return self.labels_N[: len(self)]

    def example_digests(self) -> npt.NDArray[np.uint64]:
        """Digest of every example offered, uint64 (N,), read-only."""
        digests: npt.NDArray[np.uint64] = self._checked.arrays["digest"]
        return digests[: len(self)]

    def preparation(self) -> Mapping[str, Any]:
        """Nothing: these were arrays before."""
        return {}

    def _images(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
        found, back = np.unique(rows, return_inverse=True)  # in the order of the chunks, each of them once
        try:
            return np.asarray(self.images.oindex[found])[back]
        except (ValueError, RuntimeError, OSError) as error:
            raise DataError(f"{self.files}: expected chunks that can be read, got: {error}") from None

    @cached_property
    def listed(self) -> str:
        """Digest of the names, sizes and times of all files."""
        return _state(self.files)

    def digests_of(self, rows: Sequence[int]) -> Iterator[tuple[int, str]]:
        """Of some rows, in order: digest and an empty text."""

        def digests(part: Sequence[int]) -> npt.NDArray[np.uint64]:
            return digest_examples(self._images(np.array(part, np.int64)))

        parts = [rows[start : start + _ROWS] for start in range(0, len(rows), _ROWS)]
        for part in mapped(digests, parts, threads=self.threads):
            yield from ((int(digest), "") for digest in part)

    @cached_property
    def _checked(self) -> Table:
        what, place = f"{self.name.partition(':')[2]}-{self.split}", str(self.files.resolve())
        path = index_path(self.home, what, "zarr", place).with_suffix(".checked")
        title = f"check {self.name} {self.split}"
        n, by = len(self.labels_N), self.elsewhere
        return check_images(path, n, self.digests_of, listing=self.listed, title=title, elsewhere=by)


def open_zarr(
    root: Path,
    split: str,
    *,
    home: Path | None = None,
    threads: int = 1,
    limit: int | None = None,
    elsewhere: Elsewhere | None = None,
) -> ZarrImages:
    """Open the arrays of a split.

    Parameters
    ----------
    home
        Folder in which the digests are kept; this user's cache unless given.
    threads
        That read images for their digests.
    elsewhere
        Who digests them, in place of this process.

    Raises
    ------
    DataError
        They are not there, are of another dtype or shape, or lack chunks.
    QuantityError
        ``limit`` is outside [1, N].
    """
    folder = split_folder(root, split)
    images, labels = _arrays(folder)
    other = find_split(root, "test" if split == "train" else "train")
    highest = max(int(found.max()) for found in (labels, *([] if other is None else [_arrays(other)[1]])))
    return ZarrImages(
        images,
        labels,
        name=f"zarr:{root.resolve().name}",
        split=split,
        classes=highest + 1,
        files=folder,
        home=home,
        threads=threads,
        limit=limit,
        elsewhere=elsewhere,
    )


def _arrays(folder: Path) -> tuple[zarr.Array[Any], npt.NDArray[np.int64]]:
    try:
        group = zarr.open_group(str(folder), mode="r")
        images, labels = group["images"], group["labels"]
    except (KeyError, ValueError, OSError) as error:
        raise DataError(f"{folder}: expected a Zarr group with the arrays images and labels, got: {error}") from None
    if not isinstance(images, zarr.Array) or images.dtype != np.uint8 or images.ndim != 4:
        raise DataError(f"{folder}: expected images uint8 of shape (N, C, H, W), got {_described(images)}")
    if not isinstance(labels, zarr.Array) or labels.dtype.kind not in "iu" or labels.shape != images.shape[:1]:
        raise DataError(
            f"{folder}: expected integer labels of shape {images.shape[:1]}, one an image, got {_described(labels)}"
        )
    for array in (images, labels):
        there, whole = array.nchunks_initialized, array.nchunks
        if there < whole:  # Zarr would read them as zeros
            raise DataError(
                f"{folder}: {array.basename}: expected all of its {whole} chunks, found {there}; copy them again, or "
                "write the array with write_empty_chunks"
            )
    numbers = np.asarray(labels[:]).astype(np.int64)
    if not len(numbers) or numbers.min() < 0:
        raise DataError(f"{folder}: expected labels from 0 on, one at least, got {numbers[:3].tolist()}…")
    return images, numbers


def _described(node: Any) -> str:
    return f"{node.dtype} of shape {node.shape}" if isinstance(node, zarr.Array) else "a group"


def _state(folder: Path) -> str:
    """A digest of the names, sizes and times of all files."""
    about = []
    for place, folders, files in os.walk(folder):
        folders.sort()
        for name in sorted(files):
            found = os.stat(os.path.join(place, name))
            about.append([os.path.relpath(os.path.join(place, name), folder), found.st_size, found.st_mtime_ns])
    return hashlib.sha256(json.dumps(about).encode()).hexdigest()
