"""The objects of a store against its manifest: all there and nothing else, byte for byte, and within bounds.

Every chunk is read once. What was not signed is not decoded: the digest is compared first.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice

import numpy as np
import numpy.typing as npt

from ensadv_data.codec import full_mask, row_bytes
from ensadv_data.errors import ChunkError, IntegrityError
from ensadv_data.objects import Objects
from ensadv_data.progress import progress_bar
from ensadv_data.store import PART, Entry, decode_chunk
from ensadv_data.untrusted import quoted
from ensadv_data.verification.blueprint import Array, Blueprint

__all__ = ["BESIDE", "BESIDE_BYTES", "check_chunks", "check_presence", "chunk_of"]

# What may lie beside the objects and the documents; none of it is read.
BESIDE = frozenset(
    {"manifest.json", "manifest.sig.json", PART, "README.md", "croissant.json", "LICENSE", ".gitattributes"}
)

BESIDE_BYTES = 2**20  # of each of these at most, where they are copied

_AT_ONCE = 4  # chunks in memory
_WINDOW = 64  # tasks that are handed out at once

U8 = npt.NDArray[np.uint8]


def check_presence(place: Objects, blueprint: Blueprint) -> bool:
    """Every object and document is there, the objects with their sizes; and, where that can be seen, nothing else.

    Returns
    -------
    bool
        Whether extra files could have been seen.

    Raises
    ------
    IntegrityError
        Something is missing, of another size, too much, or no plain file.
    """
    objects, documents = blueprint.manifest.objects, blueprint.documents
    census = place.census()
    sizes = place.sizes([*objects, *documents]) if census is None else census
    missing = [key for key in (*objects, *documents) if key not in sizes]
    if missing:
        raise IntegrityError(f"{place}: {_count(missing, 'is', 'are')} missing; copy the store again")
    extra = sorted(sizes.keys() - objects.keys() - documents.keys() - BESIDE)
    if extra:
        raise IntegrityError(f"{place}: {_count(extra, 'is', 'are')} there that the manifest does not have; delete it")
    wrong = [key for key, record in objects.items() if sizes[key] != record.bytes]
    if wrong:
        key = wrong[0]
        raise IntegrityError(
            f"{place}: {_count(wrong, 'has', 'have')} another size: expected {objects[key].bytes:,} bytes, found "
            f"{sizes[key]:,}; copy the store again"
        )
    return census is not None


def check_chunks(place: Objects, blueprint: Blueprint) -> int:
    """Compare the SHA-256 of every chunk, then decode it and look at every value; returns how many there are.

    Raises
    ------
    ChunkError
        A chunk is missing, has another SHA-256 or checksum, or a value that its kind does not have: a direction that
        is not zero where the mask says so, a delta of −128, a class that the data set does not have, anything but
        zeros behind the last value or row.
    IntegrityError
        An entry has not as many zeros as the manifest says.
    """
    zeros, header = Counter[str](), blueprint.header
    tasks = _tasks(place, blueprint)
    total = len(blueprint.manifest.objects)
    with (
        ThreadPoolExecutor(_AT_ONCE) as pool,
        progress_bar(f"verify {place.name}", total=total, unit="chunks") as advance,
    ):
        while window := list(islice(tasks, _WINDOW)):
            for key, count, chunks in pool.map(lambda task: task(), window):
                zeros[key] += count
                advance(chunks)
    for key, expected in blueprint.manifest.zeros.items():
        found = zeros[key]
        if found != expected:
            values = header.draws * header.n * header.d
            raise IntegrityError(
                f"{place}: {key}: expected {expected:,} of {values:,} values to be zero, found {found:,}"
            )
    return total


def chunk_of(place: Objects, blueprint: Blueprint, array: Array, draw: int, block: int) -> U8:
    """The rows of one chunk, uint8 (S, bytes of a row), whose digest was compared before it was decoded.

    Raises
    ------
    ChunkError
        It is missing, or has another SHA-256, size or checksum.
    """
    key = array.key(draw, block)
    try:
        rows = decode_chunk(_proved(place, blueprint, key), size=array.size, raw=array.raw)
    except ChunkError as error:
        raise ChunkError(f"{place}/{key}: {error}") from None
    return rows.reshape(blueprint.header.block, -1)


def _proved(place: Objects, blueprint: Blueprint, key: str) -> U8:
    """The bytes of an object, fetched again where they may have been damaged on their way."""
    record = blueprint.manifest.objects[key]
    for _ in range(1 if place.is_local else 2):
        try:
            data = (
                place.array(key) if place.is_local else np.frombuffer(place.read_at_most(key, record.bytes), np.uint8)
            )
        except OSError:
            raise ChunkError("the chunk is missing; copy the store again") from None
        found = hashlib.sha256(data.data).hexdigest()
        if found == record.sha256:
            return data
    raise ChunkError(
        f"expected SHA-256 {record.sha256[:16]}… as in the manifest, found {found[:16]}…: the chunk is damaged or "
        "another one; copy the store again"
    )


_Task = Callable[[], tuple[str, int, int]]  # → entry's key, zeros in it, chunks read


def _tasks(place: Objects, blueprint: Blueprint) -> Iterator[_Task]:
    header = blueprint.header
    for block in range(header.blocks):
        if block in blueprint.blocks_of():
            yield partial(_digests, place, blueprint, block)
        for entry in (entry for entry in blueprint.entries if block in blueprint.blocks_of(entry.key)):
            yield partial(_labels, place, blueprint, entry, block)
            for draw in range(header.draws):
                yield partial(_rows, place, blueprint, entry, draw, block)


def _digests(place: Objects, blueprint: Blueprint, block: int) -> tuple[str, int, int]:
    rows = chunk_of(place, blueprint, blueprint.digests, 0, block)
    _check_padding(rows, place, blueprint, blueprint.digests, 0, block)
    return "", 0, 1


def _labels(place: Objects, blueprint: Blueprint, entry: Entry, block: int) -> tuple[str, int, int]:
    array = blueprint.label(entry)
    rows = chunk_of(place, blueprint, array, 0, block)
    count = _check_padding(rows, place, blueprint, array, 0, block)
    labels = rows[:count].view("<i4")
    if labels.min() < 0 or labels.max() >= blueprint.header.classes:
        raise _out(place, array, 0, block, f"labels from 0 to {blueprint.header.classes - 1}")
    return entry.key, 0, 1


def _rows(place: Objects, blueprint: Blueprint, entry: Entry, draw: int, block: int) -> tuple[str, int, int]:
    arrays, d = blueprint.rows(entry), blueprint.header.d
    planes, count = [], 0
    for array in arrays:
        rows = chunk_of(place, blueprint, array, draw, block)
        count = _check_padding(rows, place, blueprint, array, draw, block)
        if entry.kind == "delta":
            if (rows == 128).any():  # −128
                raise _out(place, array, draw, block, "deltas from −127 to 127")
            return entry.key, 0, 1
        if d % 8 and (rows[:, row_bytes(d) - 1] & ~full_mask(d)[-1]).any():
            raise _out(place, array, draw, block, f"zeros in the unused bits behind value {d - 1}")
        planes.append(rows)
    if len(planes) == 1:
        return entry.key, 0, 1
    direction, nonzero = planes
    if (direction & ~nonzero).any():
        raise _out(place, arrays[0], draw, block, "no sign where the mask has a zero")
    return entry.key, count * d - int(np.bitwise_count(nonzero[:count]).sum(dtype=np.int64)), 2


def _check_padding(rows: U8, place: Objects, blueprint: Blueprint, array: Array, draw: int, block: int) -> int:
    """Rows behind the last image are zero; returns how many are not behind it."""
    header = blueprint.header
    count = min(header.block, header.n - block * header.block)
    if rows[count:].any():
        raise _out(place, array, draw, block, f"zeros in the rows behind the last image, {header.n - 1}")
    return count


def _out(place: Objects, array: Array, draw: int, block: int, expected: str) -> ChunkError:
    return ChunkError(
        f"{place}/{array.key(draw, block)}: expected {expected}, found others: out of bounds; the store was not made "
        "by precompute: ask who signed it"
    )


def _count(keys: list[str], one: str, many: str) -> str:
    return (
        f"{len(keys)} object{'' if len(keys) == 1 else 's'} ({quoted(keys[0])}{'' if len(keys) == 1 else ', …'}) "
        + (one if len(keys) == 1 else many)
    )
