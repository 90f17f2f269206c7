"""What a store will take, before it is made: objects, bytes, requests to an object store, and memory.

All of it follows from the header and the entries. Raw chunks, metadata and manifest are known to the byte; what is
compressed lies between the bytes of a plane that is all alike and the bound of the library, and a mask is there only
where a value is zero: a :class:`Span` has both ends.
"""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from ensadv_data.blocks import part_size
from ensadv_data.compression import zstd_encode
from ensadv_data.manifest import ObjectRecord
from ensadv_data.models import Model
from ensadv_data.objects import ASKED
from ensadv_data.precompute import manifest_of
from ensadv_data.store import Entry, Header
from ensadv_data.store.layout import chunk_keys, chunk_rows, row_arrays, zstd_level
from ensadv_data.store.metadata import made_documents

__all__ = [
    "Reading",
    "Requests",
    "Span",
    "StoreSize",
    "client_bytes",
    "store_reading",
    "store_requests",
    "store_size",
    "worker_bytes",
]

_CHECKSUM = 4  # bytes after the rows of a raw chunk
_LISTED = 1000  # keys that one answer lists, and that one request deletes
_DIGEST = "0" * 64
_SAMPLE = 4096  # objects by whose records the client's memory is measured


@dataclass(frozen=True)
class Span:
    """A number that lies between two others, both included."""

    least: int
    most: int

    @classmethod
    def exactly(cls, number: int) -> Span:
        """One that is known."""
        return cls(number, number)

    def __add__(self, other: Span | int) -> Span:
        least, most = (other.least, other.most) if isinstance(other, Span) else (other, other)
        return Span(self.least + least, self.most + most)

    def __mul__(self, times: int) -> Span:
        return Span(self.least * times, self.most * times)

    def __or__(self, other: Span) -> Span:
        return Span(min(self.least, other.least), max(self.most, other.most))

    def to_json(self) -> list[int]:
        """Both ends."""
        return [self.least, self.most]


@dataclass(frozen=True)
class StoreSize:
    """Objects and bytes of a finished store, metadata and manifest included."""

    objects: Span
    bytes: Span
    about: int | None  # bytes, where a sample was compressed

    def __or__(self, other: StoreSize) -> StoreSize:
        """What is either of two."""
        about = [size.about for size in (self, other) if size.about is not None]
        return StoreSize(
            self.objects | other.objects,
            self.bytes | other.bytes,
            max(about, default=None),
        )


@dataclass(frozen=True)
class Requests:
    """Requests to an object store, by what they are; a head asks for an object's size."""

    puts: Span
    gets: Span
    heads: Span
    lists: Span
    deletes: Span

    def to_json(self) -> dict[str, list[int]]:
        """Both ends of each."""
        return {name: getattr(self, name).to_json() for name in ("puts", "gets", "heads", "lists", "deletes")}


@dataclass(frozen=True)
class _Chunks:
    """The chunks of one array."""

    path: str
    count: int
    characters: int  # of all their keys
    rows: int  # bytes of one, before its codec
    size: Span  # of one, as an object

    @property
    def records(self) -> Span:
        """Bytes of their records in the manifest, with a comma after each."""
        return Span(*(self.characters + self.count * (_RECORD + len(str(end))) for end in self.size.to_json()))


# A record of an object in canonical JSON, "KEY":{"bytes":N,"sha256":"…"} and a comma, without KEY and N.
_RECORD = len(json.dumps({"": ObjectRecord(bytes=0, sha256=_DIGEST).model_dump()}, separators=(",", ":"))) - 2


