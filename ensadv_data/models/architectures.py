"""The architectures of the paper's Table 5, and those of timm, untrained."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise

import torch
from torch import nn

from ensadv_data.errors import ModelError, UnknownNameError
from ensadv_data.keys import torch_seeded
from ensadv_data.models.timm_nets import build_timm, known_timm

__all__ = ["ARCHITECTURES", "TIMM", "Shape", "build_model", "check_architecture"]

TIMM = "timm:"  # what an architecture of timm begins with

Shape = tuple[int, int, int]


def _features(layers: list[nn.Module], shape: Shape) -> int:
    """How many values the layers make of one image."""
    with torch.no_grad():
        return int(nn.Sequential(*layers).eval()(torch.zeros(1, *shape)).numel())


def _architecture_a(shape: Shape, classes: int) -> nn.Sequential:
    layers = [
        nn.Conv2d(shape[0], 64, 5),
        nn.ReLU(),
        nn.Conv2d(64, 64, 5),
        nn.ReLU(),
        nn.Dropout(0.25),
        nn.Flatten(),
    ]
    width = _features(layers, shape)
    return nn.Sequential(*layers, nn.Linear(width, 128), nn.ReLU(), nn.Dropout(0.5), nn.Linear(128, classes))


def _architecture_b(shape: Shape, classes: int, *, input_dropout: float = 0.2) -> nn.Sequential:
    layers = [
        *([nn.Dropout(input_dropout)] if input_dropout else []),
        nn.ZeroPad2d(3),  # "same" padding of an 8×8 kernel with stride 2 on an even side
        nn.Conv2d(shape[0], 64, 8, stride=2),
        nn.ReLU(),
        nn.Conv2d(64, 128, 6, stride=2),
        nn.ReLU(),
        nn.Conv2d(128, 128, 5),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Flatten(),
    ]
    return nn.Sequential(*layers, nn.Linear(_features(layers, shape), classes))


def _architecture_b_star(shape: Shape, classes: int) -> nn.Sequential:
    return _architecture_b(shape, classes, input_dropout=0)


def _architecture_c(shape: Shape, classes: int) -> nn.Sequential:
    # The table has Tanh first. It is monotone: after pooling it gives the same values for a quarter of the work.
    layers = [
        nn.Conv2d(shape[0], 128, 3),
        nn.MaxPool2d(2),
        nn.Tanh(),
        nn.Conv2d(128, 64, 3),
        nn.MaxPool2d(2),
        nn.Tanh(),
        nn.Flatten(),
    ]
    return nn.Sequential(*layers, nn.Linear(_features(layers, shape), 128), nn.ReLU(), nn.Linear(128, classes))


def _architecture_d(shape: Shape, classes: int) -> nn.Sequential:
    widths = [shape[0] * shape[1] * shape[2], 300, 300, 300, 300]
    layers: list[nn.Module] = [nn.Flatten()]
    for narrow, wide in pairwise(widths):
        layers += [nn.Linear(narrow, wide), nn.ReLU(), nn.Dropout(0.5)]
    return nn.Sequential(*layers, nn.Linear(300, classes))


# Table 5 of the paper, with the settlements of the authors' released code where the table is silent.
ARCHITECTURES: Mapping[str, Callable[[Shape, int], nn.Sequential]] = {
    "A": _architecture_a,
    "B": _architecture_b,
    "B*": _architecture_b_star,
    "C": _architecture_c,
    "D": _architecture_d,
}


def check_architecture(architecture: str) -> None:
    """Refuse an architecture that :func:`build_model` does not know.

    Raises
    ------
    UnknownNameError
        There is none of that name; the message lists them.
    ModelError
        It is one of timm, which is not installed.
    """
    if architecture.startswith(TIMM):
        known_timm(architecture.removeprefix(TIMM))
    elif architecture not in ARCHITECTURES:
        raise UnknownNameError("architecture", architecture, (*ARCHITECTURES, f"{TIMM}NAME"))


def build_model(architecture: str, *, shape: Shape, classes: int, seed: int = 0) -> nn.Module:
    """Build an untrained model of the paper's Table 5, or of timm, with weights in channels-last order, for speed.

    Parameters
    ----------
    architecture
        A, B, B*, C or D, or ``timm:NAME``, which has the mean and std of timm's configuration inside.
    shape
        (C, H, W) of the images.
    classes
        K, the number of logits.
    seed
        Names the initial weights. Of Table 5's: Glorot uniform, He normal for the hidden layers of D, biases zero.

    Raises
    ------
    UnknownNameError
        No such architecture; the message lists them.
    ModelError
        The images are too small for the architecture.
    """
    check_architecture(architecture)
    if architecture.startswith(TIMM):
        return build_timm(architecture.removeprefix(TIMM), shape=shape, classes=classes, seed=seed)
    with torch_seeded("cpu", "initial weights", seed):
        try:
            module = ARCHITECTURES[architecture](shape, classes)
        except RuntimeError as error:
            raise ModelError(f"architecture {architecture} does not fit images of shape {shape}: {error}") from None
        layers = [layer for layer in module if isinstance(layer, (nn.Linear, nn.Conv2d))]
        for layer in layers:
            if architecture == "D" and layer is not layers[-1]:
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            else:
                nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return module
