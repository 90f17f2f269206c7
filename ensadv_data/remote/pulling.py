"""Fetching a store, or a part of it."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ensadv_data.errors import InputError, UnknownNameError
from ensadv_data.manifest import ObjectRecord, parse_manifest
from ensadv_data.objects import Folder, Objects, objects_at
from ensadv_data.remote.copies import (
    Moved,
    begin,
    checked,
    each,
    finish,
    manifest_bytes,
    moved,
    telling,
)
from ensadv_data.store import PART, Part, block_of
from ensadv_data.verification import Line, blueprint_of, check_store, proved_signature, told
from ensadv_data.verification import Wanted as Believed

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
    pinned: str = "the manifest that is known",
    dry_run: bool = False,
    believed: Believed | None = None,
    say: Callable[[Line], object] = lambda line: None,
) -> Moved:
    """Fetch a store, or more of it; each object is checked against the manifest before it gets its name.

    The Zarr documents are not fetched: they follow from the manifest, and are written from it.

    Parameters
    ----------
    wanted
        What to fetch beside what ``out`` holds.
    pin
        The manifest's bytes, where they are known; else they are fetched.
    pinned
        Where those are from, for messages.
    dry_run
        Write nothing: what would be copied is in what is returned.
    believed
        Whose signature the manifest must have, and which versions were seen; None: nobody's.
    say
        Told what holds of the signature.

    Raises
    ------
    InputError
        There is no complete store, or it has not what is wanted.
    OutputError
        ``out`` holds something else, or cannot be written.
    IntegrityError
        The signature is not one that is wanted; or what arrived is not as the manifest has it, each time that it was
        asked for.
    Interrupted
        Ctrl-C; the same command goes on.
    """
    began = time.perf_counter()
    source, place = objects_at(origin), Folder(out)
    raw = manifest_bytes(source) if pin is None else pin
    believed = believed or Believed(None)
    where = f"{source}/manifest.json" if pin is None else pinned
    if pin is not None:
        say(Line("pin", f"{pinned} says which store it is: that one, or nothing"))
    signed = None
    if pin is None or believed.trust is not None:
        signed = told(proved_signature(source, raw, believed), say)
    manifest = parse_manifest(raw, where)
    check_store(manifest, signed, where=where)
    blueprint = blueprint_of(manifest, where=where)
    groups, blocks = blueprint.header.groups, blueprint.header.blocks
    keys = wanted.keys_of(groups, blocks)
    before = begin(place, raw, _MARK, claims=False)
    part = Part(hashlib.sha256(raw).hexdigest(), {}) if before is None else before
    if before is not None and not before.blocks:  # all of it is there
        part = part.with_blocks(groups, range(blocks))
    part = part.with_blocks(keys, range(blocks) if wanted.blocks is None else wanted.blocks)
    chosen = {
        key: record
        for key, record in blueprint.within(keys).manifest.objects.items()
        if wanted.blocks is None or block_of(key) in wanted.blocks
    }
    with telling(f"{out}: stopped; what has arrived is kept, and the same command goes on"):
        todo = _lacking(place, chosen)
        if dry_run:
            return moved(place, manifest, todo, len(chosen), began)
        first = {key: checked(source, key, todo[key], attempts=_ATTEMPTS) for key in list(todo)[:1]}
        begin(place, raw, _MARK)  # not before something has arrived that is of this store
        for key, document in blueprint.within(part.blocks).documents.items():
            place.write(key, document)

        def copy(key: str) -> None:
            data = first.pop(key, None)
            place.write(key, checked(source, key, todo[key], attempts=_ATTEMPTS) if data is None else data)

        each(copy, todo, f"pull {source.name}")
    if part.is_whole(groups, blocks):
        (out / PART).unlink(missing_ok=True)
    else:
        place.write(PART, part.to_bytes())
    finish(place, raw, source)
    if signed is not None:
        believed.memory.checked(signed, where=str(source))
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
