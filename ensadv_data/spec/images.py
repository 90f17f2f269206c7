"""How photographs become arrays of one size: a declared, deterministic preprocessing."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from ensadv_data.errors import QuantityError
from ensadv_data.spec.base import Spec, checked, parse_count, parse_pairs

__all__ = ["Preprocess", "PreprocessSpec", "parse_preprocess"]


class PreprocessSpec(Spec):
    """From an encoded image to uint8 (3, size, size).

    ``centre`` resamples the central square, whose side is ``size / resize`` of the shorter side of the image, in one
    step; ``squash`` resamples all of it, whatever its proportions.
    """

    size: int = Field(default=299, ge=8, le=4096)
    resize: int | None = Field(default=None, ge=8, le=8192)  # the shorter side, before the crop
    crop: Literal["centre", "squash"] = "centre"
    interpolation: Literal["bilinear", "bicubic", "lanczos", "box"] = "bicubic"
    scaled: bool = False  # JPEGs decoded at 1/2, 1/4 or 1/8, where at least twice the resized image is left
    max_pixels: int = Field(default=64_000_000, ge=64)  # of an encoded image: a larger one is a bad image

    @property
    def shorter(self) -> int:
        """What the shorter side becomes: size ÷ 0.875 unless given, as evaluation on ImageNet has it."""
        return self.resize or round(self.size / 0.875)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.resize is not None and self.crop == "squash":
            raise QuantityError(f"resize: expected none beside crop = squash, which crops nothing, got {self.resize}")
        if self.shorter < self.size:
            raise QuantityError(f"resize: expected at least size = {self.size}, got {self.resize}; leave it out")
        return self


def parse_preprocess(text: str) -> PreprocessSpec:
    """Read ``size=64,resize=72,interpolation=bilinear,scaled=yes``, any of the keys.

    Raises
    ------
    UnknownNameError
        Another key.
    InputError
        A value is outside its range.
    """
    fields: dict[str, Any] = {}
    for key, value in parse_pairs(text, what="key of preprocess", known=PreprocessSpec.model_fields):
        if key in ("size", "resize", "max_pixels"):
            fields[key] = parse_count(value, name=key)
        else:
            fields[key] = {"yes": True, "no": False}.get(value, value) if key == "scaled" else value
    return checked(PreprocessSpec, fields, where=f"preprocess {text!r}")


Preprocess = Annotated[
    PreprocessSpec, BeforeValidator(lambda value: parse_preprocess(value) if isinstance(value, str) else value)
]
