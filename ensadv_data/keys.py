"""Keys of counter-based generators: all randomness is a pure function of what it is for.

Nothing in the package reads or advances a global generator. A draw is named by integers, for example
(seed, epoch, step), and the same name always gives the same numbers: on any rank, in any order, after
any interruption.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

__all__ = ["derive_key", "numpy_generator", "torch_seeded"]


def derive_key(*words: int | str) -> int:
    """Mix a name of integers and strings into one key.

    Parameters
    ----------
    *words
        The name of the draw, such as ``("order", seed, epoch)``. Strings keep two uses of the same
        integers apart.

    Returns
    -------
    int
        63 bits of the SHA-256 of the name.
    """
    text = "\0".join(f"{type(word).__name__}:{word}" for word in words)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def numpy_generator(*words: int | str) -> np.random.Generator:
    """Return numpy's Philox generator of the draw that ``words`` name."""
    return np.random.Generator(np.random.Philox(key=derive_key(*words)))


@contextmanager
def torch_seeded(device: torch.device | str, *words: int | str) -> Iterator[None]:
    """Seed torch's generators for the draw that ``words`` name, and put them back afterwards.

    Dropout layers and weight initialisers can draw from torch's default generator only; inside this
    context what they draw depends on ``words`` alone, and nobody outside notices.
    """
    device = torch.device(device)
    cuda = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        torch.manual_seed(derive_key(*words))
        yield
