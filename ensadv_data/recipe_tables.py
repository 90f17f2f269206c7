"""The tables of a recipe before they mean anything: what one extends, at which scale, and what was given by hand."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ensadv_data.errors import InputError, UnknownNameError
from ensadv_data.spec import read_toml

__all__ = ["laid_tables"]


def laid_tables(path: Path, *, scale: str | None, overrides: Sequence[str]) -> dict[str, Any]:
    """The tables of a recipe over those that it extends, those of a scale over them, and single fields over all.

    Raises
    ------
    InputError
        A file cannot be read, recipes extend each other in a circle, or an override is not TABLE.KEY=VALUE.
    UnknownNameError
        There is no such scale.
    """
    table = _extended(path)
    scales = table.pop("scale", {})
    if not isinstance(scales, dict) or not all(isinstance(one, dict) for one in scales.values()):
        raise InputError(f"{path}: scale: expected tables [scale.NAME], got {scales!r}")
    if scale is not None:
        if scale not in scales:
            raise UnknownNameError(f"scale in {path}", scale, list(scales))
        table = _merged(table, scales[scale])
    for text in overrides:
        _override(table, text)
    return table


def _extended(path: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The tables of a recipe over those of the recipe that it extends, if it does."""
    if path.resolve() in seen:
        raise InputError(f"{path}: extends: expected another recipe, got one that extends this one")
    table = read_toml(path)
    base = table.pop("extends", None)
    if base is None:
        return table
    if not isinstance(base, str):
        raise InputError(f"{path}: extends: expected the path of a recipe, got {base!r}")
    return _merged(_extended(path.parent / base, (*seen, path.resolve())), table)


def _merged(base: dict[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Tables are merged key by key; everything else is replaced."""
    merged = dict(base)
    for key, value in over.items():
        below = merged.get(key)
        merged[key] = _merged(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return merged


def _override(table: dict[str, Any], text: str) -> None:
    """Set one field of a recipe's tables."""
    place, equals, value = text.partition("=")
    *tables, key = place.strip().split(".")
    try:
        parsed = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        parsed = None
    if not equals or not tables or not key or parsed is None or "\n" in value:
        raise InputError(
            f"expected TABLE.KEY=VALUE with a TOML value, such as evaluate.table8-D.images=2000 or "
            f"train.plain.online='fgsm', got {text!r}"
        )
    for name in tables:
        table = table.setdefault(name, {})
        if not isinstance(table, dict):
            raise InputError(f"expected {name} of {text!r} to be a table, got {table!r}")
    table[key] = parsed
