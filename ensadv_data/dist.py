"""Where this process stands among its peers: rank, world size, and the cores that it may use.

The plan of a step takes both as parameters, so that the same training code runs alone and in a group.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed

from ensadv_data.errors import InputError, QuantityError

__all__ = ["Place", "available_cores", "check_device", "current_place", "intra_op_threads"]


@dataclass(frozen=True)
class Place:
    """Rank of this process, 0 ≤ rank < world size."""

    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world_size:
            raise QuantityError(f"expected 0 ≤ rank < world size, got rank {self.rank} of {self.world_size}")


def current_place() -> Place:
    """The place that torch.distributed gives this process; alone where no group was started."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return Place(torch.distributed.get_rank(), torch.distributed.get_world_size())
    return Place()


def available_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def intra_op_threads(count: int | None) -> Iterator[None]:
    """Compute with that many threads, PyTorch's choice where it is None; another number moves the last bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def check_device(name: str) -> None:
    """Refuse a device that this machine does not have, before anything is computed on it.

    Raises
    ------
    InputError
        PyTorch cannot put a tensor there.
    """
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(f"device: expected cpu, or cuda where there is one, got {name!r}: {reason}") from None
