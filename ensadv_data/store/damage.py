"""What has become of the chunks of a finished store: which blocks have one that is not as the manifest has it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

from ensadv_data.objects import Objects
from ensadv_data.progress import progress_bar
from ensadv_data.store.layout import block_of

__all__ = ["damaged_blocks"]

_AT_ONCE = 4


def damaged_blocks(place: Objects, expected: Mapping[str, tuple[int, str]], *, thoroughly: bool) -> frozenset[int]:
    """Blocks with a chunk that is missing or of another size; thoroughly: or of other bytes.

    Parameters
    ----------
    expected
        Bytes and SHA-256 of every chunk, by key.
    """
    sizes = place.sizes(sorted(expected))
    right = [key for key in sorted(expected) if sizes.get(key) == expected[key][0]]
    wrong = set(expected) - set(right)
    if thoroughly:
        with (
            ThreadPoolExecutor(_AT_ONCE) as pool,
            progress_bar(f"check {place.name}", total=len(right), unit="chunks") as advance,
        ):
            for key, digest in zip(right, pool.map(lambda key: _digest(place, key), right), strict=True):
                if digest != expected[key][1]:
                    wrong.add(key)
                advance(1)
    return frozenset(map(block_of, wrong))


def _digest(place: Objects, key: str) -> str:
    try:
        return hashlib.sha256(place.array(key).data).hexdigest()
    except FileNotFoundError:  # it went since its size was looked at
        return ""
