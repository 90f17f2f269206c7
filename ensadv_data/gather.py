"""Rows from many places in memory: native code that copies them by their addresses."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import carray, njit, types  # type: ignore[attr-defined]
from numba.core import cgutils
from numba.extending import intrinsic

__all__ = ["gather_rows"]

U8 = npt.NDArray[np.uint8]
U64 = npt.NDArray[np.uint64]


def gather_rows(address_B: U64, *, width: int) -> U8:
    """Copy a row from each address, without the interpreter's lock.

    Parameters
    ----------
    address_B
        uint64 of shape (B,): where each row begins. Nothing checks them: the caller answers for every byte.
    width
        Bytes of a row.

    Returns
    -------
    uint8 (B, width)
    """
    out_BW = np.empty((len(address_B), width), np.uint8)
    _copy(address_B, out_BW)
    return out_BW


@intrinsic
def _pointer(context: Any, address: Any) -> Any:
    """The number as a pointer, which Python code of numba cannot say."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], cgutils.voidptr_t)

    return types.voidptr(address), generate


@njit(nogil=True, cache=True)
def _copy(address_B: U64, out_BW: U8) -> None:
    for i in range(len(address_B)):
        out_BW[i] = carray(_pointer(address_B[i]), out_BW.shape[1], np.uint8)  # type: ignore[call-arg]
