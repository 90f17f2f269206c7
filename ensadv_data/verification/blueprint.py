"""What a manifest says that a store must be: every key, every size, and every word of the Zarr documents.

The documents are not among the objects of a manifest. They need not be: all that they say follows from it, so they are
made anew from the manifest and compared. Nothing of the store but its manifest is read to know what it must be.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from ensadv_data.codec import row_bytes
from ensadv_data.compression import zstd_bound
from ensadv_data.entries import entries_of, plan_of
from ensadv_data.errors import InputError, IntegrityError
from ensadv_data.manifest import Manifest
from ensadv_data.objects import Objects
from ensadv_data.spec import PrecomputeSpec, checked
from ensadv_data.store import Entry, Header, block_of, chunk_keys, chunk_rows, made_documents, row_arrays, zstd_level
from ensadv_data.untrusted import ZARR, parse_json, quoted

__all__ = ["Array", "Blueprint", "blueprint_of", "check_documents"]

_DEVICES = ("cpu", "cuda", "mps", "xpu")
_PREPARATION = {"preprocess", "decoder", "on_bad_image", "skipped", "skipped_first"}


@dataclass(frozen=True)
class Array:
    """One array of a store, and how its chunks are encoded.

    Attributes
    ----------
    path
        Of its folder in the store.
    size
        Bytes of the rows of a chunk.
    raw
        Whether a checksum follows them, rather than that they are compressed.
    """

    path: str
    size: int
    raw: bool

    @property
    def name(self) -> str:
        """Such as ``direction``."""
        return self.path.rpartition("/")[2]

    def key(self, draw: int, block: int) -> str:
        """Of a chunk; ``draw`` is of no consequence where an array has none."""
        return (
            f"{self.path}/c/{block}" if self.name in ("label", "example_digest") else f"{self.path}/c/{draw}/{block}/0"
        )


@dataclass(frozen=True)
class Blueprint:
    """What a store must be; of a copy that has a part of it, ``here`` has the blocks of each entry, else None."""

    manifest: Manifest
    spec: PrecomputeSpec  # whose models have names and no references
    header: Header
    entries: tuple[Entry, ...]
    here: Mapping[str, frozenset[int]] | None = None
    masks: frozenset[str] | None = None  # of entries whose zeros cannot be counted, since not all blocks are here

    def blocks_of(self, key: str = "") -> frozenset[int]:
        """Blocks of an entry that are here; of the digests of the images, unless one is named."""
        if self.here is None:
            return frozenset(range(self.header.blocks))
        return self.here[key] if key else frozenset().union(*self.here.values())

    @cached_property
    def masked(self) -> frozenset[str]:
        """Keys of the entries that have a mask."""
        if self.masks is not None:
            return self.masks
        return frozenset(key for key, count in self.manifest.zeros.items() if count)

    @cached_property
    def digests(self) -> Array:
        """The array of digests of the images."""
        return self._array("example_digest", "")

    def label(self, entry: Entry) -> Array:
        """The array of an entry's labels."""
        return self._array(f"{entry.key}/label", entry.kind)

    def rows(self, entry: Entry) -> tuple[Array, ...]:
        """The arrays of an entry's rows: direction and perhaps nonzero, or delta."""
        names = row_arrays(entry.kind, masked=entry.key in self.masked)
        return tuple(self._array(f"{entry.key}/{name}", entry.kind) for name in names)

    def arrays(self) -> Iterator[Array]:
        """All of them."""
        yield self.digests
        for entry in self.entries:
            yield self.label(entry)
            yield from self.rows(entry)

    @cached_property
    def documents(self) -> dict[str, bytes]:
        """The Zarr documents, by key, as this version writes them."""
        return made_documents(self.header, self.entries, self.masked)

    def within(self, groups: Collection[str], here: Mapping[str, frozenset[int]] | None = None) -> Blueprint:
        """What a copy must be that has only the entries of these keys, and perhaps only these blocks of each."""
        prefixes = ("example_digest/", *(f"{key}/" for key in groups))
        manifest = self.manifest.model_copy(
            update={
                "objects": {key: about for key, about in self.manifest.objects.items() if key.startswith(prefixes)},
                "zeros": {key: count for key, count in self.manifest.zeros.items() if key in groups},
            }
        )
        entries = tuple(entry for entry in self.entries if entry.key in groups)
        found = replace(self, manifest=manifest, entries=entries)
        if here is None or all(len(blocks) == self.header.blocks for blocks in here.values()):
            return found
        found = replace(found, here=here)

        def is_here(key: str) -> bool:
            entry = key.rpartition("/c/")[0].rpartition("/")[0]
            return block_of(key) in found.blocks_of(entry)

        objects = {key: record for key, record in manifest.objects.items() if is_here(key)}
        whole = {key: count for key, count in manifest.zeros.items() if len(here[key]) == self.header.blocks}
        manifest = manifest.model_copy(update={"objects": objects, "zeros": whole})
        return replace(found, manifest=manifest, masks=found.masked)

    def batch_size(self, block: int) -> int:
        """Images that were computed at once in a block."""
        smaller = self.manifest.plan.get("smaller_batches", {})
        return next((int(size) for size, blocks in smaller.items() if block in blocks), int(self.spec.batch_size))

    def _array(self, path: str, kind: str) -> Array:
        name = path.rpartition("/")[2]
        return Array(path, chunk_rows(name, self.header), zstd_level(name, kind, self.header) is None)


