"""What a user asks for, typed and frozen: attacks, training, precompute, evaluation, recipes.

Every field has the name of its flag on the command line. The same classes check a recipe (TOML) and the
flags, so that both refuse the same mistakes with the same words.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from ensadv_data.errors import InputError, QuantityError, UnknownNameError

__all__ = [
    "ATTACKS",
    "AttackSpec",
    "DataSpec",
    "EpsilonSpec",
    "EvaluateSpec",
    "PrecomputeSpec",
    "TrainSpec",
    "checked",
    "parse_attack",
    "parse_epsilon",
    "parse_quantity",
    "read_toml",
]

Kind = Literal["sign", "rsign", "delta"]
Loss = Literal["margin", "ce", "cw"]

# What a store holds beside its sources (docs/format.md): no source can have one of these names.
_STORE_NAMES = frozenset({"zarr.json", "manifest.json", "example_digest", "progress"})

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


def parse_quantity(text: str | float | int, *, name: str) -> float:
    """Read a number or a fraction such as ``16/255``.

    Raises
    ------
    QuantityError
        When ``text`` is neither, or is not finite.
    """
    try:
        if isinstance(text, bool):
            raise ValueError
        if isinstance(text, str) and text.count("/") == 1:
            over, under = text.split("/")
            value = float(over) / float(under)
        else:
            value = float(text)
        if not math.isfinite(value):
            raise ValueError
    except (ValueError, TypeError, ArithmeticError):
        raise QuantityError(f"{name}: expected a number or a fraction such as 0.3 or 16/255, got {text!r}") from None
    return value


def _epsilon(value: Any) -> float:
    epsilon = parse_quantity(value, name="epsilon")
    if not 0 <= epsilon <= 1:
        raise QuantityError(
            f"epsilon: expected an L∞ radius in [0, 1] (pixels are in [0, 1]), got {epsilon:g}; "
            f"write {epsilon:g}/255 if you count in grey levels"
        )
    return epsilon


def _alpha(value: Any) -> float:
    alpha = parse_quantity(value, name="alpha")
    if not 0 < alpha <= 1:
        raise QuantityError(f"alpha: expected a random step in (0, epsilon), got {alpha:g}")
    return alpha


Epsilon = Annotated[float, BeforeValidator(_epsilon)]
Alpha = Annotated[float, BeforeValidator(_alpha)]


class Spec(BaseModel):
    """Base of all: strict, closed, frozen."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


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
                f"alpha: expected a random step smaller than epsilon = {self.epsilon:g}, "
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
    for item in filter(None, rest.split(",")):
        key, equals, value = item.partition("=")
        key = key.strip().replace("-", "_")
        if not equals or key not in AttackSpec.model_fields or key == "name":
            raise UnknownNameError(f"quantity of attack {name}", item, sorted(set(AttackSpec.model_fields) - {"name"}))
        if key == "steps":
            number = parse_quantity(value, name="steps")
            fields[key] = int(number) if number.is_integer() else number
        else:
            fields[key] = value.strip() if key == "loss" else parse_quantity(value, name=key)
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
        return EpsilonSpec(sigma=_epsilon(parts[0]), epsilon=_epsilon(parts[1]))
    return EpsilonSpec(epsilon=_epsilon(text))


def _attack(value: Any) -> Any:
    return parse_attack(value) if isinstance(value, str) else value


def _law(value: Any) -> Any:
    return parse_epsilon(value) if isinstance(value, (str, int, float)) else value


Attack = Annotated[AttackSpec, BeforeValidator(_attack)]
EpsilonLaw = Annotated[EpsilonSpec, BeforeValidator(_law)]


class DataSpec(Spec):
    """A data set by name, and where its files are."""

    data: str
    data_dir: str | None = None
    limit: int | None = Field(default=None, ge=1)


