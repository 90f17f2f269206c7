"""Whether a direction may be flipped with its image: its flip beside a fresh direction of the flipped image."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from ensadv_data.attacks.gradient import input_gradients
from ensadv_data.data import Dataset
from ensadv_data.evaluation.batches import batches
from ensadv_data.evaluation.finite import finite_logits, finite_moves
from ensadv_data.models import Model, check_models

__all__ = ["Flips", "measure_flips"]


@dataclass(frozen=True)
class Flips:
    """Shares in [0, 1]; half of the signs agree by chance.

    Attributes
    ----------
    images
        How many were measured.
    fgsm, step_ll
        Of the values that are not zero in both directions at once, those that are equal in both: of FGSM for the
        predicted label, and of Step-LL. None where all are zero.
    same_label
        Of the images, those whose flip has the same predicted label.
    """

    images: int
    fgsm: float | None
    step_ll: float | None
    same_label: float

    def to_json(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


def measure_flips(
    model: Model,
    dataset: Dataset,
    *,
    loss: str = "margin",
    batch_size: int = 250,
    device: str = "cpu",
    advance: Callable[[int], None] = lambda images: None,
) -> Flips:
    """Compare what ``train --augment flip`` makes of stored directions with fresh ones of the flipped images.

    The stored ones are those that precompute makes in evaluation mode; labels are those of the images as they are.

    Raises
    ------
    ModelError
        The model cannot read these images, or what it computes from them is not finite.
    """
    check_models([model], dataset, device=device, gradient=True)
    equal, compared, same = [0, 0], [0, 0], 0
    for _, x, _ in batches(dataset, batch_size=batch_size, device=device):
        logits = finite_logits(model, x)
        labels = [logits.argmax(1), logits.argmin(1)]
        stored = input_gradients(model.module, x, labels, losses=[loss, loss])
        fresh = input_gradients(model.module, x.flip(3), labels, losses=[loss, loss])
        for number, (one, other) in enumerate(zip(stored, fresh, strict=True)):
            flipped = finite_moves(model, x, one).sign().flip(3)
            found = finite_moves(model, x.flip(3), other).sign()
            either = (flipped != 0) | (found != 0)
            equal[number] += int(((flipped == found) & either).sum())
            compared[number] += int(either.sum())
        same += int((finite_logits(model, x.flip(3)).argmax(1) == labels[0]).sum())
        advance(len(x))
    shares = [count / of if of else None for count, of in zip(equal, compared, strict=True)]
    return Flips(images=len(dataset), fgsm=shares[0], step_ll=shares[1], same_label=same / len(dataset))
