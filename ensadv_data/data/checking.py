"""The digests of a data set that does not fit in memory: every image is read once, ever, and what was found is kept.

The result is a table of ``digest`` uint64 (N,), 0 where an image is bad, and, about it, the bad images and why. It is
kept in pieces until all is done, so that a check that is stopped goes on where it was.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from ensadv_data.data.listing import kept_table
from ensadv_data.data.tables import Table, write_table
from ensadv_data.progress import progress_bar

__all__ = ["check_images"]

PIECE = 8192  # images whose digests are kept at once

Found = Callable[[range], Iterable[tuple[int, str]]]


def check_images(path: Path, n: int, found: Found, *, title: str) -> Table:
    """Digest and, where it is bad, fault of every image; read from ``path`` if they are there.

    Parameters
    ----------
    found
        For each of some rows, in order: the digest and an empty text, or 0 and what is wrong.
    title
        Of the progress bar.

    Raises
    ------
    OutputError
        The folder of ``path`` cannot be written.
    """
    whole = kept_table(path)
    if whole is not None:
        return whole
    starts = range(0, n, PIECE)
    places = [path.with_suffix(f".piece-{number:06d}") for number in range(len(starts))]
    digests, bad = np.empty(n, np.uint64), list[tuple[int, str]]()
    with progress_bar(title, total=n, done=0, unit="images") as advance:
        for start, place in zip(starts, places, strict=True):
            rows = range(start, min(start + PIECE, n))
            piece = kept_table(place) or _check_piece(place, rows, found)
            digests[rows.start : rows.stop] = piece.arrays["digest"]
            bad += [(int(row), str(why)) for row, why in piece.about["bad"]]
            advance(len(rows))
    whole = write_table(path, {"bad": bad}, {"digest": digests})
    for place in places:
        with contextlib.suppress(OSError):
            place.unlink()
    return whole


def _check_piece(place: Path, rows: range, found: Found) -> Table:
    about: list[Any] = list(zip(rows, found(rows), strict=True))
    digests = np.array([digest for _, (digest, _) in about], np.uint64)
    return write_table(place, {"bad": [(row, why) for row, (_, why) in about if why]}, {"digest": digests})