class TrainSpec(Spec):
    """One training run. No shards and no online attack: plain; online: standard adversarial; both: ensemble."""

    architecture: str
    epochs: int = Field(default=6, ge=1)
    batch_size: int = Field(default=64, ge=1)
    seed: int = Field(default=0, ge=0)
    optimizer: Literal["adam", "rmsprop"] = "adam"
    learning_rate: float | None = Field(default=None, gt=0)
    epsilon: EpsilonLaw = EpsilonSpec()  # of every source; before online, which is read with it
    online: AttackSpec | None = None
    shards: tuple[str, ...] = Field(default=(), strict=False)
    batches: Literal["pair", "replace"] = "pair"
    adversarial_weight: float | None = Field(default=None, ge=0)
    random_step: Literal["fresh", "stored"] = "fresh"
    online_mode: Literal["train", "eval"] = "train"
    amp: bool = False
    threads: int | None = Field(default=None, ge=1)
    window: int = Field(default=0, ge=0)
    device: str = "cpu"

    @property
    def rate(self) -> float:
        """Learning rate: 1e-3 for Adam (design §8), 0.045 for RMSProp (Section 4.2)."""
        return self.learning_rate or (1e-3 if self.optimizer == "adam" else 0.045)

    @property
    def weight(self) -> float:
        """λ: 1 for pairs (½ + ½), 0.3 where half of the batch is replaced (Kurakin et al. 2017)."""
        return (1.0 if self.batches == "pair" else 0.3) if self.adversarial_weight is None else self.adversarial_weight

    @field_validator("online", mode="before")
    @classmethod
    def _at_this_epsilon(cls, online: Any, info: ValidationInfo) -> Any:
        """The online attack at this training's epsilon, on which its default steps depend."""
        if "epsilon" not in info.data:  # it was refused
            return online
        epsilon = info.data["epsilon"].epsilon
        if isinstance(online, str):
            online = parse_attack(online, epsilon=epsilon)
        elif isinstance(online, AttackSpec):
            online = AttackSpec(**{"epsilon": epsilon, **online.model_dump(exclude_unset=True)})
        if isinstance(online, AttackSpec) and online.epsilon != epsilon:
            raise QuantityError(
                f"online: expected no epsilon in the attack, got {online.epsilon:g} beside epsilon = {epsilon:g}; "
                "the field epsilon is that of every source: give it there"
            )
        return online

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.batches == "replace" and self.batch_size % 2:
            raise QuantityError(f"batch_size: expected an even number with batches = replace, got {self.batch_size}")
        if self.online and self.epsilon.sigma is not None and self.online.kind != "sign":
            raise QuantityError(f"online: expected fgsm or step-ll where epsilon is drawn, got {self.online.name}")
        return self


class PrecomputeSpec(Spec):
    """One store: static models × attacks × draws over a whole training set."""

    models: dict[str, str]
    attacks: tuple[Attack, ...] = Field(strict=False, min_length=1)
    draws: int = Field(default=1, ge=1)
    mode: Literal["eval", "train"] = "eval"
    zeros: Literal["keep", "fill"] = "keep"
    loss: Literal["margin", "ce"] = "margin"
    seed: int = Field(default=0, ge=0)
    batch_size: int = Field(default=64, ge=1)
    device: str = "cpu"

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if not self.models:
            raise InputError("models: expected at least one NAME=REF, got none")
        for name in self.models:
            if not name or not all(c.isalnum() or c in "._-*" for c in name) or name[0] == ".":
                raise InputError(f"models: expected a name of letters, digits, '.', '_', '-' or '*', got {name!r}")
            if name in _STORE_NAMES:
                raise InputError(f"models: expected a name that the store does not use itself, got {name!r}")
        names = [attack.name for attack in self.attacks]
        if len(set(names)) < len(names):
            raise InputError(f"attacks: expected each name once in a store, got {', '.join(names)}")
        return self


class EvaluateSpec(Spec):
    """Targets × sources under a suite."""

    suite: str = "paper"
    epsilon: Epsilon = 0.3
    images: int | None = Field(default=None, ge=1)
    seed: int = Field(default=0, ge=0)
    batch_size: int = Field(default=250, ge=1)
    device: str = "cpu"


S = TypeVar("S", bound=Spec)


def checked(kind: type[S], fields: Mapping[str, Any], *, where: str) -> S:
    """Build a spec, or say in one line what was expected.

    Raises
    ------
    InputError
        With the field's name, what came, and what was expected.
    """
    unknown = [key for key in fields if key not in kind.model_fields]
    if unknown:
        raise UnknownNameError(f"key in {where}", unknown[0], kind.model_fields)
    try:
        return kind.model_validate(dict(fields))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or kind.__name__
        raise InputError(f"{where}: {place}: {first['msg'].lower()}, got {first['input']!r}") from None


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file.

    Raises
    ------
    InputError
        When it is missing, cannot be read or is not TOML; the message has the line.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"expected a recipe at {path}, found no file; see the folder pipelines") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise InputError(f"{path}: expected TOML: {error}") from None
