"""Suites: which attacks are made on the target itself, and which are transferred to it from each source."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ensadv_data.errors import InputError, QuantityError, UnknownNameError
from ensadv_data.evaluation.outside import OutsideAttack, is_outside, parse_outside
from ensadv_data.spec import AdaptiveSpec, AttackSpec, EvaluateSpec, Loss, parse_adaptive, parse_attack, read_toml

__all__ = ["SUITES", "Attack", "Suite", "suite_named"]


Attack = AttackSpec | OutsideAttack


@dataclass(frozen=True)
class Suite:
    """Attacks as text; epsilon is filled in when the suite is used, and ``{half}`` stands for half of it."""

    white_box: tuple[str, ...]
    black_box: tuple[str, ...]
    about: str
    adaptive: tuple[str, ...] = ()  # adversaries that query the target

    def check(self, spec: EvaluateSpec, sources: Collection[str]) -> None:
        """Refuse what this suite would not use.

        Raises
        ------
        InputError
            There are sources, and no attack is transferred; or pictures, and no attack is white-box.
        """
        given = [*sources, *spec.shards]
        if given and not self.black_box:
            raise InputError(
                f"suite {spec.suite}: attacks targets by themselves only; expected no source, got {', '.join(given)}; "
                "leave sources and shards out, or choose a suite that transfers attacks"
            )
        if spec.pictures and not self.white_box:
            raise InputError(
                f"suite {spec.suite}: has no attack on the target itself to picture; expected pictures = 0, got "
                f"{spec.pictures}"
            )

    def adversaries(self, *, epsilon: float) -> tuple[AdaptiveSpec, ...]:
        """Adaptive adversaries at one L∞ radius; raises as :func:`~ensadv_data.spec.parse_adaptive` does."""
        return tuple(
            parse_adaptive(text.replace("{half}", repr(epsilon / 2)), epsilon=epsilon) for text in self.adaptive
        )

    def attacks(self, *, epsilon: float, loss: Loss = "margin") -> tuple[tuple[Attack, ...], tuple[Attack, ...]]:
        """White-box and black-box attacks at one L∞ radius, pixels in [0, 1].

        ``loss`` is that of the attacks that name none (:meth:`~ensadv_data.spec.AttackSpec.with_loss`).

        Raises
        ------
        InputError
            A text is not that of an attack, or two of them are of the same one.
        """
        white, black = (
            tuple(_attack(text.replace("{half}", repr(epsilon / 2)), epsilon, loss) for text in texts)
            for texts in (self.white_box, self.black_box)
        )
        for attacks, texts in ((white, self.white_box), (black, self.black_box)):
            _refuse_equal(attacks, texts, epsilon)
        return white, black


def _attack(text: str, epsilon: float, loss: Loss) -> Attack:
    if is_outside(text):
        return parse_outside(text, epsilon=epsilon)
    attack = parse_attack(text, epsilon=epsilon)
    if attack.epsilon != epsilon:
        raise QuantityError(f"suite: expected attacks without an epsilon of their own, got {text!r}")
    return attack.with_loss(loss)


def _refuse_equal(attacks: Sequence[Attack], texts: Sequence[str], epsilon: float) -> None:
    """One attack that is spelled in two ways would count twice in every mean."""
    seen: dict[tuple[str | float, ...], str] = {}
    for attack, text in zip(attacks, texts, strict=True):
        if not isinstance(attack, AttackSpec):
            continue
        if attack.identity in seen:
            raise InputError(
                f"suite: expected each attack once, got {seen[attack.identity]} and {text}, which are the same at "
                f"epsilon {epsilon:g}; drop one"
            )
        seen[attack.identity] = text


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
    "adaptive": Suite(
        ("fgsm", "r-fgsm:alpha={half}"),
        (),
        about="Section 5: adversaries that query the target, with scores and with labels; FGSM and R+FGSM beside them",
        adaptive=("estimated:alpha={half}", "surrogate", "surrogate:architecture=B"),
    ),
    "c1": Suite(("fgsm", "i-fgsm", "pgd"), (), about="Appendix C.1: FGSM, I-FGSM and PGD on the target"),
    "nips17": Suite(
        (),
        ("fgsm", "step-ll", "r-fgsm", _R_STEP_LL, "i-fgsm", "iter-ll", "pgd"),
        about="a defence's accuracy over all attacks from all sources, as the NIPS 2017 competition scored it",
    ),
}


def suite_named(name: str) -> Suite:
    """Look a suite up, or read one from a TOML file with the lists ``white_box`` and ``black_box``.

    Raises
    ------
    UnknownNameError
        No suite has that name; the message lists them.
    InputError
        The file is not that of a suite.
    """
    if name.endswith(".toml"):
        return _read(Path(name))
    if name not in SUITES:
        raise UnknownNameError("suite", name, [*SUITES, "FILE.toml"])
    return SUITES[name]


def _read(path: Path) -> Suite:
    table = read_toml(path, what="suite", remedy=f"write one, or name one of {', '.join(SUITES)}")
    lists = {}
    for key, value in table.items():
        if key not in ("white_box", "black_box", "adaptive", "about"):
            raise UnknownNameError(f"key in {path}", key, ("white_box", "black_box", "adaptive", "about"))
        if key != "about":
            if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
                raise InputError(f"{path}: {key}: expected a list of attacks, got {value!r}")
            if len(set(value)) < len(value):
                raise InputError(f"{path}: {key}: expected each attack once, got {', '.join(value)}")
            lists[key] = tuple(value)
    if not any(lists.values()):
        raise InputError(f"{path}: expected attacks in white_box, black_box or adaptive, got none")
    return Suite(
        lists.get("white_box", ()),
        lists.get("black_box", ()),
        about=str(table.get("about", path.stem)),
        adaptive=lists.get("adaptive", ()),
    )
