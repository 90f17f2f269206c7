"""The loss around one image, over the plane of two directions (Figures 1, 4 and 5 of the paper).

x* = x + ε₁·g + ε₂·g⊥, with g the signed gradient at x, and g⊥ a random signed vector that is orthogonal to it, or the
signed gradient of another model. Points are not clipped to [0, 1] unless asked for: the figures show the formula.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ensadv_data.attacks.loss import exact_cross_entropy
from ensadv_data.data import Dataset
from ensadv_data.errors import QuantityError
from ensadv_data.evaluation.finite import finite_gradient, finite_logits
from ensadv_data.keys import numpy_generator
from ensadv_data.models import Model, check_model

__all__ = ["Surface", "check_surface", "measure_surface", "orthogonal_signs"]

F64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Surface:
    """Cross-entropy in nats on a square grid: ``loss[i, j]`` at ε₁ = axis[i], ε₂ = axis[j]."""

    example: int
    label: int
    across: str  # what g⊥ is
    cosine: float | None  # of g and g⊥; None where one of them is 0
    axis: F64
    loss: F64

    def to_json(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "example": self.example,
            "label": self.label,
            "across": self.across,
            "cosine": self.cosine,
            "axis": self.axis.tolist(),
            "loss": self.loss.round(6).tolist(),
        }


def orthogonal_signs(sign_D: npt.NDArray[np.int8], generator: np.random.Generator) -> npt.NDArray[np.int8]:
    """A random vector with the same zeros and entries ±1 elsewhere, orthogonal to a signed vector.

    It agrees with it on a random half of the entries that are not 0; where their number is odd, one more becomes 0.
    """
    filled = generator.permutation(np.flatnonzero(sign_D))
    half = len(filled) // 2
    across = np.zeros_like(sign_D)
    across[filled[:half]] = sign_D[filled[:half]]
    across[filled[half : 2 * half]] = -sign_D[filled[half : 2 * half]]
    return across


def check_surface(dataset: Dataset, example: int, *, radius: float, resolution: int) -> None:
    """Refuse, before anything is computed, what :func:`measure_surface` would refuse.

    Raises
    ------
    QuantityError
        The radius, resolution or example is out of range.
    """
    if not 0 < radius <= 1:
        raise QuantityError(f"radius: expected a number in (0, 1], got {radius:g}")
    if resolution < 3 or resolution % 2 == 0:
        raise QuantityError(f"resolution: expected an odd number of at least 3, got {resolution}")
    if not 0 <= example < len(dataset):
        raise QuantityError(f"example: expected an index in 0 … {len(dataset) - 1}, got {example}")


def measure_surface(
    model: Model,
    dataset: Dataset,
    example: int,
    *,
    radius: float,
    resolution: int = 41,
    other: Model | None = None,
    loss: str = "margin",
    clip: bool = False,
    seed: int = 0,
    batch_size: int = 250,
    device: str = "cpu",
) -> Surface:
    """Evaluate the loss over the plane.

    Parameters
    ----------
    example
        Index of the image.
    radius
        ε₁ and ε₂ go from −radius to radius; pixels in [0, 1]. A small one is the figures' zoom.
    resolution
        Points a side, odd, so that the image itself is one of them.
    other
        The model whose signed gradient is g⊥; None: a random orthogonal one, named by ``seed`` and ``example``.
    loss
        Whose gradient g is: ``margin`` or ``ce``. What is drawn is cross-entropy.

    Raises
    ------
    QuantityError
        The radius, resolution or example is out of range.
    ModelError
        A model cannot read these images, or what it computes from them is not finite.
    """
    check_surface(dataset, example, radius=radius, resolution=resolution)
    images, labels = dataset.read(np.array([example]))
    for each in (model, *([other] if other is not None else [])):
        check_model(each, images, classes=dataset.classes, device=device, gradient=True)
    x = torch.from_numpy(images).to(device).float() / 255
    y = torch.from_numpy(labels).to(device)
    along = _signs(model, x, y, loss)
    if other is None:
        across = orthogonal_signs(along, numpy_generator("surface", seed, example))
    else:
        across = _signs(other, x, y, loss)
    axis = np.linspace(-radius, radius, resolution)
    first, second = (torch.from_numpy(signs).to(device).float().view(x.shape) for signs in (along, across))
    steps = torch.from_numpy(axis).to(device).float()
    grid = torch.cartesian_prod(steps, steps).view(-1, 2, 1, 1, 1)
    losses = []
    for start in range(0, len(grid), batch_size):
        part = grid[start : start + batch_size]
        points = x + part[:, 0] * first + part[:, 1] * second
        logits = finite_logits(model, points.clamp(0, 1) if clip else points)
        losses.append(exact_cross_entropy(logits, y.expand(len(part))).cpu())
    norms = float(np.linalg.norm(along) * np.linalg.norm(across))
    return Surface(
        example=example,
        label=int(labels[0]),
        across="random" if other is None else other.name,
        cosine=float(along.astype(np.float64) @ across) / norms if norms else None,
        axis=axis,
        loss=torch.cat(losses).view(resolution, resolution).numpy(),
    )


def _signs(model: Model, x_1CHW: torch.Tensor, y_1: torch.Tensor, loss: str) -> npt.NDArray[np.int8]:
    gradient = finite_gradient(model, x_1CHW, y_1, loss=loss)
    signs: npt.NDArray[np.int8] = gradient.sign().cpu().numpy().astype(np.int8).ravel()
    return signs
