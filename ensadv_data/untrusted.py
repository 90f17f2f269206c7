"""What a stranger wrote: JSON within limits, names that are safe as keys and paths, text that is safe to print.

Nothing here allocates before it has counted: bytes first, then depth and number of values by one pass over the bytes,
and only then the parser. Every refusal is an :class:`IntegrityError` of one line.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from ensadv_data.errors import IntegrityError

__all__ = [
    "ENVELOPE",
    "MANIFEST",
    "OWN_MANIFEST",
    "ZARR",
    "Limits",
    "check_keys",
    "check_portable",
    "parse_json",
    "quoted",
]

_SEGMENT, _KEY = 255, 1024  # bytes: what file systems and object stores take
_DIGITS, _FLOAT = 20, 40  # of a number: 2⁶⁴ has 20

# A string, whole or cut off by the end; or what makes structure. Possessive, so that it takes linear time.
_TOKEN = re.compile(rb'(?s)"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)|[\[\]{},]')
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_DRIVE = re.compile(r"[A-Za-z]:")


@dataclass(frozen=True)
class Limits:
    """What a document may be at most.

    Attributes
    ----------
    size
        Bytes.
    depth
        Lists and objects inside each other.
    """

    size: int
    depth: int = 16

    def values(self, size: int) -> int:
        """How many values a document of so many bytes may have: a manifest has one in 25 bytes."""
        return 100_000 + size // 16


MANIFEST = Limits(64 * 2**20)
OWN_MANIFEST = Limits(2 * 2**30)  # of a store that one reads because one wants to, not because it was sent
ENVELOPE = Limits(2**20)
ZARR = Limits(2**20)  # a document of Zarr's; the plan is in the root's


def quoted(text: object, most: int = 80) -> str:
    """A stranger's text for a message: in quotes, shortened, and nothing in it that a terminal acts on."""
    whole = str(text)
    return ascii(whole if len(whole) <= most else whole[: most - 3] + "...")


def parse_json(raw: bytes, *, what: str, limits: Limits) -> Any:
    """Parse a document that may be meant to do harm.

    Parameters
    ----------
    raw
        The document.
    what
        What it is, for the message.
    limits
        What it may be at most.

    Raises
    ------
    IntegrityError
        It is no JSON in UTF-8; is larger, deeper or has more values than allowed; names a key twice; or has a number
        that is not finite, or has more than 20 digits.
    """
    if len(raw) > limits.size:
        raise IntegrityError(f"{what}: expected at most {limits.size:,} bytes, got {len(raw):,}; it was not read")
    _measure(raw, what, limits)
    try:
        value = json.loads(
            raw.decode("utf-8"),
            object_pairs_hook=_unique,
            parse_int=_integer,
            parse_float=_real,
            parse_constant=_no_constant,
        )
        if _SURROGATE.search(raw):
            json.dumps(value, ensure_ascii=False).encode("utf-8")  # half of a pair cannot be
    except (ValueError, RecursionError) as error:
        cause = "halves of a character" if isinstance(error, UnicodeEncodeError) else str(error)
        raise IntegrityError(f"{what}: expected JSON: {cause}; copy the store again") from None
    return value


def check_keys(names: Iterable[str], *, what: str) -> None:
    """Refuse keys that are no plain relative paths.

    Raises
    ------
    IntegrityError
        A key is empty, absolute, or has a segment ``.`` or ``..``, a backslash, a drive letter, or a character that is
        not printable ASCII; or is longer than 1,024 bytes, or a segment than 255.
    """
    for name in names:
        if fault := _fault(name):
            raise IntegrityError(f"{what}: expected keys that are plain relative paths, got {quoted(name)}: {fault}")


def check_portable(names: Iterable[str], *, what: str) -> None:
    """Refuse keys that :func:`check_keys` refuses, and those that get in each other's way on some disk.

    Raises
    ------
    IntegrityError
        As there; or two keys differ only in case, or are equal; or a key is both a file and a folder.
    """
    folders: dict[str, str] = {}
    files: dict[str, str] = {}
    for name in names:
        check_keys([name], what=what)
        segments = name.split("/")
        for count in range(1, len(segments)):
            folder = "/".join(segments[:count])
            if folders.setdefault(folder.lower(), folder) != folder:
                raise _collision(what, folders[folder.lower()], folder)
        if name.lower() in files:
            raise _collision(what, files[name.lower()], name)
        files[name.lower()] = name
    for key in files.keys() & folders.keys():
        raise IntegrityError(f"{what}: expected a file or a folder, got both at {quoted(files[key])}")


def _fault(name: str) -> str:
    """What is wrong with a key; nothing is."""
    if not name.isascii() or not name.isprintable() or not name:
        return "a character that is not printable ASCII" if name else "it is empty"
    if len(name) > _KEY or max(map(len, name.split("/"))) > _SEGMENT:
        return "it is too long"
    if "\\" in name:
        return "a backslash"
    if name.startswith("/"):
        return "it is absolute"
    if _DRIVE.match(name):
        return "a drive letter"
    return "a segment that is empty, . or .." if {"", ".", ".."} & set(name.split("/")) else ""


def _collision(what: str, one: str, other: str) -> IntegrityError:
    return IntegrityError(
        f"{what}: expected keys that differ on every disk, got {quoted(one)} and {quoted(other)}, which are the same "
        "where case is ignored"
    )


def _measure(raw: bytes, what: str, limits: Limits) -> None:
    depth, values, most = 0, 1, limits.values(len(raw))
    for token in _TOKEN.finditer(raw):
        sign = raw[token.start()]
        if sign in b"[{":
            depth += 1
            values += 1
            if depth > limits.depth:
                raise IntegrityError(
                    f"{what}: expected at most {limits.depth} lists and objects inside each other, got more; "
                    "it was not read"
                )
        elif sign in b"]}":
            depth -= 1
        elif sign == 0x2C:
            values += 1
        if values > most:
            raise IntegrityError(
                f"{what}: expected at most {most:,} values in {len(raw):,} bytes, got more; it was not read"
            )


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {quoted(twice)} is there twice")
    return found


def _integer(text: str) -> int:
    if len(text) > _DIGITS:
        raise ValueError(f"a whole number of {len(text):,} digits")
    return int(text)


def _real(text: str) -> float:
    value = float(text) if len(text) <= _FLOAT else math.inf
    if not math.isfinite(value):
        raise ValueError(f"the number {quoted(text, 40)} is too large or too long")
    return value


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is no number")
