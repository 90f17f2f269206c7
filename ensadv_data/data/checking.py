"""The digests of a data set that does not fit in memory: every image is read once, ever, and what was found is kept.

The result is a table of ``digest`` uint64 (N,), 0 where an image is bad, ``stamp`` uint64 (N,), and, about it, the bad
images and why, and the digest of the listing that the rows are of. It is kept in pieces until all is done, so that a
check that is stopped goes on where it was; after a change, good images of equal stamps are not read again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ensadv_data.data.listing import kept_table
from ensadv_data.data.tables import Table, write_table
from ensadv_data.progress import progress_bar

__all__ = ["check_images", "checked_images"]

PIECE = 8192  # images whose digests are kept at once

Found = Callable[[Sequence[int]], Iterable[tuple[int, str]]]
Stamp = Callable[[int], int]


def checked_images(path: Path, listing: str) -> Table | None:
    """What a check of the listing with that digest found; None where there was none."""
    table = kept_table(path)
    return table if table is not None and table.about["listing"] == listing else None


def check_images(path: Path, n: int, found: Found, *, listing: str, title: str, stamp: Stamp | None = None) -> Table:
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

    Raises
    ------
    OutputError
        The folder of ``path`` cannot be written.
    """
    before = kept_table(path)
    if before is not None and before.about["listing"] == listing:
        return before
    known = _digests_by_stamp(before if stamp else None)
    starts = range(0, n, PIECE)
    places = [path.with_suffix(f".piece-{number:06d}") for number in range(len(starts))]
    digests, stamps, bad = np.empty(n, np.uint64), np.empty(n, np.uint64), list[tuple[int, str]]()
    with progress_bar(title, total=n, unit="images") as advance:
        for start, place in zip(starts, places, strict=True):
            rows = range(start, min(start + PIECE, n))
            piece = checked_images(place, listing) or _check_piece(place, rows, found, listing, stamp, known)
            digests[rows.start : rows.stop] = piece.arrays["digest"]
            stamps[rows.start : rows.stop] = piece.arrays["stamp"]
            bad += [(int(row), str(why)) for row, why in piece.about["bad"]]
            advance(len(rows))
    whole = write_table(path, {"listing": listing, "bad": bad}, {"digest": digests, "stamp": stamps})
    for place in places:
        with contextlib.suppress(OSError):
            place.unlink()
    return whole


_Known = Callable[[npt.NDArray[np.uint64]], npt.NDArray[np.uint64]]


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


def _check_piece(place: Path, rows: range, found: Found, listing: str, stamp: Stamp | None, known: _Known) -> Table:
    stamps = np.array([stamp(row) if stamp else 0 for row in rows], np.uint64)
    digests = known(stamps)
    todo = [rows[int(at)] for at in np.flatnonzero(digests == 0)]
    bad = []
    for row, (digest, why) in zip(todo, found(todo), strict=True):
        digests[row - rows.start] = digest
        if why:
            bad.append((row, why))
    return write_table(place, {"listing": listing, "bad": bad}, {"digest": digests, "stamp": stamps})
