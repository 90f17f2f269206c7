"""Adaptive black-box adversaries: all they have is the target's answers, and those they ask for (Definition 4).

Two of them, both left to future work by the paper. With scores: the gradient by central differences, then R+FGSM
(Section 5). With labels only: a surrogate trained on queried labels, the data grown along its own Jacobian (Papernot et
al. 2017, doi:10.1145/3052973.3053009), then FGSM from the surrogate. Every image that is shown to the target counts.
"""

from __future__ import annotations

from collections.abc import Callable, Sized
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from ensadv_data.attacks.catalogue import noise_of
from ensadv_data.attacks.gradient import input_gradient, sign_of
from ensadv_data.attacks.loss import LOSSES
from ensadv_data.attacks.single import fgsm, random_step
from ensadv_data.data import Dataset
from ensadv_data.errors import InputError
from ensadv_data.evaluation.batches import batches
from ensadv_data.evaluation.finite import finite_logits
from ensadv_data.evaluation.interval import Rate
from ensadv_data.keys import derive_key, torch_seeded
from ensadv_data.models import Model, build_model, check_models
from ensadv_data.spec import AdaptiveSpec, AttackSpec

__all__ = [
    "AdaptiveResult",
    "Oracle",
    "check_samples",
    "estimated_gradient",
    "measure_adaptive",
    "measure_estimated",
    "measure_surrogate",
]


@dataclass(frozen=True)
class AdaptiveResult:
    """How often the target was fooled, and what it cost."""

    rate: Rate
    queries: int  # images shown to the target in making the attack; measuring it is not counted

    def to_json(self) -> dict[str, Any]:
        """As JSON."""
        return {**self.rate.to_json(), "queries": self.queries, "queries_per_image": self.queries / self.rate.n}


class Oracle:
    """A model behind its prediction interface; counts the images that it is shown."""

    def __init__(self, model: Model, *, batch_size: int = 1000) -> None:
        self._model, self._batch_size = model, batch_size
        self.queries = 0

    def scores(self, x_NCHW: Tensor) -> Tensor:
        """Log-probabilities, (N, K)."""
        self.queries += len(x_NCHW)
        parts = [
            finite_logits(self._model, x_NCHW[start : start + self._batch_size]).log_softmax(dim=1)
            for start in range(0, len(x_NCHW), self._batch_size)
        ]
        return torch.cat(parts)

    def labels(self, x_NCHW: Tensor) -> Tensor:
        """The predicted class of each image, int64 (N,)."""
        return self.scores(x_NCHW).argmax(dim=1)


def estimated_gradient(
    scores: Callable[[Tensor], Tensor], x_CHW: Tensor, label: Tensor, *, step: float, loss: str = "margin"
) -> Tensor:
    """The gradient of a loss at one image by central differences: two queries a value.

    Parameters
    ----------
    scores
        From images (N, C, H, W) to log-probabilities or logits (N, K).
    x_CHW
        The image.
    label
        int64, no dimension.
    step
        Of the differences, pixels in [0, 1]. Points may leave [0, 1] by as much.

    Returns
    -------
    Tensor
        Shape of ``x_CHW``.
    """
    d = x_CHW.numel()
    steps = step * torch.eye(d, dtype=x_CHW.dtype, device=x_CHW.device).view(d, *x_CHW.shape)
    values = LOSSES[loss](scores(torch.cat([x_CHW + steps, x_CHW - steps])), label.expand(2 * d))
    return ((values[:d] - values[d:]) / (2 * step)).view(x_CHW.shape)


def measure_adaptive(
    target: Model,
    dataset: Dataset,
    samples: Dataset,
    adversary: AdaptiveSpec,
    *,
    loss: str = "margin",
    seed: int = 0,
    device: str = "cpu",
    advance: Callable[[int], None] = lambda images: None,
) -> AdaptiveResult:
    """Measure the adversary that a spec describes.

    Parameters
    ----------
    dataset
        Test images to attack.
    samples
        Where the adversary has images of its own from; the first ``adversary.samples`` are used, without their labels.

    Raises
    ------
    QuantityError
        The quantities do not fit each other.
    UnknownNameError
        No such architecture.
    ModelError
        The model cannot read these images, or its answer is not finite.
    """
    if adversary.name == "estimated":
        return measure_estimated(target, dataset, adversary, loss=loss, seed=seed, device=device, advance=advance)
    return measure_surrogate(target, dataset, samples, adversary, loss=loss, seed=seed, device=device, advance=advance)


