"""Signs that float32 does not know: images with a value next to zero in their gradient are computed again in float64.

The error of a float32 gradient is some ten-millionths of its largest value, and of a million values about one lies so
close to zero that its sign is chance: another batch size, number of threads or processor gives another one. In float64
it is none of these. What is left are ties: a ReLU or a maximum whose inputs are equal to float32's last bit.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from ensadv_data import device_codec
from ensadv_data.attacks.gradient import labelled_gradients
from ensadv_data.codec import rows_near_zero
from ensadv_data.errors import ModelError
from ensadv_data.models import Model

__all__ = ["NEAR", "Again", "Doubtful"]

NEAR = 2e-6
"""What counts as next to zero, as a share of the image's largest value."""

_COPIES: WeakKeyDictionary[nn.Module, nn.Module] = WeakKeyDictionary()


@dataclass(frozen=True)
class Again:
    """The gradient of some images in float64."""

    attack: str
    draw: int | slice
    rows: npt.NDArray[np.int64]  # of the block
    gradient: Tensor  # float64 (n, C, H, W)


class Doubtful:
    """The images of a block whose signs one source leaves in doubt.

    Parameters
    ----------
    model
        The source; it must compute in float64 too.
    size
        Images at once.
    """

    def __init__(self, model: Model, *, size: int) -> None:
        self._model, self._size = model, size
        self._found: dict[tuple[str, str], list[tuple[int | slice, npt.NDArray[np.int64], Tensor, Tensor]]] = {}

    def look(
        self, attack: str, loss: str, gradient: Tensor, *, x: Tensor, label: Tensor, draw: int | slice, first: int
    ) -> None:
        """Keep the images of a batch that are in doubt.

        Parameters
        ----------
        gradient, x, label
            float32 gradient (n, C, H, W) of the loss of that name at ``x``, towards the labels (n,).
        draw, first
            Which draws it is of, and the row of the block that the first image has.
        """
        flat = gradient.flatten(1)
        rows = (
            torch.from_numpy(rows_near_zero(flat.numpy(), share=NEAR))
            if flat.device.type == "cpu"
            else device_codec.rows_near_zero(flat, share=NEAR).cpu()
        ).nonzero()[:, 0]
        if len(rows):
            there = rows.to(x.device)
            self._found.setdefault((attack, loss), []).append((draw, rows.numpy() + first, x[there], label[there]))

    @property
    def waiting(self) -> int:
        """How many images are kept."""
        return sum(len(rows) for kept in self._found.values() for _, rows, *_ in kept)

    def again(self) -> Iterator[Again]:
        """All that were kept, computed in float64; they are forgotten then.

        Raises
        ------
        ModelError
            The model cannot compute in float64.
        """
        found, self._found = self._found, {}
        for (attack, loss), kept in found.items():
            x, label = torch.cat([part[2] for part in kept]), torch.cat([part[3] for part in kept])
            parts = [slice(at, at + self._size) for at in range(0, len(x), self._size)]
            gradient = torch.cat([_gradient(self._double(x), x[part], label[part], loss) for part in parts])
            ends = np.cumsum([len(rows) for _, rows, *_ in kept])
            for (draw, rows, *_), end in zip(kept, ends, strict=True):
                yield Again(attack, draw, rows, gradient[end - len(rows) : end])

    def _double(self, x: Tensor) -> nn.Module:
        """The model in float64, made once a process and tried with one image."""
        module = getattr(self._model.module, "_orig_mod", self._model.module)  # what torch.compile wraps
        if module not in _COPIES:
            double = copy.deepcopy(module).double()
            try:
                _gradient(double, x[:1], torch.zeros(1, dtype=torch.int64, device=x.device), "margin")
            except (RuntimeError, TypeError) as error:
                name = self._model.name
                raise ModelError(
                    f"source {name}: precision = exact needs a model that computes in float64 too: {error}; use float32"
                ) from None
            _COPIES[module] = double
        return _COPIES[module]


def _gradient(double: nn.Module, x: Tensor, label: Tensor, loss: str) -> Tensor:
    def towards(logits: Tensor) -> list[Tensor]:
        if logits.dtype != torch.float64:
            raise TypeError(f"expected logits in float64, got {logits.dtype}")
        return [label]

    return labelled_gradients(double, x.double(), towards, losses=[loss])[0]
