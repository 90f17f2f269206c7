"""The arithmetic that gradients are computed in: what a record says is what signs and weights were made by."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ensadv_data.dist import intra_op_threads
from ensadv_data.spec import TrainSpec

__all__ = ["IMITATED", "as_recorded", "has_bfloat16", "in_precision", "without_imitation"]

IMITATED = "this device only imitates bfloat16, at a fraction of the speed of float32"


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


def has_bfloat16(device: str) -> bool:
    """Whether the device has kernels for bfloat16.

    Without them PyTorch imitates it, which takes several times as long as float32 (a CPU with AVX2 alone, say). A GPU
    that is not here, but in another machine's plan, is taken for one that has them.
    """
    if torch.device(device).type == "cuda":
        return not torch.cuda.is_available() or bool(torch.cuda.is_bf16_supported(including_emulation=False))
    # what PyTorch itself asks before it takes a convolution of oneDNN
    has_kernels = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return has_kernels and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def without_imitation(spec: TrainSpec) -> TrainSpec:
    """The spec, in float32 where it asks for bfloat16 and its device would only imitate that."""
    return spec.model_copy(update={"amp": False}) if spec.amp and not has_bfloat16(spec.device) else spec
