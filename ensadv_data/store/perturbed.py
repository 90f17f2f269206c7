"""Images with the perturbations of a store: what training and the report both do with gathered rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ensadv_data.codec import apply_deltas, apply_signs, random_bits
from ensadv_data.errors import InputError
from ensadv_data.store.layout import Entry
from ensadv_data.store.reader import Store

__all__ = ["Move", "apply_moves", "packed_moves", "perturb_images"]

U8 = npt.NDArray[np.uint8]
I64 = npt.NDArray[np.int64]
F32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Move:
    """Packed perturbations of B images and their radii: clip(x + radius · signs, 0, 1), or the deltas instead."""

    plane: npt.NDArray[Any]  # uint8 (B, ⌈D/8⌉): signs; or int8 (B, D): deltas
    nonzero: U8 | None  # the signs' mask
    radius: F32  # (B,)


def packed_moves(
    store: Store,
    entry: Entry,
    *,
    rows: I64,
    draws: I64,
    epsilon: F32,
    random_step: U8 | None = None,
    views: bool = False,
) -> list[Move]:
    """What is to be applied to some images, one after the other, still packed; arguments as in perturb_images."""
    if (told := store.header.plan.get("augment")) is not None and not views:
        raise InputError(
            f"{store.place}: expected the views that its directions belong to, by {told}, got whole images; "
            "ensadv_data.views.Views.of_plan has their boxes, or make a store without --augment"
        )
    planes = store.gather(entry, draws, rows)
    if planes.delta is not None:
        return [Move(planes.delta, None, np.full(len(rows), entry.epsilon, np.float32))]
    if planes.direction is None:
        raise InputError(f"{store.place}: {entry.key}: expected directions, got none; make the store again")
    if entry.kind == "sign":
        return [Move(planes.direction, planes.nonzero, epsilon)]
    if random_step is None:
        random_step = random_bits(entry.seed, draws, rows, d=store.header.d)
    alpha = np.minimum(np.float32(entry.alpha or 0), epsilon)
    return [Move(random_step, None, alpha), Move(planes.direction, planes.nonzero, epsilon - alpha)]


def perturb_images(
    store: Store,
    entry: Entry,
    images_BCHW: U8 | F32,
    *,
    rows: I64,
    draws: I64,
    epsilon: F32,
    random_step: U8 | None = None,
    views: bool = False,
) -> F32:
    """Apply stored draws of one entry to its images.

    Parameters
    ----------
    images_BCHW
        uint8, or float32 in [0, 1], of shape (B, C, H, W).
    rows, draws
        int64 (B,): index of each image in the data set, and which draw of it.
    epsilon
        float32 (B,): L∞ radius of each image, pixels in [0, 1]. A delta keeps the radius it was made for. Where
        it is below the α of an R+ entry, the random step is that much smaller.
    random_step
        Packed signs uint8 (B, ⌈D/8⌉) for the random step of an R+ entry; the stored one where None.
    views
        That the images are the views of these draws, where the store was made of views.

    Returns
    -------
    float32 (B, C, H, W), values in [0, 1].

    Raises
    ------
    InputError
        A row or a draw is out of range, or the store was made of views and these are none.
    ChunkError
        A chunk of the store is missing, truncated or corrupted.
    """
    about: dict[str, Any] = {"rows": rows, "draws": draws, "epsilon": epsilon, "random_step": random_step}
    return apply_moves(images_BCHW, packed_moves(store, entry, **about, views=views))


def apply_moves(images_BCHW: U8 | F32, moves: Sequence[Move]) -> F32:
    """Images after all of the moves, float32 (B, C, H, W) in [0, 1]; uint8 ones are read as x / 255."""
    x: npt.NDArray[Any] = np.ascontiguousarray(images_BCHW).reshape(len(images_BCHW), -1)
    out = None  # the second move takes place where the first one wrote
    for move in moves:
        if move.plane.dtype == np.int8:
            x = out = apply_deltas(x, move.plane, epsilon=move.radius, out=out)
        else:
            x = out = apply_signs(x, move.plane, move.nonzero, epsilon=move.radius, out=out)
    return x.reshape(images_BCHW.shape)
