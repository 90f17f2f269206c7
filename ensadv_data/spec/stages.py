"""What each command does: every field has the name of its flag."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self, get_args

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator, model_validator

from ensadv_data.errors import InputError, QuantityError
from ensadv_data.spec.attack import Attack, AttackSpec, EpsilonLaw, EpsilonSpec, parse_attack
from ensadv_data.spec.augmentation import Augment
from ensadv_data.spec.base import Epsilon, Radius, Spec, checked, parse_count, parse_pairs, parse_quantity
from ensadv_data.spec.images import Preprocess

__all__ = ["MEASURES", "DataSpec", "DiagnoseSpec", "EvaluateSpec", "PrecomputeSpec", "ShiftSpec", "TrainSpec"]

# What a store holds beside its sources (docs/format.md): no source can have one of these names.
_STORE_NAMES = frozenset({"zarr.json", "manifest.json", "example_digest", "progress"})


def attack_at(attack: Any, epsilon: float, *, field: str) -> Any:
    """An attack of a spec that has an epsilon for all: a default step depends on it, and no other is accepted.

    Raises
    ------
    QuantityError
        The attack names another epsilon.
    """
    if isinstance(attack, str):
        attack = parse_attack(attack, epsilon=epsilon)
    elif isinstance(attack, AttackSpec):
        attack = AttackSpec(**{"epsilon": epsilon, **attack.model_dump(exclude_unset=True)})
    if isinstance(attack, AttackSpec) and attack.epsilon != epsilon:
        raise QuantityError(
            f"{field}: expected no epsilon in the attack, got {attack.epsilon:g} beside epsilon = {epsilon:g}; "
            "the field epsilon is that of all attacks: give it there"
        )
    return attack


class DataSpec(Spec):
    """A data set by name, and where its files are; of a user's own images also how they become arrays of one size."""

    data: str
    data_dir: str | None = None
    preprocess: Preprocess | None = None
    on_bad_image: Literal["fail", "skip"] = "fail"
    limit: int | None = Field(default=None, ge=1)


class TrainSpec(Spec):
    """One training run. No source and no online attack: plain; online: standard adversarial; both: ensemble.

    Sources are stores (``shards``), or static models whose perturbations are computed at each step (``static``).
    """

    SILENT: ClassVar = frozenset(
        {"draws", "source_per", "static", "static_attack", "static_mode"}
        | {"label_smoothing", "auxiliary_weight", "ema", "accumulate", "augment"}
    )

    architecture: str
    epochs: int = Field(default=6, ge=1)
    batch_size: int = Field(default=64, ge=1)
    seed: int = Field(default=0, ge=0)
    optimizer: Literal["adam", "rmsprop"] = "adam"
    learning_rate: float | None = Field(default=None, gt=0)
    epsilon: EpsilonLaw = EpsilonSpec()  # of every source; before online, which is read with it
    online: AttackSpec | None = None
    shards: tuple[str, ...] = Field(default=(), strict=False)
    draws: int | None = Field(default=None, ge=1)  # the first so many of each store; all unless given
    augment: Augment | None = None  # of images and perturbations alike; of a store of views it need not be given
    static: dict[str, str] = Field(default_factory=dict)  # name → model reference
    static_attack: AttackSpec | None = None
    static_mode: Literal["train", "eval"] = "eval"
    source_per: Literal["batch", "example"] = "batch"
    batches: Literal["pair", "replace"] = "pair"
    adversarial_weight: float | None = Field(default=None, ge=0)
    random_step: Literal["fresh", "stored"] = "stored"
    online_mode: Literal["train", "eval"] = "train"
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    auxiliary_weight: float = Field(default=0.0, ge=0)  # of an Inception network's auxiliary logits; 0: it has none
    ema: float | None = Field(default=None, gt=0, lt=1)  # decay of the moving average of the weights, which is written
    accumulate: int = Field(default=1, ge=1)  # parts of a batch, whose gradients are added up
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

    @property
    def static_perturbation(self) -> AttackSpec:
        """The attack of the static models: FGSM unless another was given (App. C.2)."""
        return self.static_attack or AttackSpec(name="fgsm", epsilon=self.epsilon.epsilon)

    @field_validator("online", "static_attack", mode="before")
    @classmethod
    def _at_this_epsilon(cls, attack: Any, info: ValidationInfo) -> Any:
        """An attack at this training's epsilon, on which its default steps depend."""
        if "epsilon" not in info.data:  # it was refused
            return attack
        return attack_at(attack, info.data["epsilon"].epsilon, field=str(info.field_name))

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.batches == "replace" and self.batch_size % 2:
            raise QuantityError(f"batch_size: expected an even number with batches = replace, got {self.batch_size}")
        for field, attack in (("online", self.online), ("static_attack", self.static_attack)):
            if attack and self.epsilon.sigma is not None and attack.kind != "sign":
                raise QuantityError(f"{field}: expected fgsm or step-ll where epsilon is drawn, got {attack.name}")
        if self.draws is not None and not self.shards:
            raise InputError("draws: expected at least one store to take them from, got no shards")
        if self.source_per == "example" and not self.shards and bool(self.online) + len(self.static) < 2:
            raise InputError(
                "source_per: expected two sources or more to draw from, got "
                f"{bool(self.online) + len(self.static)}; add shards or static models, or leave it out"
            )
        if not self.static and (self.static_attack is not None or self.static_mode != "eval"):
            raise InputError("static: expected at least one static model beside its attack or mode, got none")
        return self


