"""How different a future adversary is from those of training: Appendix B, over a finite set of models.

disc(A_train, A*) = mean over i of sup over h₁, h₂ of | P_{A_i}[h₁ = h₂] − P_{A*}[h₁ = h₂] |        (equation 10)

The supremum of the theorem is over a whole hypothesis space; over the models that somebody trained it can only be
smaller. So the figure bounds the term from below, and the theorem's inequality cannot be read off it. What it can show
is that an adversary is far from those of training.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt

from ensadv_data.errors import InputError

__all__ = ["Discrepancy", "measure_discrepancy"]

Answers = Mapping[str, npt.NDArray[np.int64]]  # by model: predicted classes (N,) on one adversary's images

CAVEAT = (
    "over a finite set of models the supremum is a lower bound of the theorem's; the Rademacher complexity and the "
    "sampling term are not estimated"
)


@dataclass(frozen=True)
class Discrepancy:
    """The terms of the bound (equation 11) that can be measured, for 0-1 loss; all values in [0, 1]."""

    value: float  # equation 10 over these models
    by_source: Mapping[str, float]  # the supremum for each adversary of training
    pairs: Mapping[str, tuple[str, str]]  # the two models that reach it
    risk_train: Mapping[str, float]  # by model: over all adversaries of training (equation 8)
    risk_future: Mapping[str, float]  # by model: against the future adversary (equation 9)

    @property
    def largest_gap(self) -> float:
        """max over models of |risk_train − risk_future|: the left side of equation 11, on these models."""
        return max(abs(self.risk_train[name] - self.risk_future[name]) for name in self.risk_train)

    def to_json(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "discrepancy": self.value,
            "by_source": dict(self.by_source),
            "pairs": {name: list(pair) for name, pair in self.pairs.items()},
            "risk_train": dict(self.risk_train),
            "risk_future": dict(self.risk_future),
            "largest_gap": self.largest_gap,
            "caveat": CAVEAT,
        }


def measure_discrepancy(train: Mapping[str, Answers], future: Answers, labels_N: npt.NDArray[np.int64]) -> Discrepancy:
    """Measure equation 10 and both risks from what the models answered.

    Parameters
    ----------
    train
        For each adversary of training, by name: for each model, its answers on that adversary's images.
    future
        The same for the future adversary, on images of the same examples.
    labels_N
        True classes.

    Raises
    ------
    InputError
        Fewer than two models, no adversary, or answers that are not of the same models and examples.
    """
    names = sorted(future)
    if len(names) < 2 or not train:
        raise InputError(f"expected two models and one adversary of training at least, got {len(names)}, {len(train)}")
    for source, answers in (*train.items(), ("the future adversary", future)):
        if sorted(answers) != names or any(len(answers[name]) != len(labels_N) for name in names):
            raise InputError(f"expected answers of {', '.join(names)} on {len(labels_N)} images of {source}")
    by_source: dict[str, float] = {}
    pairs: dict[str, tuple[str, str]] = {}
    for source, answers in train.items():
        gaps = {pair: abs(_agreement(answers, pair) - _agreement(future, pair)) for pair in combinations(names, 2)}
        pairs[source] = max(gaps, key=lambda pair: gaps[pair])
        by_source[source] = gaps[pairs[source]]
    risks = {
        name: [float((answers[name] != labels_N).mean()) for answers in (*train.values(), future)] for name in names
    }
    return Discrepancy(
        value=sum(by_source.values()) / len(by_source),
        by_source=by_source,
        pairs=pairs,
        risk_train={name: sum(each[:-1]) / len(train) for name, each in risks.items()},
        risk_future={name: each[-1] for name, each in risks.items()},
    )


def _agreement(answers: Answers, pair: tuple[str, str]) -> float:
    return float((answers[pair[0]] == answers[pair[1]]).mean())
