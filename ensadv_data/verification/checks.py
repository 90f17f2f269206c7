"""All checks of a store, one after the other: each is a line that says what holds, or ends with what does not."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple, TypeVar

from ensadv_data.data import open_data
from ensadv_data.errors import InputError, IntegrityError
from ensadv_data.manifest import Manifest, parse_manifest
from ensadv_data.objects import Objects
from ensadv_data.spec import DataSpec
from ensadv_data.store import blocks_here, is_exported
from ensadv_data.trust import ENVELOPE_NAME, Memory, Signed, Trust, checked_expiry, checked_signature
from ensadv_data.untrusted import ENVELOPE, MANIFEST, quoted
from ensadv_data.verification.alignment import check_alignment
from ensadv_data.verification.blueprint import Blueprint, blueprint_of, check_documents
from ensadv_data.verification.contents import check_chunks, check_presence
from ensadv_data.verification.recomputing import agreements

__all__ = ["Line", "Wanted", "check_store", "proved_contents", "proved_signature", "told", "verified"]

T = TypeVar("T")


class Line(NamedTuple):
    """One check that holds."""

    check: str
    holds: str


@dataclass(frozen=True)
class Wanted:
    """What is to be checked beside the contents.

    Attributes
    ----------
    trust
        Whose signature; None: nobody's.
    memory
        Where versions are remembered.
    name
        The name that must have been signed; any, if None.
    data
        Images to compare; None: none.
    recompute, models, seed, device, tolerance
        How many examples to compute anew, by which models, which, where, and what share must agree.
    now
        For tests; else the clock.
    why
        Nobody's signature, in words.
    """

    trust: Trust | None
    memory: Memory = field(default_factory=Memory)
    name: str | None = None
    data: DataSpec | None = None
    recompute: int = 0
    models: Mapping[str, str] = field(default_factory=dict)
    seed: int = 0
    device: str = "cpu"
    tolerance: float | None = None
    now: datetime | None = None
    why: str = "as was asked for"


def verified(place: Objects, wanted: Wanted) -> Iterator[Line]:
    """Check a store; what holds comes line by line, and what does not hold ends it.

    Raises
    ------
    IntegrityError
        Something does not hold; what was not checked yet was not looked at. The version is remembered only when all
        holds.
    InputError
        There is no store, or what is wanted cannot be done.
    """
    if wanted.recompute and wanted.data is None:
        raise InputError("expected --data beside --recompute: examples are computed from images")
    if wanted.recompute and not wanted.models:
        raise InputError("expected --recompute of one example at least, and a --model for it: --model NAME=REF")
    raw = _read(place, "manifest.json", MANIFEST.size)
    if is_exported(place):
        raise InputError(f"expected a store at {place}, found an exported set; import it, and verify what that makes")
    signed = yield from proved_signature(place, raw, wanted)
    blueprint = yield from proved_contents(place, raw, signed)
    if wanted.data is not None:
        split = blueprint.spec.split
        dataset = open_data(wanted.data, split)
        count = check_alignment(place, blueprint, dataset)
        yield Line("alignment", f"all {count:,} images of {dataset.name}/{split} are those of the store")
        if wanted.recompute:
            for one in agreements(
                place,
                blueprint,
                dataset,
                wanted.models,
                count=wanted.recompute,
                seed=wanted.seed,
                device=wanted.device,
                tolerance=wanted.tolerance,
            ):
                least = f"at least {one.least:g} in {blueprint.spec.precision}"
                yield Line("recompute", f"{one.key}: {one.share:.5f} of {one.values:,} values agree; {least}")
    if signed is not None:
        wanted.memory.checked(signed, where=str(place))


def proved_signature(place: Objects, raw: bytes, wanted: Wanted) -> Generator[Line, None, Signed | None]:
    """The checks of the envelope; the generator returns what was signed, None where nobody is trusted.

    Raises as :func:`verified`. The version is not remembered yet.
    """
    if wanted.trust is None:
        yield Line("signature", f"not looked at, {wanted.why}; anybody may have made this store")
        return None
    wanted.trust.check_apart(place)
    signed = _signed(place, raw, wanted, wanted.trust)
    about = signed.statement.predicate
    yield Line("signature", f"{signed.team}, key {signed.key.keyid[:16]}, signed this manifest as {about.name}")
    expires = checked_expiry(signed, where=f"{place}/{ENVELOPE_NAME}", now=wanted.now)
    yield Line("expiry", f"valid until {expires:%Y-%m-%d}; made {about.created[:10]}")
    before = wanted.memory.checked(signed, where=str(place), note=False)
    seen = "none was seen before" if before is None else f"the highest seen before was {before}"
    yield Line("version", f"{about.version}; {seen}")
    return signed


def proved_contents(place: Objects, raw: bytes, signed: Signed | None) -> Generator[Line, None, Blueprint]:
    """The checks that need neither images nor models; the generator returns the blueprint.

    Raises as :func:`verified`.
    """
    where = f"{place}/manifest.json"
    manifest = parse_manifest(raw, where)
    check_store(manifest, signed, where=where)
    blueprint = blueprint_of(manifest, where=where)
    header = blueprint.header
    here = blocks_here(place, raw, header)
    blueprint = blueprint.within(here, here)
    entries = f"{len(header.groups)} entr{'y' if len(header.groups) == 1 else 'ies'}"
    yield Line("manifest", f"store {manifest.digest[:16]}, {header.n:,} images, {entries}")
    if len(here) < len(header.groups):
        yield Line("part", f"{len(here)} of the entries are here: {', '.join(here)}")
    for key, blocks in here.items():
        if len(blocks) < header.blocks:
            yield Line("part", f"{len(blocks)} of {header.blocks} blocks of {key} are here; its zeros are not counted")
    sees_all = check_presence(place, blueprint)
    total = sum(record.bytes for record in blueprint.manifest.objects.values())
    extra = "nothing else" if sees_all else "extra files cannot be seen over http"
    yield Line("completeness", f"{len(blueprint.manifest.objects):,} objects of {total:,} bytes are there, {extra}")
    count = check_documents(place, blueprint)
    yield Line("structure", f"{count} Zarr documents say what follows from the manifest: v3, integers, known codecs")
    chunks = check_chunks(place, blueprint)
    yield Line("digests", f"{chunks:,} SHA-256 are those of the manifest")
    counted = "zeros as counted, " if blueprint.here is None else ""
    yield Line("bounds", f"directions are in {{-1, 0, 1}}, deltas within epsilon, {counted}padding empty")
    return blueprint


def check_store(manifest: Manifest, signed: Signed | None, *, where: str) -> None:
    """Refuse a manifest of another store digest than the one that was signed, with an IntegrityError."""
    if signed is not None and signed.statement.predicate.store != manifest.digest:
        raise IntegrityError(f"{where}: expected the store digest that was signed, found another; get both files again")


def told(checks: Generator[Line, None, T], say: Callable[[Line], object]) -> T:
    """What checks give in the end; their lines are told as they come."""
    while True:
        try:
            say(next(checks))
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]


def _signed(place: Objects, raw: bytes, wanted: Wanted, trust: Trust) -> Signed:
    where = f"{place}/{ENVELOPE_NAME}"
    signed = checked_signature(_read(place, ENVELOPE_NAME, ENVELOPE.size), raw, trust, where=where)
    name = signed.statement.predicate.name
    if wanted.name is not None and name != wanted.name:
        raise IntegrityError(f"{where}: expected the store {quoted(wanted.name)}, found a signature of {quoted(name)}")
    return signed


def _read(place: Objects, key: str, limit: int) -> bytes:
    try:
        return place.read_at_most(key, limit)
    except FileNotFoundError:
        pass
    if key == ENVELOPE_NAME:
        raise IntegrityError(
            f"{place}/{key}: expected a signature, found none; get it from whom you trust, or say --unsigned to check "
            "the rest only"
        )
    if place.has(ENVELOPE_NAME):
        raise IntegrityError(f"{place}/{key}: expected the manifest that was signed, found none; copy the store again")
    raise InputError(f"expected a finished store at {place}, found no manifest.json")