def _batch_size(value: Any) -> Any:
    value = int(value) if isinstance(value, str) and value.isdecimal() else value
    if value != "auto" and (type(value) is not int or value < 1):
        raise QuantityError(f"batch_size: expected a number of images from 1 on, or auto, got {value!r}")
    return value


BatchSize = Annotated[int | Literal["auto"], BeforeValidator(_batch_size)]


def _usual_draws(fields: dict[str, Any]) -> int:
    """K: 4 for training where chance has a part in any attack or in views, as docs/results found good; else 1."""
    attacks, mode = fields.get("attacks", ()), fields.get("mode")
    is_random = fields.get("augment") is not None or any(
        attack.is_random or (attack.kind == "sign" and mode == "train") for attack in attacks
    )
    return 4 if is_random and fields.get("split") == "train" else 1


class PrecomputeSpec(Spec):
    """One store: static models × attacks × draws over a whole split, for training; or, with true labels, evaluation."""

    SILENT: ClassVar = frozenset({"split", "labels", "precision", "compile", "augment"})

    models: dict[str, str]
    attacks: tuple[Attack, ...] = Field(strict=False, min_length=1)
    split: Literal["train", "test"] = "train"
    labels: Literal["predicted", "true"] = "predicted"  # of attacks that do not move to the least likely class
    mode: Literal["eval", "train"] = "eval"
    augment: Augment | None = None  # each draw is of a view of its own
    draws: int = Field(default_factory=_usual_draws, ge=1)  # after the fields that it depends on
    zeros: Literal["keep", "fill"] = "keep"
    loss: Literal["margin", "ce"] = "margin"
    seed: int = Field(default=0, ge=0)
    batch_size: BatchSize = 64  # auto: found by trial when the store is begun
    precision: Literal["float32", "tf32", "bfloat16", "exact"] = "float32"
    compile: bool = False
    device: str = "cpu"

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if not self.models:
            raise InputError("models: expected at least one NAME=REF, got none")
        for name in self.models:
            if not name or not all((c.isalnum() and c.isascii()) or c in "._-*" for c in name) or name[0] == ".":
                raise InputError(
                    f"models: expected a name of letters, digits, '.', '_', '-' or '*', got {name!r}; write NAME=REF"
                )
            if name in _STORE_NAMES:
                raise InputError(f"models: expected a name that the store does not use itself, got {name!r}")
        if self.augment is not None and self.split != "train":
            raise InputError(
                f"augment: expected none for test images, which are attacked as they are, got {self.augment.label}"
            )
        if self.labels == "true" and self.split == "train":
            raise InputError(
                "labels: expected predicted labels for training images, got true ones, which would leak into the "
                "perturbations (App. C.2); true labels are for evaluation: use them with split = test"
            )
        if self.precision == "tf32" and self.device.partition(":")[0] == "cpu":
            raise InputError("precision: expected float32 or bfloat16 on a CPU, which has no TF32, got tf32")
        if self.precision == "exact" and self.mode == "train":
            raise InputError("precision: expected float32 with mode = train, got exact: no dropout mask is drawn twice")
        if self.precision == "exact" and self.loss == "ce":
            raise InputError(
                "precision: expected float32 with loss = ce, got exact: cross-entropy loses its signs before they are "
                "next to zero"
            )
        if self.precision == "exact" and all(attack.kind == "delta" for attack in self.attacks):
            raise InputError(
                "precision: expected float32 for iterative attacks alone, got exact, which is for the signs of others"
            )
        names = [attack.name for attack in self.attacks]
        if len(set(names)) < len(names):
            raise InputError(f"attacks: expected each name once in a store, got {', '.join(names)}")
        return self


