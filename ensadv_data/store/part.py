"""Which part of a store is here, where somebody fetched a part only.

    STORE/part.json      {"manifest": SHA-256 of manifest.json, "blocks": {SOURCE/ATTACK: [[first, last], …], …}}

The manifest and all other documents are those of the whole store, byte for byte, so that what was signed stays signed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from ensadv_data.errors import InputError, IntegrityError
from ensadv_data.objects import Objects
from ensadv_data.store.layout import Header

__all__ = ["PART", "Part", "blocks_here", "groups_here", "read_part"]

PART = "part.json"
_MOST = 16 * 2**20  # bytes of the file

Ranges = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Part:
    """Blocks that are here, by entry's key. Ranges are first and last, sorted, apart from each other."""

    manifest: str  # SHA-256 of the manifest's bytes
    blocks: Mapping[str, Ranges]

    def with_blocks(self, keys: Iterable[str], blocks: Collection[int]) -> Part:
        """What is here and, for entries of these keys, these blocks."""
        more = {key: _ranges({*self.blocks_of(key), *blocks}) for key in keys}
        return Part(self.manifest, {**self.blocks, **more})

    def blocks_of(self, key: str) -> frozenset[int]:
        """Blocks of an entry."""
        return frozenset(block for first, last in self.blocks.get(key, ()) for block in range(first, last + 1))

    def is_whole(self, keys: Collection[str], blocks: int) -> bool:
        """Whether all blocks of these entries, and of no other, are here."""
        return set(self.blocks) == set(keys) and set(self.blocks.values()) == {((0, blocks - 1),)}

    def to_bytes(self) -> bytes:
        """Canonical JSON."""
        about = {"manifest": self.manifest, "blocks": self.blocks}
        return (json.dumps(about, sort_keys=True, separators=(",", ":")) + "\n").encode()


def read_part(place: Objects, manifest: bytes) -> Part | None:
    """The part of a store that is here; None: all of it.

    Parameters
    ----------
    manifest
        Bytes of the store's manifest.

    Raises
    ------
    IntegrityError
        What tells it is damaged, or is of another store.
    """
    try:
        raw = place.read_at_most(PART, _MOST)
    except FileNotFoundError:
        return None
    try:
        about = json.loads(raw)
        blocks = {
            key: tuple((int(first), int(last)) for first, last in found) for key, found in about["blocks"].items()
        }
        part = Part(str(about["manifest"]), blocks)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise IntegrityError(f"{place}/{PART}: expected which blocks are here, found other text ({error}); "
                             "pull the store again into an empty folder") from None  # fmt: skip
    if part.manifest != hashlib.sha256(manifest).hexdigest():
        raise IntegrityError(
            f"{place}/{PART}: is of another store than manifest.json; pull the store again into an empty folder"
        )
    return part


def blocks_here(place: Objects, manifest: bytes, header: Header) -> dict[str, frozenset[int]]:
    """Blocks of the entries that are here, whole entries or not; raises IntegrityError as :func:`read_part`."""
    part = read_part(place, manifest) if place.is_local else None
    every = frozenset(range(header.blocks))
    if part is None:
        return dict.fromkeys(header.groups, every)
    return {key: part.blocks_of(key) & every for key in header.groups if key in part.blocks}


def groups_here(place: Objects, manifest: bytes, header: Header) -> tuple[str, ...]:
    """Keys of the entries that are here.

    Raises
    ------
    InputError
        Only some blocks of an entry were fetched: who reads rows wants all.
    IntegrityError
        As :func:`read_part`.
    """
    part = read_part(place, manifest) if place.is_local else None
    if part is None:
        return header.groups
    for key in part.blocks:
        if (here := len(part.blocks_of(key))) < header.blocks:
            raise InputError(
                f"{place}: expected all {header.blocks} blocks of {key}, found {here}; pull the rest into the same "
                "folder"
            )
    return tuple(key for key in header.groups if key in part.blocks)


def _ranges(blocks: Iterable[int]) -> Ranges:
    found: list[tuple[int, int]] = []
    for block in sorted(blocks):
        if found and found[-1][1] + 1 == block:
            found[-1] = (found[-1][0], block)
        else:
            found.append((block, block))
    return tuple(found)