def store_size(
    header: Header, entries: Sequence[Entry], models: list[Model], *, sample: Mapping[str, float] | None = None
) -> StoreSize:
    """Objects and bytes of a store.

    Parameters
    ----------
    models
        The sources; their records are in the manifest.
    sample
        Compressed bytes over raw ones, by path of the array; a mask that is not in it does not exist.
    """
    plain, masks = _arrays(header, entries)
    documents = made_documents(header, entries, ())
    masked = {name: len(data) for name, data in made_documents(header, entries, _maskable(header, entries)).items()}
    metadata = Span(sum(map(len, documents.values())), sum(masked.values()))
    zeros = [{entry.key: count for entry in entries if entry.kind != "delta"} for count in (0, _values(header))]
    manifest = Span(*(len(manifest_of(header, models, {}, some).to_bytes()) for some in zeros)) + (-1)
    chunks = _sum(each.size * each.count for each in plain)
    hidden = _sum(each.size * each.count for each in masks)
    manifest = manifest + _sum(each.records for each in plain) + Span(0, _sum(each.records for each in masks).most)
    about = None
    if sample is not None:
        there = [*plain, *(each for each in masks if each.path in sample)]
        guessed = [each.size.most if each.path not in sample else sample[each.path] * each.rows for each in there]
        about = round(sum(size * each.count for size, each in zip(guessed, there, strict=True)))
        about += metadata.least + manifest.least
    objects = len(documents) + 1 + sum(each.count for each in plain)
    return StoreSize(
        objects=Span(objects, objects + len(masked) - len(documents) + sum(each.count for each in masks)),
        bytes=metadata + manifest + chunks + Span(0, hidden.most),
        about=about,
    )


