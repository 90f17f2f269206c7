"""Answers and gradients of a model, refused where they are not numbers: nothing fools a model that answers NaN."""

from __future__ import annotations

from torch import Tensor

from ensadv_data.attacks.gradient import input_gradient, logits_of
from ensadv_data.errors import ModelError
from ensadv_data.models import Model

__all__ = ["finite_gradient", "finite_logits", "finite_moves"]


def finite_logits(model: Model, x_NCHW: Tensor) -> Tensor:
    """Logits (N, K) in evaluation mode.

    Raises
    ------
    ModelError
        One of them is NaN or infinite.
    """
    logits = logits_of(model.module, x_NCHW)
    if not logits.isfinite().all():
        raise _trouble(model, "logits")
    return logits


def finite_gradient(model: Model, x_NCHW: Tensor, y_N: Tensor, *, loss: str) -> Tensor:
    """The gradient of a loss in the images, (N, C, H, W); raises as :func:`finite_moves` does."""
    return finite_moves(model, x_NCHW, input_gradient(model.module, x_NCHW, y_N, loss=loss))


def finite_moves(model: Model, x_NCHW: Tensor, moved: Tensor) -> Tensor:
    """Gradients of a model at images, or where the images were moved along them.

    Raises
    ------
    ModelError
        One value of ``moved`` is NaN or infinite: the message tells whether the logits at the images are, too.
    """
    if not moved.isfinite().all():
        finite_logits(model, x_NCHW)
        raise _trouble(model, "gradients")
    return moved


def _trouble(model: Model, what: str) -> ModelError:
    return ModelError(
        f"{model.name}: expected finite {what}, got NaN or infinity; look at its weights, and at what it computes "
        "in float32 (a loss surface, and a gradient that is estimated from scores, ask it outside [0, 1] as well)"
    )
