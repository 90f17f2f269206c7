"""How images are cropped and flipped before a model sees them."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from ensadv_data.errors import QuantityError, UnknownNameError
from ensadv_data.spec.base import Spec, checked, parse_count, parse_quantity

__all__ = ["Augment", "AugmentSpec", "parse_augment"]

_CROP, _RESIZED, _FLIP = "crop", "random-resized-crop", "flip"
_LEAST = 0.08  # share of the area that a random resized crop has at least


class AugmentSpec(Spec):
    """What happens to an image, by chance.

    ``crop``: it is moved by up to so many pixels, zeros coming in. ``area``: a rectangle of at least that share of it
    is resized to all of it. ``flip``: it is mirrored left to right, or not, by a coin.
    """

    crop: int | Literal["eighth"] | None = None  # pixels, or an eighth of the shorter side
    area: float | None = Field(default=None, gt=0, le=1)
    flip: bool = False

    @property
    def is_exact(self) -> bool:
        """Whether pixels are only moved: then the perturbation moves with its image."""
        return self.area is None

    @property
    def label(self) -> str:
        """As it may be written: ``random-resized-crop=0.08,flip``."""
        cropped = None if self.crop is None else _CROP if self.crop == "eighth" else f"{_CROP}={self.crop}"
        resized = None if self.area is None else f"{_RESIZED}={self.area:g}"
        return ",".join(filter(None, (cropped, resized, _FLIP if self.flip else None)))

    def padding(self, shape: tuple[int, int, int]) -> int:
        """By how many pixels an image of (C, H, W) is moved at most."""
        return max(1, min(shape[1:]) // 8) if self.crop == "eighth" else self.crop or 0

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.crop is not None and self.area is not None:
            raise QuantityError(f"augment: expected one of {_CROP} and {_RESIZED}, got both; leave one out")
        if self.crop is None and self.area is None and not self.flip:
            raise QuantityError(
                f"augment: expected {_CROP}, {_RESIZED} or {_FLIP}, got none of them; leave augment out"
            )
        if isinstance(self.crop, int) and not 1 <= self.crop <= 4096:
            raise QuantityError(f"augment: expected {_CROP} of 1 to 4096 pixels, got {self.crop}")
        return self


def parse_augment(text: str) -> AugmentSpec:
    """Read ``crop,flip``, ``crop=4,flip`` or ``random-resized-crop=0.25,flip``.

    Raises
    ------
    UnknownNameError
        Another word.
    InputError
        A value is outside its range.
    """
    fields: dict[str, Any] = {}
    for item in filter(None, (part.strip() for part in text.split(","))):
        name, equals, value = (part.strip() for part in item.partition("="))
        if name not in (_CROP, _RESIZED, _FLIP) or (equals and name == _FLIP):
            raise UnknownNameError(
                "augmentation", item, (_CROP, f"{_CROP}=PIXELS", _RESIZED, f"{_RESIZED}=SHARE", _FLIP)
            )
        if name == _CROP:
            fields["crop"] = parse_count(value, name="augment: crop") if equals else "eighth"
        elif name == _RESIZED:
            fields["area"] = parse_quantity(value, name=f"augment: {name}") if equals else _LEAST
        else:
            fields["flip"] = True
    return checked(AugmentSpec, fields, where=f"augment {text!r}")


Augment = Annotated[
    AugmentSpec, BeforeValidator(lambda value: parse_augment(value) if isinstance(value, str) else value)
]
