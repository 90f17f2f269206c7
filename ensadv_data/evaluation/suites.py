"""Suites: which attacks are made on the target itself, and which are transferred to it from each source."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ensadv_data.errors import UnknownNameError
from ensadv_data.spec import AttackSpec, parse_attack

__all__ = ["SUITES", "Suite", "suite_named"]


@dataclass(frozen=True)
class Suite:
    """Attacks by name; epsilon is filled in when the suite is used."""

    white_box: tuple[str, ...]
    black_box: tuple[str, ...]
    about: str

    def attacks(self, *, epsilon: float) -> tuple[tuple[AttackSpec, ...], tuple[AttackSpec, ...]]:
        """White-box and black-box attacks at one L∞ radius, pixels in [0, 1]."""
        white = tuple(parse_attack(text, epsilon=epsilon) for text in self.white_box)
        black = tuple(parse_attack(text, epsilon=epsilon) for text in self.black_box)
        return white, black


SUITES: Mapping[str, Suite] = {
    "single-step": Suite(
        white_box=("fgsm", "r-fgsm"),
        black_box=("fgsm",),
        about="Table 7: FGSM and R+FGSM on the target, FGSM from each source",
    ),
    "paper": Suite(
        white_box=("fgsm", "r-fgsm"),
        black_box=("fgsm", "i-fgsm", "pgd"),
        about="Table 8: FGSM, I-FGSM and PGD from each source; FGSM and R+FGSM on the target",
    ),
}


def suite_named(name: str) -> Suite:
    """Look a suite up.

    Raises
    ------
    UnknownNameError
        No suite has that name; the message lists them.
    """
    if name not in SUITES:
        raise UnknownNameError("suite", name, SUITES)
    return SUITES[name]
