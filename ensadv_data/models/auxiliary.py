"""Auxiliary logits: a second classifier half way up an Inception network, which trains it and is then dropped."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, avg_pool2d

from ensadv_data.errors import InputError
from ensadv_data.keys import torch_seeded
from ensadv_data.models.architectures import TIMM, Shape

__all__ = ["AUXILIARY", "WithAuxiliary", "build_auxiliary", "check_auxiliary"]

# Behind which layer it stands: where the map is 17×17 of an image of 299×299 (Szegedy et al. 2016, Figure 8).
AUXILIARY: Mapping[str, str] = {
    "inception_v3": "inner.Mixed_6e",
    "inception_v4": "inner.features.17",
    "inception_resnet_v2": "inner.repeat_1",
}


def check_auxiliary(architecture: str, *, where: str = "") -> str:
    """The layer behind which the auxiliary head of an architecture stands.

    Raises
    ------
    InputError
        It has none.
    """
    name = architecture.removeprefix(TIMM).partition(".")[0]
    if not architecture.startswith(TIMM) or name not in AUXILIARY:
        known = ", ".join(TIMM + one for one in AUXILIARY)
        raise InputError(
            f"{where}auxiliary_weight: expected an architecture that has a place for it, {known}, got {architecture}"
        )
    return AUXILIARY[name]


class _Head(nn.Sequential):
    """Features (N, C, H, W) → logits (N, K), as Szegedy et al. 2016 have it: a map of 5×5, two convolutions."""

    def __init__(self, channels: int, classes: int) -> None:
        narrow, wide = nn.Conv2d(channels, 128, 1, bias=False), nn.Conv2d(128, 768, 5, bias=False)
        last = nn.Linear(768, classes)
        for layer, deviation in ((narrow, 0.1), (wide, 0.01), (last, 0.001)):
            nn.init.trunc_normal_(layer.weight, std=deviation, a=-2 * deviation, b=2 * deviation)
        nn.init.zeros_(last.bias)
        norms = [nn.BatchNorm2d(channels_out, eps=0.001) for channels_out in (128, 768)]
        pooled = (nn.AdaptiveAvgPool2d(1), nn.Flatten())
        super().__init__(narrow, norms[0], nn.ReLU(), wide, norms[1], nn.ReLU(), *pooled, last)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Logits (N, K); a map of less than 17×17 cells, of smaller images, is pooled to 5×5 all the same."""
        is_usual = min(x_NCHW.shape[2:]) >= 17
        pooled = avg_pool2d(x_NCHW, 5, stride=3) if is_usual else adaptive_avg_pool2d(x_NCHW, 5)
        logits: Tensor = super().forward(pooled)  # type: ignore[no-untyped-call]
        return logits


class WithAuxiliary(nn.Module):
    """A model and its auxiliary head: images → both logits. The model alone is attacked, saved and evaluated."""

    def __init__(self, model: nn.Module, head: nn.Module, layer: str) -> None:
        super().__init__()
        self.model, self.head, self._layer = model, head, layer

    def features(self, x_NCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of the model, and what its layer gives."""
        caught: list[Tensor] = []
        hook = self.model.get_submodule(self._layer).register_forward_hook(lambda _, __, out: caught.append(out))
        try:
            return self.model(x_NCHW), caught[0]
        finally:
            hook.remove()

    def forward(self, x_NCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (N, K) of the model and of the head."""
        logits, features = self.features(x_NCHW)
        return logits, self.head(features)


def build_auxiliary(architecture: str, model: nn.Module, *, shape: Shape, classes: int, seed: int) -> WithAuxiliary:
    """A model with an untrained auxiliary head beside it.

    Parameters
    ----------
    shape
        (C, H, W) of the images.
    seed
        Names the initial weights: truncated normal, of deviations 0.1, 0.01 and 0.001.

    Raises
    ------
    InputError
        The architecture has no place for one.
    """
    layer = check_auxiliary(architecture)
    whole = WithAuxiliary(model, nn.Identity(), layer)
    was_training = model.training
    device = next(model.parameters()).device
    with torch.no_grad():
        channels = whole.eval().features(torch.zeros(1, *shape, device=device))[1].shape[1]
    model.train(was_training)
    with torch_seeded("cpu", "auxiliary weights", seed):
        whole.head = _Head(channels, classes)
    whole.head.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return whole.to(device)
