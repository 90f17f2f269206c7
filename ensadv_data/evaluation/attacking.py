"""One attack of an evaluation on one batch, by a model or read from a store."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from ensadv_data.attacks.catalogue import attack_label, noise_of, perturb
from ensadv_data.attacks.single import random_step
from ensadv_data.evaluation.finite import finite_moves
from ensadv_data.evaluation.outside import OutsideAttack
from ensadv_data.evaluation.stored import StoredSource
from ensadv_data.evaluation.suites import Attack
from ensadv_data.keys import derive_key, torch_seeded
from ensadv_data.models import Model
from ensadv_data.spec import AttackSpec

__all__ = ["Attacked", "followed", "perturbed"]


@dataclass(frozen=True)
class Attacked:
    """Adversarial images of one batch, float32 (N, C, H, W) in [0, 1]."""

    images: torch.Tensor
    start: torch.Tensor | None  # where a gradient of zero would leave them; None where that is not known


def perturbed(
    model: Model | StoredSource,
    attack: Attack,
    x: torch.Tensor,
    y: torch.Tensor,
    indices: npt.NDArray[np.int64],
    *,
    seed: int,
) -> Attacked:
    """One attack on one batch; its randomness is named by the attack and the examples.

    ``start`` is not known of another library's attack, which may have its reasons, nor of what a store has stepped at
    random or rounded; and of no attack on the hinge, which is flat where it has succeeded.

    Raises
    ------
    ModelError
        What the model computes is NaN or infinite.
    """
    if isinstance(model, StoredSource):
        x_adv = model.perturbed(attack, x, indices)
        return Attacked(x_adv, x if isinstance(attack, AttackSpec) and attack.kind == "sign" else None)
    if isinstance(attack, OutsideAttack):
        with torch_seeded(x.device, "outside attack", seed, attack.label, int(indices[0])):
            return Attacked(attack.perturb(model.module, x, y), None)
    return followed(model, attack, x, y, indices, purpose="evaluation", seed=seed)


def followed(
    model: Model,
    attack: AttackSpec,
    x: torch.Tensor,
    y: torch.Tensor,
    indices: npt.NDArray[np.int64],
    *,
    purpose: str,
    seed: int,
) -> Attacked:
    """One attack along the gradients of a model; ``purpose`` and ``seed`` name its randomness, with the examples.

    Raises
    ------
    ModelError
        A gradient of the model is NaN or infinite.
    """
    key = derive_key(purpose, seed, attack.label)
    noise = noise_of(attack, tuple(x.shape[1:]), seed=key, examples=indices, device=x.device)
    label = attack_label(model.module, x, attack, y)
    x_adv = finite_moves(model, x, perturb(model.module, x, label, attack, noise=noise))
    if attack.loss_form == "cw" or not attack.epsilon or (attack.kind == "delta" and not attack.iterations[1]):
        return Attacked(x_adv, None)
    if noise is None:
        return Attacked(x_adv, x)
    size = attack.random_step if attack.kind == "rsign" else attack.epsilon
    return Attacked(x_adv, random_step(x, noise, alpha=size))
