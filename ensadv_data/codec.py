"""Signs ↔ bits, and bits → images.

One row of signs, D values in C order, ⌈D/8⌉ bytes:

    byte     0                     1                      …   ⌈D/8⌉−1
    bit      0 1 2 3 4 5 6 7       0 1 2 3 4  5  6  7         …  (unused high bits are 0)
    value    0 1 2 3 4 5 6 7       8 9 … 15                   …  D−1

    direction   1 ⇒ +1, 0 ⇒ −1 (or 0 where the mask says so)
    nonzero     1 ⇒ the value is not zero; the plane is left out where no zero exists

One row of deltas: D bytes int8, δ = ε·q/127, q = rint(127·δ/ε).

Random signs are the bits of numpy's Philox4x64-10 with key (seed, draw) and counter (0, example, stream, 0),
read as little-endian 64-bit words: bit i of byte j belongs to value 8j + i, as above.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

from ensadv_data.errors import InputError

__all__ = [
    "apply_deltas",
    "apply_signs",
    "full_mask",
    "pack_signs",
    "quantise_deltas",
    "random_bits",
    "row_bytes",
    "rows_near_zero",
    "unpack_signs",
]

U8 = npt.NDArray[np.uint8]
I8 = npt.NDArray[np.int8]
I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]
F32 = npt.NDArray[np.float32]

_BITS = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little").view(np.int8)
_SIGN = (2 * _BITS - 1).view(np.uint64)[:, 0]  # the eight signs of each byte, as int8
_FILLED = (-_BITS).view(np.uint64)[:, 0]  # all ones where a bit is set
_TILE = 256  # bytes of signs: their 2048 values stay in the nearest cache
_EMPTY = np.zeros((0, 0), np.uint8)
_GATHER = np.uint64(0x0102040810204080)  # times eight bytes of 0 or 1: those bytes as bits, in the highest byte
_HIGHEST = np.uint64(56)
# x / 255 as a product with 1/255 in two parts. The first has so few bits that its products with pixels are exact; the
# sum of both is rounded once, to the quotient itself for each of the 256 pixels. A division takes longer.
_INVERSE = np.float32(257 / 2**16), np.float32(1 / 255 - 257 / 2**16)
_ITSELF = np.float32(1), np.float32(0)


def row_bytes(d: int) -> int:
    """Bytes of one packed row of ``d`` signs."""
    return -(-d // 8)


def full_mask(d: int) -> U8:
    """A row of a mask that hides none of ``d`` values, uint8 (⌈d/8⌉,)."""
    return np.packbits(np.ones(d, bool), bitorder="little")


def pack_signs(values_ND: npt.NDArray[Any]) -> tuple[U8, U8 | None]:
    """Pack the signs of real or integer values.

    Parameters
    ----------
    values_ND
        Any real dtype, shape (N, D); only the sign matters.

    Returns
    -------
    direction : uint8 (N, ⌈D/8⌉)
    nonzero : uint8 (N, ⌈D/8⌉) or None
        None when no value is zero.

    Raises
    ------
    InputError
        Not two-dimensional, or a value is NaN.
    """
    if values_ND.ndim != 2:
        raise InputError(f"expected values of shape (N, D), got {values_ND.shape}; flatten each image first")
    if values_ND.dtype == np.float32:
        direction = np.empty((len(values_ND), row_bytes(values_ND.shape[1])), np.uint8)
        nonzero = np.empty_like(direction)
        is_full = bool(_pack(np.ascontiguousarray(values_ND), direction, nonzero))
        may_be_nan = not is_full  # a NaN is neither above nor below zero, and looks like one
    else:
        direction = np.packbits(values_ND > 0, axis=1, bitorder="little")
        filled = values_ND != 0
        nonzero, is_full = np.packbits(filled, axis=1, bitorder="little"), bool(filled.all())
        may_be_nan = np.issubdtype(values_ND.dtype, np.floating)
    if may_be_nan and np.isnan(values_ND).any():
        raise InputError("expected numbers, got NaN; a NaN has no sign")
    return direction, None if is_full else nonzero


def rows_near_zero(values_ND: F32, *, share: float) -> npt.NDArray[np.bool_]:
    """Rows with a value that is not zero, and below that share of the row's largest; bool (N,). float32 (N, D)."""
    found = np.empty(len(values_ND), np.bool_)
    _near_zero(np.ascontiguousarray(values_ND), np.float32(share), found)
    return found


