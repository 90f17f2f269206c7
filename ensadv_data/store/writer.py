"""Writing a store: whole chunks, each under its name only when all of it is on the disk."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import google_crc32c
import numpy as np
import numpy.typing as npt

from ensadv_data.codec import full_mask, row_bytes
from ensadv_data.compression import zstd_encode
from ensadv_data.errors import InputError, IntegrityError, OutputError
from ensadv_data.objects import Objects, objects_at
from ensadv_data.store.layout import (
    FORMAT,
    Entry,
    Header,
    Planes,
    root_attributes,
    shortened,
    zstd_level,
)
from ensadv_data.store.metadata import made_documents

__all__ = ["StoreWriter"]

U8 = npt.NDArray[np.uint8]
U64 = npt.NDArray[np.uint64]

_FULL_LEVEL = 1


class Collected(NamedTuple):
    """What the records of all blocks tell."""

    objects: dict[str, tuple[int, str]]  # size and SHA-256, by key
    zeros: dict[str, int]  # by entry
    smaller: dict[str, list[int]]  # blocks that were computed in smaller batches than the plan has, by their size


class StoreWriter:
    """Creates a store, writes its blocks, and closes it. Any number of processes may hold one."""

    def __init__(self, place: Objects | Path | str, header: Header, entries: tuple[Entry, ...]) -> None:
        self.place, self.header, self.entries = objects_at(place), header, entries
        self._kinds = {entry.key: entry.kind for entry in entries}

    def create(self) -> None:
        """Make the folder with its metadata, or accept the one that an interrupted run of the same plan left.

        Raises
        ------
        OutputError
            The folder holds something else, or cannot be written.
        """
        ours = self.header.attributes()
        is_free, theirs = self.place.is_free(), root_attributes(self.place)
        if not is_free:
            if theirs is None or theirs.get("format") != FORMAT:
                raise OutputError(
                    f"{self.place} holds something else than a store; it was not touched: choose another --out"
                )
            if theirs != ours:
                name = next((key for key in ours if theirs.get(key) != ours[key]), "keys")
                raise OutputError(
                    f"{self.place} holds a store of another plan ({name} differs: "
                    f"expected {shortened(ours.get(name))}, found {shortened(theirs.get(name))}); "
                    "it was not touched; choose another --out"
                )
        self._write_documents(masked=())

    def is_complete(self) -> bool:
        """Whether the manifest is there."""
        return self.place.has("manifest.json")

    def done(self) -> dict[int, dict[str, Any]]:
        """Valid done records by block; a record whose chunks are not there as it says does not count."""
        keys = [key for key in self.place.keys("progress/") if key.startswith("progress/block-")]
        return self._valid(keys)

    def record(self, block: int) -> dict[str, Any] | None:
        """The valid done record of a block; None where there is none."""
        return self._valid([_record_key(block)]).get(block)

    def _valid(self, keys: Iterable[str]) -> dict[int, dict[str, Any]]:
        found = {key: _record(key, data) for key, data in self.place.read_all(keys).items()}
        records = [record for record in found.values() if record is not None]
        sizes = self.place.sizes(sorted({name for record in records for name in record["objects"]}))
        return {
            int(record["block"]): record
            for record in records
            if all(sizes.get(name) == size for name, (size, _) in record["objects"].items())
        }

    def write_block(
        self,
        block: int,
        planes: Mapping[str, Planes],
        digests_N: U64,
        *,
        about: Mapping[str, Any] | None = None,
        expected: Mapping[str, tuple[int, str]] | None = None,
    ) -> dict[str, Any]:
        """Write every chunk of one block, then its done record.

        Parameters
        ----------
        block
            Index of the block.
        planes
            For each entry's key, its rows for all draws.
        digests_N
            uint64 digests of the block's examples.
        about
            What else the record tells of the block.
        expected
            Of a finished store: bytes and SHA-256 of its chunks. Only these are written, and no record.

        Returns
        -------
        dict
            The done record: the objects with their sizes and SHA-256, and the zeros of each entry.

        Raises
        ------
        OutputError
            The disk is full, or the folder cannot be written.
        IntegrityError
            A chunk is another one than expected; it is not written.
        """
        objects, zeros = {}, {}
        for rows in planes.values():  # before anything is written
            _present(rows.label)
            _present(rows.direction if rows.delta is None else rows.delta)

        chunk = partial(self._chunk, as_there=bool(expected))

        def put(name: str, *parts: bytes | memoryview) -> None:  # at once: no more than a chunk is held
            digest = hashlib.sha256()
            for part in parts:
                digest.update(part)
            found = (sum(map(len, parts)), digest.hexdigest())
            objects[name] = list(found)
            if expected:
                if name not in expected:  # the mask of an entry without zeros
                    return
                if found != expected[name]:
                    raise IntegrityError(
                        f"{self.place}/{name}: expected SHA-256 {expected[name][1][:16]}… as in the manifest, "
                        f"computed {found[1][:16]}…; it was left as it is: repair it on hardware and software "
                        "like those that made it, or copy the store again"
                    )
            self.place.write(name, *parts)

        put(f"example_digest/c/{block}", *chunk("example_digest", digests_N.astype("<u8")))
        for key, rows in planes.items():
            put(f"{key}/label/c/{block}", *chunk(f"{key}/label", _present(rows.label).astype("<i4")))
            if rows.delta is not None:
                for k, plane in enumerate(rows.delta):
                    put(f"{key}/delta/c/{k}/{block}/0", *chunk(f"{key}/delta", plane))
                continue
            zeros[key] = 0 if rows.nonzero is None else _count_zeros(rows.nonzero, self.header.d)
            for k, plane in enumerate(_present(rows.direction)):
                put(f"{key}/direction/c/{k}/{block}/0", *chunk(f"{key}/direction", plane))
                mask = (
                    (_full_chunk(len(plane), self.header.block, self.header.d),)
                    if rows.nonzero is None
                    else chunk(f"{key}/nonzero", rows.nonzero[k])
                )
                put(f"{key}/nonzero/c/{k}/{block}/0", *mask)
        first = block * self.header.block
        record = {
            "block": block,
            "first": first,
            "last": min(first + self.header.block, self.header.n) - 1,
            "objects": objects,
            "zeros": zeros,
            **(about or {}),
        }
        if not expected:
            self.place.write(_record_key(block), _json(record))
        return record

    def collect(self) -> Collected:
        """Objects, zeros and smaller batches, from the records of all blocks; masks made visible.

        The mask array of an entry gets its metadata here if any of its values is zero; else its objects are
        left out, and :meth:`close` deletes them.

        Raises
        ------
        IntegrityError
            A block has no valid record.
        """
        records = self.done()
        missing = [block for block in range(self.header.blocks) if block not in records]
        if missing:
            raise IntegrityError(f"{self.place}: no valid record of blocks {shortened(missing)}; run precompute again")
        zeros: dict[str, int] = {}
        for record in records.values():
            for key, count in record["zeros"].items():
                zeros[key] = zeros.get(key, 0) + count
        self._write_documents(masked=[key for key, count in zeros.items() if count])
        hidden = tuple(f"{key}/nonzero/" for key, count in zeros.items() if not count)
        objects = {
            key: (int(size), str(digest))
            for _, record in sorted(records.items())
            for key, (size, digest) in record["objects"].items()
            if not key.startswith(hidden)
        }
        smaller: dict[str, list[int]] = {}
        for block, record in sorted(records.items()):
            if "batch_size" in record:
                smaller.setdefault(str(record["batch_size"]), []).append(block)
        return Collected(objects, zeros, smaller)

    def close(self, manifest: bytes) -> None:
        """Write the manifest, then delete what only an unfinished store needs."""
        self.place.write("manifest.json", manifest)
        self._tidy()

    def restore(self, zeros: Mapping[str, int]) -> None:
        """Make what a complete store holds beside its chunks what it was: documents that went, nothing of killed runs.

        Parameters
        ----------
        zeros
            Of each entry, from the manifest: which of them have a mask.
        """
        self._write_documents(masked=[key for key, count in zeros.items() if count])
        self._tidy()

    def _tidy(self) -> None:
        """Delete progress records, masks without zeros, and temporary files of killed runs from a complete store."""
        self.place.delete("progress/")
        for entry in self.entries:
            if not self.place.has(f"{entry.key}/nonzero/zarr.json"):
                self.place.delete(f"{entry.key}/nonzero/")
        self.place.sweep()

    def _write_documents(self, masked: Iterable[str]) -> None:
        documents = made_documents(self.header, self.entries, masked)
        there = self.place.sizes(documents)
        for key in (key for key in documents if key not in there):
            self.place.write(key, documents[key])

    def _level(self, array: str) -> int | None:
        entry, _, name = array.rpartition("/")
        return zstd_level(name, self._kinds.get(entry, ""), self.header)

    def _level_there(self, array: str, level: int) -> int:
        """The level that the store's own document names; ``level`` where it is missing or says nothing of it."""
        try:
            codecs = json.loads(self.place.read(f"{array}/zarr.json"))["codecs"]
            return next(int(codec["configuration"]["level"]) for codec in codecs if codec["name"] == "zstd")
        except (FileNotFoundError, ValueError, KeyError, TypeError, StopIteration):
            return level

    def _chunk(self, array: str, rows: npt.NDArray[Any], *, as_there: bool) -> tuple[bytes | memoryview, ...]:
        """The bytes of a chunk of that array: its rows, padded to a block, as the array's codec has them.

        ``as_there``: at the level that the store's own document names, which another version may have written.
        """
        data, level = _padded(rows, self.header.block), self._level(array)
        if as_there and level is not None:
            level = self._level_there(array, level)
        if level is not None:
            return (zstd_encode(data, level=level),)
        return data.data, int(google_crc32c.value(data)).to_bytes(4, "little")