def measure_estimated(
    target: Model,
    dataset: Dataset,
    adversary: AdaptiveSpec,
    *,
    loss: str = "margin",
    seed: int = 0,
    device: str = "cpu",
    advance: Callable[[int], None] = lambda images: None,
) -> AdaptiveResult:
    """R+FGSM along an estimated gradient, with the ``epsilon``, ``alpha`` and ``step`` of the adversary.

    Raises
    ------
    QuantityError
        The quantities do not fit each other.
    ModelError
        The model cannot read these images, or its answer is not finite.
    """
    check_models([target], dataset, device=device)
    epsilon = adversary.epsilon
    alpha = epsilon / 2 if adversary.alpha is None else adversary.alpha
    attack = AttackSpec(name="r-fgsm", epsilon=epsilon, alpha=alpha)
    oracle, errors = Oracle(target), 0
    key = derive_key("estimated", seed)
    for index, x, y in batches(dataset, batch_size=1, device=device):
        noise = noise_of(attack, dataset.shape, seed=key, examples=index, device=device)
        if noise is None:
            raise InputError(f"expected a random step for {attack.name}, got none")
        moved = random_step(x, noise, alpha=alpha)
        gradient = estimated_gradient(oracle.scores, moved[0], y[0], step=adversary.step, loss=loss)
        x_adv = (moved + (epsilon - alpha) * sign_of(gradient)).clamp(0, 1)
        errors += int((finite_logits(target, x_adv).argmax(1) != y).sum())
        advance(1)
    return AdaptiveResult(Rate(errors, len(dataset)), oracle.queries)


def check_samples(adversary: AdaptiveSpec, samples: Sized) -> None:
    """Refuse a surrogate that is to have more images than there are.

    Raises
    ------
    InputError
        The message has both numbers.
    """
    if adversary.name == "surrogate" and adversary.samples > len(samples):
        raise InputError(
            f"{adversary.label}: expected at most {len(samples)} samples, the training images there are, got "
            f"{adversary.samples}; ask for fewer"
        )


def measure_surrogate(
    target: Model,
    dataset: Dataset,
    samples: Dataset,
    adversary: AdaptiveSpec,
    *,
    loss: str = "margin",
    seed: int = 0,
    batch_size: int = 64,
    device: str = "cpu",
    advance: Callable[[int], None] = lambda images: None,
) -> AdaptiveResult:
    """FGSM from a surrogate that was trained on the target's labels.

    Parameters
    ----------
    dataset
        Test images to attack.
    samples
        Where the adversary's own images are from; their labels are not used.
    adversary
        ``samples``: how many images it has; ``architecture`` of the surrogate, which the paper assumes to be another
        one than the target's (the suite ``adaptive`` has two, D and B); ``rounds``, each of which doubles the data by
        every image moved along the sign of the surrogate's Jacobian for its label, by ``augmentation``; ``epochs`` over
        all data in each round.

    Raises
    ------
    UnknownNameError
        No such architecture.
    ModelError
        The model cannot read these images, or its answer is not finite.
    """
    check_models([target], dataset, device=device)
    oracle = Oracle(target)
    surrogate = build_model(
        adversary.architecture, shape=dataset.shape, classes=dataset.classes, seed=derive_key("surrogate", seed) % 2**31
    ).to(device)
    optimizer = torch.optim.Adam(surrogate.parameters(), lr=1e-3)
    check_samples(adversary, samples)
    x = torch.from_numpy(samples.read(np.arange(adversary.samples))[0]).to(device).float() / 255
    y = oracle.labels(x)
    shown = adversary.epochs * sum(adversary.samples << number for number in range(adversary.rounds + 1))
    tell = _in_proportion(advance, len(dataset), shown + len(dataset))
    for number in range(adversary.rounds + 1):
        with torch_seeded(device, "surrogate", seed, number):
            for _ in range(adversary.epochs):
                surrogate.train()
                order = torch.randperm(len(x))
                for start in range(0, len(x), batch_size):
                    rows = order[start : start + batch_size]
                    optimizer.zero_grad()
                    cross_entropy(surrogate(x[rows]), y[rows]).backward()  # type: ignore[no-untyped-call]
                    optimizer.step()
                    tell(len(rows))
        surrogate.eval()
        if number < adversary.rounds:
            towards = -input_gradient(surrogate, x, y, loss=loss)  # where the queried label's score grows
            moved = (x + adversary.augmentation * sign_of(towards)).clamp(0, 1)
            x, y = torch.cat([x, moved]), torch.cat([y, oracle.labels(moved)])
    errors = 0
    for _, clean, true in batches(dataset, batch_size=250, device=device):
        x_adv = fgsm(surrogate, clean, true, epsilon=adversary.epsilon, loss=loss)
        errors += int((finite_logits(target, x_adv).argmax(1) != true).sum())
        tell(len(clean))
    return AdaptiveResult(Rate(errors, len(dataset)), oracle.queries)


def _in_proportion(advance: Callable[[int], None], whole: int, work: int) -> Callable[[int], None]:
    """Advance by ``whole`` altogether while ``work`` is done, part by part."""
    done = 0

    def tell(part: int) -> None:
        nonlocal done
        before, done = done, done + part
        advance(whole * done // work - whole * before // work)

    return tell
