"""The store, format version 1: packed perturbations of every training image, as plain Zarr v3 arrays.

    STORE/
      zarr.json                          group; attributes: format, version, data, shape, n, block, draws, …
      manifest.json                      written last: the store is complete
      example_digest/c/B                 uint64 (N,)   which image each row belongs to
      SOURCE/ATTACK/direction/c/K/B/0    one block of one draw: S rows of ⌈D/8⌉ bytes, then 4 bytes of crc32c;
                                         of kind sign: zstd, unless the store is large
      SOURCE/ATTACK/nonzero/c/K/B/0      the same rows, zstd; the array exists only where a zero does
      SOURCE/ATTACK/delta/c/K/B/0        S rows of D bytes int8, then 4 bytes of crc32c
      SOURCE/ATTACK/label/c/B            int32 (N,)    the label that the attack used
      progress/block-NNNNNN.json         done records of an unfinished store

Row i of block b is example b·S + i; the last block is padded with zeros to S rows. A chunk is written whole,
once, by one task, and has its name only when all of it is on the disk. docs/format.md draws the bytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from ensadv_data.codec import row_bytes
from ensadv_data.errors import IntegrityError
from ensadv_data.objects import Objects
from ensadv_data.untrusted import ZARR, check_keys, parse_json, quoted

__all__ = [
    "FORMAT",
    "FORMAT_VERSION",
    "HELD_BYTES",
    "Entry",
    "Header",
    "Planes",
    "block_of",
    "block_size",
    "chunk_keys",
    "chunk_rows",
    "format_version",
    "header_from",
    "layout",
    "root_attributes",
    "row_arrays",
    "shortened",
    "zstd_level",
]

FORMAT = "ensadv-data"
FORMAT_VERSION: Literal[1] = 1
_OF_VIEWS: Literal[2] = 2  # of a store whose rows belong to views: who knows none must not take it
_BLOCK_BYTES = 32 * 2**20
HELD_BYTES = 2**30  # that a reader keeps decompressed

U8 = npt.NDArray[np.uint8]


def block_size(n: int, d: int) -> int:
    """S, the examples of a block: a function of N and D alone, so that equal work gives equal bytes.

    About 32 MiB of directions a block and at least 16 blocks, spread evenly so that padding stays below one
    row a block.
    """
    blocks = min(n, max(16, -(-n * row_bytes(d) // _BLOCK_BYTES)))
    return -(-n // blocks)


def format_version(plan: Mapping[str, Any]) -> Literal[1, 2]:
    """The version of a store with such a plan: 2 where its rows belong to views of the images, else 1."""
    return FORMAT_VERSION if plan.get("augment") is None else _OF_VIEWS


@dataclass(frozen=True)
class Header:
    """What all arrays of a store share; the attributes of its root group."""

    data: str
    split: str
    data_digest: str
    shape: tuple[int, int, int]
    classes: int
    n: int
    draws: int
    groups: tuple[str, ...]  # SOURCE/ATTACK of every entry
    plan: Mapping[str, Any]  # how the perturbations were made: sources, attacks, mode, seed, precision, …

    @cached_property
    def d(self) -> int:
        """Values in an image, C·H·W."""
        return self.shape[0] * self.shape[1] * self.shape[2]

    @cached_property
    def block(self) -> int:
        """Examples in a block."""
        return block_size(self.n, self.d)

    @cached_property
    def blocks(self) -> int:
        """Number of blocks."""
        return -(-self.n // self.block)

    def attributes(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "format": FORMAT,
            "version": format_version(self.plan),
            "data": self.data,
            "split": self.split,
            "data_digest": self.data_digest,
            "shape": list(self.shape),
            "classes": self.classes,
            "n": self.n,
            "block": self.block,
            "draws": self.draws,
            "groups": list(self.groups),
            "plan": json.loads(json.dumps(self.plan, sort_keys=True)),
        }


def header_from(attributes: Mapping[str, Any]) -> Header:
    """The header that the attributes of a root group tell.

    Raises
    ------
    ValueError, KeyError, TypeError
        One is missing, or is not what it should be, or so large that it cannot be meant.
    """
    shape, n, draws, classes = (attributes[name] for name in ("shape", "n", "draws", "classes"))
    numbers = {"n": (n, 2**40), "draws": (draws, 2**16), "classes": (classes, 2**20)}
    numbers |= {f"side {axis} of the shape": (side, 2**26) for axis, side in enumerate(shape)}
    for name, (number, most) in numbers.items():
        if type(number) is not int or not 1 <= number <= most:
            raise ValueError(f"expected {name} from 1 to {most:,}, found {quoted(number)}")
    if len(shape) != 3 or shape[0] * shape[1] * shape[2] > 2**26:
        raise ValueError(f"expected a shape (C, H, W) of at most {2**26:,} values, found {quoted(shape)}")
    for name in ("data", "split", "data_digest"):
        if not isinstance(attributes[name], str) or not attributes[name].isprintable():
            raise ValueError(f"expected {name} as text, found {quoted(attributes[name])}")
    groups = attributes["groups"]
    if not isinstance(groups, list) or not all(isinstance(key, str) and key.count("/") == 1 for key in groups):
        raise ValueError("expected groups SOURCE/ATTACK")
    check_keys(groups, what="the groups")
    return Header(
        data=attributes["data"],
        split=attributes["split"],
        data_digest=attributes["data_digest"],
        shape=tuple(shape),
        classes=classes,
        n=n,
        draws=draws,
        groups=tuple(groups),
        plan=attributes["plan"],
    )


@dataclass(frozen=True)
class Entry:
    """One source under one attack; the attributes of its group."""

    source: str
    attack: str
    kind: str  # sign, rsign or delta
    epsilon: float | None  # the radius that a delta is tied to
    alpha: float | None  # the random step that an rsign is tied to
    seed: int  # names the random signs of an rsign
    source_digest: str
    architecture: str
    loss: str

    @cached_property
    def key(self) -> str:
        """Path of the group in the store."""
        return f"{self.source}/{self.attack}"


class Planes(NamedTuple):
    """Packed rows of one entry: directions with an optional mask, or deltas.

    Shapes (K, n, ⌈D/8⌉) for a block that is written, (B, ⌈D/8⌉) for rows that were gathered; D instead of
    ⌈D/8⌉ for deltas.
    """

    direction: U8 | None = None
    nonzero: U8 | None = None
    delta: npt.NDArray[np.int8] | None = None
    label: npt.NDArray[np.int32] | None = None


def layout(name: str, header: Header) -> tuple[tuple[int, ...], str]:
    """Shape and dtype of an array of that name."""
    k, n, d = header.draws, header.n, header.d
    layouts: dict[str, tuple[tuple[int, ...], str]] = {
        "direction": ((k, n, row_bytes(d)), "uint8"),
        "nonzero": ((k, n, row_bytes(d)), "uint8"),
        "delta": ((k, n, d), "int8"),
        "label": ((n,), "int32"),
        "example_digest": ((n,), "uint64"),
    }
    return layouts[name]


def chunk_keys(array: str, header: Header, *, blocks: Iterable[int] | None = None) -> Iterator[str]:
    """Keys of the chunks of an array, which is given by its path in the store; of all blocks unless some are given."""
    shape, _ = layout(array.rpartition("/")[2], header)
    for block in range(header.blocks) if blocks is None else blocks:
        if len(shape) == 1:
            yield f"{array}/c/{block}"
            continue
        for k in range(shape[0]):
            yield f"{array}/c/{k}/{block}/0"


def chunk_rows(name: str, header: Header) -> int:
    """Bytes of the rows of a chunk of an array of that name, before its codec."""
    shape, dtype = layout(name, header)
    return header.block * int(np.dtype(dtype).itemsize * np.prod(shape[2:], dtype=np.int64))


def row_arrays(kind: str, *, masked: bool) -> tuple[str, ...]:
    """The arrays of an entry's rows: deltas, or directions with a mask where any value is zero."""
    if kind == "delta":
        return ("delta",)
    return ("direction", "nonzero") if masked else ("direction",)


