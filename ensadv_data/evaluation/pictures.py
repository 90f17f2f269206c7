"""The first test images as they are, as an evaluation changed them, and under each attack on a target (Figure 3)."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ensadv_data.data import Dataset
from ensadv_data.evaluation.attacking import perturbed
from ensadv_data.evaluation.suites import Attack
from ensadv_data.models import Model

__all__ = ["pictures_of"]


def pictures_of(
    targets: Sequence[Model],
    original: Dataset,
    dataset: Dataset,
    attacks: Sequence[Attack],
    *,
    count: int,
    seed: int = 0,
    device: str = "cpu",
) -> dict[str, Any]:
    """Pictures for the report, as JSON: images are base64 of their bytes, uint8 (count, C, H, W).

    Parameters
    ----------
    original, dataset
        The test images, and those that are attacked: the same, or rotated and flipped.
    attacks
        White-box attacks, made on each target with the randomness of its evaluation.
    count
        How many of the first images.
    """
    indices = np.arange(min(count, len(dataset)))
    images, labels = dataset.read(indices)
    x, y = torch.from_numpy(images).to(device).float() / 255, torch.from_numpy(labels).to(device)
    before, _ = original.read(indices)
    attacked = {
        target.name: {
            attack.label: _text(_pixels(perturbed(target, attack, x, y, indices, seed=seed).images))
            for attack in attacks
        }
        for target in targets
    }
    return {
        "shape": list(dataset.shape),
        "labels": labels.tolist(),
        "clean": _text(before),
        "changed": None if np.array_equal(before, images) else _text(images),
        "attacked": attacked,
    }


def _pixels(x_NCHW: torch.Tensor) -> npt.NDArray[np.uint8]:
    pixels: npt.NDArray[np.uint8] = (255 * x_NCHW).round().clamp(0, 255).to(torch.uint8).cpu().numpy()
    return pixels


def _text(images: npt.NDArray[np.uint8]) -> str:
    return base64.b64encode(np.ascontiguousarray(images).tobytes()).decode("ascii")
