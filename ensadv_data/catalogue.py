"""A page that lists the stores of a folder by their manifests, whoever wrote these."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from ensadv_data.errors import EnsadvError, InputError, IntegrityError
from ensadv_data.inspection import epsilons_of
from ensadv_data.manifest import DataRecord, SourceRecord, parse_manifest
from ensadv_data.objects import Folder
from ensadv_data.report import render_page, write_page
from ensadv_data.statement import Predicate
from ensadv_data.trust import ENVELOPE_NAME, Trust, checked_expiry, checked_signature, claimed
from ensadv_data.untrusted import ENVELOPE, MANIFEST, quoted
from ensadv_data.verification import blueprint_of

__all__ = ["Catalogue", "Listed", "read_catalogue", "write_catalogue"]

_MOST = 10_000  # names in a folder


@dataclass(frozen=True)
class Listed:
    """One manifest of a folder.

    Attributes
    ----------
    file
        Its path in the folder, in printable ASCII.
    name
        What its signature says, else the name of the file or of its folder.
    attacks
        The epsilons that each attack can serve, in words.
    objects, bytes
        Of the store.
    about
        What its signature says; None where there is none that may be shown.
    signature
        What is known of the signature, in words.
    is_trusted
        Whether a key of the trust file made it, and it has not expired; None where no trust file was given.
    """

    file: str
    name: str
    data: DataRecord
    sources: tuple[SourceRecord, ...]
    attacks: dict[str, str]
    draws: int
    objects: int
    bytes: int
    digest: str
    about: Predicate | None
    signature: str
    is_trusted: bool | None


@dataclass(frozen=True)
class Catalogue:
    """What a folder has: manifests, and files that are none, each with what is wrong with it."""

    listed: tuple[Listed, ...]
    refused: tuple[tuple[str, str], ...]


def read_catalogue(folder: Path, *, trust: Trust | None = None, now: datetime | None = None) -> Catalogue:
    """Read the manifests of a folder, ``NAME.json`` and ``NAME/manifest.json``, each within a stranger's limits.

    ``NAME.sig.json``, or ``NAME/manifest.sig.json``, is a manifest's signature. ``*.schema.json`` are passed over.

    Parameters
    ----------
    trust
        The keys that signatures must be of; what others say is not shown then. None: signatures are not checked.
    now
        For tests; else the clock.

    Raises
    ------
    InputError
        There is no such folder, no manifest in it, or more than 10,000 names; or the trust file lies in it.
    """
    place = Folder(folder)
    if trust is not None:
        trust.check_apart(place)
    listed, refused = [], []
    for key in _keys(folder):
        try:
            listed.append(_listed(place, key, trust, now))
        except FileNotFoundError:
            continue  # a folder that is none of a store
        except EnsadvError as error:
            refused.append((_shown(key), str(error)))
    if not listed and not refused:
        raise InputError(f"expected manifests NAME.json or NAME/manifest.json in {folder}, found none")
    return Catalogue(tuple(listed), tuple(refused))


def write_catalogue(out: Path, catalogue: Catalogue, *, title: str) -> Path:
    """Write the page of a catalogue; equal input gives equal bytes. It needs no network and no other file.

    Raises
    ------
    OutputError
        ``out`` cannot be written.
    """
    return write_page(out, render_page("catalogue", title=title, catalogue=catalogue))


def _keys(folder: Path) -> Iterator[str]:
    try:
        with os.scandir(folder) as entries:
            found = [entry for entry, _ in zip(entries, range(_MOST + 1), strict=False)]
    except OSError as error:
        raise InputError(f"expected a folder of manifests at {folder}, got: {error.strerror}") from None
    if len(found) > _MOST:
        raise InputError(f"{folder}: expected at most {_MOST:,} names in a folder of manifests, found more")
    for entry in sorted(found, key=lambda entry: entry.name):
        if entry.is_dir(follow_symlinks=False):
            yield f"{entry.name}/manifest.json"
        elif entry.name.endswith(".json") and not entry.name.endswith((".sig.json", ".schema.json")):
            yield entry.name


def _listed(place: Folder, key: str, trust: Trust | None, now: datetime | None) -> Listed:
    where = _shown(key)
    raw = place.read_at_most(key, MANIFEST.size)
    manifest = parse_manifest(raw, where)
    blueprint = blueprint_of(manifest, where=where)
    beside = f"{key.rpartition('/')[0]}/{ENVELOPE_NAME}" if "/" in key else f"{key.removesuffix('.json')}.sig.json"
    about, signature, is_trusted = _signature(place, beside, raw, trust, now)
    return Listed(
        file=where,
        name=about.name if about else _shown(key.removesuffix("/manifest.json").removesuffix(".json")),
        data=manifest.data,
        sources=manifest.sources,
        attacks={entry.attack: epsilons_of(entry) for entry in blueprint.entries},
        draws=manifest.draws,
        objects=len(manifest.objects),
        bytes=sum(record.bytes for record in manifest.objects.values()),
        digest=manifest.digest,
        about=about,
        signature=signature,
        is_trusted=is_trusted,
    )


def _signature(
    place: Folder, key: str, manifest: bytes, trust: Trust | None, now: datetime | None
) -> tuple[Predicate | None, str, bool | None]:
    """What a signature says, what is known of it, and whether it is trusted."""
    where = _shown(key)
    try:
        envelope = place.read_at_most(key, ENVELOPE.size)
        if trust is None:
            about = claimed(envelope, manifest, where=where).predicate
            return about, f"signed, not checked here; until {about.expires[:10]}", None
        signed = checked_signature(envelope, manifest, trust, where=where)
    except FileNotFoundError:
        return None, "not signed", None if trust is None else False
    except (IntegrityError, InputError) as error:
        return None, f"not trusted: {error}" if trust else f"not readable: {error}", None if trust is None else False
    about, who = signed.statement.predicate, f"{signed.team}, key {signed.key.keyid[:16]}"
    try:
        checked_expiry(signed, where=where, now=now)
    except IntegrityError as error:
        return about, f"{who}, but: {error}", False
    return about, f"{who}, until {about.expires[:10]}", True


def _shown(key: str) -> str:
    """A name from a stranger's folder."""
    return quoted(key, 300)[1:-1]