def blueprint_of(manifest: Manifest, *, where: str) -> Blueprint:
    """What the store of a manifest must be.

    Parameters
    ----------
    manifest
        As :func:`~ensadv_data.manifest.parse_manifest` gives it.
    where
        Where it is from, for messages.

    Raises
    ------
    IntegrityError
        The manifest contradicts itself: its plan is none that precompute has, a source is there twice, an object is
        not a chunk that the plan makes, or has a size that none has.
    """
    spec = _spec_of(manifest, where)
    data = manifest.data
    groups = tuple(f"{source.name}/{attack.name}" for source in manifest.sources for attack in spec.attacks)
    header = Header(
        data=data.name,
        split=data.split,
        data_digest=data.digest,
        shape=data.shape,
        classes=data.classes,
        n=data.n,
        draws=manifest.draws,
        groups=groups,
        plan={key: value for key, value in manifest.plan.items() if key != "smaller_batches"},
    )
    entries = tuple(entry for source in manifest.sources for entry in entries_of(spec, source).values())
    found = Blueprint(manifest, spec, header, entries)
    _check_zeros(found, where)
    _check_objects(found, where)
    return found


def check_documents(place: Objects, blueprint: Blueprint) -> int:
    """Compare the Zarr documents of a store with those that its manifest asks for; returns how many there are.

    So no chunk is decoded by what a document says: Zarr v2, other types, other codecs, a shape of 2⁶² are all refused
    here, by not being what is expected.

    Raises
    ------
    IntegrityError
        One is missing, too large, no JSON, or says something else.
    """
    expected = blueprint.documents
    for key, made in expected.items():
        where = f"{place}/{key}"
        try:
            raw = place.read_at_most(key, ZARR.size)
        except FileNotFoundError:
            raise IntegrityError(f"{where}: expected a Zarr document, found none; copy the store again") from None
        ours, theirs = (_plain(parse_json(data, what=where, limits=ZARR)) for data in (made, raw))
        if difference := _difference(ours, theirs, ""):
            raise IntegrityError(f"{where}: {difference}, as the manifest has it; copy the store again")
    return len(expected)


def _spec_of(manifest: Manifest, where: str) -> PrecomputeSpec:
    plan, sources = dict(manifest.plan), manifest.sources
    if len({source.name for source in sources}) < len(sources):
        raise IntegrityError(f"{where}: expected each source once, found {', '.join(quoted(s.name) for s in sources)}")
    smaller, images = plan.pop("smaller_batches", {}), plan.pop("images", {})
    base = dict(plan)
    for name in ("threads", "sources"):
        plan.pop(name, None)
    try:
        if plan.get("device") not in _DEVICES or not isinstance(plan.get("attacks"), list):
            raise InputError("a device that exists, and attacks")
        spec = checked(
            PrecomputeSpec, {**plan, "models": {s.name: "" for s in sources}, "draws": manifest.draws}, where="plan"
        )
        is_whole = type(spec.batch_size) is int and spec.batch_size > 0
        is_known = _is_smaller(smaller) and isinstance(images, dict) and images.keys() <= _PREPARATION
        if not is_whole or not is_known or plan_of(spec, sources) != base:
            raise InputError("the keys and values that precompute writes")
    except InputError as error:
        raise IntegrityError(f"{where}: expected a plan of precompute: {quoted(error, 200)[1:-1]}") from None
    return spec