class ShiftSpec(Spec):
    """How test images are moved before they are attacked (App. C.1): rotated, then some pixels flipped."""

    rotate: float = Field(default=0.0, ge=-180, le=180)  # degrees, counter-clockwise
    flip: int = Field(default=0, ge=0)  # pixels of each image

    @property
    def label(self) -> str:
        """Such as ``rotate=20,flip=5``."""
        return f"rotate={self.rotate:g},flip={self.flip}"


def parse_shift(text: str) -> ShiftSpec:
    """Read ``rotate=DEGREES,flip=PIXELS``, each of them or both.

    Raises
    ------
    UnknownNameError
        Another key.
    InputError
        A value is outside its range.
    """
    pairs = parse_pairs(text, what="key of shift", known=sorted(ShiftSpec.model_fields))
    fields = {key: (parse_count if key == "flip" else parse_quantity)(value, name=key) for key, value in pairs}
    return checked(ShiftSpec, fields, where=f"shift {text!r}")


Shift = Annotated[ShiftSpec, BeforeValidator(lambda value: parse_shift(value) if isinstance(value, str) else value)]


class EvaluateSpec(Spec):
    """Targets × sources under a suite."""

    SILENT: ClassVar = frozenset({"pictures", "shards"})

    suite: str = "paper"
    epsilon: Radius = 0.3
    images: int | None = Field(default=None, ge=1)
    shift: Shift | None = None
    loss: Literal["margin", "ce"] = "margin"  # of attacks that name none
    shards: tuple[str, ...] = Field(default=(), strict=False)  # of sources whose attacks are read
    pictures: int = Field(default=0, ge=0, le=64)  # of the first images, under each attack on a target
    seed: int = Field(default=0, ge=0)
    batch_size: int = Field(default=250, ge=1)
    device: str = "cpu"


Measure = Literal["masking", "rounding", "cone", "surface", "flips", "discrepancy"]
MEASURES: tuple[Measure, ...] = get_args(Measure)


class DiagnoseSpec(Spec):
    """What a model's gradients are worth: the measures of Section 4 and of Appendices B and E."""

    measures: tuple[Measure, ...] = Field(default=("masking", "rounding", "cone", "surface"), strict=False)
    epsilon: Radius = 0.3  # before the attacks, which are read with it
    epsilons: tuple[Epsilon, ...] = Field(default=(), strict=False)  # of the cone; Figure 2's 4, 10 and 16 of 16
    single: AttackSpec = Field(default=AttackSpec(name="fgsm"), validate_default=True)
    iterative: AttackSpec = Field(default=AttackSpec(name="pgd", loss="margin"), validate_default=True)
    loss: Literal["margin", "ce"] = "margin"
    images: int | None = Field(default=1000, ge=1)
    points: int = Field(default=500, ge=1)
    examples: tuple[int, ...] = Field(default=(0,), strict=False)
    resolution: int = Field(default=41, ge=3)
    seed: int = Field(default=0, ge=0)
    batch_size: int = Field(default=250, ge=1)
    device: str = "cpu"

    @property
    def radii(self) -> tuple[float, ...]:
        """The cone's ε: a quarter, five eighths and all of ε unless given, as 4, 10 and 16 are of 16 (Figure 2)."""
        return self.epsilons or (self.epsilon / 4, 5 * self.epsilon / 8, self.epsilon)

    @field_validator("single", "iterative", mode="before")
    @classmethod
    def _at_this_epsilon(cls, attack: Any, info: ValidationInfo) -> Any:
        return attack_at(attack, info.data["epsilon"], field=str(info.field_name)) if "epsilon" in info.data else attack
