"""From an attack's specification to the pure functions, with the label and the noise that it needs."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from ensadv_data.attacks.gradient import least_likely_label, predicted_label
from ensadv_data.attacks.iterative import i_fgsm, iter_ll, pgd
from ensadv_data.attacks.single import fgsm, r_fgsm, r_step_ll, step_ll
from ensadv_data.codec import random_bits, unpack_signs
from ensadv_data.errors import InputError
from ensadv_data.spec import AttackSpec

__all__ = ["attack_label", "noise_of", "perturb"]


def attack_label(model: nn.Module, x_NCHW: Tensor, attack: AttackSpec, y_true_N: Tensor | None = None) -> Tensor:
    """The label that the attack moves with, int64 (N,), always from the clean image in evaluation mode.

    The least likely class for the LL attacks; else the true label, or the predicted one where none is given
    (which avoids label leaking, App. C.2).
    """
    if attack.least_likely:
        return least_likely_label(model, x_NCHW)
    return predicted_label(model, x_NCHW) if y_true_N is None else y_true_N


def noise_of(
    attack: AttackSpec,
    shape: tuple[int, ...],
    *,
    seed: int,
    examples: npt.NDArray[np.int64],
    draws: npt.NDArray[np.int64] | None = None,
    stream: int = 0,
    device: torch.device | str = "cpu",
) -> Tensor | None:
    """The attack's own randomness, a function of (seed, draw, example, stream).

    Returns
    -------
    Tensor or None
        float32 (N, *shape): signs −1 and +1 for the R+ attacks, uniform in [−1, 1) for PGD's start, else None.
    """
    d = int(np.prod(shape))
    draws = np.zeros(len(examples), np.int64) if draws is None else draws
    if attack.kind == "rsign":
        bits = random_bits(seed, draws, examples, d=d, stream=stream)
        values = unpack_signs(bits, d=d).astype(np.float32)
    elif attack.name == "pgd":
        words = random_bits(seed, draws, examples, d=32 * d, stream=stream).view("<u4")
        values = (words.astype(np.float64) * 2.0**-31 - 1).astype(np.float32)
    else:
        return None
    return torch.from_numpy(values).view(len(examples), *shape).to(device)


def perturb(
    model: nn.Module,
    x_NCHW: Tensor,
    label_N: Tensor | None,
    attack: AttackSpec,
    *,
    noise: Tensor | None = None,
    epsilon: float | Tensor | None = None,
    loss: str | None = None,
    dropout: bool = False,
) -> Tensor:
    """Adversarial images of one attack.

    Parameters
    ----------
    model, x_NCHW
        As in :mod:`ensadv_data.attacks.single`.
    label_N
        From :func:`attack_label`; None: its label where no true one is given, for FGSM and Step-LL without dropout from
        the forward pass of their gradient.
    noise
        From :func:`noise_of`; None starts PGD at the image itself. Necessary for the R+ attacks.
    epsilon, loss
        Instead of the attack's own. L∞ radius, pixels in [0, 1]; FGSM and Step-LL also take a tensor (N, 1, 1, 1).
    dropout
        Whether dropout is active in the gradient of a single-step attack.
    """
    epsilon = attack.epsilon if epsilon is None else epsilon
    loss = attack.loss_form if loss is None else loss
    if attack.kind == "sign":
        single = step_ll if attack.least_likely else fgsm
        return single(model, x_NCHW, label_N, epsilon=epsilon, loss=loss, dropout=dropout)
    if isinstance(epsilon, Tensor):
        raise InputError(f"expected one epsilon for {attack.name}, got one an image")
    label_N = attack_label(model, x_NCHW, attack) if label_N is None else label_N
    steps, step_size = attack.iterations
    if attack.kind == "rsign":
        if noise is None:
            raise InputError(f"expected noise of noise_of() for {attack.name}, got None")
        function = r_step_ll if attack.least_likely else r_fgsm
        return function(
            model,
            x_NCHW,
            label_N,
            epsilon=epsilon,
            alpha=attack.random_step,
            random_sign=noise,
            loss=loss,
            dropout=dropout,
        )
    if attack.name == "pgd":
        start = None if noise is None else epsilon * noise
        return pgd(model, x_NCHW, label_N, epsilon=epsilon, steps=steps, step_size=step_size, loss=loss, start=start)
    iterative = iter_ll if attack.least_likely else i_fgsm
    return iterative(model, x_NCHW, label_N, epsilon=epsilon, steps=steps, step_size=step_size, loss=loss)
