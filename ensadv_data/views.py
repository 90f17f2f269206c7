"""Views: images that were cropped and flipped, by boxes that are a pure function of a seed.

A box is (top, left, height, width, flip), int32. One of the image's own height and width moves it: what comes in from
outside is zero. Any other is a rectangle inside the image, resized to all of it. Flipped is what comes out.

The numbers are bits of the same Philox generator as random signs (docs/format.md), and all arithmetic on them is exact
or rounded as IEEE 754 has it; a resized pixel is an integer quotient. So boxes and pixels are equal on any hardware.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

from ensadv_data.codec import full_mask, random_bits
from ensadv_data.keys import derive_key
from ensadv_data.spec import AugmentSpec, checked

__all__ = ["Views", "cut", "cut_signs"]

U8 = npt.NDArray[np.uint8]
I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]

_STREAM = 4  # of the counter-based generator
_TRIES = 10
_WORDS = 4 * _TRIES + 1  # four a try, and the coin
_NARROW, _WIDE = 3 / 4, 4 / 3  # width ÷ height of a rectangle


@dataclass(frozen=True)
class Views:
    """The views that a seed gives of every image."""

    augment: AugmentSpec
    seed: int

    @staticmethod
    def of(augment: AugmentSpec, seed: int) -> Views:
        """Those of a store that was made with ``seed``: the same for all of its sources and attacks."""
        return Views(augment, derive_key("views", seed))

    @staticmethod
    def of_plan(plan: Mapping[str, Any]) -> Views | None:
        """Those that a store's plan tells of; None where it is of whole images.

        Raises
        ------
        InputError
            The plan says something that is no augmentation.
        """
        if (told := plan.get("augment")) is None:
            return None
        return Views.of(checked(AugmentSpec, told, where="the plan's augment"), int(plan["seed"]))

    def boxes(self, shape: tuple[int, int, int], *, draws: I64, examples: I64) -> I32:
        """A box for each draw of an example, int32 (N, 5).

        Parameters
        ----------
        shape
            (C, H, W) of the images.
        draws, examples
            int64 (N,).
        """
        bits = random_bits(self.seed, draws, examples, d=64 * _WORDS, stream=_STREAM)
        words = bits.view("<u8").reshape(len(examples), _WORDS)
        uniform = (words >> np.uint64(11)).astype(np.float64) * 2.0**-53  # in [0, 1)
        height, width = shape[1:]
        found = np.empty((len(examples), 5), np.int32)
        found[:] = (0, 0, height, width, 0)
        if (padding := self.augment.padding(shape)) > 0:
            found[:, :2] = np.floor(uniform[:, :2] * (2 * padding + 1)).astype(np.int32) - padding
        elif self.augment.area is not None:
            found[:, :4] = _rectangles(uniform, height, width, self.augment.area)
        if self.augment.flip:
            found[:, 4] = words[:, -1] & np.uint64(1)
        return found


def _rectangles(uniform_NW: npt.NDArray[np.float64], height: int, width: int, least: float) -> I32:
    """The first of ten tries that fits in, or all of the image: area, proportions and place are uniform."""
    found = np.empty((len(uniform_NW), 4), np.int32)
    found[:] = (0, 0, height, width)
    is_open = np.ones(len(found), bool)
    for number in range(_TRIES):
        share, stretch, down, right = uniform_NW[:, 4 * number : 4 * number + 4].T
        area = (least + share * (1 - least)) * (height * width)
        ratio = _NARROW + stretch * (_WIDE - _NARROW)
        high, wide = np.floor(np.sqrt(area / ratio) + 0.5), np.floor(np.sqrt(area * ratio) + 0.5)
        fits = is_open & (high >= 1) & (high <= height) & (wide >= 1) & (wide <= width)
        top, left = np.floor(down * (height - high + 1)), np.floor(right * (width - wide + 1))
        found[fits] = np.stack([top, left, high, wide], axis=1)[fits].astype(np.int32)
        is_open &= ~fits
    return found


def cut(values_NCHW: npt.NDArray[Any], boxes_N5: I32) -> npt.NDArray[Any]:
    """The views of some images, of the same shape and dtype, uint8; or int8 values, which can only be moved.

    A rectangle is resized bilinearly, between centres of pixels, without smoothing; halves are rounded up.
    """
    out = np.empty_like(values_NCHW, order="C")
    _cut(np.ascontiguousarray(values_NCHW), boxes_N5, out)
    return out


def cut_signs(
    plane_NB: U8, nonzero_NB: U8 | None, boxes_N5: I32, *, shape: tuple[int, int, int]
) -> tuple[U8, U8 | None]:
    """Packed signs, moved as their images are; what comes in from outside is zero, by the mask.

    Parameters
    ----------
    plane_NB, nonzero_NB
        uint8 (N, ⌈D/8⌉), for images of ``shape`` (C, H, W).
    boxes_N5
        Of that height and width.
    """
    (moved,) = _moved([plane_NB], boxes_N5, shape)
    if nonzero_NB is None and not boxes_N5[:, :2].any():
        return moved, None
    d = shape[0] * shape[1] * shape[2]
    mask = np.broadcast_to(full_mask(d), plane_NB.shape) if nonzero_NB is None else nonzero_NB
    (filled,) = _moved([mask], boxes_N5, shape)
    return moved, filled


def _moved(planes: list[U8], boxes_N5: I32, shape: tuple[int, int, int]) -> list[U8]:
    d = shape[0] * shape[1] * shape[2]
    bits = [np.unpackbits(plane, axis=1, count=d, bitorder="little").reshape(-1, *shape) for plane in planes]
    return [np.packbits(cut(each, boxes_N5).reshape(len(each), d), axis=1, bitorder="little") for each in bits]


@njit(nogil=True, cache=True)
def _cut(values: Any, boxes: Any, out: Any) -> None:
    """Move or resize each image.

    Pixel (i, j) of a resized one lies at ((2i + 1)·h / 2H − ½, (2j + 1)·w / 2W − ½) of its rectangle: fractions of 2H
    and 2W, so that all weights are whole numbers, which add up to 4HW.
    """
    channels, height, width = values.shape[1:]
    left0, left1, weight = np.empty(width, np.int64), np.empty(width, np.int64), np.empty(width, np.int64)
    for n in range(len(values)):
        top, left, high, wide, flip = boxes[n]
        if high == height and wide == width:
            for c in range(channels):
                for i in range(height):
                    for j in range(width):
                        y, x = top + i, left + (width - 1 - j if flip else j)
                        inside = 0 <= y < height and 0 <= x < width
                        out[n, c, i, j] = values[n, c, y, x] if inside else 0
            continue
        for j in range(width):
            at = (2 * j + 1) * np.int64(wide) - width
            floor = at // (2 * width)
            to = width - 1 - j if flip else j
            weight[to] = at - floor * 2 * width
            left0[to], left1[to] = left + max(floor, 0), left + min(floor + 1, wide - 1)
        whole = np.int64(4) * height * width
        for i in range(height):
            at = (2 * i + 1) * np.int64(high) - height
            floor = at // (2 * height)
            below = at - floor * 2 * height
            top0, top1 = top + max(floor, 0), top + min(floor + 1, high - 1)
            for c in range(channels):
                upper, lower = values[n, c, top0], values[n, c, top1]
                for j in range(width):
                    a, b, w = left0[j], left1[j], weight[j]
                    one = (2 * width - w) * np.int64(upper[a]) + w * np.int64(upper[b])
                    two = (2 * width - w) * np.int64(lower[a]) + w * np.int64(lower[b])
                    out[n, c, i, j] = ((2 * height - below) * one + below * two + whole // 2) // whole
