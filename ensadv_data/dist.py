"""Where this process stands among its peers: rank, world size, what they add up, and the cores that it may use.

The plan of a step takes rank and world size as parameters, so that the same training code runs alone and in a group.
Every function that asks the peers is called by all of them, in the same order; alone it costs nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed
from torch import Tensor

from ensadv_data.errors import InputError, QuantityError

__all__ = [
    "Place",
    "agreed_to_stop",
    "any_of_all",
    "available_cores",
    "check_device",
    "check_same",
    "current_place",
    "device_name",
    "intra_op_threads",
    "most_of_all",
    "process_group",
    "sum_of_all",
    "wait_for_all",
]


_AGREE = 4  # steps between two looks at what the other ranks were asked


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


@contextmanager
def process_group(device: str) -> Iterator[Place]:
    """The group that torchrun started this process in, while the context lasts; alone where it was not.

    A process has the GPU of its local rank.

    Raises
    ------
    InputError
        The other processes cannot be met.
    """
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    if ranks == 1:
        yield Place()
        return
    if not torch.distributed.is_available():
        raise InputError("expected a PyTorch with torch.distributed for more than one process, got one without")
    backend, local = "gloo", None
    if torch.device(device).index is not None:
        raise InputError(f"device: expected cuda for {ranks} processes, each of which has its own GPU, got {device}")
    if torch.device(device).type == "cuda":
        backend, local = "nccl", torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(local)
    try:
        torch.distributed.init_process_group(backend, device_id=local)
    except (RuntimeError, ValueError) as error:
        cause = str(error).partition("\n")[0]
        raise InputError(
            f"expected {ranks} processes that torchrun started, could not meet the others: {cause}"
        ) from None
    try:
        yield current_place()
    finally:
        torch.distributed.destroy_process_group()


def sum_of_all(values: Tensor) -> Tensor:
    """The sum of the ranks' tensors, on every rank; a new tensor."""
    return _reduced(values, "SUM")


def most_of_all(values: Tensor) -> Tensor:
    """The largest of the ranks' values, one by one, on every rank; a new tensor."""
    return _reduced(values, "MAX")


def any_of_all(flag: bool, *, device: torch.device) -> bool:
    """Whether it is true on any rank."""
    return flag if current_place().world_size == 1 else bool(most_of_all(torch.tensor([flag], device=device).int()))


def agreed_to_stop(asked: bool, number: int, *, device: torch.device) -> bool:
    """Whether to stop after step ``number``, all ranks after the same one; others are asked every few steps only."""
    if current_place().world_size == 1:
        return asked
    return number % _AGREE == 0 and any_of_all(asked, device=device)


def check_same(number: int, *, what: str, device: torch.device) -> None:
    """Refuse to go on where the ranks do not have the same number.

    Raises
    ------
    InputError
        The message names what it is, and the smallest and largest.
    """
    if current_place().world_size == 1:
        return
    largest, least = most_of_all(torch.tensor([number, -number], device=device)).tolist()
    if largest != -least:
        raise InputError(
            f"expected {what} to be the same on all ranks, got {-least} … {largest}; is --out on a disk that all share?"
        )


def wait_for_all() -> None:
    """Go on when every rank is here."""
    if current_place().world_size > 1:
        torch.distributed.barrier()


def _reduced(values: Tensor, operation: str) -> Tensor:
    values = values.clone()
    if current_place().world_size > 1:
        torch.distributed.all_reduce(values, getattr(torch.distributed.ReduceOp, operation))
    return values


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


def device_name(name: str) -> str:
    """What a device that is here is sold as, such as NVIDIA A100; a CPU is just cpu."""
    device = torch.device(name)
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
