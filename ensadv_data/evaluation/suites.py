"""Suites: which attacks are made on the target itself, and which are transferred to it from each source."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ensadv_data.errors import UnknownNameError
from ensadv_data.spec import AttackSpec, parse_attack

__all__ = ["SUITES", "Suite", "suite_named"]


@dataclass(frozen=True)
class Suite:
    """Attacks as text; epsilon is filled in when the suite is used, and ``{half}`` stands for half of it."""

    white_box: tuple[str, ...]
    black_box: tuple[str, ...]
    about: str

    def attacks(self, *, epsilon: float) -> tuple[tuple[AttackSpec, ...], tuple[AttackSpec, ...]]:
        """White-box and black-box attacks at one L∞ radius, pixels in [0, 1]."""
        white, black = (
            tuple(parse_attack(text.format(half=epsilon / 2), epsilon=epsilon) for text in texts)
            for texts in (self.white_box, self.black_box)
        )
        return white, black


_TABLE7 = Suite(
    white_box=("fgsm", "r-fgsm"),
    black_box=("fgsm",),
    about="Table 7: FGSM and R+FGSM on the target, FGSM from each source",
)
_TABLE8 = Suite(
    white_box=("fgsm", "r-fgsm"),
    black_box=("fgsm", "i-fgsm", "pgd"),
    about="Table 8: FGSM, I-FGSM and PGD from each source; FGSM and R+FGSM on the target",
)
_R_STEP_LL = "r-step-ll:alpha={half}"

SUITES: Mapping[str, Suite] = {
    "single-step": _TABLE7,
    "paper": _TABLE8,
    "table1": Suite(("step-ll",), ("step-ll",), about="Table 1: Step-LL on the target and from each source"),
    "table2": Suite(
        ("step-ll", _R_STEP_LL, "iter-ll:steps=2,step_size={half}"),
        (),
        about="Table 2: Step-LL, R+Step-LL with alpha = epsilon/2 and two-step Iter-LL on the target",
    ),
    "table4": Suite(
        ("step-ll",),
        ("fgsm", "step-ll", _R_STEP_LL, "i-fgsm", "pgd"),
        about="Table 4: FGSM, Step-LL, R+Step-LL, I-FGSM and PGD from each source; Step-LL on the target",
    ),
    "table7": _TABLE7,
    "table8": _TABLE8,
    "table9": Suite(
        (_R_STEP_LL,),
        (_R_STEP_LL,),
        about="Table 9: R+Step-LL with alpha = epsilon/2 on the target and from each source",
    ),
    "nips17": Suite(
        (),
        ("fgsm", "step-ll", "r-fgsm", _R_STEP_LL, "i-fgsm", "iter-ll", "pgd"),
        about="a defence's accuracy over all attacks from all sources, as the NIPS 2017 competition scored it",
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
