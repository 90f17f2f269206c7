"""The losses whose gradients attacks follow, one value an example.

The sign of a gradient does not change under an increasing function of the loss, and cross-entropy is
softplus of the margin form L′. In exact arithmetic the two therefore give the same signs; in float32 the
derivative of softplus rounds to zero once the model is sure, and cross-entropy loses signs that L′ keeps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from ensadv_data.errors import ModelError

__all__ = [
    "CARLINI_WAGNER_CONFIDENCE",
    "LOSSES",
    "SLOPES",
    "cross_entropy",
    "exact_cross_entropy",
    "hinge",
    "margin",
    "margin_slope",
]

CARLINI_WAGNER_CONFIDENCE = 50.0  # Madry et al. (2018) stop following an example that is wrong by this much


def margin(logits_NK: Tensor, label_N: Tensor) -> Tensor:
    """Margin form L′(z, y) = logsumexp_{j≠y} z_j − z_y, with cross-entropy = softplus(L′).

    Parameters
    ----------
    logits_NK
        Floating point, shape (N, K), K ≥ 2.
    label_N
        int64 labels, shape (N,).

    Returns
    -------
    Tensor
        Shape (N,), in nats; positive where y is less likely than all other classes together.
    """
    column = label_N.unsqueeze(1)
    others = logits_NK.scatter(1, column, float("-inf")).logsumexp(dim=1)
    return others - logits_NK.gather(1, column).squeeze(1)


def margin_slope(logits_NK: Tensor, label_N: Tensor) -> Tensor:
    """∂L′/∂z of :func:`margin`, in closed form: the softmax over the other classes, and −1 at the label.

    It spares the loss and the way back through it, which of a small net take a tenth of the gradient's time.

    Returns
    -------
    Tensor
        Shape and dtype of the logits; each row adds up to 0. NaN where logits are not finite.
    """
    column = label_N.unsqueeze(1)
    return logits_NK.scatter(1, column, float("-inf")).softmax(dim=1).scatter_(1, column, -1.0)


def cross_entropy(logits_NK: Tensor, label_N: Tensor) -> Tensor:
    """Cross-entropy of each example, shape (N,), in nats; for comparison, since float32 masks its gradient."""
    return torch.nn.functional.cross_entropy(logits_NK, label_N, reduction="none")


def exact_cross_entropy(logits_NK: Tensor, label_N: Tensor) -> Tensor:
    """Cross-entropy as softplus of the margin form in float64, shape (N,), in nats: to measure, not to follow.

    Where the model is sure, cross-entropy in float32 is 0, and a ratio of losses would divide by it.
    """
    return torch.nn.functional.softplus(margin(logits_NK.double(), label_N))


def hinge(logits_NK: Tensor, label_N: Tensor) -> Tensor:
    """Hinge of Carlini & Wagner (2017, doi:10.1109/SP.2017.49): max_{j≠y} z_j − z_y, at most the confidence.

    An example that is misclassified by more than :data:`CARLINI_WAGNER_CONFIDENCE` has gradient zero.
    """
    column = label_N.unsqueeze(1)
    others = logits_NK.scatter(1, column, float("-inf")).amax(dim=1)
    return (others - logits_NK.gather(1, column).squeeze(1)).clamp(max=CARLINI_WAGNER_CONFIDENCE)


LOSSES: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "margin": margin,
    "ce": cross_entropy,
    "cw": hinge,
}

SLOPES: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {"margin": margin_slope}
"""What :data:`LOSSES` change by with each logit, (N, K), where that is known in closed form."""


def checked_logits(logits: Tensor, *, n: int) -> Tensor:
    """Return the logits when they are (N, K) with K ≥ 2.

    Raises
    ------
    ModelError
        The model answers something else.
    """
    if not isinstance(logits, Tensor) or logits.ndim != 2 or logits.shape[0] != n or logits.shape[1] < 2:
        got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ModelError(
            f"expected logits of shape ({n}, K) with K ≥ 2 from the model, got {got}; "
            "wrap the model so that it returns one row of class scores per image"
        )
    return logits
