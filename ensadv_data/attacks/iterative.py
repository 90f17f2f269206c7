"""Iterative attacks: one loop of projected signed-gradient steps; variants choose start, label and loss."""

from __future__ import annotations

from torch import Tensor, nn

from ensadv_data.attacks.gradient import input_gradient, least_likely_label, sign_of

__all__ = ["i_fgsm", "iter_ll", "pgd"]


def _ascend(
    model: nn.Module,
    x_NCHW: Tensor,
    y_N: Tensor,
    *,
    epsilon: float,
    steps: int,
    step_size: float,
    loss: str,
    start: Tensor | None,
    towards: bool,
) -> Tensor:
    x_adv = x_NCHW if start is None else (x_NCHW + start.clamp(-epsilon, epsilon)).clamp(0, 1)
    signed_step = -step_size if towards else step_size
    for _ in range(steps):
        gradient = input_gradient(model, x_adv, y_N, loss=loss)
        x_adv = x_adv + signed_step * sign_of(gradient)
        x_adv = (x_NCHW + (x_adv - x_NCHW).clamp(-epsilon, epsilon)).clamp(0, 1)
    return x_adv


def i_fgsm(
    model: nn.Module,
    x_NCHW: Tensor,
    y_N: Tensor,
    *,
    epsilon: float,
    steps: int = 10,
    step_size: float | None = None,
    loss: str = "margin",
) -> Tensor:
    """Iterate FGSM, projecting each step onto the ε-ball and the pixel range (Section 3.2).

    Parameters
    ----------
    x_NCHW
        Floating point images in [0, 1], shape (N, C, H, W).
    y_N
        int64 labels to move away from, shape (N,).
    epsilon, step_size
        L∞ radius and size of one step, pixels in [0, 1]; ``step_size`` is ε / steps unless given.
    steps
        Number of gradients taken.

    Returns
    -------
    Tensor
        Adversarial images in [0, 1] within ε of ``x_NCHW``.
    """
    size = epsilon / steps if step_size is None else step_size
    return _ascend(
        model, x_NCHW, y_N, epsilon=epsilon, steps=steps, step_size=size, loss=loss, start=None, towards=False
    )


def iter_ll(
    model: nn.Module,
    x_NCHW: Tensor,
    y_LL_N: Tensor | None = None,
    *,
    epsilon: float,
    steps: int = 10,
    step_size: float | None = None,
    loss: str = "margin",
) -> Tensor:
    """Iterate Step-LL towards the least likely class of the clean image; see :func:`i_fgsm`."""
    y_LL_N = least_likely_label(model, x_NCHW) if y_LL_N is None else y_LL_N
    size = epsilon / steps if step_size is None else step_size
    return _ascend(
        model,
        x_NCHW,
        y_LL_N,
        epsilon=epsilon,
        steps=steps,
        step_size=size,
        loss=loss,
        start=None,
        towards=True,
    )


def pgd(
    model: nn.Module,
    x_NCHW: Tensor,
    y_N: Tensor,
    *,
    epsilon: float,
    steps: int = 40,
    step_size: float = 0.01,
    loss: str = "cw",
    start: Tensor | None = None,
) -> Tensor:
    """Projected gradient descent of Madry et al. (2018), by default on the hinge of Carlini & Wagner.

    ``start`` is the offset of the random start, values in [−ε, ε], shape of ``x_NCHW``; None starts at x.
    """
    return _ascend(
        model,
        x_NCHW,
        y_N,
        epsilon=epsilon,
        steps=steps,
        step_size=step_size,
        loss=loss,
        start=start,
        towards=False,
    )
