"""The store: packed perturbations of every training image as plain Zarr v3 arrays (docs/format.md)."""

from __future__ import annotations

from ensadv_data.store.chunks import Cache
from ensadv_data.store.damage import damaged_blocks
from ensadv_data.store.decoding import decode_chunk
from ensadv_data.store.layout import (
    HELD_BYTES,
    Entry,
    Header,
    Planes,
    block_of,
    block_size,
    chunk_keys,
    chunk_rows,
    format_version,
    root_attributes,
    row_arrays,
    shortened,
    zstd_level,
)
from ensadv_data.store.metadata import made_documents
from ensadv_data.store.opening import open_store
from ensadv_data.store.part import PART, Part, blocks_here, groups_here, read_part
from ensadv_data.store.perturbed import Move, apply_moves, packed_moves, perturb_images
from ensadv_data.store.reader import Store
from ensadv_data.store.shards import ExportedStore, is_exported
from ensadv_data.store.writer import StoreWriter

__all__ = [
    "HELD_BYTES",
    "PART",
    "Cache",
    "Entry",
    "ExportedStore",
    "Header",
    "Move",
    "Part",
    "Planes",
    "Store",
    "StoreWriter",
    "apply_moves",
    "block_of",
    "block_size",
    "blocks_here",
    "chunk_keys",
    "chunk_rows",
    "damaged_blocks",
    "decode_chunk",
    "format_version",
    "groups_here",
    "is_exported",
    "made_documents",
    "open_store",
    "packed_moves",
    "perturb_images",
    "read_part",
    "root_attributes",
    "row_arrays",
    "shortened",
    "zstd_level",
]