def _padded(rows: npt.NDArray[Any], block: int) -> U8:
    """The bytes of the rows of a block, and zeros for those that it lacks; a view where it lacks none."""
    short = block - len(rows)
    whole = np.concatenate([rows, np.zeros((short, *rows.shape[1:]), rows.dtype)]) if short else rows
    return np.ascontiguousarray(whole).view(np.uint8).reshape(-1)


@lru_cache(maxsize=2)  # a block's, and the last block's
def _full_chunk(count: int, block: int, d: int) -> bytes:
    """The mask of a block in which no value is zero: made once, at a level that needs little memory."""
    return zstd_encode(_padded(np.broadcast_to(full_mask(d), (count, row_bytes(d))), block), level=_FULL_LEVEL)


def _record(key: str, data: bytes) -> dict[str, Any] | None:
    """A done record of the block that its key names; None where it is none."""
    try:
        record: dict[str, Any] = json.loads(data)
        {name: (int(size), str(digest)) for name, (size, digest) in record["objects"].items()}
        return record if key == _record_key(record["block"]) and isinstance(record["zeros"], dict) else None
    except (ValueError, TypeError, KeyError, AttributeError):
        return None


def _record_key(block: int) -> str:
    return f"progress/block-{block:06d}.json"


def _present(rows: npt.NDArray[Any] | None) -> npt.NDArray[Any]:
    if rows is None:
        raise InputError("expected directions and labels for every entry that is not a delta, got none")
    return rows


def _count_zeros(nonzero_KNB: U8, d: int) -> int:
    values: int = nonzero_KNB.shape[0] * nonzero_KNB.shape[1] * d
    return values - int(np.bitwise_count(nonzero_KNB).sum())


def _json(value: Any) -> bytes:
    return (json.dumps(value, sort_keys=True, separators=(",", ":")) + "\n").encode()
