"""Whether a model is for these images, asked before any work is done."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from ensadv_data.attacks.gradient import logits_of
from ensadv_data.errors import ModelError
from ensadv_data.models.reference import Model

__all__ = ["check_model"]


def check_model(model: Model, images_NCHW: npt.NDArray[np.uint8], *, classes: int, device: str) -> None:
    """Refuse a model that cannot read these images, or whose output is not (N, K), in words rather than a trace.

    Parameters
    ----------
    images_NCHW
        A few images of the data set, uint8.
    classes
        K of the data set.

    Raises
    ------
    ModelError
        The message names the model, and what was expected.
    """
    x = torch.from_numpy(images_NCHW).to(device).float() / 255
    try:
        logits = logits_of(model.module, x)
    except (RuntimeError, ValueError) as error:
        shape = images_NCHW.shape[1:]
        raise ModelError(f"{model.name}: the model cannot read images of shape {shape}: {error}") from None
    except ModelError as error:
        raise ModelError(f"{model.name}: {error}") from None
    if logits.shape[1] != classes:
        raise ModelError(f"{model.name}: expected {classes} logits an image, got {logits.shape[1]}")
