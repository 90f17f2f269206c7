"""Models of timm: by name, with the mean, std and size of its configuration inside. The home of timm and of its hub.

    timm:NAME[,weights=FILE|hub][,sha256=HEX][,classes=K][,resize=S|none]

Without weights the model is untrained, a function of its name and K. Weights are those of images of the size that
timm's configuration has: others are refused, resized to S inside, or, with ``resize=none``, taken as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.functional import interpolate

from ensadv_data.errors import IntegrityError, ModelError, QuantityError, UnknownNameError
from ensadv_data.files import sha256_of_file
from ensadv_data.keys import torch_seeded

__all__ = [
    "HUB",
    "Normalised",
    "TimmReference",
    "build_timm",
    "known_timm",
    "parse_timm",
    "timm_config",
    "weights_path",
]

HUB = "hub"
_FORM = "timm:NAME[,weights=FILE|hub][,sha256=HEX][,classes=K][,resize=S|none]"
_KEYS = ("weights", "sha256", "classes", "resize")
_FILE = "model.safetensors"  # the only kind of file that is asked of the hub


@dataclass(frozen=True)
class TimmReference:
    """What follows ``timm:`` in a reference."""

    name: str
    weights: str | None = None  # a file, or HUB
    sha256: str | None = None  # what the file's begins with
    classes: int | None = None
    resize: int | None = None  # the side of the images that the model gets, inside
    any_size: bool = False  # resize=none

    @property
    def architecture(self) -> str:
        """The name with what changes the function: no path, and no digest."""
        options = {"classes": self.classes, "resize": "none" if self.any_size else self.resize}
        return self.name + "".join(f",{key}={value}" for key, value in options.items() if value is not None)


def parse_timm(rest: str) -> TimmReference:
    """Read what follows ``timm:``.

    Raises
    ------
    ModelError
        It is of another form.
    """
    name, *options = rest.split(",")
    pairs = [option.partition("=") for option in options]
    fields = {key: value for key, _, value in pairs}
    if not name or len(fields) < len(pairs) or not all(key in _KEYS and value for key, value in fields.items()):
        raise ModelError(f"expected {_FORM}, got timm:{rest}")
    sha256 = fields.get("sha256")
    if sha256 is not None and (len(sha256) not in range(8, 65) or set(sha256) - set("0123456789abcdef")):
        raise ModelError(f"sha256: expected 8 to 64 hexadecimal digits of the file's SHA-256, got {sha256!r}")
    if sha256 is not None and "weights" not in fields:
        raise ModelError(f"sha256: expected weights beside it, got timm:{rest}")
    resize = fields.get("resize")
    return TimmReference(
        name,
        weights=fields.get("weights"),
        sha256=sha256,
        classes=_number(fields.get("classes"), "classes", 2),
        resize=None if resize == "none" else _number(resize, "resize", 8),
        any_size=resize == "none",
    )


def _number(text: str | None, name: str, least: int) -> int | None:
    if text is None:
        return None
    if not text.isdecimal() or not least <= int(text) <= 10**6:
        raise QuantityError(f"{name}: expected a number from {least} on, got {text!r}")
    return int(text)


def known_timm(name: str) -> Any:
    """The library, which knows a model of that name.

    Raises
    ------
    ModelError
        It is not installed.
    UnknownNameError
        It has no such model; the message lists some like it.
    """
    try:
        import timm
    except ImportError:
        raise ModelError("timm:… needs the extra: pip install 'ensadv-data[timm]'") from None
    except RuntimeError as error:  # torchvision's, on import
        raise ModelError(
            f"timm cannot be imported: {error}; is torchvision of the same release and build as torch?"
        ) from None
    if not (name in timm.list_models() or ("." in name and name in timm.list_models(pretrained=True))):
        stem = name.partition(".")[0]
        close = timm.list_models(f"{stem}*", pretrained="." in name)[:8] or timm.list_models(f"*{name[:6]}*")[:8]
        raise UnknownNameError("timm model", name, close or ["see timm.list_models()"])
    return timm


def timm_config(name: str) -> Mapping[str, Any]:
    """Mean, std, input size and hub of timm's configuration of a model; raises as :func:`known_timm` does."""
    config = known_timm(name).models.get_pretrained_cfg(name)
    return {} if config is None else dict(config.to_dict())


