"""Signs that float32 does not know: images with a value next to zero in their gradient are computed again in float64.

The error of a float32 gradient is some ten-millionths of its largest value, and of a million values about one lies so
close to zero that its sign is chance: another batch size, number of threads or processor gives another one. In float64
it is none of these. What is left is as rare: ties of a ReLU, a maximum or two classes to float32's last bit, and what
cancels to zero in float32 alone.
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

__all__ = ["NEAR", "Again", "Doubtful", "in_float64"]

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
        The source; it must compute in float64 too (:func:`in_float64`).
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
        """All that were kept, computed in float64, about ``size`` at once; they are forgotten then."""
        found, self._found = self._found, {}
        for (attack, loss), kept in found.items():
            while kept:
                some, count = [], 0
                while kept and count < self._size:
                    some.append(kept.pop())
                    count += len(some[-1][1])
                x, label = torch.cat([part[2] for part in some]), torch.cat([part[3] for part in some])
                gradient = _gradient(in_float64(self._model), x, label, loss)
                ends = np.cumsum([len(rows) for _, rows, *_ in some])
                for (draw, rows, *_), end in zip(some, ends, strict=True):
                    yield Again(attack, draw, rows, gradient[end - len(rows) : end])


def in_float64(model: Model, x: Tensor | None = None) -> nn.Module:
    """The model in float64, made once a process.

    Parameters
    ----------
    x
        Images (n, C, H, W) to try it with.

    Raises
    ------
    ModelError
        Its weights or its logits are of another precision than float32, or it cannot compute in float64.
    """
    module = getattr(model.module, "_orig_mod", model.module)  # what torch.compile wraps
    if module not in _COPIES:
        _COPIES[module] = copy.deepcopy(module).double()
    if x is not None:
        tensors = (*module.parameters(), *module.buffers())
        others = {tensor.dtype for tensor in tensors if tensor.is_floating_point()} - {torch.float32, torch.float64}
        try:
            if others:
                raise TypeError(f"expected weights in float32, got {', '.join(map(str, others))}")
            _gradient(_COPIES[module], x, torch.zeros(len(x), dtype=torch.int64, device=x.device), "margin")
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, TypeError) as error:
            raise ModelError(
                f"source {model.name}: precision = exact needs a model that computes in float64 too: {error}; "
                "use float32"
            ) from None
    return _COPIES[module]


def _gradient(double: nn.Module, x: Tensor, label: Tensor, loss: str) -> Tensor:
    def towards(logits: Tensor) -> list[Tensor]:
        if logits.dtype != torch.float64:
            raise TypeError(f"expected logits in float64, got {logits.dtype}")
        return [label]

    return labelled_gradients(double, x.double(), towards, losses=[loss])[0]
