"""Whether a model is for these images, asked before any work is done."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from ensadv_data.attacks.gradient import input_gradient, logits_of
from ensadv_data.errors import ModelError
from ensadv_data.models.reference import Model

__all__ = ["check_model", "check_models"]


class _Images(Protocol):
    """What is asked of a data set here."""

    @property
    def classes(self) -> int: ...

    def __len__(self) -> int: ...

    def read(self, indices: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]: ...


def check_models(models: Iterable[Model], dataset: _Images, *, device: str, gradient: bool = False) -> None:
    """Refuse models that cannot read these images or have other classes, in words rather than a trace.

    Parameters
    ----------
    gradient
        Whether their gradients are to be followed: then one must reach the images.

    Raises
    ------
    ModelError
        The message names the model, and what was expected.
    """
    sample, _ = dataset.read(np.arange(min(2, len(dataset))))
    for model in models:
        check_model(model, sample, classes=dataset.classes, device=device, gradient=gradient)


def check_model(
    model: Model, images_NCHW: npt.NDArray[np.uint8], *, classes: int, device: str, gradient: bool = False
) -> None:
    """Refuse a model that cannot read these images, or whose output is not (N, K), in words rather than a trace.

    Parameters
    ----------
    images_NCHW
        A few images of the data set, uint8.
    classes
        K of the data set.
    gradient
        Whether its gradient is to be followed.

    Raises
    ------
    ModelError
        The message names the model, and what was expected.
    """
    x = torch.from_numpy(images_NCHW).to(device).float() / 255
    try:
        logits = logits_of(model.module, x)
    except (RuntimeError, ValueError, AssertionError) as error:  # the last are timm's
        shape = images_NCHW.shape[1:]
        raise ModelError(f"{model.name}: the model cannot read images of shape {shape}: {error}") from None
    except ModelError as error:
        raise ModelError(f"{model.name}: {error}") from None
    if logits.shape[1] != classes:
        raise ModelError(
            f"{model.name}: expected {classes} logits an image, got {logits.shape[1]}; the data set has {classes} "
            "classes: name a model that was trained on them"
        )
    if gradient:
        try:
            input_gradient(model.module, x, logits.argmax(1))
        except RuntimeError as error:
            raise ModelError(
                f"{model.name}: expected a gradient that reaches the image, got none ({error}); a step of the model "
                "has no derivative: write binarised:REF for a rounding, or attack the model from sources only, as the "
                "suite nips17 does"
            ) from None
