"""Gradients of a loss with respect to the image, from a model that is left as it was found."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn

from ensadv_data.attacks.loss import LOSSES, SLOPES, checked_logits

__all__ = ["input_gradient", "input_gradients", "labelled_gradients", "least_likely_label", "predicted_label", "steady"]


@contextmanager
def steady(model: nn.Module, *, dropout: bool = False) -> Iterator[None]:
    """Evaluation mode inside, the model's own modes afterwards.

    With ``dropout``, dropout layers are active; batch normalisation always uses its stored statistics and
    so never changes them.
    """
    before: dict[nn.Module, bool] = {}
    found = [model]  # as modules() finds them, without their names, which take ten times as long: once a batch
    while found:
        module = found.pop()
        if module not in before:
            before[module] = module.training
            found.extend(child for child in module._modules.values() if child is not None)
    try:
        for module in before:
            active = dropout and isinstance(module, nn.modules.dropout._DropoutNd)
            if module.training != active:
                module.training = active
        yield
    finally:
        for module, training in before.items():
            if module.training != training:
                module.training = training


def input_gradients(
    model: nn.Module,
    x_NCHW: Tensor,
    labels: list[Tensor],
    *,
    losses: Sequence[str],
    dropout: bool = False,
    held: bool = False,
) -> list[Tensor]:
    """Gradients of several losses from one forward pass, each at the same ``x_NCHW``.

    Parameters
    ----------
    model
        From images in [0, 1] to logits (N, K). Its parameters get no gradient.
    x_NCHW
        Floating point images in [0, 1], shape (N, C, H, W).
    labels
        For each gradient, int64 labels of shape (N,).
    losses
        For each gradient, a name in :data:`~ensadv_data.attacks.loss.LOSSES`.
    dropout
        Whether dropout layers are active.
    held
        Whether the caller holds the model steady, for many calls: looking at every module takes a small net's time.

    Returns
    -------
    list of Tensor
        Gradients of the shape and dtype of ``x_NCHW``.

    Raises
    ------
    ModelError
        The model's output is not (N, K).
    """
    return labelled_gradients(model, x_NCHW, lambda logits_NK: labels, losses=losses, dropout=dropout, held=held)


def labelled_gradients(
    model: nn.Module,
    x_NCHW: Tensor,
    labels_of: Callable[[Tensor], list[Tensor]],
    *,
    losses: Sequence[str],
    dropout: bool = False,
    held: bool = False,
) -> list[Tensor]:
    """Gradients whose labels come from the logits of the same forward pass, which ``labels_of`` is given, (N, K).

    Everything else as in :func:`input_gradients`.
    """
    with nullcontext() if held else steady(model, dropout=dropout), torch.enable_grad():
        x = x_NCHW.detach().requires_grad_(True)
        logits = checked_logits(model(x), n=len(x))
        logits = logits if logits.dtype == torch.float64 else logits.float()  # autocast gives fewer bits
        labels, gradients = labels_of(seen := logits.detach()), []
        for i, (label_N, loss) in enumerate(zip(labels, losses, strict=True)):
            slope = SLOPES.get(loss)
            of, along = (LOSSES[loss](logits, label_N).sum(), None) if slope is None else (logits, slope(seen, label_N))
            gradients.append(torch.autograd.grad(of, x, along, retain_graph=i + 1 < len(labels))[0])
    return gradients


def input_gradient(
    model: nn.Module, x_NCHW: Tensor, label_N: Tensor, *, loss: str = "margin", dropout: bool = False
) -> Tensor:
    """The gradient ∇ₓL(h(x), y); see :func:`input_gradients`."""
    return input_gradients(model, x_NCHW, [label_N], losses=[loss], dropout=dropout)[0]


def sign_of(gradient: Tensor) -> Tensor:
    """−1, 0 and +1, and NaN where the gradient is not finite: torch.sign makes 0 of NaN, which nobody would notice."""
    return gradient.sign() + 0 * gradient


@torch.no_grad()
def logits_of(model: nn.Module, x_NCHW: Tensor) -> Tensor:
    """Logits in evaluation mode, shape (N, K)."""
    with steady(model):
        return checked_logits(model(x_NCHW), n=len(x_NCHW))


def predicted_label(model: nn.Module, x_NCHW: Tensor) -> Tensor:
    """The argmax of h(x) in evaluation mode, int64 (N,): the label that avoids label leaking (App. C.2)."""
    return logits_of(model, x_NCHW).argmax(dim=1)


def least_likely_label(model: nn.Module, x_NCHW: Tensor) -> Tensor:
    """y_LL = argmin h(x) in evaluation mode, int64 (N,) (Section 3.2)."""
    return logits_of(model, x_NCHW).argmin(dim=1)
