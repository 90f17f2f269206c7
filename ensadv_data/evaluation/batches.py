"""What every measure begins with: models that fit the images, and the images batch by batch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ensadv_data.data import Dataset
from ensadv_data.models import Model, check_model

__all__ = ["batches", "check_models"]


def check_models(models: Iterable[Model], dataset: Dataset, *, device: str) -> None:
    """Refuse models that cannot read these images or have other classes.

    Raises
    ------
    ModelError
        The message names the model, and what was expected.
    """
    sample, _ = dataset.read(np.arange(min(2, len(dataset))))
    for model in models:
        check_model(model, sample, classes=dataset.classes, device=device)


def batches(
    dataset: Dataset, *, batch_size: int, device: str
) -> Iterator[tuple[npt.NDArray[np.int64], Tensor, Tensor]]:
    """The whole data set in order.

    Yields
    ------
    indices : int64 (B,)
    x : float32 (B, C, H, W)
        In [0, 1], on the device.
    y : int64 (B,)
        True labels, on the device.
    """
    for start in range(0, len(dataset), batch_size):
        indices = np.arange(start, min(start + batch_size, len(dataset)))
        images, labels = dataset.read(indices)
        yield indices, torch.from_numpy(images).to(device).float() / 255, torch.from_numpy(labels).to(device)
