"""What all specs share: strict classes, numbers as users write them, and one way to say what is wrong."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ByteSize,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    TypeAdapter,
    ValidationError,
    model_serializer,
)

from ensadv_data.errors import InputError, QuantityError, UnknownNameError

__all__ = [
    "Alpha",
    "Epsilon",
    "Radius",
    "Spec",
    "checked",
    "parse_bytes",
    "parse_count",
    "parse_pairs",
    "parse_quantity",
    "read_epsilon",
    "read_toml",
]


_SIZE = TypeAdapter(Annotated[ByteSize, Field(ge=0)])


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


def parse_bytes(text: str | int, *, name: str) -> int:
    """Read a size in bytes: a whole number, or one with a unit such as ``512MiB`` or ``2GB``.

    Raises
    ------
    QuantityError
        It is no size.
    """
    try:
        return _SIZE.validate_python(text)
    except ValidationError:
        raise QuantityError(f"{name}: expected a size in bytes such as 512MiB or 2GB, got {text!r}") from None


def parse_pairs(text: str, *, what: str, known: Iterable[str]) -> list[tuple[str, str]]:
    """Read ``KEY=VALUE,…``; keys may be written with hyphens.

    Raises
    ------
    UnknownNameError
        A key is not among ``known``, which the message lists.
    InputError
        A key has no value.
    """
    pairs, keys = [], list(known)
    for item in filter(None, (part.strip() for part in text.split(","))):
        key, equals, value = (part.strip() for part in item.partition("="))
        if (key := key.replace("-", "_")) not in keys:
            raise UnknownNameError(what, item, keys)
        if not equals:
            raise InputError(f"{what}: expected {key}=VALUE, got {item!r}")
        pairs.append((key, value))
    return pairs


def parse_count(text: str, *, name: str) -> int | float:
    """Read a whole number; another number comes back as it is, for the spec to refuse.

    Raises
    ------
    QuantityError
        When it is no number.
    """
    number = parse_quantity(text, name=name)
    return int(number) if number.is_integer() else number


def read_epsilon(value: Any) -> float:
    """Read an L∞ radius in [0, 1]; raises QuantityError."""
    epsilon = parse_quantity(value, name="epsilon")
    if not 0 <= epsilon <= 1:
        raise QuantityError(
            f"epsilon: expected an L∞ radius in [0, 1] (pixels are in [0, 1]), got {epsilon:g}"
            + (f"; write {epsilon:g}/255 if you count in grey levels" if epsilon > 1 else "")
        )
    return epsilon


def _alpha(value: Any) -> float:
    alpha = parse_quantity(value, name="alpha")
    if not 0 < alpha <= 1:
        raise QuantityError(f"alpha: expected a random step in (0, epsilon), got {alpha:g}")
    return alpha


def _radius(value: Any) -> float:
    epsilon = read_epsilon(value)
    if not epsilon:
        raise QuantityError("epsilon: expected an L∞ radius above 0, got 0, which perturbs nothing")
    return epsilon


Epsilon = Annotated[float, BeforeValidator(read_epsilon)]
Radius = Annotated[float, BeforeValidator(_radius)]  # of a measurement
Alpha = Annotated[float, BeforeValidator(_alpha)]


class Spec(BaseModel):
    """Base of all: strict, closed, frozen."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)

    # Fields that are not told while they have their defaults: records and stores from before a field came stay equal.
    SILENT: ClassVar[frozenset[str]] = frozenset()

    @model_serializer(mode="wrap")
    def _told(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields: dict[str, Any] = serialize(self)
        defaults = {name: type(self).model_fields[name].get_default(call_default_factory=True) for name in self.SILENT}
        return {k: v for k, v in fields.items() if k not in defaults or getattr(self, k) != defaults[k]}


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
        place = ".".join(part for part in first["loc"] if isinstance(part, str)) or kind.__name__
        raise InputError(f"{where}: {place}: {first['msg'].lower()}, got {first['input']!r}") from None


def read_toml(path: Path, *, what: str = "recipe", remedy: str = "see the folder pipelines") -> dict[str, Any]:
    """Read a TOML file; ``what`` it is to be and the ``remedy`` are for the message where there is none.

    Raises
    ------
    InputError
        When it is missing, cannot be read or is not TOML; the message has the line.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"expected a {what} at {path}, found no file; {remedy}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise InputError(f"{path}: expected TOML: {error}") from None
