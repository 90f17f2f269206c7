"""Opening what can be read as a store: a store, or a set of shards that one was exported to."""

from __future__ import annotations

from pathlib import Path

from ensadv_data.errors import ChunkError, InputError
from ensadv_data.objects import Objects, objects_at
from ensadv_data.store.chunks import Cache
from ensadv_data.store.index import parse_index
from ensadv_data.store.reader import Store, read_store
from ensadv_data.store.shards import INDEX, ExportedStore
from ensadv_data.untrusted import MANIFEST

__all__ = ["open_store"]


def open_store(reference: Objects | Path | str, *, cache: Cache | None = None) -> Store:
    """Open a complete store, or an exported set, for reading.

    Parameters
    ----------
    cache
        Where decompressed chunks are held, and copies of far ones kept; several stores may share one. None: one of
        1 GiB, and no copies.

    Raises
    ------
    InputError
        There is no store, it is unfinished or was fetched in part, or its format is not one that this version reads.
    ChunkError
        An array is missing.
    IntegrityError
        What describes it is damaged.
    """
    place = objects_at(reference)
    try:
        return read_store(place, cache=cache)
    except InputError:
        try:
            raw = place.read_at_most(INDEX, MANIFEST.size)
        except (FileNotFoundError, InputError):
            raw = None
        if raw is None:
            raise
    records, shards, _ = parse_index(raw, f"{place}/{INDEX}")
    there = place.sizes([shard.name for shard in shards])
    for shard in shards:  # before room is made for as many rows as they say they have
        if shard.name not in there:
            raise ChunkError(f"{place}/{shard.name}: the shard is missing; fetch it again")
        if (size := there[shard.name]) != shard.bytes:
            raise ChunkError(f"{place}/{shard.name}: expected {shard.bytes:,} bytes, found {size:,}; fetch it again")
    return ExportedStore(place, records, shards, cache or Cache())