def unpack_signs(direction_NB: U8, nonzero_NB: U8 | None = None, *, d: int) -> I8:
    """Unpack rows into int8 values −1, 0, +1 of shape (N, D).

    Raises
    ------
    InputError
        The rows are not ⌈D/8⌉ bytes.
    """
    _check_rows(direction_NB, nonzero_NB, d)
    signs = 2 * np.unpackbits(direction_NB, axis=1, count=d, bitorder="little").view(np.int8) - 1
    if nonzero_NB is not None:
        signs *= np.unpackbits(nonzero_NB, axis=1, count=d, bitorder="little").view(np.int8)
    return signs


def apply_signs(
    x_ND: U8 | F32, direction_NB: U8, nonzero_NB: U8 | None = None, *, epsilon: F32, out: F32 | None = None
) -> F32:
    """clip(x + ε·d, 0, 1), straight from the bits.

    Parameters
    ----------
    x_ND
        uint8 pixels (read as x / 255) or float32 in [0, 1], shape (N, D).
    direction_NB, nonzero_NB
        Packed planes, shape (N, ⌈D/8⌉).
    epsilon
        L∞ radius of each row, pixels in [0, 1], float32 of shape (N,).
    out
        Where to write, float32 (N, D); may be ``x_ND`` itself when that is float32.

    Returns
    -------
    float32 (N, D), values in [0, 1].

    Raises
    ------
    InputError
        Shapes or dtypes do not fit.
    """
    out = _checked_out(x_ND, out, len(direction_NB), epsilon)
    _check_rows(direction_NB, nonzero_NB, x_ND.shape[1])
    mask = _EMPTY if nonzero_NB is None else np.ascontiguousarray(nonzero_NB)
    direction = np.ascontiguousarray(direction_NB)
    scale, rest = _INVERSE if x_ND.dtype == np.uint8 else _ITSELF
    _apply(np.ascontiguousarray(x_ND), scale, rest, direction, mask, epsilon, _SIGN, _FILLED, out)
    return out


def quantise_deltas(delta_ND: npt.NDArray[np.floating[Any]], *, epsilon: float) -> I8:
    """q = rint(127·δ/ε) as int8 (N, D); ε·q/127 never leaves the ε-ball.

    Raises
    ------
    InputError
        A delta lies outside the ε-ball by more than rounding, or ε is 0.
    """
    if epsilon <= 0:
        raise InputError(f"expected epsilon above 0 for an iterative attack's perturbation, got {epsilon:g}")
    scaled = np.rint(delta_ND.astype(np.float64) * (127 / epsilon))
    if not (np.abs(scaled) <= 127).all():
        raise InputError(f"expected perturbations within epsilon = {epsilon:g}, got {np.abs(delta_ND).max():g}")
    return scaled.astype(np.int8)


def apply_deltas(x_ND: U8 | F32, q_ND: I8, *, epsilon: F32, out: F32 | None = None) -> F32:
    """clip(x + ε·q/127, 0, 1); arguments as in :func:`apply_signs`, ``q_ND`` int8 of shape (N, D)."""
    out = _checked_out(x_ND, out, len(q_ND), epsilon)
    if q_ND.dtype != np.int8 or q_ND.shape != x_ND.shape:
        raise InputError(
            f"expected int8 deltas of shape {x_ND.shape}, got {q_ND.dtype} {q_ND.shape}; "
            "were they made for images of another size?"
        )
    x = x_ND / np.float32(255) if x_ND.dtype == np.uint8 else x_ND
    np.add(x, q_ND * (epsilon / np.float32(127))[:, None], out=out)
    return np.clip(out, 0, 1, out=out)


