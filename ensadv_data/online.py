"""Perturbations computed at the step that uses them: of the model being trained, or of static models.

A static model's perturbations never change, so a store can hold them; computing them here is what the store spares,
and what it is compared with. Randomness is named by (seed, epoch, step) and by example, so that a resumed run draws
the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from ensadv_data.attacks.catalogue import attack_label, noise_of, perturb
from ensadv_data.data import Dataset
from ensadv_data.keys import derive_key, torch_seeded
from ensadv_data.models import Model, check_models, load_models
from ensadv_data.spec import AttackSpec

__all__ = ["Computed", "computed_perturbation", "static_models"]

_STREAM = 3  # of the random step of an R+ attack, and of PGD's start


@dataclass(frozen=True)
class Computed:
    """A source whose perturbations are computed while training."""

    module: nn.Module
    attack: AttackSpec
    dropout: bool  # whether dropout is active in the gradient of a single-step attack


def static_models(references: Mapping[str, str], dataset: Dataset, *, device: str) -> list[Model]:
    """Load the static models of a training, {name: reference}, and check that they are for its images.

    Raises
    ------
    ModelError
        A model cannot be loaded, or is not for these images.
    """
    (models,) = load_models([references], device=device)
    check_models(models, dataset, device=device, gradient=True)
    return models


def computed_perturbation(
    source: Computed,
    x_NCHW: Tensor,
    *,
    examples: npt.NDArray[np.int64],
    epsilon: npt.NDArray[np.float32] | None = None,
    seed: int,
    epoch: int,
    step: int,
    rank: int = 0,
    among: str | None = None,
    amp: bool = False,
    parts: int = 1,
) -> Tensor:
    """Adversarial images, float32 (N, C, H, W) in [0, 1].

    Parameters
    ----------
    x_NCHW
        Images in [0, 1].
    examples
        int64 (N,): which ones.
    epsilon
        L∞ radius of each, pixels in [0, 1]; the attack's own unless given.
    seed, epoch, step, rank
        Name the randomness.
    among
        The source, where a step has several: then it names the randomness too.
    amp
        bfloat16 autocast.
    parts
        The images are divided in so many, one after the other, for the sake of memory.
    """
    device = x_NCHW.device
    noise = noise_of(
        source.attack,
        tuple(x_NCHW.shape[1:]),
        seed=derive_key("online step", seed, epoch),
        examples=examples,
        stream=_STREAM,
        device=device,
    )
    shares = source.attack.kind == "sign" and not source.dropout and not amp  # one pass for label and gradient
    label = None
    if not shares:
        pieces = [attack_label(source.module, x_NCHW[rows], source.attack) for rows in _parts(len(x_NCHW), parts)]
        label = torch.cat(pieces)
    radius = None if epsilon is None else torch.from_numpy(epsilon).to(device).view(-1, 1, 1, 1)
    with (
        torch_seeded(device, "online gradient", seed, epoch, step, rank, *([] if among is None else [among])),
        torch.autocast(device.type, torch.bfloat16, enabled=amp),
    ):
        made = [
            perturb(
                source.module,
                x_NCHW[rows],
                None if label is None else label[rows],
                source.attack,
                noise=None if noise is None else noise[rows],
                epsilon=None if radius is None else radius[rows],
                dropout=source.dropout,
            )
            for rows in _parts(len(x_NCHW), parts)
        ]
    return made[0] if len(made) == 1 else torch.cat(made)


def _parts(count: int, parts: int) -> list[slice]:
    """``count`` rows in so many parts, none of them empty."""
    ends = [count * part // parts for part in range(parts + 1)]
    return [slice(a, b) for a, b in pairwise(ends) if a < b]
