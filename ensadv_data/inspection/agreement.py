"""How far the entries of a store agree: shares of equal signs, over a bounded number of its images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ensadv_data.codec import full_mask, pack_signs
from ensadv_data.errors import QuantityError
from ensadv_data.objects import Objects
from ensadv_data.progress import progress_bar
from ensadv_data.store import Entry, Store, open_store

__all__ = ["BLOCKS", "Agreement", "measure_agreement"]

BLOCKS = 4  # looked at unless said otherwise
_VALUES, _IMAGES = 2**25, 2**14  # at most, of each entry and draw
_DRAWS = 2
_ENTRIES = 32

U8 = npt.NDArray[np.uint8]
I64 = npt.NDArray[np.int64]
Bits = tuple[U8, U8]  # signs, and where they are not zero


@dataclass(frozen=True)
class Agreement:
    """Shares of equal signs between the entries of a store, all in [0, 1].

    Two unrelated directions agree in about half of their values. Values where one of the two is zero have no sign, and
    do not count.

    Attributes
    ----------
    keys
        SOURCE/ATTACK of each entry.
    shares
        A row an entry: the share of equal signs with each other entry, draw by draw. On the diagonal two draws of the
        entry itself are compared; None where there is one draw only, or no value counts.
    margin
        The largest half-width of their 95% intervals; 0 where all images were compared, None where one was.
    zeros
        Share of each entry's values that are zero.
    images, n
        Images that were compared, evenly spaced in evenly spaced blocks; and images of the store.
    blocks
        Blocks that they are from.
    draws
        Draws that were compared: the first two, where there are two.
    left_out
        Entries beyond the first 32, which were not compared.
    """

    keys: tuple[str, ...]
    shares: tuple[tuple[float | None, ...], ...]
    margin: float | None
    zeros: tuple[float, ...]
    images: int
    n: int
    blocks: int
    draws: int
    left_out: int

    def to_json(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


def measure_agreement(path: Objects | Path | str, *, blocks: int = BLOCKS) -> Agreement:
    """Compare every two entries of a store, by their signs.

    At most 2²⁵ values of each entry and draw are compared, of at most 2¹⁴ images and 32 entries, so that it takes
    seconds whatever the store's size. What is read is those blocks of two draws, whole.

    Parameters
    ----------
    blocks
        How many blocks to look at; all, where the store has no more.

    Raises
    ------
    InputError
        There is no complete store.
    QuantityError
        ``blocks`` is below 1.
    ChunkError
        A chunk is missing, truncated or corrupted.
    """
    if blocks < 1:
        raise QuantityError(f"blocks: expected at least 1, got {blocks}")
    store = open_store(path)
    header, entries = store.header, store.entries[:_ENTRIES]
    draws, parts = min(header.draws, _DRAWS), list(_rows(header.n, header.block, header.d, blocks))
    sums = np.zeros((len(entries), len(entries), 5), np.int64)
    filled = np.zeros(len(entries), np.int64)
    full = full_mask(header.d)
    with progress_bar("agreement", total=len(parts), unit="blocks") as advance:
        for rows in parts:
            planes = [[_bits(store, entry, draw, rows, full) for draw in range(draws)] for entry in entries]
            for i, mine in enumerate(planes):
                filled[i] += sum(int(np.bitwise_count(mask).sum()) for _, mask in mine)
                if draws > 1:
                    sums[i, i] += _counts(mine[:1], mine[1:])
                for j in range(i):
                    sums[i, j] += _counts(mine, planes[j])
            advance(1)
    images = sum(len(rows) for rows in parts)
    shares, margins = [], []
    for i in range(len(entries)):
        pairs = [_estimate(sums[max(i, j), min(i, j)], images, header.n) for j in range(len(entries))]
        shares.append(tuple(share for share, _ in pairs))
        margins += [margin for share, margin in pairs if share is not None]
    return Agreement(
        keys=tuple(entry.key for entry in entries),
        shares=tuple(shares),
        margin=None if None in margins else max(margins, default=0.0),  # type: ignore[type-var]
        zeros=tuple((1 - filled / (images * draws * header.d)).tolist()),
        images=images,
        n=header.n,
        blocks=len(parts),
        draws=draws,
        left_out=len(store.entries) - len(entries),
    )


def _rows(n: int, block: int, d: int, blocks: int) -> list[I64]:
    """Indices of images, an array a block; a pure function of the store's shape."""
    total = -(-n // block)
    chosen = np.unique(np.linspace(0, total - 1, min(blocks, total)).round().astype(np.int64))
    most = max(1, min(_VALUES // d, _IMAGES) // len(chosen))
    found = []
    for first in (chosen * block).tolist():
        count = min(block, n - first)
        found.append(first + np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(np.int64)))
    return found


def _bits(store: Store, entry: Entry, draw: int, rows: I64, full: U8) -> Bits:
    planes = store.gather(entry, np.full(len(rows), draw), rows)
    direction, mask = (planes.direction, planes.nonzero) if planes.delta is None else pack_signs(planes.delta)
    if direction is None:
        raise TypeError(f"{entry.key} has neither directions nor deltas")
    return direction, np.broadcast_to(full, direction.shape) if mask is None else mask


def _counts(one: Sequence[Bits], other: Sequence[Bits]) -> I64:
    """Sums over images: of equal signs e, of values that count b, and of e², eb and b²."""
    equal, both = np.int64(0), np.int64(0)
    for (here, some), (there, others) in zip(one, other, strict=True):
        counted = some & others
        both = both + np.bitwise_count(counted).sum(axis=1, dtype=np.int64)
        equal = equal + np.bitwise_count(~(here ^ there) & counted).sum(axis=1, dtype=np.int64)
    pairs = (equal, both, equal * equal, equal * both, both * both)
    return np.array([int(np.sum(numbers)) for numbers in pairs], np.int64)


def _estimate(sums: I64, images: int, n: int) -> tuple[float | None, float | None]:
    """A ratio of sums and the half-width of its 95% interval, over images drawn from ``n`` (Cochran 1977, 6.4)."""
    e, b, ee, eb, bb = map(int, sums)
    if b == 0:
        return None, 0.0
    share = e / b
    if images == n:
        return share, 0.0
    if images == 1:
        return share, None
    squares = max(0.0, ee - 2 * share * eb + share * share * bb)
    return share, 1.96 * math.sqrt(squares * images / (images - 1) * (1 - images / n)) / b
