"""Rows from many chunks in memory: native code that finds each by a table of addresses, and copies it."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

__all__ = ["ABSENT", "DONE", "OUTSIDE", "gather_rows"]

U8 = npt.NDArray[np.uint8]
I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]

DONE, ABSENT, OUTSIDE = 0, 1, 2


@intrinsic
def _copy(context: Any, to: Any, start: Any, size: Any) -> Any:
    """C's memcpy from one address to another, which Python code of numba cannot say."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        to, start = (builder.inttoptr(address, cgutils.voidptr_t) for address in arguments[:2])
        cgutils.raw_memcpy(builder, to, start, arguments[2], 1)  # type: ignore[no-untyped-call]
        return context.get_dummy_value()

    return types.none(types.uintp, types.uintp, types.intp), generate


@njit(nogil=True, cache=True)
def gather_rows(
    address_KC: U64, used_KC: I64, draw_B: I64, row_B: I64, n: int, block: int, now: int, out_BW: U8
) -> int:
    """Copy rows, without the interpreter's lock.

    Parameters
    ----------
    address_KC
        uint64 (K, C): where chunk c of draw k begins; 0 where it is not in memory. Row i of chunk c is row c·block + i
        of its draw. Nobody checks the addresses: the caller answers for every byte.
    used_KC
        int64 (K, C): set to ``now`` for each chunk that is used, whether it is there or not.
    draw_B, row_B
        int64 (B,): the rows wanted, 0 ≤ draw < K and 0 ≤ row < n.
    out_BW
        uint8 (B, W): where to.

    Returns
    -------
    int
        :data:`DONE`; :data:`ABSENT`: a chunk is not in memory; :data:`OUTSIDE`: a draw or a row is out of range, and
        nothing was copied from then on.
    """
    status, width, to = DONE, out_BW.shape[1], out_BW.ctypes.data
    for i in range(len(row_B)):
        draw, row = draw_B[i], row_B[i]
        if not (0 <= row < n and 0 <= draw < len(address_KC)):
            return OUTSIDE
        chunk = row // block
        used_KC[draw, chunk] = now
        address = address_KC[draw, chunk]
        if address == 0:
            status = ABSENT
        else:
            _copy(to + i * width, address + np.uint64((row - chunk * block) * width), width)  # type: ignore[call-arg]
    return status
