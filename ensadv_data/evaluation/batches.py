"""What every measure begins with: the images, batch by batch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ensadv_data.ahead import made_ahead
from ensadv_data.data import Dataset
from ensadv_data.dist import Place

__all__ = ["batches"]


def batches(
    dataset: Dataset, *, batch_size: int, device: str, place: Place = Place()
) -> Iterator[tuple[npt.NDArray[np.int64], Tensor, Tensor]]:
    """The whole data set in order, read a batch ahead; of a group of processes each has every world-size-th batch.

    Each has at least one: where there are more processes than batches, some have the same, and what is found of an
    image is the same twice.

    Yields
    ------
    indices : int64 (B,)
    x : float32 (B, C, H, W)
        In [0, 1], on the device.
    y : int64 (B,)
        True labels, on the device.
    """
    starts = range(0, len(dataset), batch_size)
    mine = starts[place.rank % max(1, len(starts)) :: place.world_size]

    def read(start: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
        indices = np.arange(start, min(start + batch_size, len(dataset)))
        return indices, *dataset.read(indices)

    with closing(made_ahead(read, mine, depth=1)) as parts:
        for indices, images, labels in parts:
            yield indices, torch.from_numpy(images).to(device).float() / 255, torch.from_numpy(labels).to(device)
