"""The codec on a device: bits cross the bus, and PyTorch's operations unpack, apply and pack them there.

Every function gives the numbers of its counterpart in :mod:`ensadv_data.codec`, to the last bit: a product with a sign
is exact, and the sum and the division are rounded once, as there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

__all__ = ["apply_deltas", "apply_signs", "pack_signs", "pixels", "rows_near_zero", "ship", "unpack_signs"]

_ALIGNED = 16  # bytes: a view of any dtype may begin there


def ship(arrays: Sequence[npt.NDArray[Any]], device: torch.device) -> list[Tensor]:
    """All arrays on the device, by one copy of one buffer, which is pinned where the device can read it so.

    Returns
    -------
    list of Tensor
        Of the arrays' shapes and dtypes, in their order; views of one buffer.
    """
    starts, size = [], 0
    for array in arrays:
        starts.append(size)
        size += -(-array.nbytes // _ALIGNED) * _ALIGNED
    buffer = torch.empty(size, dtype=torch.uint8, pin_memory=device.type == "cuda")
    whole = buffer.numpy()
    for start, array in zip(starts, arrays, strict=True):
        whole[start : start + array.nbytes] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    there = buffer.to(device, non_blocking=True)
    return [
        there[start : start + array.nbytes].view(torch.from_numpy(np.empty(0, array.dtype)).dtype).view(array.shape)
        for start, array in zip(starts, arrays, strict=True)
    ]


def pixels(x: Tensor) -> Tensor:
    """uint8 → float32 in [0, 1], divided as a CPU divides."""
    # by a tensor of the device: by a number, a GPU multiplies with the rounded inverse
    return x.float().div_(torch.full((), 255.0, device=x.device))


def unpack_signs(direction_NB: Tensor, nonzero_NB: Tensor | None = None, *, d: int) -> Tensor:
    """uint8 (N, ⌈D/8⌉) → float32 −1, 0, +1 of shape (N, D)."""
    signs = 2 * _bits(direction_NB, d) - 1
    return signs if nonzero_NB is None else signs * _bits(nonzero_NB, d)


def apply_signs(x_ND: Tensor, direction_NB: Tensor, nonzero_NB: Tensor | None = None, *, epsilon: Tensor) -> Tensor:
    """clip(x + ε·d, 0, 1) of float32 images (N, D) and one float32 ε a row, (N,)."""
    signs = unpack_signs(direction_NB, nonzero_NB, d=x_ND.shape[1])
    return signs.mul_(epsilon[:, None]).add_(x_ND).clamp_(0, 1)


def apply_deltas(x_ND: Tensor, q_ND: Tensor, *, epsilon: Tensor) -> Tensor:
    """clip(x + ε·q/127, 0, 1) of float32 images and int8 deltas (N, D), and one float32 ε a row, (N,)."""
    scale = epsilon.div(torch.full((), 127.0, device=epsilon.device))
    return q_ND.float().mul_(scale[:, None]).add_(x_ND).clamp_(0, 1)


def pack_signs(values_ND: Tensor) -> tuple[Tensor, Tensor]:
    """The signs of values of shape (N, D): the direction plane and the mask, uint8 (N, ⌈D/8⌉)."""
    return _packed(values_ND > 0), _packed(values_ND != 0)


def rows_near_zero(values_ND: Tensor, *, share: float) -> Tensor:
    """Rows with a value that is not zero, and below that share of the row's largest; bool (N,)."""
    sizes = values_ND.abs()
    return ((sizes < share * sizes.amax(1, keepdim=True)) & (sizes > 0)).any(1)


def _bits(plane_NB: Tensor, d: int) -> Tensor:
    shifts = torch.arange(8, dtype=torch.uint8, device=plane_NB.device)
    return (plane_NB[:, :, None] >> shifts & 1).flatten(1)[:, :d].float()


def _packed(flags_ND: Tensor) -> Tensor:
    n, d = flags_ND.shape
    padded = torch.nn.functional.pad(flags_ND.to(torch.uint8), (0, -d % 8)).view(n, -1, 8)
    shifts = torch.arange(8, dtype=torch.uint8, device=flags_ND.device)
    return (padded << shifts).sum(dim=2, dtype=torch.uint8)
