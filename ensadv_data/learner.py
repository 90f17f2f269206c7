"""One optimizer step: what a batch of clean and perturbed images does to the weights."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from ensadv_data.checkpoint import load_state, state_of
from ensadv_data.dist import Place
from ensadv_data.keys import torch_seeded
from ensadv_data.spec import TrainSpec

__all__ = ["Learner", "learning_rate"]


def learning_rate(spec: TrainSpec, epoch: int) -> float:
    """Learning rate of an epoch: constant for Adam; RMSProp's decays by 0.94 every two epochs (Section 4.2)."""
    return spec.rate * (0.94 ** (epoch // 2) if spec.optimizer == "rmsprop" else 1.0)


class Learner:
    """A model in training, with its optimizer.

    Parameters
    ----------
    spec
        Optimizer, rate, weight of the perturbed images.
    module
        The model, on its device.
    place
        Rank and world size; in a group of processes gradients are averaged.
    """

    def __init__(self, spec: TrainSpec, module: nn.Module, *, place: Place) -> None:
        self.spec, self.model, self.place = spec, module, place
        self.trained = module if place.world_size == 1 else DistributedDataParallel(module)
        self.optimizer: torch.optim.Optimizer = (
            torch.optim.Adam(module.parameters(), lr=spec.rate)
            if spec.optimizer == "adam"
            else torch.optim.RMSprop(module.parameters(), lr=spec.rate, alpha=0.9, eps=1.0, momentum=0.9)
        )

    def learn(
        self, clean: tuple[Tensor, Tensor], adversarial: tuple[Tensor, Tensor], *, epoch: int, step: int
    ) -> Tensor:
        """One optimizer step on images in [0, 1] with their labels; returns the loss of each, the clean ones first."""
        (x, y), (x_adv, y_adv), spec = clean, adversarial, self.spec
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(spec, epoch)
        self.model.train()
        inputs, targets = (torch.cat([x, x_adv]), torch.cat([y, y_adv])) if len(x_adv) else (x, y)
        with (
            torch_seeded(x.device, "training step", spec.seed, epoch, step, self.place.rank),
            torch.autocast(x.device.type, torch.bfloat16, enabled=spec.amp),
        ):
            losses = cross_entropy(self.trained(inputs).float(), targets, reduction="none")
        total = losses[: len(x)].sum() + spec.weight * losses[len(x) :].sum()
        self.optimizer.zero_grad(set_to_none=True)
        (total / (len(x) + spec.weight * len(x_adv))).backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        return losses.detach()

    def state(self) -> dict[str, Tensor]:
        """Every tensor that the next step depends on, by name."""
        return state_of(self.model, self.optimizer)

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Put back what :meth:`state` gave."""
        load_state(self.model, self.optimizer, tensors)
