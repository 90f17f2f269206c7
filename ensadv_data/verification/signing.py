"""Signing a store: only what is whole and within bounds, under a version that is newer than the last."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import MappingProxyType

from ensadv_data.errors import InputError, UnknownNameError
from ensadv_data.manifest import parse_manifest
from ensadv_data.objects import Objects
from ensadv_data.signature import PublicKey, load_key, opened, sealed
from ensadv_data.statement import Predicate, make_statement, parse_statement
from ensadv_data.store import read_part
from ensadv_data.trust import ENVELOPE_NAME
from ensadv_data.untrusted import ENVELOPE, MANIFEST
from ensadv_data.verification.checks import Line, proved_contents

__all__ = ["sign_store"]


def sign_store(
    place: Objects,
    key: Path,
    *,
    name: str,
    days: int,
    version: int | None = None,
    creator: str = "",
    licence: str = "",
    citation: str = "",
    model_licences: Mapping[str, str] = MappingProxyType({}),
    now: datetime | None = None,
) -> Iterator[Line]:
    """Check what a store holds, then sign its manifest: a DSSE envelope beside it.

    Parameters
    ----------
    place
        The store.
    key
        The private key's file.
    name
        What the store is published as; versions are counted by key and name.
    days
        Until the signature expires.
    version
        1 or more; unless given, one more than that of the envelope which is there, if it is of this key and name.
    creator, licence, citation
        What is said of it; one line each.
    model_licences
        Of static models, by source.
    now
        For tests; else the clock.

    Raises
    ------
    UnknownNameError
        A licence is for a source that the store has not.
    InputError
        There is no store, or no private key; a text is not as it should be; the version is not newer.
    IntegrityError
        The store is damaged, or holds something else as well.
    OutputError
        The envelope cannot be written.
    """
    place.check_writable()
    private = load_key(key)
    public = PublicKey(private.public_key().public_bytes_raw())
    try:
        raw = place.read_at_most("manifest.json", MANIFEST.size)
    except FileNotFoundError:
        raise InputError(f"expected a finished store at {place}, found no manifest.json") from None
    if read_part(place, raw) is not None:
        raise InputError(f"expected a whole store at {place}, found a part of one; pull the rest of it first")
    before = _before(place, public, name)
    if version is not None and before is not None and version <= before.version:
        raise InputError(f"version: expected more than {before.version}, which {place} has already, got {version}")
    manifest = parse_manifest(raw, f"{place}/manifest.json")
    sources = [source.name for source in manifest.sources]
    if unknown := [name for name in model_licences if name not in sources]:
        raise UnknownNameError(f"source in {place}", unknown[0], sources)
    now = now or datetime.now(UTC)
    try:
        expires = now + timedelta(days=days)
    except OverflowError:
        raise InputError(f"days: expected a date before the year 10000, got {days} days") from None
    statement = make_statement(
        hashlib.sha256(raw).hexdigest(),
        store=manifest.digest,
        name=name,
        version=version or (1 if before is None else before.version + 1),
        created=now,
        expires=expires,
        creator=creator,
        licence=licence,
        citation=citation,
        model_licences=dict(model_licences),
    )
    yield from proved_contents(place, raw, None)
    place.write(ENVELOPE_NAME, sealed(statement.to_bytes(), private))
    about = statement.predicate
    yield Line("signed", f"{about.name} version {about.version} until {about.expires[:10]}, key {public.keyid[:16]}")


def _before(place: Objects, public: PublicKey, name: str) -> Predicate | None:
    """What the same key said of the store of that name, in the envelope that is there."""
    try:
        raw = place.read_at_most(ENVELOPE_NAME, ENVELOPE.size)
    except FileNotFoundError:
        return None
    where = f"{place}/{ENVELOPE_NAME}"
    payload, _ = opened(raw, {public.keyid: public}, where=where)
    about = parse_statement(payload, where=where).predicate
    return about if about.name == name else None
