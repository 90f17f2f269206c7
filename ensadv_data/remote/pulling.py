"""Fetching a store, or a part of it."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ensadv_data.errors import InputError, UnknownNameError
from ensadv_data.manifest import Manifest, ObjectRecord, parse_manifest
from ensadv_data.objects import Folder, Objects, objects_at
from ensadv_data.remote.copies import (
    Moved,
    begin,
    checked,
    document,
    documents,
    each,
    finish,
    manifest_bytes,
    moved,
    telling,
)
from ensadv_data.store import PART, Part, block_of, block_size

__all__ = ["Wanted", "pull"]

_MARK = "progress/pull.json"
_ATTEMPTS = 3  # at an object that arrives with other bytes


@dataclass(frozen=True)
class Wanted:
    """A part of a store: sources and attacks by name, blocks by number; None: all."""

    sources: tuple[str, ...] | None = None
    attacks: tuple[str, ...] | None = None
    blocks: frozenset[int] | None = None

    def keys_of(self, groups: Iterable[str], blocks: int) -> list[str]:
        """Those SOURCE/ATTACK that are wanted, of a store's.

        Raises
        ------
        UnknownNameError
            A source or an attack is none of the store's.
        InputError
            A block is none of the store's, or nothing is left.
        """
        groups = list(groups)
        halves = [group.partition("/")[::2] for group in groups]
        for kind, names, known in (
            ("source", self.sources, dict.fromkeys(source for source, _ in halves)),
            ("attack", self.attacks, dict.fromkeys(attack for _, attack in halves)),
        ):
            for name in names or ():
                if name not in known:
                    raise UnknownNameError(f"{kind} of the store", name, known)
        if self.blocks is not None and not self.blocks <= set(range(blocks)):
            raise InputError(f"--blocks: expected blocks from 0 to {blocks - 1}, got {max(self.blocks)}")
        found = [
            group
            for group, (source, attack) in zip(groups, halves, strict=True)
            if (self.sources is None or source in self.sources) and (self.attacks is None or attack in self.attacks)
        ]
        if not found or self.blocks == frozenset():
            raise InputError(f"expected something to pull, got no block of: {', '.join(groups)}")
        return found


def pull(
    origin: Objects | Path | str,
    out: Path,
    *,
    wanted: Wanted = Wanted(),
    pin: bytes | None = None,
    check: Callable[[bytes, Objects], object] = lambda raw, place: None,
) -> Moved:
    """Fetch a store, or more of it; each object is checked against the manifest before it gets its name.

    Parameters
    ----------
    wanted
        What to fetch beside what ``out`` holds.
    pin
        The manifest's bytes, where they are known; else they are fetched.
    check
        Called with the manifest's bytes, before they are parsed, and the origin; raises where they are not to be
        trusted.

    Raises
    ------
    InputError
        There is no complete store, or it has not what is wanted.
    OutputError
        ``out`` holds something else, or cannot be written.
    IntegrityError
        What arrived is not as the manifest has it, each time that it was asked for.
    Interrupted
        Ctrl-C; the same command goes on.
    """
    began = time.perf_counter()
    source, place = objects_at(origin), Folder(out)
    raw = manifest_bytes(source) if pin is None else pin
    check(raw, source)
    manifest = parse_manifest(raw, f"{source}/manifest.json")
    groups = _groups(manifest)
    blocks = -(-manifest.data.n // block_size(manifest.data.n, _values(manifest)))
    keys = wanted.keys_of(groups, blocks)
    some = range(blocks) if wanted.blocks is None else wanted.blocks
    before = begin(place, raw, _MARK)
    part = Part(hashlib.sha256(raw).hexdigest(), {}) if before is None else before
    if before is not None and not before.blocks:  # all of it is there
        part = part.with_blocks(groups, range(blocks))
    part = part.with_blocks(keys, some)
    arrays = ("example_digest/", *(f"{key}/" for key in keys))
    chosen = {
        key: record
        for key, record in manifest.objects.items()
        if key.startswith(arrays) and (wanted.blocks is None or block_of(key) in wanted.blocks)
    }
    with telling(f"{out}: stopped; what has arrived is kept, and the same command goes on"):
        todo = _lacking(place, chosen)
        for key in documents(chosen):
            place.write(key, document(source, key))

        def copy(key: str) -> None:
            place.write(key, checked(source, key, todo[key], attempts=_ATTEMPTS))

        each(copy, todo, f"pull {source.name}")
    if part.is_whole(groups, blocks):
        (out / PART).unlink(missing_ok=True)
    else:
        place.write(PART, part.to_bytes())
    finish(place, raw, source)
    return moved(place, manifest, todo, len(chosen), began)


def _lacking(place: Folder, chosen: Mapping[str, ObjectRecord]) -> dict[str, ObjectRecord]:
    """Objects that are not there with the right bytes."""
    sizes = place.sizes(chosen)
    there = [key for key, record in chosen.items() if sizes.get(key) == record.bytes]
    right: set[str] = set()

    def look(key: str) -> None:
        if hashlib.sha256(place.array(key).data).hexdigest() == chosen[key].sha256:
            right.add(key)

    each(look, {key: chosen[key] for key in there}, f"check {place.name}")
    return {key: record for key, record in chosen.items() if key not in right}


def _groups(manifest: Manifest) -> list[str]:
    """SOURCE/ATTACK of every entry, in the order of the manifest's objects."""
    names = (key.split("/") for key in manifest.objects)
    return list(dict.fromkeys(f"{parts[0]}/{parts[1]}" for parts in names if parts[0] != "example_digest"))


def _values(manifest: Manifest) -> int:
    channels, height, width = manifest.data.shape
    return channels * height * width
