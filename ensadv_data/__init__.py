"""Precompute adversarial directions of static models, and train on them: Ensemble Adversarial Training.

The public face; everything else may change. The commands of ``ensadv-data`` call the same functions. Names are
loaded when they are first used, so that a small import stays small.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ensadv_data.data import open_dataset
    from ensadv_data.errors import EnsadvError
    from ensadv_data.evaluation.transfer import measure_transfer
    from ensadv_data.loops import EnsembleMix, TorchImages
    from ensadv_data.models import load_model
    from ensadv_data.precompute import precompute_store
    from ensadv_data.spec import DataSpec, PrecomputeSpec, TrainSpec
    from ensadv_data.store import open_store
    from ensadv_data.training import train

__all__ = [
    "DataSpec",
    "EnsadvError",
    "EnsembleMix",
    "PrecomputeSpec",
    "TorchImages",
    "TrainSpec",
    "load_model",
    "measure_transfer",
    "open_dataset",
    "open_store",
    "precompute_store",
    "train",
]

_HOMES = {
    "DataSpec": "spec",
    "EnsadvError": "errors",
    "EnsembleMix": "loops",
    "PrecomputeSpec": "spec",
    "TorchImages": "loops",
    "TrainSpec": "spec",
    "load_model": "models",
    "measure_transfer": "evaluation.transfer",
    "open_dataset": "data",
    "open_store": "store",
    "precompute_store": "precompute",
    "train": "training",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
