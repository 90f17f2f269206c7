"""Regular Hadamard matrices: entries ±1, orthogonal rows, and every row sum √k (Appendix E; Colbourn 2010)."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt

from ensadv_data.errors import QuantityError

__all__ = ["ORDERS", "regular_hadamard"]

ORDERS: tuple[int, ...] = (1, 4, 16, 36, 64, 100)
"""The orders that can be made; those of the paper, and 1, whose only row is the signed gradient itself."""

# First halves (elements 0 … 12) of four symmetric rows of length 25 and sum 5 whose periodic autocorrelations add up
# to 0 at every shift but 0. An exhaustive search over the 792 such rows, matching sums over pairs, finds 85 quadruples.
_WILLIAMSON = ("++++++---+-+-", "+++-+--+++--+", "++-+--++-+-++", "+-+++--+--+++")


@lru_cache
def regular_hadamard(order: int) -> npt.NDArray[np.int8]:
    """Construct H_k.

    Parameters
    ----------
    order
        k, one of :data:`ORDERS`.

    Returns
    -------
    int8 (k, k), read-only
        Entries −1 and 1, H·Hᵀ = k·I, row sums √k.

    Raises
    ------
    QuantityError
        No matrix of that order is known here.
    """
    if order not in ORDERS:
        raise QuantityError(f"expected an order among {', '.join(map(str, ORDERS))}, got {order}")
    matrix = {1: _one, 4: _four, 16: _sixteen, 36: _latin_square, 64: _sixty_four, 100: _williamson}[order]()
    matrix.setflags(write=False)
    return matrix


def _one() -> npt.NDArray[np.int8]:
    return np.ones((1, 1), np.int8)


def _four() -> npt.NDArray[np.int8]:
    """J − 2I."""
    return np.int8(1) - 2 * np.eye(4, dtype=np.int8)


def _sixteen() -> npt.NDArray[np.int8]:
    """Kronecker products multiply orders and row sums alike."""
    return np.kron(_four(), _four())


def _sixty_four() -> npt.NDArray[np.int8]:
    return np.kron(_four(), _sixteen())


def _latin_square() -> npt.NDArray[np.int8]:
    """J − 2A, A the adjacency of the cells of the cyclic Latin square of order 6 that share row, column or symbol.

    The graph is strongly regular with parameters (36, 15, 6, 6), so A² = 9I + 6J and (J − 2A)² = 36I.
    """
    cell = np.arange(36)
    row, column = np.divmod(cell, 6)
    symbol = (row + column) % 6
    shared = sum((line[:, None] == line[None, :]).astype(np.int8) for line in (row, column, symbol))
    adjacent = (np.asarray(shared) > 0) & ~np.eye(36, dtype=bool)
    return np.int8(1) - 2 * adjacent.astype(np.int8)


def _williamson() -> npt.NDArray[np.int8]:
    """Williamson's array of four symmetric circulants A, B, C, D with A² + B² + C² + D² = 100·I.

    With its first block column negated, each block row has three positive circulants and a negative one: row sums
    are 3·5 − 5 = 10.
    """
    shift = (np.arange(25)[None, :] - np.arange(25)[:, None]) % 25
    halves = [np.array([1 if sign == "+" else -1 for sign in text], np.int8) for text in _WILLIAMSON]
    a, b, c, d = (np.concatenate([half, half[:0:-1]])[shift] for half in halves)
    return np.block([[-a, b, c, d], [b, a, -d, c], [c, d, a, -b], [d, -c, b, a]]).astype(np.int8)
