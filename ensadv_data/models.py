"""Models: the paper's architectures, references to anybody's, and weights with their history.

A reference is one of

    FILE.safetensors             ours; its metadata names the architecture and the training record
    timm:NAME[,weights=FILE]     a model of timm (extra ``timm``), weights from a local safetensors file
    python:MODULE:FACTORY        ``FACTORY()`` returns a torch.nn.Module

Every model maps float images in [0, 1], (N, C, H, W), to logits (N, K) and normalises inside.
"""

from __future__ import annotations

import hashlib
import importlib
import json
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import nn

from ensadv_data.errors import IntegrityError, ModelError, UnknownNameError
from ensadv_data.files import write_atomic
from ensadv_data.keys import torch_seeded

__all__ = ["ARCHITECTURES", "Model", "build_model", "load_model", "save_model", "weights_digest"]

Shape = tuple[int, int, int]


@dataclass(frozen=True)
class Model:
    """A module with its name, where it came from, and the digest of its weights."""

    name: str
    module: nn.Module
    reference: str
    architecture: str
    digest: str
    record: Mapping[str, Any] = field(default_factory=dict)


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
    layers = [
        nn.Conv2d(shape[0], 128, 3),
        nn.Tanh(),
        nn.MaxPool2d(2),
        nn.Conv2d(128, 64, 3),
        nn.Tanh(),
        nn.MaxPool2d(2),
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


def build_model(architecture: str, *, shape: Shape, classes: int, seed: int = 0) -> nn.Module:
    """Build an untrained model of the paper's Table 5.

    Parameters
    ----------
    architecture
        A, B, B*, C or D.
    shape
        (C, H, W) of the images.
    classes
        K, the number of logits.
    seed
        Names the initial weights: Glorot uniform, He normal for the hidden layers of D, biases zero.

    Raises
    ------
    UnknownNameError
        No such architecture; the message lists them.
    ModelError
        The images are too small for the architecture.
    """
    if architecture not in ARCHITECTURES:
        raise UnknownNameError("architecture", architecture, ARCHITECTURES)
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
    return module


def weights_digest(module: nn.Module) -> str:
    """SHA-256 over name, dtype, shape and bytes of every parameter and buffer, in order of their names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        array = tensor.detach().cpu().contiguous()
        digest.update(f"{name}|{array.dtype}|{tuple(array.shape)}|".encode())
        digest.update(array.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def save_model(
    path: Path, module: nn.Module, *, architecture: str, shape: Shape, classes: int, record: Mapping[str, Any]
) -> str:
    """Write weights with their architecture and training record; the same model gives the same bytes.

    Returns
    -------
    str
        The digest of the weights.

    Raises
    ------
    OutputError
        The folder cannot be written.
    """
    digest = weights_digest(module)
    about = {
        "architecture": architecture,
        "shape": list(shape),
        "classes": classes,
        "digest": digest,
        "record": dict(record),
    }
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in module.state_dict().items()}
    # one key only: safetensors writes several in no fixed order
    write_atomic(path, save(tensors, metadata={"ensadv_data": json.dumps(about, sort_keys=True)}))
    return digest


def load_model(reference: str, *, name: str | None = None, device: str = "cpu") -> Model:
    """Load the model that ``reference`` names, in evaluation mode.

    Raises
    ------
    ModelError
        It cannot be found or loaded, or is not a torch.nn.Module; the message says what was expected.
    UnknownNameError
        The file names an architecture that this version does not have.
    IntegrityError
        The weights are not those whose digest the file names.
    """
    record: Mapping[str, Any] = {}
    kind, colon, rest = reference.partition(":")
    if colon and kind == "python":
        module, architecture = _from_python(rest), rest
    elif colon and kind == "timm":
        module, architecture = _from_timm(rest), rest
    else:
        module, architecture, record = _from_file(Path(reference))
    return Model(
        name=name or Path(reference).stem,
        module=module.eval().to(device),
        reference=reference,
        architecture=architecture,
        digest=weights_digest(module),
        record=record,
    )


def read_metadata(path: Path) -> dict[str, Any]:
    """Architecture, shape, classes and training record of a file of ours.

    Raises
    ------
    ModelError
        It is missing, or not a safetensors file of ours.
    """
    if not path.is_file():
        raise ModelError(
            f"expected a model at {path}, found no file; a reference is FILE.safetensors, timm:NAME[,weights=FILE] "
            "or python:MODULE:FACTORY"
        )
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
        about: dict[str, Any] = json.loads(metadata["ensadv_data"])
        for key in ("architecture", "shape", "classes", "digest", "record"):
            about[key]
    except (OSError, SafetensorError, KeyError, ValueError, TypeError) as error:
        raise ModelError(
            f"{path}: expected a safetensors file written by ensadv-data, got: {error!r}; "
            "use python:MODULE:FACTORY for a model of your own"
        ) from None
    return about


def _from_file(path: Path) -> tuple[nn.Module, str, Mapping[str, Any]]:
    about = read_metadata(path)
    shape = tuple(about["shape"])
    module = build_model(about["architecture"], shape=shape, classes=about["classes"])
    _fill(module, path)
    if (found := weights_digest(module)) != about["digest"]:
        raise IntegrityError(
            f"{path}: expected weights of digest {about['digest']}, got {found}; the file is corrupted: copy it again"
        )
    return module, about["architecture"], about["record"]


def _fill(module: nn.Module, path: Path) -> None:
    try:
        module.load_state_dict(OrderedDict(load_file(str(path))), strict=True)
    except (OSError, SafetensorError, RuntimeError) as error:
        raise ModelError(f"{path}: the weights do not fit the architecture: {error}") from None


def _from_python(rest: str) -> nn.Module:
    module_name, colon, factory_name = rest.partition(":")
    if not colon or not all(part.isidentifier() for part in [*module_name.split("."), factory_name]):
        raise ModelError(f"expected python:MODULE:FACTORY, got python:{rest}")
    try:
        factory = getattr(importlib.import_module(module_name), factory_name)
    except (ImportError, AttributeError) as error:
        raise ModelError(
            f"python:{rest}: {error}; is the module on the Python path? (add its folder to PYTHONPATH)"
        ) from None
    except Exception as error:  # the user's own module: whatever it raises
        raise ModelError(f"python:{rest}: importing {module_name} failed with {error!r}") from error
    try:
        module = factory() if callable(factory) and not isinstance(factory, nn.Module) else factory
    except Exception as error:
        raise ModelError(f"python:{rest}: the factory failed with {error!r}") from error
    if not isinstance(module, nn.Module):
        raise ModelError(
            f"python:{rest}: expected the factory to return a torch.nn.Module, got {type(module).__name__}"
        )
    return module


def _from_timm(rest: str) -> nn.Module:
    try:
        import timm
    except ImportError:
        raise ModelError("timm:… needs the extra: pip install 'ensadv-data[timm]'") from None
    name, _, option = rest.partition(",")
    key, _, value = option.partition("=")
    if option and (key != "weights" or not value):
        raise ModelError(f"expected timm:NAME[,weights=FILE], got timm:{rest}")
    if name not in timm.list_models():
        close = timm.list_models(f"*{name[:6]}*")[:8]
        raise UnknownNameError("timm model", name, close or ["see timm.list_models()"])
    with torch_seeded("cpu", "initial weights", 0):
        inner: nn.Module = timm.create_model(name, pretrained=False)
    if value:
        _fill(inner, Path(value))
    return _Normalised(inner, mean=inner.default_cfg["mean"], std=inner.default_cfg["std"])  # type: ignore[index, arg-type]


class _Normalised(nn.Module):
    """Images in [0, 1] → the range that the wrapped model was trained on."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, inner: nn.Module, *, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.inner = inner
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1))

    def forward(self, x_NCHW: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.inner((x_NCHW - self.mean) / self.std)
        return logits
