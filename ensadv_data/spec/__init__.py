"""What a user asks for, typed and frozen: attacks, training, precompute, evaluation, recipes.

Every field has the name of its flag on the command line. The same classes check a recipe (TOML) and the
flags, so that both refuse the same mistakes with the same words.
"""

from __future__ import annotations

from ensadv_data.spec.adaptive import ADAPTIVE, AdaptiveSpec, parse_adaptive
from ensadv_data.spec.attack import ATTACKS, AttackSpec, EpsilonSpec, Loss, parse_attack, parse_epsilon
from ensadv_data.spec.augmentation import AugmentSpec, parse_augment
from ensadv_data.spec.base import Spec, checked, parse_bytes, parse_quantity, read_toml
from ensadv_data.spec.images import PreprocessSpec, parse_preprocess
from ensadv_data.spec.stages import MEASURES, DataSpec, DiagnoseSpec, EvaluateSpec, PrecomputeSpec, ShiftSpec, TrainSpec

__all__ = [
    "ADAPTIVE",
    "ATTACKS",
    "MEASURES",
    "AdaptiveSpec",
    "AttackSpec",
    "AugmentSpec",
    "DataSpec",
    "DiagnoseSpec",
    "EpsilonSpec",
    "EvaluateSpec",
    "Loss",
    "PrecomputeSpec",
    "PreprocessSpec",
    "ShiftSpec",
    "Spec",
    "TrainSpec",
    "checked",
    "parse_adaptive",
    "parse_attack",
    "parse_augment",
    "parse_bytes",
    "parse_epsilon",
    "parse_preprocess",
    "parse_quantity",
    "read_toml",
]
