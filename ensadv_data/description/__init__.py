"""What lies beside a store for people and for catalogues: a dataset card, and a Croissant file.

Both are written from the manifest and from what its maker says. Neither is covered by a digest or a signature.
"""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime

from ensadv_data.description.card import MARK, card_of
from ensadv_data.description.croissant import croissant_of
from ensadv_data.errors import InputError, OutputError
from ensadv_data.manifest import parse_manifest
from ensadv_data.objects import Objects, is_url
from ensadv_data.statement import Predicate, make_statement, moment
from ensadv_data.store import read_part
from ensadv_data.trust import ENVELOPE_NAME, claimed
from ensadv_data.untrusted import ENVELOPE, OWN_MANIFEST, quoted
from ensadv_data.verification import BESIDE_BYTES, blueprint_of

__all__ = ["CARD", "CROISSANT", "card_of", "croissant_of", "write_description"]

CARD, CROISSANT = "README.md", "croissant.json"


def write_description(
    place: Objects,
    *,
    name: str | None = None,
    creator: str | None = None,
    licence: str | None = None,
    citation: str | None = None,
    url: str | None = None,
    now: datetime | None = None,
) -> Predicate:
    """Write ``README.md`` and ``croissant.json`` beside the manifest of a complete store.

    Parameters
    ----------
    place
        The store.
    name, creator, licence, citation
        What is said of it; None: what the signature beside the manifest says, which is not checked here, or nothing.
    url
        Where others find the store.
    now
        For tests; else the clock. It is the date of a store that was not signed.

    Returns
    -------
    Predicate
        What was said.

    Raises
    ------
    InputError
        There is no complete store, or a part of one; nobody has given it a name; a text is not as it should be; or so
        many entries cannot be described in 1 MiB.
    IntegrityError
        The manifest contradicts itself, or the signature is about another one.
    OutputError
        There is a card that was not written here, or the place cannot be written.
    """
    if url is not None and not (
        is_url(url) and url.isascii() and url.isprintable() and not set(url) & set(" <>\"'`\\")
    ):
        raise InputError(f"--url: expected where the store is, such as https://example.org/shards, got {quoted(url)}")
    if str(place).startswith(("http://", "https://")):
        raise OutputError(f"expected a place that can be written, got {place}; a web server is for reading")
    try:
        raw = place.read_at_most("manifest.json", OWN_MANIFEST.size)
    except FileNotFoundError:
        raise InputError(f"expected a finished store at {place}, found no manifest.json") from None
    if read_part(place, raw) is not None:
        raise InputError(f"expected a whole store at {place}, found a part of one; pull the rest of it first")
    manifest = parse_manifest(raw, f"{place}/manifest.json", limits=OWN_MANIFEST)
    blueprint = blueprint_of(manifest, where=f"{place}/manifest.json")
    said = _said(place, raw)
    if name is None and said is None:
        raise InputError(f"expected --name NAME: what {place} is published as; or sign it first")
    date = now or datetime.now(UTC)
    given = {"name": name, "creator": creator, "licence": licence, "citation": citation}
    about = make_statement(
        hashlib.sha256(raw).hexdigest(),
        store=manifest.digest,
        version=said.version if said else 1,
        created=moment(said.created) if said else date,
        expires=moment(said.expires) if said else date,
        model_licences=said.model_licences if said else {},
        **{key: text if text is not None else getattr(said, key, "") for key, text in given.items()},
    ).predicate
    _check_free(place)
    made = {CROISSANT: croissant_of(blueprint, raw, about, url=url), CARD: card_of(blueprint, about, url=url)}
    for key, data in made.items():
        if len(data) > BESIDE_BYTES:
            raise InputError(
                f"{place}: expected a store that {key} can describe in {BESIDE_BYTES:,} bytes, got "
                f"{len(blueprint.entries):,} entries; make several stores of them"
            )
    for key, data in made.items():
        place.write(key, data)
    return about


def _said(place: Objects, manifest: bytes) -> Predicate | None:
    try:
        envelope = place.read_at_most(ENVELOPE_NAME, ENVELOPE.size)
    except FileNotFoundError:
        return None
    return claimed(envelope, manifest, where=f"{place}/{ENVELOPE_NAME}").predicate


def _check_free(place: Objects) -> None:
    """Files of somebody's own are not overwritten; a card that was written here vouches for both."""
    there = place.sizes([CARD, CROISSANT])
    ours = CARD in there and MARK.encode() in place.read_at_most(CARD, BESIDE_BYTES)
    if there and not ours:
        raise OutputError(
            f"{place}/{next(iter(there))}: expected none, or one that describe wrote, found another; it was left "
            "alone: move it away first"
        )
