"""Models: the paper's architectures, references to anybody's, and weights with their history.

A reference is one of

    FILE.safetensors             ours; its metadata names the architecture and the training record
    timm:NAME[,weights=FILE…]    a model of timm (extra ``timm``), weights from a safetensors file or its hub
    python:MODULE:FACTORY        ``FACTORY()`` returns a torch.nn.Module
    mean-probabilities:REF+REF…  an ensemble (Liu et al. 2017); also mean-logits:REF+REF…
    binarised:REF                REF behind a rounding of its input (App. C.1)

Every model maps float images in [0, 1], (N, C, H, W), to logits (N, K) and normalises inside.
"""

from __future__ import annotations

from ensadv_data.models.architectures import ARCHITECTURES, build_model, check_architecture
from ensadv_data.models.auxiliary import build_auxiliary, check_auxiliary
from ensadv_data.models.check import check_model, check_models
from ensadv_data.models.composite import leaves, with_leaves
from ensadv_data.models.reference import (
    Model,
    load_model,
    load_models,
    module_files,
    outside_file,
    outside_files,
    reference_name,
    with_absolute_file,
)
from ensadv_data.models.weights import model_bytes, read_metadata, save_model, weights_digest

__all__ = [
    "ARCHITECTURES",
    "Model",
    "build_auxiliary",
    "build_model",
    "check_architecture",
    "check_auxiliary",
    "check_model",
    "check_models",
    "leaves",
    "load_model",
    "load_models",
    "model_bytes",
    "module_files",
    "outside_file",
    "outside_files",
    "read_metadata",
    "reference_name",
    "save_model",
    "weights_digest",
    "with_absolute_file",
    "with_leaves",
]
