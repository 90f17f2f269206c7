"""Writing a store: whole chunks, each under its name only when all of it is on the disk."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import numpy.typing as npt
import zarr
from zarr.codecs import BytesCodec, Crc32cCodec, ZstdCodec

from ensadv_data.codec import full_mask, row_bytes
from ensadv_data.compression import zstd_encode
from ensadv_data.errors import InputError, IntegrityError, OutputError
from ensadv_data.files import naming_trouble, write_atomic
from ensadv_data.store.layout import FORMAT, Entry, Header, Planes, layout, root_attributes, shortened, zstd_level

__all__ = ["StoreWriter"]

U8 = npt.NDArray[np.uint8]
U64 = npt.NDArray[np.uint64]

_FULL_LEVEL = 1


class StoreWriter:
    """Creates a store, writes its blocks, and closes it. Any number of processes may hold one."""

    def __init__(self, path: Path, header: Header, entries: tuple[Entry, ...]) -> None:
        self.path, self.header, self.entries = path, header, entries
        self._kinds = {entry.key: entry.kind for entry in entries}

    def create(self) -> None:
        """Make the folder with its metadata, or accept the one that an interrupted run of the same plan left.

        Raises
        ------
        OutputError
            The folder holds something else, or cannot be written.
        """
        ours = self.header.attributes()
        if self.path.exists() and not self.path.is_dir():
            raise OutputError(f"expected a folder for the store at {self.path}, found a file; choose another --out")
        if self.path.is_dir() and not all(_is_leftover(p) for p in self.path.iterdir()):
            theirs = root_attributes(self.path)
            if theirs is None or theirs.get("format") != FORMAT:
                raise OutputError(
                    f"{self.path} holds something else than a store; it was not touched: choose another --out"
                )
            if theirs != ours:
                name = next((key for key in ours if theirs.get(key) != ours[key]), "keys")
                raise OutputError(
                    f"{self.path} holds a store of another plan ({name} differs: expected {shortened(ours.get(name))}, "
                    f"found {shortened(theirs.get(name))}); it was not touched; choose another --out"
                )
        with naming_trouble(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            if root_attributes(self.path) is None:
                zarr.create_group(store=self.path, zarr_format=3, attributes=ours)
            root = zarr.open_group(store=self.path, mode="r+", zarr_format=3)
            for name, attributes in self._groups().items():
                if name not in root:
                    root.create_group(name, attributes=attributes)
            for name in self._arrays():
                if name not in root:
                    self._create_array(root, name)

    def is_complete(self) -> bool:
        """Whether the manifest is there."""
        return (self.path / "manifest.json").is_file()

    def done(self) -> dict[int, dict[str, Any]]:
        """Valid done records by block; a record whose chunks are not there as it says does not count."""
        records = {}
        for file in sorted((self.path / "progress").glob("block-*.json")):
            try:
                record = json.loads(file.read_bytes())
                whole = all((self.path / key).stat().st_size == size for key, (size, _) in record["objects"].items())
            except (ValueError, KeyError, TypeError, OSError):
                continue
            if whole and file.name == f"block-{record['block']:06d}.json":
                records[int(record["block"])] = record
        return records

    def write_block(self, block: int, planes: Mapping[str, Planes], digests_N: U64) -> dict[str, Any]:
        """Write every chunk of one block, then its done record.

        Parameters
        ----------
        block
            Index of the block.
        planes
            For each entry's key, its rows for all draws.
        digests_N
            uint64 digests of the block's examples.

        Returns
        -------
        dict
            The done record: the objects with their sizes and SHA-256, and the zeros of each entry.

        Raises
        ------
        OutputError
            The disk is full, or the folder cannot be written.
        """
        objects, zeros = {}, {}
        for rows in planes.values():  # before anything is written
            _present(rows.label)
            _present(rows.direction if rows.delta is None else rows.delta)

        def put(name: str, *parts: bytes | memoryview) -> None:  # at once: no more than a chunk is held
            write_atomic(self.path / name, *parts)
            digest = hashlib.sha256()
            for part in parts:
                digest.update(part)
            objects[name] = [sum(map(len, parts)), digest.hexdigest()]

        put(f"example_digest/c/{block}", *self._chunk("example_digest", digests_N.astype("<u8")))
        for key, rows in planes.items():
            put(f"{key}/label/c/{block}", *self._chunk(f"{key}/label", _present(rows.label).astype("<i4")))
            if rows.delta is not None:
                for k, plane in enumerate(rows.delta):
                    put(f"{key}/delta/c/{k}/{block}/0", *self._chunk(f"{key}/delta", plane))
                continue
            zeros[key] = 0 if rows.nonzero is None else _count_zeros(rows.nonzero, self.header.d)
            for k, plane in enumerate(_present(rows.direction)):
                put(f"{key}/direction/c/{k}/{block}/0", *self._chunk(f"{key}/direction", plane))
                mask = (
                    (_full_chunk(len(plane), self.header.block, self.header.d),)
                    if rows.nonzero is None
                    else self._chunk(f"{key}/nonzero", rows.nonzero[k])
                )
                put(f"{key}/nonzero/c/{k}/{block}/0", *mask)
        first = block * self.header.block
        record = {
            "block": block,
            "first": first,
            "last": min(first + self.header.block, self.header.n) - 1,
            "objects": objects,
            "zeros": zeros,
        }
        write_atomic(self.path / "progress" / f"block-{block:06d}.json", _json(record))
        return record

    def collect(self) -> tuple[dict[str, tuple[int, str]], dict[str, int]]:
        """Objects (size, SHA-256) and zeros of each entry, from the records of all blocks; masks made visible.

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
            raise IntegrityError(f"{self.path}: no valid record of blocks {shortened(missing)}; run precompute again")
        zeros: dict[str, int] = {}
        for record in records.values():
            for key, count in record["zeros"].items():
                zeros[key] = zeros.get(key, 0) + count
        root = zarr.open_group(store=self.path, mode="r+", zarr_format=3)
        for key, count in zeros.items():
            if count and f"{key}/nonzero" not in root:
                self._create_array(root, f"{key}/nonzero")
        hidden = tuple(f"{key}/nonzero/" for key, count in zeros.items() if not count)
        objects = {
            key: (int(size), str(digest))
            for _, record in sorted(records.items())
            for key, (size, digest) in record["objects"].items()
            if not key.startswith(hidden)
        }
        return objects, zeros

    def close(self, manifest: bytes) -> None:
        """Write the manifest, then delete what only an unfinished store needs."""
        write_atomic(self.path / "manifest.json", manifest)
        self.tidy()

    def tidy(self) -> None:
        """Delete progress records, masks without zeros, and temporary files of killed runs from a complete store."""
        with naming_trouble(self.path):
            shutil.rmtree(self.path / "progress", ignore_errors=True)
            for entry in self.entries:
                mask = self.path / entry.key / "nonzero"
                if mask.is_dir() and not (mask / "zarr.json").exists():
                    shutil.rmtree(mask, ignore_errors=True)
            for left in filter(_is_leftover, self.path.rglob("*.partial*")):
                left.unlink(missing_ok=True)

    def _groups(self) -> dict[str, dict[str, Any]]:
        groups: dict[str, dict[str, Any]] = {}
        for entry in self.entries:
            groups[entry.source] = {"source_digest": entry.source_digest, "architecture": entry.architecture}
            groups[entry.key] = {
                "attack": entry.attack,
                "kind": entry.kind,
                "epsilon": entry.epsilon,
                "alpha": entry.alpha,
                "seed": entry.seed,
                "loss": entry.loss,
            }
        return groups

    def _arrays(self) -> list[str]:
        names = ["example_digest"]
        for entry in self.entries:
            names += [
                f"{entry.key}/{'delta' if entry.kind == 'delta' else 'direction'}",
                f"{entry.key}/label",
            ]
        return names

    def _create_array(self, root: zarr.Group, name: str) -> None:
        shape, dtype = layout(name.rpartition("/")[2], self.header)
        block = (self.header.block,) if len(shape) == 1 else (1, self.header.block, shape[2])
        level = self._level(name)
        root.create_array(
            name,
            shape=shape,
            chunks=block,
            dtype=dtype,
            fill_value=0,
            serializer=BytesCodec(),
            compressors=[Crc32cCodec() if level is None else ZstdCodec(level=level, checksum=True)],
            config={"write_empty_chunks": True},
        )

    def _level(self, array: str) -> int | None:
        entry, _, name = array.rpartition("/")
        return zstd_level(name, self._kinds.get(entry, ""), self.header)

    def _chunk(self, array: str, rows: npt.NDArray[Any]) -> tuple[bytes | memoryview, ...]:
        """The bytes of a chunk of that array: its rows, padded to a block, as the array's codec has them."""
        data, level = _padded(rows, self.header.block), self._level(array)
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


def _is_leftover(path: Path) -> bool:
    """Whether a killed run left it: a temporary file of write_atomic, or zarr's own ``zarr.HEX.partial``."""
    return path.name.startswith(".partial-") or (path.name.startswith("zarr.") and path.suffix == ".partial")


def _present(rows: npt.NDArray[Any] | None) -> npt.NDArray[Any]:
    if rows is None:
        raise InputError("expected directions and labels for every entry that is not a delta, got none")
    return rows


def _count_zeros(nonzero_KNB: U8, d: int) -> int:
    values: int = nonzero_KNB.shape[0] * nonzero_KNB.shape[1] * d
    return values - int(np.bitwise_count(nonzero_KNB).sum())


def _json(value: Any) -> bytes:
    return (json.dumps(value, sort_keys=True, separators=(",", ":")) + "\n").encode()
