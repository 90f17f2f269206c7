"""The arithmetic that a gradient is computed in: what a store's record says is what its signs were made by."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ensadv_data.dist import intra_op_threads

__all__ = ["as_recorded", "in_precision"]


@contextmanager
def in_precision(device: str, precision: str = "float32") -> Iterator[None]:
    """Compute in ``float32``, ``tf32`` or under autocast to ``bfloat16``; on a GPU by kernels that repeat themselves.

    ``exact`` begins as float32 (:mod:`ensadv_data.doubtful`).

    PyTorch lets the convolutions of a GPU round their float32 inputs to TF32, which has 10 bits of mantissa and not 23,
    unless it is told otherwise; and cuDNN may take kernels whose sums depend on which thread was first.
    """
    rounded, before = precision == "tf32", torch.get_float32_matmul_precision()
    with (
        torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=rounded),
        torch.autocast(torch.device(device).type, torch.bfloat16, enabled=precision == "bfloat16"),
    ):
        torch.set_float32_matmul_precision("high" if rounded else "highest")
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(before)


@contextmanager
def as_recorded(device: str, precision: str) -> Iterator[None]:
    """In that precision, and on a CPU by one thread: another number of threads would move the last bits."""
    with intra_op_threads(1 if device == "cpu" else None), in_precision(device, precision):
        yield
