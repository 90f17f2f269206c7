"""The metadata of a store: Zarr makes and reads it in memory, and its documents are objects like all others.

So every document is there whole or not at all, on a disk and in a bucket, and is asked for again where a network
failed.
"""

from __future__ import annotations

import json
from collections.abc import Container, Iterable, Mapping

import zarr
from zarr.codecs import BytesCodec, Crc32cCodec, ZstdCodec
from zarr.core.buffer import Buffer, default_buffer_prototype
from zarr.storage import MemoryStore

from ensadv_data.objects import Objects
from ensadv_data.store.layout import Entry, Header, layout, row_arrays, zstd_level

__all__ = ["fetched_group", "made_documents"]

_NAME = "zarr.json"


def made_documents(header: Header, entries: Iterable[Entry], masked: Iterable[str]) -> dict[str, bytes]:
    """The documents of a store, by key, the root's first; arrays of masks for the entries of those keys only."""
    made: dict[str, Buffer] = {}
    entries = tuple(entries)
    root = zarr.create_group(store=MemoryStore(made), zarr_format=3, attributes=header.attributes())
    groups: dict[str, Mapping[str, object]] = {}
    arrays = ["example_digest"]
    for entry in entries:
        groups[entry.source] = {"source_digest": entry.source_digest, "architecture": entry.architecture}
        names = ("attack", "kind", "epsilon", "alpha", "seed", "loss")
        groups[entry.key] = {name: getattr(entry, name) for name in names}
        arrays += [f"{entry.key}/{'delta' if entry.kind == 'delta' else 'direction'}", f"{entry.key}/label"]
    for name, attributes in groups.items():
        root.create_group(name, attributes=dict(attributes))
    kinds = {entry.key: entry.kind for entry in entries}
    for name in [*arrays, *(f"{key}/nonzero" for key in masked)]:
        entry_key, _, array = name.rpartition("/")
        shape, dtype = layout(array, header)
        level = zstd_level(array, kinds.get(entry_key, ""), header)
        root.create_array(
            name,
            shape=shape,
            chunks=(header.block,) if len(shape) == 1 else (1, header.block, shape[2]),
            dtype=dtype,
            fill_value=0,
            serializer=BytesCodec(),
            compressors=[Crc32cCodec() if level is None else ZstdCodec(level=level, checksum=True)],
            config={"write_empty_chunks": True},
        )
    return {key: made[key].to_bytes() for key in sorted(made, key=lambda key: (key.count("/"), key))}


def fetched_group(place: Objects, keys: Iterable[str], masked: Container[str]) -> zarr.Group:
    """The root group of a store with the metadata of its entries of these keys; what is missing is not in it.

    Nothing is asked for but what should be there, since some servers deny what does not exist.

    Raises
    ------
    ValueError, KeyError, TypeError
        A document is not one of Zarr's.
    """
    keys = tuple(keys)
    found = _read(place, {"", "example_digest", *keys, *(key.partition("/")[0] for key in keys)})
    arrays = set()
    for key in (key for key in keys if _document(key) in found):
        kind = json.loads(found[_document(key)])["attributes"]["kind"]
        names = row_arrays(kind, masked=key in masked)
        arrays |= {f"{key}/{name}" for name in (*names, "label")}
    buffer = default_buffer_prototype().buffer
    documents = {key: buffer.from_bytes(data) for key, data in (found | _read(place, arrays)).items()}
    return zarr.open_group(store=MemoryStore(documents, read_only=True), mode="r", zarr_format=3)


def _read(place: Objects, paths: Iterable[str]) -> dict[str, bytes]:
    return place.read_all(_document(path) for path in sorted(paths))


def _document(path: str) -> str:
    return f"{path}/{_NAME}".lstrip("/")