def random_bits(seed: int, draws: I64, examples: I64, *, d: int, stream: int = 0) -> U8:
    """Packed random signs, a pure function of (seed, draw, example, stream).

    Parameters
    ----------
    seed
        0 ≤ seed < 2⁶⁴.
    draws, examples
        int64 of shape (N,), not negative.
    d
        Values in a row.
    stream
        Keeps apart uses of the same names: 0 is the stored step of the R+ attacks.

    Returns
    -------
    uint8 (N, ⌈D/8⌉); the unused high bits of the last byte are 0.

    Raises
    ------
    InputError
        Not one draw an example, or a number that is negative or above 2⁶⁴ − 1.
    """
    if draws.ndim != 1 or draws.shape != examples.shape:
        raise InputError(f"expected draws and examples of one shape (N,), got {draws.shape} and {examples.shape}")
    if not (0 <= seed < 2**64 and 0 <= stream < 2**64) or (draws < 0).any() or (examples < 0).any():
        raise InputError(
            f"expected seed, stream, draws and examples in [0, 2⁶⁴), got seed {seed}, stream {stream}, "
            f"draws from {draws.min(initial=0)} and examples from {examples.min(initial=0)}"
        )
    words = np.empty((len(examples), 4 * -(-d // 256)), np.uint64)
    _philox(np.uint64(seed), draws.astype(np.uint64), examples.astype(np.uint64), np.uint64(stream), words)
    bits = np.ascontiguousarray(words.astype("<u8", copy=False).view(np.uint8)[:, : row_bytes(d)])
    if d % 8:
        bits[:, -1] &= (1 << d % 8) - 1
    return bits


def _check_rows(direction_NB: U8, nonzero_NB: U8 | None, d: int) -> None:
    for plane in (direction_NB,) if nonzero_NB is None else (direction_NB, nonzero_NB):
        if plane.dtype != np.uint8 or plane.ndim != 2 or plane.shape[1] != row_bytes(d):
            raise InputError(
                f"expected uint8 signs of shape (N, {row_bytes(d)}) for D = {d}, "
                f"got {plane.dtype} {plane.shape}; were they made for images of another size?"
            )
    if nonzero_NB is not None and len(nonzero_NB) != len(direction_NB):
        raise InputError(f"expected {len(direction_NB)} rows in the mask, got {len(nonzero_NB)}")


def _checked_out(x_ND: U8 | F32, out: F32 | None, rows: int, epsilon: F32) -> F32:
    if x_ND.ndim != 2 or len(x_ND) != rows or x_ND.dtype not in (np.uint8, np.float32):
        raise InputError(f"expected uint8 or float32 images of shape ({rows}, D), got {x_ND.dtype} {x_ND.shape}")
    if epsilon.shape != (rows,) or epsilon.dtype != np.float32:
        raise InputError(f"expected one float32 epsilon a row, ({rows},), got {epsilon.dtype} {epsilon.shape}")
    if out is None:
        return np.empty(x_ND.shape, np.float32)
    if out.shape != x_ND.shape or out.dtype != np.float32:
        raise InputError(f"expected out of float32 {x_ND.shape}, got {out.dtype} {out.shape}")
    return out


@njit(nogil=True, cache=True)
def _pack(values_ND: F32, direction_NB: U8, nonzero_NB: U8) -> bool:
    """Both planes, a tile at a time; whether every value is above or below zero."""
    d, is_full = values_ND.shape[1], True
    above, below = np.zeros(8 * _TILE, np.uint8), np.zeros(8 * _TILE, np.uint8)
    above_words, below_words = above.view(np.uint64), below.view(np.uint64)
    for i in range(len(values_ND)):
        for start in range(0, d, 8 * _TILE):
            tile = values_ND[i, start : start + 8 * _TILE]
            width, first = len(tile), start // 8
            above[width:] = 0
            below[width:] = 0
            for j in range(width):
                above[j] = tile[j] > 0
                below[j] = tile[j] < 0
            for b in range((width + 7) // 8):
                direction_NB[i, first + b] = (above_words[b] * _GATHER) >> _HIGHEST
                nonzero_NB[i, first + b] = ((above_words[b] | below_words[b]) * _GATHER) >> _HIGHEST
        for b in range(d // 8):
            is_full &= nonzero_NB[i, b] == 255
        if d % 8:
            is_full &= nonzero_NB[i, d // 8] == (1 << d % 8) - 1
    return is_full


@njit(nogil=True, cache=True, fastmath={"nnan", "nsz", "reassoc"})
def _near_zero(values_ND: F32, share: Any, found: npt.NDArray[np.bool_]) -> None:
    for i in range(len(values_ND)):
        largest = np.float32(0)
        for j in range(values_ND.shape[1]):
            largest = max(largest, abs(values_ND[i, j]))
        near, count = largest * share, 0
        for j in range(values_ND.shape[1]):
            size = abs(values_ND[i, j])
            count += (size < near) & (size > np.float32(0))
        found[i] = count > 0


@njit(nogil=True, cache=True, error_model="numpy", fastmath={"nnan", "nsz"})
def _apply(
    x: Any, scale: Any, rest: Any, direction: U8, mask: U8, epsilon: F32, sign: U64, filled: U64, out: F32
) -> None:
    """Tile by tile: eight signs a table look-up, one byte each, then vector code. NaN never enters here."""
    eight = np.empty(_TILE, np.uint64)
    signs = eight.view(np.int8)
    zero, one = np.float32(0), np.float32(1)
    for i in range(len(x)):
        up, down = epsilon[i], -epsilon[i]
        for start in range(0, direction.shape[1], _TILE):
            stop = min(start + _TILE, direction.shape[1])
            tile, pixels, to = direction[i, start:stop], x[i, 8 * start : 8 * stop], out[i, 8 * start : 8 * stop]
            for byte in range(len(tile)):
                eight[byte] = sign[tile[byte]]
            if len(mask) == 0:
                for j in range(len(pixels)):
                    step = up if signs[j] > 0 else down
                    pixel = np.float32(pixels[j])
                    to[j] = min(max(pixel * scale + pixel * rest + step, zero), one)
                continue
            some = mask[i, start:stop]
            for byte in range(len(tile)):
                eight[byte] &= filled[some[byte]]
            for j in range(len(pixels)):
                pixel = np.float32(pixels[j])
                to[j] = min(max(pixel * scale + pixel * rest + up * np.float32(signs[j]), zero), one)


@njit(nogil=True, cache=True)
def _multiply_wide(a: Any, b: Any) -> Any:
    """High and low 64 bits of the 128-bit product."""
    low32 = np.uint64(0xFFFFFFFF)
    half = np.uint64(32)
    a_low, a_high, b_low, b_high = a & low32, a >> half, b & low32, b >> half
    low = a_low * b_low
    middle = a_high * b_low + (low >> half)
    other = a_low * b_high + (middle & low32)
    return a_high * b_high + (middle >> half) + (other >> half), a * b


@njit(nogil=True, cache=True)
def _philox(seed: Any, draws: Any, examples: Any, stream: Any, words: Any) -> None:
    """Philox4x64-10 (Salmon et al. 2011, doi:10.1145/2063384.2063405), counter first raised by one as numpy does."""
    m0, m1 = np.uint64(0xD2E7470EE14C6C93), np.uint64(0xCA5A826395121157)
    w0, w1 = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBB67AE8584CAA73B)
    for i in range(words.shape[0]):
        for block in range(words.shape[1] // 4):
            c0, c1, c2, c3 = np.uint64(block + 1), examples[i], stream, np.uint64(0)
            k0, k1 = seed, draws[i]
            for _ in range(10):
                high0, low0 = _multiply_wide(m0, c0)
                high1, low1 = _multiply_wide(m1, c2)
                c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
                k0, k1 = k0 + w0, k1 + w1
            words[i, 4 * block] = c0
            words[i, 4 * block + 1] = c1
            words[i, 4 * block + 2] = c2
            words[i, 4 * block + 3] = c3