def store_requests(header: Header, entries: Sequence[Entry], *, trial: bool = False) -> Requests:
    """Requests of a whole precompute into an object store, nothing of which is there and of which nothing fails.

    Parameters
    ----------
    trial
        Whether the batch size is found by trial.
    """
    plain, masks = _arrays(header, entries)
    documents, maskable = len(made_documents(header, entries, ())), Span(0, len(_maskable(header, entries)))
    written = sum(each.count for each in (*plain, *_hidden(header, entries)))
    records, pages = header.blocks, -(-header.blocks // _LISTED)
    # A mask that nobody needs is listed and deleted; of a delta there is none, which is asked all the same.
    signs = [entry for entry in entries if entry.kind != "delta"]
    every, always = -(-header.blocks * header.draws // _LISTED), len(signs) if not masks else 0
    unneeded = Span(always * every, len(signs) * every)
    there = documents + written + records
    asked = [[(documents, 0), (written, there), (documents + end, there)] for end in maskable.to_json()]
    ends = [[sum(each) for each in zip(*(_looks(*sizes) for sizes in one), strict=True)] for one in asked]
    looks = [Span(min(both), max(both)) for both in zip(*ends, strict=True)]
    return Requests(
        puts=maskable + (documents + written + records + 1),
        gets=Span.exactly(1 + trial + 2 * records),  # before it is made, and in the end
        heads=looks[0] + (1 + len(entries)),
        lists=unneeded + looks[1] + (2 + 2 * pages + len(entries) - len(signs)),
        deletes=unneeded + pages,
    )


def _looks(asked: int, there: int) -> tuple[int, int]:
    """Heads and lists for the sizes of so many objects, among so many that are there."""
    return (asked, 0) if asked <= ASKED else (0, max(1, -(-there // _LISTED)))


@dataclass(frozen=True)
class Reading:
    """What a training asks of a store that is not on its own disk."""

    opening: Span  # gets, before the first step
    chunks: Span  # gets of all chunks once: an epoch needs no more
    held: Span  # bytes of all rows in memory, decompressed

    def to_json(self) -> dict[str, list[int]]:
        """Both ends of each."""
        return {name: getattr(self, name).to_json() for name in ("opening", "chunks", "held")}


def store_reading(header: Header, entries: Sequence[Entry]) -> Reading:
    """Requests of a training that reads the store from afar, and the memory in which they are made but once."""
    plain, masks = _arrays(header, entries)
    documents, maskable = len(made_documents(header, entries, ())), Span(0, len(_maskable(header, entries)))
    read = [each for each in plain if not each.path.endswith("/label")]
    held = sum(each.rows * each.count for each in read if not each.path.endswith("example_digest"))
    return Reading(
        opening=maskable + (documents + 3),
        chunks=Span(0, sum(each.count for each in masks)) + sum(each.count for each in read),
        held=Span(0, sum(each.rows * each.count for each in masks)) + held,
    )


def worker_bytes(header: Header, entries: Sequence[Entry], *, batch_size: int) -> int:
    """Bytes that a worker holds of a block at most: its planes, two parts of its images, and a chunk on its way."""
    planes, largest = 0, 0
    for entry in entries:
        for name in row_arrays(entry.kind, masked=bool(_maskable(header, [entry]))):
            planes += header.draws * chunk_rows(name, header)
            largest = max(largest, chunk_rows(name, header))
    images = min(header.block, 2 * part_size(batch_size, header.d))
    labels = len(entries) * chunk_rows("label", header) + chunk_rows("example_digest", header)
    return planes + labels + images * header.d + largest


def client_bytes(header: Header, entries: Sequence[Entry], models: list[Model]) -> int:
    """Bytes that the end of a precompute takes in the client: measured on the records of some blocks, twice."""
    arrays = [*_arrays(header, entries)[0], *_hidden(header, entries)]
    blocks = min(header.blocks, -(-_SAMPLE * header.blocks // sum(each.count for each in arrays)))

    def peak(count: int) -> int:
        tracemalloc.start()
        try:
            records = [json.loads(_record_of(header, arrays, block)) for block in range(count)]
            objects = {key: (int(size), str(digest)) for r in records for key, (size, digest) in r["objects"].items()}
            manifest_of(header, models, objects, {}).to_bytes()
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    few, many = (peak(count) for count in (blocks // 2, blocks))
    return many + max(0, many - few) * (header.blocks - blocks) // max(1, blocks - blocks // 2)


def _arrays(header: Header, entries: Sequence[Entry]) -> tuple[list[_Chunks], list[_Chunks]]:
    """The arrays of a store, and the masks that it may have beside them."""
    plain, maskable = [_chunks("example_digest", "", header)], set(_maskable(header, entries))
    masks = []
    for entry in entries:
        for name in (*row_arrays(entry.kind, masked=False), "label"):
            plain.append(_chunks(f"{entry.key}/{name}", entry.kind, header))
        if entry.key in maskable:
            masks.append(_chunks(f"{entry.key}/nonzero", entry.kind, header))
    return plain, masks


def _hidden(header: Header, entries: Sequence[Entry]) -> Iterator[_Chunks]:
    """The masks that are written while a store is made, also where they are deleted in the end."""
    return (_chunks(f"{e.key}/nonzero", e.kind, header) for e in entries if e.kind != "delta")


def _maskable(header: Header, entries: Iterable[Entry]) -> list[str]:
    """Keys of the entries that may have a mask."""
    return [e.key for e in entries if e.kind != "delta" and header.plan.get("zeros", "keep") == "keep"]


def _chunks(path: str, kind: str, header: Header) -> _Chunks:
    name = path.rpartition("/")[2]
    rows, level = chunk_rows(name, header), zstd_level(name, kind, header)
    size = Span.exactly(rows + _CHECKSUM) if level is None else Span(_all_alike(rows, level), _bound(rows))
    count = characters = 0
    for key in chunk_keys(path, header):
        count, characters = count + 1, characters + len(key)
    return _Chunks(path, count, characters, rows, size)


@lru_cache(maxsize=16)
def _all_alike(size: int, level: int) -> int:
    """Bytes of a zstd frame of so many bytes that are all zero; of a full mask the writer makes one at level 1."""
    return min(len(zstd_encode(np.zeros(size, np.uint8), level=each)) for each in {1, level})


def _bound(size: int) -> int:
    """The largest zstd frame of so many bytes: ZSTD_COMPRESSBOUND of zstd.h."""
    return size + (size >> 8) + (max(0, 2**17 - size) >> 11)


def _record_of(header: Header, arrays: Sequence[_Chunks], block: int) -> str:
    """A done record, with the largest sizes that are possible."""
    keys = {key: each.size.most for each in arrays for key in chunk_keys(each.path, header, blocks=[block])}
    zeros = dict.fromkeys(header.groups, _values(header))
    objects = {key: [size, _DIGEST] for key, size in keys.items()}
    return json.dumps({"block": block, "first": header.n, "last": header.n, "objects": objects, "zeros": zeros})


def _values(header: Header) -> int:
    """Values of an entry."""
    return header.draws * header.n * header.d


def _sum(spans: Iterable[Span]) -> Span:
    return sum(spans, Span(0, 0))
