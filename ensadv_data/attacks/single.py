"""Single-step attacks: FGSM, Step-LL and their randomised variants (equations 2, 3 and 7)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ensadv_data.attacks.gradient import labelled_gradients, least_likely_label, logits_of, sign_of
from ensadv_data.errors import QuantityError

__all__ = ["fgsm", "r_fgsm", "r_step_ll", "random_step", "step_ll"]


def fgsm(
    model: nn.Module,
    x_NCHW: Tensor,
    y_N: Tensor | None = None,
    *,
    epsilon: float | Tensor,
    loss: str = "margin",
    dropout: bool = False,
) -> Tensor:
    """x + ε·sign ∇ₓL(h(x), y), clipped to [0, 1] (equation 2).

    Parameters
    ----------
    model
        From images in [0, 1] to logits; left as it was found.
    x_NCHW
        Floating point images in [0, 1], shape (N, C, H, W).
    y_N
        int64 labels to move away from, shape (N,); argmax h(x) unless given, which avoids label leaking (App. C.2).
    epsilon
        L∞ radius, pixels in [0, 1]; a number, or a tensor (N, 1, 1, 1).
    loss
        ``margin``, ``ce`` or ``cw``.
    dropout
        Whether dropout layers are active while the gradient is taken.

    Returns
    -------
    Tensor
        Adversarial images in [0, 1], same shape and dtype.
    """
    direction = sign_of(_gradient(model, x_NCHW, y_N, torch.argmax, loss=loss, dropout=dropout))
    return (x_NCHW + epsilon * direction).clamp(0, 1)


def step_ll(
    model: nn.Module,
    x_NCHW: Tensor,
    y_LL_N: Tensor | None = None,
    *,
    epsilon: float | Tensor,
    loss: str = "margin",
    dropout: bool = False,
) -> Tensor:
    """x − ε·sign ∇ₓL(h(x), y_LL), clipped to [0, 1] (equation 3); y_LL = argmin h(x) unless given."""
    direction = -sign_of(_gradient(model, x_NCHW, y_LL_N, torch.argmin, loss=loss, dropout=dropout))
    return (x_NCHW + epsilon * direction).clamp(0, 1)


def _gradient(
    model: nn.Module,
    x_NCHW: Tensor,
    label_N: Tensor | None,
    choose: Callable[..., Tensor],
    *,
    loss: str,
    dropout: bool,
) -> Tensor:
    """The gradient at a label, or at one that the logits in evaluation mode choose: of the same pass, if it may be."""
    if label_N is None and dropout:
        label_N = choose(logits_of(model, x_NCHW), 1)

    def labels(logits_NK: Tensor) -> list[Tensor]:
        return [choose(logits_NK, 1) if label_N is None else label_N]

    return labelled_gradients(model, x_NCHW, labels, losses=[loss], dropout=dropout)[0]


def random_step(x_NCHW: Tensor, random_sign: Tensor, *, alpha: float) -> Tensor:
    """x′ = clip(x + α·r), r ∈ {−1, +1}: the first half of equation 7."""
    return (x_NCHW + alpha * random_sign).clamp(0, 1)


def r_fgsm(
    model: nn.Module,
    x_NCHW: Tensor,
    y_N: Tensor,
    *,
    epsilon: float,
    alpha: float,
    random_sign: Tensor,
    loss: str = "margin",
    dropout: bool = False,
) -> Tensor:
    """x′ + (ε − α)·sign ∇L(h(x′), y) with x′ = x + α·r, each step clipped to [0, 1] (equation 7).

    Parameters
    ----------
    random_sign
        r = sign N(0, I), values −1 and +1, shape of ``x_NCHW``; the caller draws it, so that the attack is
        a pure function.
    alpha
        Size of the random step, 0 < α < ε.

    Raises
    ------
    QuantityError
        α ≥ ε or α ≤ 0.
    """
    _check_alpha(alpha, epsilon)
    x_step = random_step(x_NCHW, random_sign, alpha=alpha)
    return fgsm(model, x_step, y_N, epsilon=epsilon - alpha, loss=loss, dropout=dropout)


def r_step_ll(
    model: nn.Module,
    x_NCHW: Tensor,
    y_LL_N: Tensor | None = None,
    *,
    epsilon: float,
    alpha: float,
    random_sign: Tensor,
    loss: str = "margin",
    dropout: bool = False,
) -> Tensor:
    """Equation 7 towards the least likely class of the clean image; see :func:`r_fgsm`."""
    _check_alpha(alpha, epsilon)
    y_LL_N = least_likely_label(model, x_NCHW) if y_LL_N is None else y_LL_N
    x_step = random_step(x_NCHW, random_sign, alpha=alpha)
    return step_ll(model, x_step, y_LL_N, epsilon=epsilon - alpha, loss=loss, dropout=dropout)


def _check_alpha(alpha: float, epsilon: float) -> None:
    if not 0 < alpha < epsilon:
        raise QuantityError(f"alpha: expected 0 < alpha < epsilon = {epsilon:g}, got {alpha:g}")
