"""Publishing a store."""

from __future__ import annotations

import time
from pathlib import Path

from ensadv_data.errors import InputError
from ensadv_data.manifest import parse_manifest
from ensadv_data.objects import Objects, objects_at
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
from ensadv_data.store import read_part
from ensadv_data.untrusted import OWN_MANIFEST
from ensadv_data.verification import blueprint_of, check_documents

__all__ = ["push"]

_MARK = "progress/push.json"


def push(store: Objects | Path | str, to: Objects | Path | str) -> Moved:
    """Publish a complete store: its objects, what lies beside its manifest, and at last the manifest.

    Raises
    ------
    InputError
        There is no complete store, or only a part of one.
    OutputError
        Something else is at ``to``, or it cannot be written.
    IntegrityError
        An object is not as the manifest has it.
    Interrupted
        Ctrl-C; the same command goes on.
    """
    began = time.perf_counter()
    origin, place = objects_at(store), objects_at(to)
    place.check_writable()
    raw = manifest_bytes(origin)
    manifest = parse_manifest(raw, f"{origin}/manifest.json", limits=OWN_MANIFEST)
    if read_part(origin, raw) is not None:
        raise InputError(f"expected a whole store at {origin}, found a part of one; pull the rest of it first")
    blueprint = blueprint_of(manifest, where=str(origin))
    check_documents(origin, blueprint)
    begin(place, raw, _MARK)
    about = blueprint.documents
    there = place.listed()
    for key in (key for key in about if key not in there):
        place.write(key, about[key])
    todo = {key: record for key, record in manifest.objects.items() if there.get(key) != record.bytes}

    def copy(key: str) -> None:
        place.write(key, checked(origin, key, todo[key]))

    with telling(f"{place}: stopped; what has arrived is kept, and the same command goes on"):
        each(copy, todo, f"push {origin.name}")
    finish(place, raw, origin)
    return moved(place, manifest, todo, len(manifest.objects), began)
