"""A data set of encoded images: decoded and preprocessed in threads when it is read, checked once.

Memory is bounded: each thread has one image at a time, of at most ``max_pixels`` pixels, and what is returned is all
else that is held. Names, labels and digests are memory-mapped.
"""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from ensadv_data.data.checking import Elsewhere, check_images, checked_images
from ensadv_data.data.dataset import digest_examples, digest_of, require_limit, require_rows
from ensadv_data.data.decoding import BadImage, decode_image, decoder_record
from ensadv_data.data.listing import Listing, index_path
from ensadv_data.data.tables import Table
from ensadv_data.errors import DataError, IntegrityError
from ensadv_data.objects import is_url
from ensadv_data.spec import PreprocessSpec

__all__ = ["Photographs", "mapped"]

_TOLD = 20  # bad images that a record names; a message names three
_PIECE = 4096

T = TypeVar("T")
N = TypeVar("N")


@lru_cache(maxsize=4)
def _threads(count: int, process: int) -> ThreadPoolExecutor:
    """So many threads of a process: one that was forked has none of those that its parent had."""
    return ThreadPoolExecutor(count, thread_name_prefix="decode")


def mapped(make: Callable[[N], T], numbers: Iterable[N], *, threads: int) -> Iterator[T]:
    """``make`` of each number, in their order, by so many threads; a few of them are made ahead, not all."""
    left, pool = iter(numbers), _threads(threads, os.getpid())
    made: deque[Future[T]] = deque(pool.submit(make, number) for number in islice(left, 4 * threads))
    try:
        while made:
            result = made.popleft().result()
            made.extend(pool.submit(make, number) for number in islice(left, 1))
            yield result
    finally:
        wait([future for future in made if not future.cancel()])


