"""Stores as WebDataset shards, and back: ``export_store`` and ``import_store``. store/shards.py has the format."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from ensadv_data.data import Dataset, digest_examples
from ensadv_data.errors import InputError, IntegrityError, Interrupted, OutputError, QuantityError
from ensadv_data.files import is_leftover, naming_trouble, write_atomic
from ensadv_data.manifest import Manifest, ObjectRecord, parse_manifest, read_manifest
from ensadv_data.objects import Folder, Objects, objects_at
from ensadv_data.progress import progress_bar
from ensadv_data.store import Cache, Entry, Planes, Store, StoreWriter, open_store
from ensadv_data.store.index import EntryRecord, ExportIndex, ShardRecord, StoreRecord, parse_index
from ensadv_data.store.shards import INDEX, TAR_END, ExportedStore, Records, Shard, members_of
from ensadv_data.trust import ENVELOPE_NAME
from ensadv_data.untrusted import ENVELOPE, OWN_MANIFEST
from ensadv_data.verification import blueprint_of

__all__ = ["Exchanged", "export_store", "import_store"]


@dataclass(frozen=True)
class Exchanged:
    """What an export or an import made."""

    place: str
    shards: int
    records: int
    bytes: int  # of the shards
    digest: str  # of the store
    is_equal: bool  # an import: whether the store is that which was exported, byte for byte
    seconds: float


def export_store(store: Path | str, out: Path, *, shard_bytes: int = 10**9, images: Dataset | None = None) -> Exchanged:
    """Write a store as WebDataset shards.

    Parameters
    ----------
    shard_bytes
        Bytes of a shard at most; one record is written even where it is larger.
    images
        The images that the store was made for, for a joint set; None: an overlay, without any image.

    Raises
    ------
    QuantityError
        ``shard_bytes`` is below one.
    InputError
        A joint set is asked for, of a store of views.
    OutputError
        ``out`` holds something else, or cannot be written.
    AlignmentError
        The images are others than those that the store was made for.
    Interrupted
        Ctrl-C; the same command goes on after the last whole shard.
    """
    began = time.perf_counter()
    if shard_bytes < 1:
        raise QuantityError(f"shard_bytes: expected at least 1, got {shard_bytes}")
    source = open_store(store, cache=Cache())
    raw = objects_at(store).read("manifest.json")
    masked = frozenset(entry.key for entry in source.entries if source.has_mask(entry))
    records = Records(source.header, source.entries, masked, images is not None)
    if images is not None:
        if source.header.plan.get("augment") is not None:
            raise InputError(
                f"{store}: expected no --data to export views, got it: directions belong to crops, not to it"
            )
        _check_images(source, images)
    name = _name(source.place)
    planned = list(_planned(records, name, shard_bytes))
    index = _index(records, raw, planned)
    if (out / INDEX).exists():
        _check_same(out, index)
    _claim(out, {INDEX, "manifest.json", ENVELOPE_NAME, *(shard.name for shard in planned)}, raw)
    _take_signature(source.place, Folder(out))
    done = []
    rows = _Rows(source)
    try:
        with progress_bar(f"export {name}", total=records.count, unit="records") as advance:
            for shard in planned:
                done.append(_written(rows, records, shard, out / shard.name, images))
                advance(shard.last - shard.first + 1)
    except KeyboardInterrupt:
        raise Interrupted(f"{out}: stopped; every whole shard is kept, and the same command resumes") from None
    write_atomic(out / INDEX, _index(records, raw, done).to_bytes())
    size = sum(shard.bytes for shard in done)
    digest = parse_manifest(raw, str(store)).digest
    return Exchanged(str(out), len(done), records.count, size, digest, True, time.perf_counter() - began)


def import_store(origin: Path | str, out: Path) -> Exchanged:
    """Make a store of an exported set, each shard compared with its digest, and with what a shard may be.

    Raises
    ------
    IntegrityError
        A shard is not what the index says.
    InputError
        The set is of a part of a store.
    OutputError
        ``out`` holds something else, or cannot be written.
    Interrupted
        Ctrl-C; the same command goes on.
    """
    began = time.perf_counter()
    source = open_store(origin)
    if not isinstance(source, ExportedStore):
        raise OutputError(f"expected an exported set at {origin}, found a store; copy it with pull")
    raw = _manifest_bytes(source)
    known = _proved_manifest(source, raw)
    writer = StoreWriter(out, source.header, source.entries)
    try:
        with progress_bar(f"check {source.place.name}", total=len(source.shards), unit="shards") as advance:
            for shard in source.shards:
                source.check_shard(shard)
                advance(1)
        writer.create()
        rows = _Rows(source)
        done = frozenset(range(source.header.blocks)) if writer.is_complete() else frozenset(writer.done())
        todo = [block for block in range(source.header.blocks) if block not in done]
        with progress_bar(f"import {source.place.name}", total=len(todo), unit="blocks") as advance:
            for block in todo:
                writer.write_block(block, *rows.block(block))
                advance(1)
    except KeyboardInterrupt:
        raise Interrupted(f"{out}: stopped; every finished block is kept, and the same command resumes") from None
    manifest = read_manifest(out) if writer.is_complete() else _manifest(writer, known)
    is_equal = manifest.objects == known.objects
    if not writer.is_complete():
        writer.close(raw if is_equal else manifest.to_bytes())
    if is_equal:
        _take_signature(source.place, objects_at(out))
    size = sum(shard.bytes for shard in source.shards)
    seconds = time.perf_counter() - began
    return Exchanged(str(out), len(source.shards), source.records.count, size, manifest.digest, is_equal, seconds)


def _name(place: Objects) -> str:
    kept = "".join(
        letter if letter.isascii() and (letter.isalnum() or letter in "_-") else "-" for letter in place.name
    )
    return kept.strip("-")[:100] or "store"


def _planned(records: Records, name: str, most: int) -> Iterator[Shard]:
    """Shards of as many records as fit."""
    each = records.bytes(0)
    per = max(1, (most - TAR_END) // each)
    for number, first in enumerate(range(0, records.count, per)):
        last = min(first + per, records.count) - 1
        yield Shard(f"{name}-{number:06d}.tar", first, last, records.shard_bytes(first, last), "0" * 64)


def _index(records: Records, manifest: bytes, shards: list[Shard]) -> ExportIndex:
    header = records.header
    entries = (EntryRecord(**asdict(entry), masked=entry.key in records.masked) for entry in records.entries)
    about = header.attributes()
    return ExportIndex(
        version=about["version"],
        kind="joint" if records.is_joint else "overlay",
        manifest=hashlib.sha256(manifest).hexdigest(),
        store=StoreRecord(**{name: about[name] for name in StoreRecord.model_fields}),
        entries=tuple(entries),
        records=records.count,
        examples_per_record=records.size,
        shards=tuple(
            ShardRecord(url=shard.name, first=shard.first, last=shard.last, bytes=shard.bytes, sha256=shard.sha256)
            for shard in shards
        ),
    )


def _check_same(out: Path, index: ExportIndex) -> None:
    """Refuse to write over a finished set of another store, or of another size of shards."""
    try:
        _, _, there = parse_index((out / INDEX).read_bytes(), str(out / INDEX))
    except IntegrityError as error:
        raise OutputError(f"{error}; it was not touched: choose another --out") from None

    def planned(found: ExportIndex) -> dict[str, Any]:
        return found.model_dump(exclude={"shards": {"__all__": {"sha256"}}})

    if planned(there) != planned(index):
        raise OutputError(f"{out} holds another exported set; it was not touched: choose another --out")


def _claim(out: Path, ours: set[str], manifest: bytes) -> None:
    """Make the folder, or accept one that holds a part of the same export only."""
    with naming_trouble(out):
        out.mkdir(parents=True, exist_ok=True)
        others = [path.name for path in out.iterdir() if path.name not in ours and not is_leftover(path)]
        if others:
            raise OutputError(f"{out} holds something else ({others[0]}); it was not touched: choose another --out")
        if Folder(out).claim("manifest.json", manifest) != manifest:
            raise OutputError(f"{out} holds the export of another store; it was not touched: choose another --out")


def _written(rows: _Rows, records: Records, shard: Shard, path: Path, images: Dataset | None) -> Shard:
    """The shard with its digest, written unless it is there."""
    digest = hashlib.sha256()
    if path.exists() and path.stat().st_size == shard.bytes:
        with path.open("rb") as file:
            return shard._replace(sha256=hashlib.file_digest(file, "sha256").hexdigest())
    with _whole(path) as file:
        for record in range(shard.first, shard.last + 1):
            for part in members_of(records, record, _values(rows, records, record, images)):
                digest.update(part)
                file.write(part)
        digest.update(bytes(TAR_END))
        file.write(bytes(TAR_END))
    return shard._replace(sha256=digest.hexdigest())


@contextmanager
def _whole(path: Path) -> Iterator[BinaryIO]:
    """A file that gets its name when all of it is on the disk."""
    part = path.with_name(f".partial-{os.getpid()}-{path.name}")
    with naming_trouble(path):
        try:
            with part.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)


class _Rows:
    """All draws of any rows of a store; their labels and digests are held, 8 bytes an image and 4 for each entry."""

    def __init__(self, store: Store) -> None:
        self.store, self.digests = store, store.example_digests()
        self._labels = {entry.key: store.labels(entry) for entry in store.entries}

    def planes(self, entry: Entry, rows: npt.NDArray[np.int64]) -> Planes:
        """Shapes (K, n, …), and (n,) of labels."""
        drawn = (np.full(len(rows), draw) for draw in range(self.store.header.draws))
        draws = [self.store.gather(entry, draw, rows) for draw in drawn]

        def stacked(name: str) -> Any:
            return None if getattr(draws[0], name) is None else np.stack([getattr(planes, name) for planes in draws])

        return Planes(stacked("direction"), stacked("nonzero"), stacked("delta"), self._labels[entry.key][rows])

    def block(self, block: int) -> tuple[dict[str, Planes], npt.NDArray[np.uint64]]:
        """What a writer writes of a block."""
        header = self.store.header
        rows = np.arange(block * header.block, min((block + 1) * header.block, header.n))
        return {entry.key: self.planes(entry, rows) for entry in self.store.entries}, self.digests[rows]


def _values(rows: _Rows, records: Records, record: int, images: Dataset | None) -> dict[str, npt.NDArray[Any]]:
    """The values of the members of a record."""
    some = np.array(records.examples(record), np.int64)
    found: dict[str, npt.NDArray[Any]] = {"digest.npy": rows.digests[some]}
    if images is not None:
        pixels, classes = images.read(some)
        rows.store.prove(digest_examples(pixels), some)
        found |= {"image.npy": pixels, "class.npy": classes}
    for number, entry in enumerate(records.entries):
        planes = rows.planes(entry, some)
        found |= {f"e{number}.{name}.npy": plane for name, plane in planes._asdict().items() if plane is not None}
    return found


def _check_images(store: Store, images: Dataset) -> None:
    """Refuse images of another shape or number; that they are the same ones is proved as they are read."""
    store.check_shape(images.shape, images.name)
    if len(images) != store.header.n:
        raise InputError(
            f"{store.place}: expected the {store.header.n} images of {store.header.data}, got {len(images)} of "
            f"{images.name}; use the same data and the same --limit as its precompute"
        )


def _manifest_bytes(source: ExportedStore) -> bytes:
    try:
        return source.place.read_at_most("manifest.json", OWN_MANIFEST.size)
    except FileNotFoundError:
        raise IntegrityError(f"expected {source.place}/manifest.json, found none; fetch the set again") from None


def _proved_manifest(source: ExportedStore, raw: bytes) -> Manifest:
    """The manifest of the store that was exported, if the index says what follows from it."""
    where = f"{source.place}/manifest.json"
    manifest = parse_manifest(raw, where, limits=OWN_MANIFEST)
    plan = blueprint_of(manifest, where=where)
    expected, found = (plan.header, plan.entries, plan.masked), source.records
    if set(found.header.groups) < set(plan.header.groups):
        raise InputError(
            f"expected a set of a whole store at {source.place}, found one of a part "
            f"({', '.join(found.header.groups)}); train on it as it is, or pull that part of the store"
        )
    if expected != (found.header, found.entries, found.masked):
        raise IntegrityError(f"{where}: expected the manifest of the store that index.json tells of, found another")
    return manifest


def _take_signature(origin: Objects, to: Objects) -> None:
    """What somebody signed of the manifest goes where the manifest goes; who trusts him checks it there."""
    with suppress(FileNotFoundError):
        to.write(ENVELOPE_NAME, origin.read_at_most(ENVELOPE_NAME, ENVELOPE.size))


def _manifest(writer: StoreWriter, known: Manifest) -> Manifest:
    objects, zeros, _ = writer.collect()
    found = {key: ObjectRecord(bytes=size, sha256=digest) for key, (size, digest) in objects.items()}
    return known.model_copy(update={"objects": found, "zeros": zeros})
