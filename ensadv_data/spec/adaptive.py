"""Adversaries that query the target, as users write them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field

from ensadv_data.errors import UnknownNameError
from ensadv_data.spec.base import Alpha, Epsilon, Spec, checked, parse_count, parse_pairs, parse_quantity

__all__ = ["ADAPTIVE", "AdaptiveSpec", "parse_adaptive"]

ADAPTIVE: Mapping[str, tuple[str, ...]] = {
    "estimated": ("alpha", "step"),
    "surrogate": ("architecture", "samples", "rounds", "epochs", "augmentation"),
}


class AdaptiveSpec(Spec):
    """An adaptive adversary: ``estimated`` (scores are answered) or ``surrogate`` (labels are)."""

    name: Literal["estimated", "surrogate"]
    epsilon: Epsilon
    alpha: Alpha | None = None  # estimated: of R+FGSM; epsilon / 2 unless given
    step: float = Field(default=0.01, gt=0, le=1)  # estimated: of the differences
    architecture: str = "D"  # and all that follow: of the surrogate
    samples: int = Field(default=150, ge=1)
    rounds: int = Field(default=5, ge=0)
    epochs: int = Field(default=10, ge=1)
    augmentation: float = Field(default=0.1, gt=0, le=1)

    @property
    def label(self) -> str:
        """Such as ``surrogate:architecture=B``: what was given, but epsilon."""
        given = self.model_dump(exclude_unset=True, exclude={"name", "epsilon"})
        text = ",".join(
            f"{key}={value:g}" if isinstance(value, float) else f"{key}={value}" for key, value in given.items()
        )
        return self.name + (f":{text}" if text else "")


def parse_adaptive(text: str, *, epsilon: float) -> AdaptiveSpec:
    """Read ``estimated[:KEY=VALUE,…]`` or ``surrogate[:KEY=VALUE,…]``.

    Raises
    ------
    UnknownNameError
        No such adversary or quantity.
    InputError
        A quantity is outside its range.
    """
    name, _, rest = text.partition(":")
    if name not in ADAPTIVE:
        raise UnknownNameError("adaptive adversary", name, ADAPTIVE)
    fields: dict[str, Any] = {"name": name, "epsilon": epsilon}
    for key, value in parse_pairs(rest, what=f"quantity of {name}", known=ADAPTIVE[name]):
        if key in ("samples", "rounds", "epochs"):
            fields[key] = parse_count(value, name=key)
        else:
            fields[key] = value if key == "architecture" else parse_quantity(value, name=key)
    return checked(AdaptiveSpec, fields, where=f"adversary {text!r}")