@dataclass(frozen=True, eq=False)
class Photographs:
    """A :class:`~ensadv_data.data.dataset.Dataset` of encoded images.

    Parameters
    ----------
    listing
        What lies where.
    how
        The preprocessing; every image becomes uint8 (3, size, size).
    name, split, limit
        See :class:`~ensadv_data.data.dataset.ArrayDataset`.
    where
        What to call the data set's place in a message.
    skip
        Whether bad images are left out, or refused. They are known only when every image was decoded once, so a data
        set that skips does so when it is opened; one that refuses, when its digest is asked for.
    home
        Folder of the index; this user's cache unless given.
    threads
        That decode.
    elsewhere
        Who digests the images, in place of this process.

    Raises
    ------
    DataError
        Every image is bad.
    QuantityError
        ``limit`` is outside [1, N].
    """

    listing: Listing = field(repr=False)
    how: PreprocessSpec
    name: str = field(kw_only=True)
    split: str = field(kw_only=True)
    where: str = field(kw_only=True)
    skip: bool = field(kw_only=True, default=False)
    home: Path | None = field(kw_only=True, default=None)
    threads: int = field(kw_only=True, default=1)
    limit: int | None = field(kw_only=True, default=None)
    elsewhere: Elsewhere | None = field(kw_only=True, default=None, repr=False)

    def __post_init__(self) -> None:
        """Refuse a limit outside its range."""
        if not self._count:
            raise DataError(f"{self.where}: expected one whole image at least, got none; {self._told(self._bad)}")
        require_limit(self.limit, self._count, self.name, self.split)

    def __len__(self) -> int:
        """Number of examples offered, N."""
        return self._count if self.limit is None else self.limit

    @property
    def shape(self) -> tuple[int, int, int]:
        """(3, size, size)."""
        return 3, self.how.size, self.how.size

    @property
    def classes(self) -> int:
        """Number of classes."""
        return self.listing.classes

    @cached_property
    def digest(self) -> str:
        """SHA-256 over the example digests of the whole split; decodes every image once, ever.

        Raises
        ------
        DataError
            An image is bad, and bad ones are to be refused; the message names the first.
        """
        return digest_of(self._whole_digests[at : at + _PIECE] for at in range(0, self._count, _PIECE))

    def read(self, indices: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
        """Decode the examples at ``indices``; see :meth:`Dataset.read`.

        Raises
        ------
        DataError
            An image is bad.
        IntegrityError
            An image is another one than when the data set was indexed.
        """
        rows = self._rows(require_rows(indices, len(self), self.name, self.split))
        images = np.empty((len(rows), *self.shape), np.uint8)

        def fill(at: int) -> None:
            images[at] = self._image(int(rows[at]))

        for _ in mapped(fill, range(len(rows)), threads=self.threads):
            pass
        return images, self.listing.labels[rows].astype(np.int64)

    def labels(self) -> npt.NDArray[np.int64]:
        """True label of every example offered, int64 (N,); decodes nothing that was checked before."""
        return self.listing.labels[self._rows(np.arange(len(self)))].astype(np.int64)

    def example_digests(self) -> npt.NDArray[np.uint64]:
        """Digest of every example offered, uint64 (N,), read-only; raises as :attr:`digest` does."""
        return self._whole_digests[: len(self)]

    def preparation(self) -> Mapping[str, Any]:
        """Preprocessing, decoder, and which images were skipped."""
        about: dict[str, Any] = {
            "preprocess": json.loads(self.how.model_dump_json()) | {"resize": self.how.shorter},
            "decoder": decoder_record(),
            "on_bad_image": "skip" if self.skip else "fail",
        }
        if self.skip:
            named = [[self.listing.name(row), why] for row, why in self._bad[:_TOLD]]
            about |= {"skipped": len(self._bad), "skipped_first": named}
        return about

    @cached_property
    def _path(self) -> Path:
        """Where the digests are kept: of files at this place, under this preprocessing by this decoder."""
        place = self.where if is_url(self.where) else str(Path(self.where).resolve())
        how = [self.name, place, json.loads(self.how.model_dump_json()), decoder_record()]
        what = f"{self.name.partition(':')[2]}-{self.split}"
        return index_path(self.home, what, how).with_suffix(".checked")

    @property
    def listed(self) -> str:
        """Digest of the listing: of what lies where."""
        return self.listing.digest

    def digests_of(self, rows: Sequence[int]) -> Iterator[tuple[int, str]]:
        """Of rows of the listing, in order: digest and an empty text, or 0 and what is wrong with the image."""
        return mapped(self._digest, rows, threads=self.threads)

    @cached_property
    def _checked(self) -> Table:
        return check_images(
            self._path,
            len(self.listing),
            self.digests_of,
            listing=self.listed,
            title=f"check {self.name} {self.split}",
            stamp=self.listing.stamp,
            elsewhere=self.elsewhere,
        )

    @cached_property
    def _bad(self) -> list[tuple[int, str]]:
        return [(int(row), str(why)) for row, why in self._checked.about["bad"]]

    @cached_property
    def _left_out(self) -> npt.NDArray[np.int64]:
        """Rows that are skipped, each less the number of those before it: what an index is compared with."""
        rows = np.array([row for row, _ in self._bad] if self.skip else [], np.int64)
        return rows - np.arange(len(rows))

    @cached_property
    def _count(self) -> int:
        return len(self.listing) - len(self._left_out)

    @cached_property
    def _whole_digests(self) -> npt.NDArray[np.uint64]:
        if self._bad and not self.skip:
            raise DataError(
                f"{self.where}: expected whole images only, got {self._told(self._bad)}; leave such images out with "
                f"--on-bad-image skip, or mend them and delete {self.listing.index}"
            )
        digests: npt.NDArray[np.uint64] = self._checked.arrays["digest"]
        if self._bad:
            digests = np.delete(digests, [row for row, _ in self._bad])
            digests.flags.writeable = False
        return digests

    def _rows(self, indices: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Rows of the listing."""
        return indices + np.searchsorted(self._left_out, indices, side="right")

    def _told(self, bad: list[tuple[int, str]]) -> str:
        """The first bad images, in words."""
        named = "; ".join(f"{self.listing.name(row)}: {why}" for row, why in bad[:3])
        return f"{len(bad)} of {len(self.listing)} bad: {named}{'; …' if len(bad) > 3 else ''}"

    def _digest(self, row: int) -> tuple[int, str]:
        """Digest of an image, or what is wrong with it."""
        try:
            image, changed = self._decoded(row)
        except BadImage as error:
            return 0, str(error)
        if changed:
            raise self._change(row, "it has another size or time")
        return int(digest_examples(image[None])[0]), ""

    def _image(self, row: int) -> npt.NDArray[np.uint8]:
        """One image, the same as when it was checked."""
        try:
            image, changed = self._decoded(row)
        except BadImage as error:
            raise DataError(
                f"{self.where}: {self.listing.name(row)}: {error}; mend it, or leave such images out with "
                "--on-bad-image skip"
            ) from None
        if changed:  # perhaps only its time
            found, expected = int(digest_examples(image[None])[0]), self._known(row)
            if found != expected:
                known = "unknown" if expected is None else f"{expected:016x}"
                raise self._change(row, f"expected the digest {known}, found {found:016x}")
        return image

    def _decoded(self, row: int) -> tuple[npt.NDArray[np.uint8], bool]:
        """One image, and whether its file may be another one than when it was listed."""
        most = 4 * self.how.max_pixels + 2**20
        try:
            data, changed = self.listing.blob(row, most)
        except OSError as error:
            raise BadImage(f"expected a file that can be read, got: {error.strerror or error}") from None
        if len(data) > most:
            raise BadImage(f"expected at most {most} bytes, got more; raise max_pixels if that is meant")
        return decode_image(data, self.how), changed

    def _known(self, row: int) -> int | None:
        """The digest of an image when it was checked; None where none was."""
        checked = checked_images(self._path, self.listing.digest)
        return None if checked is None else int(checked.arrays["digest"][row])

    def _change(self, row: int, found: str) -> IntegrityError:
        return IntegrityError(
            f"{self.where}: {self.listing.name(row)} changed since it was indexed: {found}; if that is meant, delete "
            f"{self.listing.index} and run the same command again"
        )