def zstd_level(name: str, kind: str, header: Header) -> int | None:
    """The zstd level of an array's chunks; None where they are raw rows and a crc32c, to be memory-mapped.

    Masks are compressed: level 9 takes two thirds of the bits on a max-pooling net that level 3 takes, and level 15 a
    half, but ten times as long, a fortieth of the time of the gradients. So are the
    directions of kind sign in a store whose planes all fit in 1 GiB, so that a reader can hold them: gradients at the
    images themselves repeat and tie, a mask must be decoded for them anyway, and what zstd saves there (a third on
    MNIST) is more than what a mask costs. Everything else is raw: there a row is read in place.
    """
    if name == "nonzero":
        return 9
    planes = 2 * header.draws * len(header.groups) * header.n * row_bytes(header.d)
    return 3 if name == "direction" and kind == "sign" and planes <= HELD_BYTES else None


def block_of(key: str) -> int:
    """The block that a chunk belongs to, from its key."""
    numbers = key.rpartition("/c/")[2].split("/")
    return int(numbers[len(numbers) // 2])


def root_attributes(objects: Objects) -> dict[str, Any] | None:
    """Attributes of the Zarr v3 group that some objects are; None where they are none."""
    try:
        node = parse_json(objects.read_at_most("zarr.json", ZARR.size), what="zarr.json", limits=ZARR)
        attributes = node["attributes"] if node["zarr_format"] == 3 and node["node_type"] == "group" else None
    except (OSError, IntegrityError, KeyError, TypeError):
        return None
    return attributes if isinstance(attributes, dict) else None


def shortened(value: Any) -> str:
    """As JSON for a message, at most 120 characters."""
    text = json.dumps(value) if not isinstance(value, str) else value
    return text if len(text) <= 120 else text[:117] + "…"
