"""What lets torchvision be imported beside CPU-only torch, which lacks its extension.

On import it registers fake kernels for two operators that only its extension defines. Declaring them is enough: no test
calls them.
"""

from __future__ import annotations

from importlib.machinery import PathFinder
from importlib.util import find_spec

import torch

_libraries: list[torch.library.Library] = []  # the declarations live as long as these


def _extension_is_missing() -> bool:
    """Whether torchvision is installed and its extension, tried as torchvision tries it, cannot be loaded."""
    package = find_spec("torchvision")
    if package is None:
        return False
    extension = PathFinder.find_spec("_C", list(package.submodule_search_locations or []))
    if extension is None or extension.origin is None:
        return True
    try:
        torch.ops.load_library(extension.origin)
    except OSError:
        return True
    return False


def declare() -> None:
    """Declare what is missing."""
    if _libraries or not _extension_is_missing():
        return
    _libraries.append(torch.library.Library("torchvision", "FRAGMENT"))
    for operator in ("nms", "qnms"):
        _libraries[0].define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
