"""The adversarial cone: how many orthogonal perturbations of one size fool a model at a point.

Section 4.2 and Appendix E of the paper (gradient-aligned adversarial subspaces for the L∞ norm). The k directions at
a point are the rows of a regular Hadamard matrix of order k, each repeated ⌊d/k⌋ times over a random permutation of
the pixels and multiplied by the signed gradient: mutually orthogonal, entries ±1, and sign(g)ᵀr = d/√k for each,
which is the most that k orthogonal directions can reach (Lemmas 6 and 7). Where k does not divide d, the pixels that
are left over, fewer than k, stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ensadv_data.data import Dataset
from ensadv_data.errors import QuantityError
from ensadv_data.evaluation.batches import batches
from ensadv_data.evaluation.finite import finite_gradient, finite_logits
from ensadv_data.evaluation.hadamard import ORDERS, regular_hadamard
from ensadv_data.evaluation.interval import Rate
from ensadv_data.keys import numpy_generator
from ensadv_data.models import Model, check_models

__all__ = ["Cone", "aligned_directions", "measure_cone"]


@dataclass(frozen=True)
class Cone:
    """What was found at each correctly classified point, for each ε."""

    points: int  # searched; correctly classified
    skipped: int  # misclassified before any perturbation
    orders: tuple[int, ...]
    clipped: bool
    found: Mapping[float, npt.NDArray[np.int64]]  # by ε: the most adversarial directions of one orthogonal set
    whole: Mapping[float, npt.NDArray[np.int64]]  # by ε: the largest order all of whose directions are adversarial

    def curve(self, epsilon: float) -> list[Rate]:
        """The share of points with at least k orthogonal adversarial directions, k = 1 … the largest order."""
        return [Rate(int((self.found[epsilon] >= k).sum()), self.points) for k in range(1, max(self.orders) + 1)]

    def to_json(self) -> dict[str, Any]:
        """As JSON; rates in [0, 1]. No point to search gives no curve.

        ``all_of_order`` has, for each k, the share of points where all directions of that order or of a larger one are
        adversarial.
        """
        return {
            "points": self.points,
            "skipped": self.skipped,
            "orders": list(self.orders),
            "clipped": self.clipped,
            "epsilons": [
                {
                    "epsilon": epsilon,
                    "at_least": [rate.value for rate in self.curve(epsilon)] if self.points else None,
                    "all_of_order": {
                        str(k): Rate(int((self.whole[epsilon] >= k).sum()), self.points).to_json() for k in self.orders
                    }
                    if self.points
                    else None,
                    "mean_found": float(self.found[epsilon].mean()) if self.points else None,
                }
                for epsilon in self.found
            ],
        }


def aligned_directions(
    sign_D: npt.NDArray[np.int8], order: int, permutation_D: npt.NDArray[np.int64]
) -> npt.NDArray[np.int8]:
    """The k orthogonal directions that are aligned best with a signed gradient (Lemma 7).

    Parameters
    ----------
    sign_D
        Signed gradient, entries −1 and 1.
    order
        k, at most D.
    permutation_D
        Of the pixels.

    Returns
    -------
    int8 (k, D)
        Entries −1 and 1, and 0 for the D mod k pixels that are left over.

    Raises
    ------
    QuantityError
        k is larger than D, or no matrix of that order is known.
    """
    d = len(sign_D)
    if order > d:
        raise QuantityError(f"expected an order of at most D = {d}, got {order}: an image has no more values")
    used = permutation_D[: d // order * order]
    directions = np.zeros((order, d), np.int8)
    directions[:, used] = np.repeat(regular_hadamard(order), d // order, axis=1) * sign_D[used]
    return directions


def measure_cone(
    model: Model,
    dataset: Dataset,
    *,
    epsilons: Sequence[float],
    points: int = 500,
    orders: Sequence[int] | None = None,
    loss: str = "margin",
    clip: bool = True,
    seed: int = 0,
    batch_size: int = 250,
    device: str = "cpu",
    advance: Callable[[int], None] = lambda points: None,
) -> Cone:
    """Search for orthogonal adversarial directions at the first correctly classified points.

    Parameters
    ----------
    epsilons
        L∞ radii, pixels in [0, 1].
    points
        How many correctly classified images to search at; fewer where the data set has fewer.
    orders
        Numbers of directions to try, from :data:`~ensadv_data.evaluation.hadamard.ORDERS`; all that fit the images
        unless given.
    loss
        Whose gradient: ``margin``, or ``ce``.
    clip
        Whether perturbed images are clipped to [0, 1], as everywhere in the paper.
    seed
        Names the permutations, and the signs that stand for zeros of the gradient.
    batch_size
        Perturbed images at a time.
    advance
        Called with the number of points that are done, for a progress bar.

    Raises
    ------
    QuantityError
        An order is larger than the number of pixels, or unknown.
    ModelError
        The model cannot read these images, or what it computes from them is not finite.
    """
    d = int(np.prod(dataset.shape))
    if orders is None:
        orders = [order for order in ORDERS if order <= d]
    for order in orders:
        aligned_directions(np.ones(d, np.int8), order, np.arange(d))  # refused before anything is computed
    check_models([model], dataset, device=device, gradient=True)
    found: dict[float, list[int]] = {float(epsilon): [] for epsilon in epsilons}
    whole: dict[float, list[int]] = {float(epsilon): [] for epsilon in epsilons}
    skipped = done = 0
    for indices, x, y in batches(dataset, batch_size=batch_size, device=device):
        if done == points:
            break
        right = (finite_logits(model, x).argmax(1) == y).cpu().numpy()
        signs = finite_gradient(model, x, y, loss=loss).sign().flatten(1).to(torch.int8).cpu().numpy()
        for row, example in enumerate(indices):
            if done == points:
                break
            if not right[row]:
                skipped += 1
                continue
            generator = numpy_generator("cone", seed, int(example))
            coin = (2 * generator.integers(0, 2, d) - 1).astype(np.int8)
            sign = np.where(signs[row] == 0, coin, signs[row])
            permutation = generator.permutation(d)
            sets = np.concatenate([aligned_directions(sign, order, permutation) for order in orders])
            for epsilon in found:
                fooled = _fooled(model, x[row], y[row], sets, epsilon=epsilon, clip=clip, batch_size=batch_size)
                counts = np.add.reduceat(fooled, np.cumsum([0, *orders[:-1]]))
                found[epsilon].append(int(counts.max()))
                whole[epsilon].append(max((k for k, n in zip(orders, counts, strict=True) if n == k), default=0))
            done += 1
            advance(1)
    return Cone(
        points=done,
        skipped=skipped,
        orders=tuple(orders),
        clipped=clip,
        found={epsilon: np.array(values, np.int64) for epsilon, values in found.items()},
        whole={epsilon: np.array(values, np.int64) for epsilon, values in whole.items()},
    )


def _fooled(
    model: Model,
    x_CHW: Tensor,
    label: Tensor,
    directions_RD: npt.NDArray[np.int8],
    *,
    epsilon: float,
    clip: bool,
    batch_size: int,
) -> npt.NDArray[np.int64]:
    """For each direction, 1 if it changes the model's answer from the true label, else 0."""
    steps = torch.from_numpy(directions_RD).to(x_CHW.device).view(-1, *x_CHW.shape)
    answers = []
    for start in range(0, len(steps), batch_size):
        perturbed = x_CHW + epsilon * steps[start : start + batch_size].float()
        answers.append(finite_logits(model, perturbed.clamp(0, 1) if clip else perturbed).argmax(1) != label)
    fooled: npt.NDArray[np.int64] = torch.cat(answers).cpu().numpy().astype(np.int64)
    return fooled
