"""A fixture of several files; and what lets torchvision be imported beside CPU-only torch, which lacks its extension.

torchattacks and timm import torchvision, which on import registers fake kernels for two operators that only
its extension defines. Defining their schemas is enough: no test calls them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from importlib.machinery import PathFinder
from importlib.util import find_spec

import pytest
import torch


@pytest.fixture(scope="module")
def without_fsync() -> Iterator[None]:
    """Nobody pulls the plug in these tests; waiting for the disk would take most of their time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)
        yield


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


if _extension_is_missing():
    _library = torch.library.Library("torchvision", "FRAGMENT")  # the schemas live as long as this name does
    for _operator in ("nms", "qnms"):
        _library.define(f"{_operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