def build_timm(name: str, *, shape: tuple[int, int, int] | None, classes: int | None, seed: int = 0) -> Normalised:
    """Build an untrained model for images in [0, 1], with its weights in channels-last order.

    Parameters
    ----------
    shape
        (C, H, W) of the images; None: those of its configuration. A model with a fixed size of input is built for it.
    classes
        K; None: as its configuration has it.
    seed
        Names the initial weights.

    Raises
    ------
    ModelError
        timm is not installed, or the model cannot be built so.
    UnknownNameError
        There is no such model.
    """
    timm, config = known_timm(name), timm_config(name)
    options: dict[str, Any] = {} if classes is None else {"num_classes": classes}
    if shape is not None and shape[0] != 3:
        options["in_chans"] = shape[0]
    if shape is not None and config.get("fixed_input_size"):
        options["img_size"] = shape[1:]
    try:
        with torch_seeded("cpu", "initial weights", seed):
            inner: nn.Module = timm.create_model(name, pretrained=False, **options)
    except (TypeError, ValueError, RuntimeError, AssertionError) as error:
        raise ModelError(f"timm:{name} does not fit images of shape {shape}: {error}") from None
    inner.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    grey = "in_chans" in options
    return Normalised(
        inner,
        mean=(0.5,) if grey else tuple(config.get("mean", (0.5, 0.5, 0.5))),
        std=(0.5,) if grey else tuple(config.get("std", (0.5, 0.5, 0.5))),
    )


class Normalised(nn.Module):
    """Images in [0, 1] → the size and range that the wrapped model was trained on; the gradient passes through both.

    Parameters
    ----------
    mean, std
        Of timm's configuration, one a channel.
    resize
        Side of the square that images are resampled to, bilinearly; None: they are taken as they are.
    only
        (H, W) of the images that are accepted; None: any.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(
        self,
        inner: nn.Module,
        *,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        resize: int | None = None,
        only: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        self.inner, self.resize, self.only = inner, resize, only
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1))

    def forward(self, x_NCHW: torch.Tensor) -> torch.Tensor:
        """Logits (N, K).

        Raises
        ------
        ModelError
            The images are of another size than its weights are for.
        """
        size = tuple(x_NCHW.shape[2:])
        if self.only is not None and size != self.only:
            wanted, got = ("×".join(map(str, sides)) for sides in (self.only, size))
            raise ModelError(
                f"expected images of {wanted}, which its weights are for, got {got}; add ,resize={self.only[0]} to the "
                "reference to have them resized inside, gradient and all, or ,resize=none to take them as they are"
            )
        if self.resize is not None and size != (self.resize, self.resize):
            x_NCHW = interpolate(x_NCHW, (self.resize, self.resize), mode="bilinear", align_corners=False)
        logits: torch.Tensor = self.inner((x_NCHW - self.mean) / self.std)
        return logits


def weights_path(asked: TimmReference) -> Path:
    """The file of a reference that has weights, with the SHA-256 that it asks for.

    Raises
    ------
    ModelError
        The hub cannot be reached, or has no safetensors file of it.
    IntegrityError
        The file is another one.
    """
    path = _from_hub(asked.name) if asked.weights == HUB else Path(asked.weights or "")
    if asked.sha256 is not None and path.is_file():
        found = sha256_of_file(path)
        if not found.startswith(asked.sha256):
            raise IntegrityError(f"{path}: expected a file with SHA-256 {asked.sha256}…, got {found}; copy it again")
    return path


def _from_hub(name: str) -> Path:
    repository = timm_config(name).get("hf_hub_id")
    if not repository:
        raise ModelError(f"timm:{name}: expected a model with weights on the hub, got one without; pass weights=FILE")
    try:
        from huggingface_hub import hf_hub_download

        return Path(hf_hub_download(repository, _FILE))
    except Exception as error:  # whatever a network does
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        raise ModelError(
            f"timm:{name}: expected to fetch {_FILE} of {repository} from the hub, got: {reason}; where there is a "
            f"network, get huggingface.co/{repository}/resolve/main/{_FILE}, and pass it: timm:{name},weights=FILE"
        ) from None
