"""The moving average of a model's weights, which is what a training with ``ema`` writes."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy

import torch
from torch import Tensor, nn

__all__ = ["MovingAverage"]


class MovingAverage:
    """avg ← d·avg + (1 − d)·w after each step, d = min(decay, (1 + n) / (10 + n)) after step n = 0, 1, ….

    So a short training is not held at its initial weights. What is averaged are all parameters and all buffers of
    floats, the statistics of batch normalisation among them, as TensorFlow's ``ExponentialMovingAverage`` does for
    Inception; other buffers are copied.
    """

    def __init__(self, model: nn.Module, *, decay: float) -> None:
        self.decay = decay
        self._tensors = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module, number: int) -> None:
        """Follow the weights after step ``number``, counted over all epochs."""
        decay = min(self.decay, (1 + number) / (10 + number))
        current = model.state_dict()
        floats = [name for name, tensor in current.items() if tensor.is_floating_point()]
        torch._foreach_lerp_([self._tensors[name] for name in floats], [current[name] for name in floats], 1 - decay)
        for name in current.keys() - floats:
            self._tensors[name].copy_(current[name])

    def averaged(self, model: nn.Module) -> nn.Module:
        """A copy of the model that has the averages."""
        copy = deepcopy(model)
        copy.load_state_dict(self._tensors)
        return copy

    def state(self) -> dict[str, Tensor]:
        """The averages by the names of the model's tensors."""
        return dict(self._tensors)

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Put back what :meth:`state` gave."""
        for name, tensor in self._tensors.items():
            tensor.copy_(tensors[name])
