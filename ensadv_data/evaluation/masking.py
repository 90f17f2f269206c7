"""Gradient masking: how far a single step falls short of many, and what float32 alone takes away.

Section 4.1 and Table 6 of the paper: the approximation ratio of a single-step attack for the inner maximisation of
equation 1, the cosine of the two perturbations, the norm of the gradient. And a masking that the paper does not
report: signs and whole gradients that cross-entropy in float32 rounds away, against float64.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ensadv_data.attacks.gradient import input_gradient
from ensadv_data.attacks.loss import exact_cross_entropy, margin
from ensadv_data.data import Dataset
from ensadv_data.evaluation.attacking import followed
from ensadv_data.evaluation.batches import batches
from ensadv_data.evaluation.finite import finite_gradient, finite_logits
from ensadv_data.models import Model, check_models
from ensadv_data.spec import AttackSpec

__all__ = ["Masking", "Rounding", "measure_masking", "measure_rounding"]

F64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Masking:
    """Single-step against iterative attack; losses are cross-entropy in nats, norms L2 with pixels in [0, 1]."""

    n: int
    single: str
    iterative: str
    ratio: float | None  # mean of L(single) / L(iterative), as in Table 6
    ratio_of_means: float | None
    ratio_to_best: float | None  # mean of L(single) / max(L(single), L(iterative)): never above 1
    ratio_excluded: int  # images in none of the three: no loss to divide by, or ``blind``
    above_one: int  # images where the single step found the larger loss
    loss_clean: float
    loss_single: float
    loss_iterative: float
    cosine: float | None  # of the two perturbations, mean over images
    cosine_excluded: int  # images that one of the attacks did not change
    gradient_norm: float  # of the loss at the image, mean
    ratio_to_best_stderr: float | None = None  # over the images; ``ratio`` has too heavy a tail for one
    blind: int = 0  # images whose gradient is zero, there and where the iterative attack ended: it had none to follow

    def to_json(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Rounding:
    """What cross-entropy and its margin form keep of the signs in float32; shares of all values or all images."""

    images: int
    values: int
    zeros: float  # share of exact zeros in float64: structural, nobody's loss
    wrong_ce: float  # share of values whose sign differs from float64
    wrong_margin: float
    lost_ce: float  # share of images whose whole gradient is zero, and is not in float64
    lost_margin: float
    saturated: float  # share of images whose true class has a probability that rounds to 1

    def to_json(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


def measure_masking(
    model: Model,
    dataset: Dataset,
    *,
    single: AttackSpec,
    iterative: AttackSpec,
    seed: int = 0,
    batch_size: int = 250,
    device: str = "cpu",
    advance: Callable[[int], None] = lambda images: None,
) -> Masking:
    """Compare a single-step attack with an iterative one, which bounds the largest loss from below.

    Parameters
    ----------
    single, iterative
        For example FGSM, and I-FGSM or PGD, at one ε. The loss that they climb is theirs; the loss that is compared is
        cross-entropy with the true label.
    seed
        Names the random steps and starts.

    Raises
    ------
    ModelError
        The model cannot read these images, or what it computes from them is not finite.
    """
    check_models([model], dataset, device=device, gradient=True)
    losses: dict[str, list[F64]] = {"clean": [], "single": [], "iterative": []}
    cosines: list[F64] = []
    norms: list[F64] = []
    stills: list[npt.NDArray[np.bool_]] = []
    for indices, x, y in batches(dataset, batch_size=batch_size, device=device):
        moved = {"clean": x}
        for name, attack in (("single", single), ("iterative", iterative)):
            moved[name] = followed(model, attack, x, y, indices, purpose="masking", seed=seed).images
        for name, x_adv in moved.items():
            losses[name].append(_numpy(exact_cross_entropy(finite_logits(model, x_adv), y)))
        deltas = [(moved[name] - x).double().flatten(1) for name in ("single", "iterative")]
        lengths = [delta.norm(dim=1) for delta in deltas]
        cosines.append(_numpy((deltas[0] * deltas[1]).sum(1) / (lengths[0] * lengths[1])))  # NaN where one is 0
        norm, is_still = _gradient_norm(model, x, y)
        norms.append(_numpy(norm))
        if is_still.any():
            is_still &= _gradient_norm(model, moved["iterative"], y)[1]
        stills.append(is_still.cpu().numpy())
        advance(len(indices))
    clean, one, many = (np.concatenate(losses[name]) for name in ("clean", "single", "iterative"))
    seen, best = ~np.concatenate(stills), np.maximum(one, many)
    usable, positive = seen & (many > 0), seen & (best > 0)
    ratios, to_best = one[usable] / many[usable], one[positive] / best[positive]
    cosine = np.concatenate(cosines)
    alike = np.isfinite(cosine)
    return Masking(
        n=len(many),
        single=single.label,
        iterative=iterative.label,
        ratio=_mean(ratios),
        ratio_of_means=float(one[seen].mean() / many[seen].mean()) if usable.any() else None,
        ratio_to_best=_mean(to_best),
        ratio_excluded=int((~usable).sum()),
        above_one=int((one > many).sum()),
        loss_clean=float(clean.mean()),
        loss_single=float(one.mean()),
        loss_iterative=float(many.mean()),
        cosine=_mean(cosine[alike]),
        cosine_excluded=int((~alike).sum()),
        gradient_norm=float(np.concatenate(norms).mean()),
        ratio_to_best_stderr=_stderr(to_best),
        blind=int((~seen).sum()),
    )


def measure_rounding(
    model: Model,
    dataset: Dataset,
    *,
    batch_size: int = 250,
    device: str = "cpu",
    advance: Callable[[int], None] = lambda images: None,
) -> Rounding:
    """Count the signs of FGSM's gradient (true label) that float32 gets wrong, by form of the loss.

    The reference is the margin form in float64. It has the signs of cross-entropy in float64, except where that rounds
    too: where the true class is ahead by more than some 36 nats, 1 − p is 0 in float64, and by 17 in float32.

    Raises
    ------
    ModelError
        The model cannot read these images, cannot be copied to float64, or what it computes is not finite.
    """
    check_models([model], dataset, device=device, gradient=True)
    exact = copy.deepcopy(model.module).double()
    wrong = {"ce": 0, "margin": 0}
    lost = {"ce": 0, "margin": 0}
    zeros = saturated = 0
    for _, x, y in batches(dataset, batch_size=batch_size, device=device):
        reference = input_gradient(exact, x.double(), y, loss="margin").sign().flatten(1)
        zeros += int((reference == 0).sum())
        saturated += int((finite_logits(model, x).softmax(1).gather(1, y[:, None]) == 1).sum())
        for loss in wrong:
            signs = finite_gradient(model, x, y, loss=loss).sign().flatten(1)
            wrong[loss] += int((signs != reference).sum())
            lost[loss] += int(((signs == 0).all(1) & (reference != 0).any(1)).sum())
        advance(len(x))
    n = len(dataset)
    values = n * math.prod(dataset.shape)
    return Rounding(
        images=n,
        values=values,
        zeros=zeros / values,
        wrong_ce=wrong["ce"] / values,
        wrong_margin=wrong["margin"] / values,
        lost_ce=lost["ce"] / n,
        lost_margin=lost["margin"] / n,
        saturated=saturated / n,
    )


def _mean(values: F64) -> float | None:
    return float(values.mean()) if len(values) else None


def _stderr(values: F64) -> float | None:
    """Standard error of the mean."""
    return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else None


def _gradient_norm(model: Model, x_NCHW: Tensor, y_N: Tensor) -> tuple[Tensor, Tensor]:
    """L2 norm of the gradient of cross-entropy, and where it is exactly zero, (N,) both.

    From the margin form: ∇ softplus(L′) = σ(L′)·∇L′.
    """
    slope = margin(finite_logits(model, x_NCHW).double(), y_N).sigmoid()
    gradient = finite_gradient(model, x_NCHW, y_N, loss="margin").double().flatten(1)
    return slope * torch.linalg.vector_norm(gradient, dim=1), (gradient == 0).all(1)


def _numpy(values: Tensor) -> F64:
    array: F64 = values.detach().cpu().numpy().astype(np.float64)
    return array
