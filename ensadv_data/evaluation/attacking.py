"""One attack of an evaluation on one batch, by a model or read from a store."""

from __future__ import annotations

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

__all__ = ["begun", "perturbed"]


def perturbed(
    model: Model | StoredSource,
    attack: Attack,
    x: torch.Tensor,
    y: torch.Tensor,
    indices: npt.NDArray[np.int64],
    *,
    seed: int,
) -> torch.Tensor:
    """One attack on one batch; its randomness is named by the attack and the examples."""
    if isinstance(model, StoredSource):
        return model.perturbed(attack, x, indices)
    if isinstance(attack, OutsideAttack):
        with torch_seeded(x.device, "outside attack", seed, attack.label, int(indices[0])):
            return attack.perturb(model.module, x, y)
    label = attack_label(model.module, x, attack, y)
    noise = _noise(attack, x, indices, seed=seed)
    return finite_moves(model, x, perturb(model.module, x, label, attack, noise=noise))


def _noise(attack: AttackSpec, x: torch.Tensor, indices: npt.NDArray[np.int64], *, seed: int) -> torch.Tensor | None:
    key = derive_key("evaluation", seed, attack.label)
    return noise_of(attack, tuple(x.shape[1:]), seed=key, examples=indices, device=x.device)


def begun(
    model: Model | StoredSource, attack: Attack, x: torch.Tensor, indices: npt.NDArray[np.int64], *, seed: int
) -> torch.Tensor | None:
    """Where an attack leaves the images if every gradient is zero; None where that is not known.

    Another library's attack may have its reasons, and the random steps of a store are its own.
    """
    if not isinstance(attack, AttackSpec) or (isinstance(model, StoredSource) and attack.is_random):
        return None
    noise = _noise(attack, x, indices, seed=seed) if attack.is_random else None
    if noise is None:
        return x
    return random_step(x, noise, alpha=attack.epsilon if attack.name == "pgd" else attack.random_step)