def _is_smaller(smaller: Any) -> bool:
    return isinstance(smaller, dict) and all(
        size.isascii() and size.isdigit() and len(size) < 10 and int(size) and isinstance(blocks, list)
        for size, blocks in smaller.items()
    )


def _check_zeros(found: Blueprint, where: str) -> None:
    signs = {entry.key for entry in found.entries if entry.kind != "delta"}
    values = found.header.draws * found.header.n * found.header.d
    zeros = found.manifest.zeros
    if zeros.keys() != signs or not all(0 <= count <= values for count in zeros.values()):
        raise IntegrityError(f"{where}: expected counts of zeros for {', '.join(sorted(signs))}, from 0 to {values:,}")


def _check_objects(found: Blueprint, where: str) -> None:
    """Counted before they are enumerated: a manifest may tell of more chunks than there is room for."""
    objects, header = found.manifest.objects, found.header
    arrays = list(found.arrays())
    chunks = sum(header.blocks * (1 if a.name in ("label", "example_digest") else header.draws) for a in arrays)
    if chunks != len(objects):
        raise IntegrityError(
            f"{where}: expected {chunks:,} objects of {header.n:,} images of {row_bytes(header.d):,} bytes in "
            f"{header.draws} draws, {len(found.entries)} entries and {header.blocks:,} blocks, found {len(objects):,}"
        )
    for array in arrays:
        least, most = (array.size + 4, array.size + 4) if array.raw else (1, zstd_bound(array.size))
        for key in chunk_keys(array.path, header):
            record = objects.get(key)
            if record is None:
                other = next(iter(objects.keys() - {k for a in arrays for k in chunk_keys(a.path, header)}))
                raise IntegrityError(f"{where}: expected the object {key}, found {quoted(other)} instead")
            if not least <= record.bytes <= most:
                raise IntegrityError(f"{where}: {key}: expected {least:,} to {most:,} bytes, found {record.bytes:,}")


_LEVELS = range(1, 23)  # of zstd; a frame is decoded without it
_OPTIONAL: tuple[tuple[str, Any], ...] = (
    ("attributes", {}),
    ("storage_transformers", []),
    ("consolidated_metadata", None),
    ("dimension_names", None),
)


def _plain(document: Any) -> Any:
    """A document without what Zarr's writers may leave out or put in, to the same effect."""
    if not isinstance(document, dict):
        return document
    plain = {key: value for key, value in document.items() if (key, value) not in _OPTIONAL}
    if isinstance(codecs := plain.get("codecs"), list):
        plain["codecs"] = [_plain_codec(codec) for codec in codecs]
    return plain


def _plain_codec(codec: Any) -> Any:
    if not isinstance(codec, dict):
        return codec
    plain = {key: value for key, value in codec.items() if (key, value) != ("configuration", {})}
    how = plain.get("configuration")
    if plain.get("name") == "zstd" and isinstance(how, dict) and how.get("level") in _LEVELS:
        plain["configuration"] = {key: value for key, value in how.items() if key != "level"}  # the writer's own affair
    return plain


def _difference(ours: Any, theirs: Any, path: str) -> str:
    """Where two documents differ first, in words; empty where they do not."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for key in sorted(ours.keys() | theirs.keys()):
            if key not in theirs:
                return f"expected {quoted(f'{path}{key}')}, found nothing"
            if key not in ours:
                return f"expected no {quoted(f'{path}{key}')}, found it"
            if difference := _difference(ours[key], theirs[key], f"{path}{key}."):
                return difference
        return ""
    if type(ours) is type(theirs) and ours == theirs:
        return ""
    return f"{quoted(path[:-1])}: expected {quoted(ours)}, found {quoted(theirs)}"
