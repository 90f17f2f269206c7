"""What every measure begins with: the images, batch by batch."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ensadv_data.data import Dataset
from ensadv_data.dist import Place

__all__ = ["batches"]


def batches(
    dataset: Dataset, *, batch_size: int, device: str, place: Place = Place()
) -> Iterator[tuple[npt.NDArray[np.int64], Tensor, Tensor]]:
    """The whole data set in order; of a group of processes each has every world-size-th batch, and at least one.

    Where there are more processes than batches, some have the same: what is found of an image is the same twice.

    Yields
    ------
    indices : int64 (B,)
    x : float32 (B, C, H, W)
        In [0, 1], on the device.
    y : int64 (B,)
        True labels, on the device.
    """
    starts = range(0, len(dataset), batch_size)
    for start in starts[place.rank % max(1, len(starts)) :: place.world_size]:
        indices = np.arange(start, min(start + batch_size, len(dataset)))
        images, labels = dataset.read(indices)
        yield indices, torch.from_numpy(images).to(device).float() / 255, torch.from_numpy(labels).to(device)
