"""Attacks and epsilons as users write them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from ensadv_data.errors import QuantityError, UnknownNameError
from ensadv_data.spec.base import Alpha, Epsilon, Spec, checked, parse_count, parse_pairs, parse_quantity, read_epsilon

__all__ = ["ATTACKS", "Attack", "AttackSpec", "EpsilonLaw", "EpsilonSpec", "parse_attack", "parse_epsilon"]

Kind = Literal["sign", "rsign", "delta"]
Loss = Literal["margin", "ce", "cw"]

# name → (kind of perturbation, label it moves with)
ATTACKS: Mapping[str, tuple[Kind, Literal["true", "least-likely"]]] = {
    "fgsm": ("sign", "true"),
    "step-ll": ("sign", "least-likely"),
    "r-fgsm": ("rsign", "true"),
    "r-step-ll": ("rsign", "least-likely"),
    "i-fgsm": ("delta", "true"),
    "iter-ll": ("delta", "least-likely"),
    "pgd": ("delta", "true"),
}


class AttackSpec(Spec):
    """One attack with its quantities (Section 3.2 and equation 7 of the paper).

    ``epsilon`` is the L∞ radius, ``alpha`` the random first step of the R+ attacks (default 0.05, the
    authors' released value, or epsilon / 2 where epsilon ≤ 0.1), ``steps`` and ``step_size`` belong to
    the iterative attacks (default 10 steps of epsilon / 10; PGD 40 steps of 0.01 from a random start).
    """

    name: str
    epsilon: Epsilon = 0.3
    alpha: Alpha | None = None
    steps: int | None = Field(default=None, ge=1)
    step_size: Epsilon | None = None
    loss: Loss | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.name not in ATTACKS:
            raise UnknownNameError("attack", self.name, ATTACKS)
        if self.alpha is not None and self.kind != "rsign":
            raise QuantityError(f"alpha belongs to the R+ attacks (r-fgsm, r-step-ll), not to {self.name}")
        if self.kind != "delta" and (self.steps is not None or self.step_size is not None):
            raise QuantityError(f"steps and step_size belong to i-fgsm, iter-ll and pgd, not to {self.name}")
        if self.kind == "rsign" and self.random_step >= self.epsilon:
            raise QuantityError(
                f"{self.name}: alpha: expected a random step smaller than epsilon = {self.epsilon:g}, "
                f"got {self.random_step:g}; nothing would be left for the gradient step"
            )
        return self

    @property
    def kind(self) -> Kind:
        """How the perturbation is stored: sign, rsign or delta (docs/format.md)."""
        return ATTACKS[self.name][0]

    @property
    def least_likely(self) -> bool:
        """Whether the attack moves towards the least likely class."""
        return ATTACKS[self.name][1] == "least-likely"

    @property
    def random_step(self) -> float:
        """The α of equation 7; 0 for attacks that have no random first step."""
        if self.kind != "rsign":
            return 0.0
        if self.alpha is not None:
            return self.alpha
        return 0.05 if self.epsilon > 0.1 else self.epsilon / 2

    @property
    def is_random(self) -> bool:
        """Whether its perturbations differ from draw to draw without any dropout."""
        return self.kind == "rsign" or self.name == "pgd"

    @property
    def iterations(self) -> tuple[int, float]:
        """Number of steps, and the size of one."""
        if self.name == "pgd":
            steps = self.steps or 40
            return steps, 0.01 if self.step_size is None else self.step_size
        steps = self.steps or 10
        return steps, self.epsilon / steps if self.step_size is None else self.step_size

    @property
    def loss_form(self) -> Loss:
        """The loss whose gradient is followed: the margin form, or the hinge for PGD."""
        return self.loss or ("cw" if self.name == "pgd" else "margin")

    def with_loss(self, default: Loss) -> Self:
        """The same attack, following ``default`` unless it names a loss of its own or is PGD, which has the hinge."""
        if self.loss is not None or self.name == "pgd" or default == "margin":
            return self
        return self.model_copy(update={"loss": default})

    @property
    def identity(self) -> tuple[str | float, ...]:
        """What its perturbation depends on, defaults filled in; equal ones can serve each other from a store."""
        quantities: tuple[float, ...] = ()
        if self.kind == "rsign":
            quantities = (self.random_step,)
        elif self.kind == "delta":
            quantities = (self.epsilon, *self.iterations)
        return (self.name, self.loss_form, *quantities)

    @property
    def label(self) -> str:
        """A short name that tells apart the attacks of one suite."""
        parts = [
            f"{key}={value:g}" if isinstance(value, float) else f"{key}={value}"
            for key, value in (
                ("alpha", self.alpha),
                ("steps", self.steps),
                ("step_size", self.step_size),
                ("loss", self.loss),
            )
            if value is not None
        ]
        return self.name + (":" + ",".join(parts) if parts else "")


def parse_attack(text: str, *, epsilon: float | None = None) -> AttackSpec:
    """Read ``NAME[:KEY=VALUE,…]``, for example ``r-fgsm:alpha=0.1`` or ``pgd:epsilon=0.3,steps=40``.

    The paper's spelling ``r+fgsm`` is accepted for ``r-fgsm``.

    Raises
    ------
    UnknownNameError
        No attack has that name, or no quantity has that key.
    QuantityError
        A quantity is outside its range.
    """
    name, _, rest = text.strip().lower().partition(":")
    fields: dict[str, Any] = {"name": name.replace("+", "-")}
    if epsilon is not None:
        fields["epsilon"] = epsilon
    known = sorted(set(AttackSpec.model_fields) - {"name"})
    for key, value in parse_pairs(rest, what=f"quantity of attack {name}", known=known):
        if key == "steps":
            fields[key] = parse_count(value, name=key)
        else:
            fields[key] = value if key == "loss" else parse_quantity(value, name=key)
    return checked(AttackSpec, fields, where=f"attack {text!r}")


class EpsilonSpec(Spec):
    """ε of a training example: fixed, or |N(0, sigma)| truncated to [0, epsilon] (Kurakin et al. 2017)."""

    epsilon: Epsilon = 0.3
    sigma: Epsilon | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.sigma is not None and self.sigma == 0:
            raise QuantityError("sigma: expected a standard deviation above 0, got 0; leave it out for a fixed epsilon")
        return self


def parse_epsilon(text: str | float) -> EpsilonSpec:
    """Read ``0.3``, ``16/255`` or ``normal:SIGMA,MAX`` such as ``normal:8/255,16/255``.

    Raises
    ------
    QuantityError
        When it is none of these.
    """
    if isinstance(text, str) and text.startswith("normal:"):
        parts = text.removeprefix("normal:").split(",")
        if len(parts) != 2:
            raise QuantityError(f"epsilon: expected normal:SIGMA,MAX such as normal:8/255,16/255, got {text!r}")
        return EpsilonSpec(sigma=read_epsilon(parts[0]), epsilon=read_epsilon(parts[1]))
    return EpsilonSpec(epsilon=read_epsilon(text))


def _attack(value: Any) -> Any:
    return parse_attack(value) if isinstance(value, str) else value


def _law(value: Any) -> Any:
    return parse_epsilon(value) if isinstance(value, (str, int, float)) else value


Attack = Annotated[AttackSpec, BeforeValidator(_attack)]
EpsilonLaw = Annotated[EpsilonSpec, BeforeValidator(_law)]
