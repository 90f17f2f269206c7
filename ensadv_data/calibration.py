"""How many images at once a machine computes gradients of at its best: a short trial, before a store is begun."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ensadv_data.attacks.gradient import labelled_gradients
from ensadv_data.data import Dataset
from ensadv_data.models import Model
from ensadv_data.progress import progress_bar

__all__ = ["best_batch_size"]

_SMALLEST, _LARGEST = 16, 1024
_GAIN = 0.97  # a larger batch must take less of the time an image


def best_batch_size(models: Sequence[Model], dataset: Dataset, *, device: str, most: int, trials: int = 3) -> int:
    """The smallest of 16, 32, … at which twice as many images at once would not be 3% faster.

    Parameters
    ----------
    models
        All of them are tried, since they share the batches.
    most
        No batch can be larger: a block has no more images.
    trials
        The fastest of so many counts, after one that warms up.

    Raises
    ------
    torch.OutOfMemoryError
        Not even the smallest batch fits the device.
    """
    images, _ = dataset.read(np.arange(min(_LARGEST, most, len(dataset))))
    x = torch.from_numpy(images).to(device).float() / 255
    best, fastest = min(_SMALLEST, len(x)), float("inf")
    with progress_bar("batch size", total=(_LARGEST // _SMALLEST).bit_length(), unit="sizes") as advance:
        size = best
        while size <= len(x):
            try:
                _seconds(models, x[:size])
                seconds = min(_seconds(models, x[:size]) for _ in range(trials)) / size
            except torch.OutOfMemoryError:
                if size == best:
                    raise
                break
            if seconds > _GAIN * fastest:
                break
            best, fastest, size = size, seconds, 2 * size
            advance(1)
    return best


def _seconds(models: Sequence[Model], x_NCHW: Tensor) -> float:
    began = time.perf_counter()
    for model in models:
        labelled_gradients(model.module, x_NCHW, lambda logits_NK: [logits_NK.argmax(1)], losses=["margin"])
    if x_NCHW.device.type == "cuda":
        torch.cuda.synchronize(x_NCHW.device)
    return time.perf_counter() - began
