"""One optimizer step: what a batch of clean and perturbed images does to the weights."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from ensadv_data.average import MovingAverage
from ensadv_data.checkpoint import load_state, state_of
from ensadv_data.dist import Place
from ensadv_data.keys import torch_seeded
from ensadv_data.models.auxiliary import WithAuxiliary
from ensadv_data.spec import TrainSpec

__all__ = ["Learner", "learning_rate"]

_AVERAGE, _HEAD = "average.", "auxiliary."  # what their tensors' names begin with in a checkpoint


def learning_rate(spec: TrainSpec, epoch: int) -> float:
    """Learning rate of an epoch: constant for Adam; RMSProp's decays by 0.94 every two epochs (Section 4.2)."""
    return spec.rate * (0.94 ** (epoch // 2) if spec.optimizer == "rmsprop" else 1.0)


class Learner:
    """A model in training, with its optimizer, its auxiliary head and the average of its weights.

    Parameters
    ----------
    spec
        Optimizer, rate, weights of the losses, label smoothing, decay of the average, parts of a batch.
    module
        The model, or it with an auxiliary head, on its device.
    place
        Rank and world size; in a group of processes gradients are averaged.
    """

    def __init__(self, spec: TrainSpec, module: nn.Module, *, place: Place) -> None:
        self.spec, self.place = spec, place
        self.model = module.model if isinstance(module, WithAuxiliary) else module
        self.head = module.head if isinstance(module, WithAuxiliary) else None
        self.trained = module if place.world_size == 1 else DistributedDataParallel(module)
        self.average = None if spec.ema is None else MovingAverage(self.model, decay=spec.ema)
        self.optimizer: torch.optim.Optimizer = (
            torch.optim.Adam(module.parameters(), lr=spec.rate)
            if spec.optimizer == "adam"
            else torch.optim.RMSprop(module.parameters(), lr=spec.rate, alpha=0.9, eps=1.0, momentum=0.9)
        )

    def learn(
        self, clean: tuple[Tensor, Tensor], adversarial: tuple[Tensor, Tensor], *, number: int, epoch: int, step: int
    ) -> Tensor:
        """One optimizer step; returns the loss of each image, the clean ones first, without that of the head.

        Parameters
        ----------
        clean, adversarial
            float32 images (N, C, H, W) in [0, 1] and int64 labels (N,). With ``accumulate`` each of both is divided
            in so many parts, and gradients are added up over them: the step is that of the whole batch.
        number, epoch, step
            Counted over all epochs; epoch, and step in it, which name the randomness.
        """
        spec, size = self.spec, len(clean[0]) + self.spec.weight * len(adversarial[0])
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(spec, epoch)
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        parts = list(zip(*(_parts(t, spec.accumulate) for t in (*clean, *adversarial)), strict=True))
        losses: tuple[list[Tensor], list[Tensor]] = ([], [])
        with torch_seeded(clean[0].device, "training step", spec.seed, epoch, step, self.place.rank):
            for index, (x, y, x_adv, y_adv) in enumerate(parts):
                inputs, targets = (torch.cat([x, x_adv]), torch.cat([y, y_adv])) if len(x_adv) else (x, y)
                is_last = index + 1 == len(parts)
                waits = isinstance(self.trained, DistributedDataParallel) and not is_last
                with self.trained.no_sync() if waits else nullcontext():  # type: ignore[operator]
                    own, total = self._losses(inputs, targets)
                    summed = total[: len(x)].sum() + spec.weight * total[len(x) :].sum()
                    (summed / size).backward()  # type: ignore[no-untyped-call]
                losses[0].append(own[: len(x)])
                losses[1].append(own[len(x) :])
        self.optimizer.step()
        if self.average is not None:
            self.average.update(self.model, number)
        return torch.cat([*losses[0], *losses[1]])

    def finished(self) -> nn.Module:
        """What is written and evaluated: the average of the weights where there is one, and never the head."""
        return self.model if self.average is None else self.average.averaged(self.model)

    def state(self) -> dict[str, Tensor]:
        """Every tensor that the next step depends on, by name."""
        tensors = state_of(self.model, self.optimizer)
        if self.head is not None:
            tensors |= {f"{_HEAD}{name}": tensor for name, tensor in self.head.state_dict().items()}
        if self.average is not None:
            tensors |= {f"{_AVERAGE}{name}": tensor for name, tensor in self.average.state().items()}
        return tensors

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Put back what :meth:`state` gave."""
        load_state(self.model, self.optimizer, tensors)
        if self.head is not None:
            self.head.load_state_dict(_below(_HEAD, tensors))
        if self.average is not None:
            self.average.load(_below(_AVERAGE, tensors))

    def _losses(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Of each image: the cross-entropy of its logits, without a gradient; and that with its auxiliary logits'."""
        spec = self.spec
        with torch.autocast(inputs.device.type, torch.bfloat16, enabled=spec.amp):
            found = self.trained(inputs)
        logits, *auxiliary = found if self.head is not None else (found,)
        own = total = self._cross_entropy(logits, targets)
        for other in auxiliary:
            total = total + spec.auxiliary_weight * self._cross_entropy(other, targets)
        return own.detach(), total

    def _cross_entropy(self, logits: Tensor, targets: Tensor) -> Tensor:
        return cross_entropy(logits.float(), targets, reduction="none", label_smoothing=self.spec.label_smoothing)


def _parts(tensor: Tensor, count: int) -> tuple[Tensor, ...]:
    return (tensor,) if count == 1 else torch.tensor_split(tensor, count)


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
