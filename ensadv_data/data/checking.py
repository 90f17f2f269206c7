"""The digests of a data set that does not fit in memory: every image is read once, ever, and what was found is kept.

The result is a table of ``digest`` uint64 (N,), 0 where an image is bad, ``stamp`` uint64 (N,), and, about it, the bad
images and why, and the digest of the listing that the rows are of. It is kept in pieces until all is done, so that a
check that is stopped goes on where it was; after a change, good images of equal stamps are not read again.
"""

from __future__ import annotations

import contextlib
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ensadv_data.data.listing import kept_table
from ensadv_data.data.tables import Table, write_table
from ensadv_data.progress import progress_bar

__all__ = ["Elsewhere", "Found", "Piece", "check_images", "checked_images", "digested"]

PIECE, PIECES = 1024, 16384  # images at least, whose digests are kept at once; and how often at most

Found = Callable[[Sequence[int]], Iterable[tuple[int, str]]]
Stamp = Callable[[int], int]
_Known = Callable[[npt.NDArray[np.uint64]], npt.NDArray[np.uint64]]

Piece = tuple[int, npt.NDArray[np.uint64], list[tuple[int, str]]]
"""A number; the digest of each of its rows, 0 where an image is bad; and those rows, each with what is wrong."""

Elsewhere = Callable[[str, Iterable[tuple[int, Sequence[int]]]], Iterator[Piece]]
"""Who digests in place of this process: from the listing's digest and numbered rows, the pieces in any order."""


def checked_images(path: Path, listing: str) -> Table | None:
    """What a check of the listing with that digest found; None where there was none."""
    table = kept_table(path)
    return table if table is not None and table.about["listing"] == listing else None


def check_images(
    path: Path,
    n: int,
    found: Found,
    *,
    listing: str,
    title: str,
    stamp: Stamp | None = None,
    elsewhere: Elsewhere | None = None,
) -> Table:
    """Digest and, where it is bad, fault of every image; read from ``path`` if they are there.

    Parameters
    ----------
    found
        For each of some rows, in order: the digest and an empty text, or 0 and what is wrong.
    listing
        Digest of what the rows are of.
    title
        Of the progress bar.
    stamp
        Of a row: 64 bits that are others when the image is another one; None: nothing is known of single images.
    elsewhere
        Who asks ``found`` on other machines; None: this process does.

    Raises
    ------
    OutputError
        The folder of ``path`` cannot be written.
    """
    before = kept_table(path)
    if before is not None and before.about["listing"] == listing:
        return before

    def here(_: str, parts: Iterable[tuple[int, Sequence[int]]]) -> Iterator[Piece]:
        return (digested(number, rows, found) for number, rows in parts)

    with progress_bar(title, total=n, unit="images") as advance:
        check = _Check(path, n, listing, stamp, _digests_by_stamp(before if stamp else None), advance)
        for number, digests, bad in (elsewhere or here)(listing, check.left()):
            check.take(number, digests, bad)
    return check.table()


def digested(number: int, rows: Sequence[int], found: Found) -> Piece:
    """The piece of some rows, numbered."""
    digests, bad = np.empty(len(rows), np.uint64), []
    for at, (row, (digest, why)) in enumerate(zip(rows, found(rows), strict=True)):
        digests[at] = digest
        if why:
            bad.append((row, why))
    return number, digests, bad


class _Check:
    """What is known of all images so far, in pieces that are kept as they come."""

    def __init__(
        self, path: Path, n: int, listing: str, stamp: Stamp | None, known: _Known, advance: Callable[[int], object]
    ) -> None:
        self._path, self._n, self._listing = path, n, listing
        self._size = max(PIECE, -(-n // PIECES))
        self._stamp, self._known, self._advance = stamp, known, advance
        self._digests, self._stamps = np.zeros(n, np.uint64), np.zeros(n, np.uint64)
        self._bad: list[tuple[int, str]] = []
        self._asked: dict[int, Sequence[int]] = {}  # rows of the pieces that are being looked at

    def left(self) -> Iterator[tuple[int, Sequence[int]]]:
        """Numbers of the pieces that are not there yet, and those of their rows of which nothing is known."""
        for number in self._numbers():
            rows = self._rows(number)
            piece = checked_images(self._place(number), self._listing)
            if piece is not None and len(piece.arrays["digest"]) == len(rows):
                self._keep(piece, rows)
                continue
            own = slice(rows.start, rows.stop)
            if self._stamp is not None:
                self._stamps[own] = [self._stamp(row) for row in rows]
                self._digests[own] = self._known(self._stamps[own])
            todo = np.flatnonzero(self._digests[own] == 0) + rows.start
            if not len(todo):
                self._write(number, [])
                continue
            self._asked[number] = rows if len(todo) == len(rows) else array("q", todo.tolist())
            yield number, self._asked[number]

    def take(self, number: int, digests: npt.NDArray[np.uint64], bad: list[tuple[int, str]]) -> None:
        """Keep what was found in the rows of a piece."""
        rows, asked = self._rows(number), self._asked.pop(number)
        self._digests[slice(rows.start, rows.stop) if isinstance(asked, range) else np.array(asked)] = digests
        self._write(number, bad)

    def _write(self, number: int, bad: list[tuple[int, str]]) -> None:
        rows = self._rows(number)
        own = slice(rows.start, rows.stop)
        arrays = {"digest": self._digests[own], "stamp": self._stamps[own]}
        self._keep(write_table(self._place(number), {"listing": self._listing, "bad": bad}, arrays), rows)

    def table(self) -> Table:
        """All of it, in the place of the pieces."""
        about = {"listing": self._listing, "bad": sorted(self._bad)}
        whole = write_table(self._path, about, {"digest": self._digests, "stamp": self._stamps})
        for number in self._numbers():
            with contextlib.suppress(OSError):
                self._place(number).unlink()
        return whole

    def _numbers(self) -> range:
        return range(-(-self._n // self._size))

    def _rows(self, number: int) -> range:
        return range(number * self._size, min((number + 1) * self._size, self._n))

    def _place(self, number: int) -> Path:
        return self._path.with_suffix(f".piece-{number:06d}")

    def _keep(self, piece: Table, rows: range) -> None:
        self._digests[rows.start : rows.stop] = piece.arrays["digest"]
        self._stamps[rows.start : rows.stop] = piece.arrays["stamp"]
        self._bad += [(int(row), str(why)) for row, why in piece.about["bad"]]
        self._advance(len(rows))


def _digests_by_stamp(table: Table | None) -> _Known:
    """A function from stamps to digests, 0 where none is known."""
    if table is None or not len(table.arrays["stamp"]):
        return np.zeros_like
    order = np.argsort(table.arrays["stamp"], kind="stable")
    sorted_stamps, digests = table.arrays["stamp"][order], table.arrays["digest"][order]

    def known(stamps: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
        at = np.searchsorted(sorted_stamps, stamps).clip(max=len(digests) - 1)
        return np.where(sorted_stamps[at] == stamps, digests[at], np.uint64(0))

    return known
