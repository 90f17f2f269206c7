"""The store: packed perturbations of every training image as plain Zarr v3 arrays (docs/format.md)."""

from __future__ import annotations

from ensadv_data.store.chunks import Cache
from ensadv_data.store.damage import damaged_blocks
from ensadv_data.store.layout import (
    FORMAT_VERSION,
    HELD_BYTES,
    Entry,
    Header,
    Planes,
    block_of,
    block_size,
    root_attributes,
    shortened,
)
from ensadv_data.store.part import PART, Part, read_part
from ensadv_data.store.perturbed import Move, packed_moves, perturb_images
from ensadv_data.store.reader import Store, open_store
from ensadv_data.store.writer import StoreWriter

__all__ = [
    "FORMAT_VERSION",
    "HELD_BYTES",
    "PART",
    "Cache",
    "Entry",
    "Header",
    "Move",
    "Part",
    "Planes",
    "Store",
    "StoreWriter",
    "block_of",
    "block_size",
    "damaged_blocks",
    "open_store",
    "packed_moves",
    "perturb_images",
    "read_part",
    "root_attributes",
    "shortened",
]
