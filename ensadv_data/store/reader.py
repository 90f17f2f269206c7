"""Reading a complete store: chunks are memory-mapped or decompressed, and checked the first time each is used."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import zarr

from ensadv_data.codec import row_bytes
from ensadv_data.errors import AlignmentError, ChunkError, InputError, IntegrityError, UnknownNameError
from ensadv_data.objects import AT_ONCE, Kept, Objects
from ensadv_data.store.chunks import Cache, Chunks
from ensadv_data.store.decoding import decode_chunk
from ensadv_data.store.layout import (
    FORMAT,
    Entry,
    Header,
    Planes,
    chunk_keys,
    chunk_rows,
    format_version,
    header_from,
    layout,
    root_attributes,
    row_arrays,
    zstd_level,
)
from ensadv_data.store.metadata import fetched_group
from ensadv_data.store.part import groups_here
from ensadv_data.untrusted import OWN_MANIFEST, parse_json, quoted

__all__ = ["Store", "read_store"]

U8 = npt.NDArray[np.uint8]
I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]


_FEW = 2**20  # chunks of an array whose table takes no memory to speak of
_planes = tuple.__new__  # a third of the time of Planes(…)
_REMEDY = "copy the store again, or run its precompute command again with --repair"


class Store:
    """A complete store, for reading. A chunk is checked the first time that it is used."""

    def __init__(
        self, place: Objects, header: Header, entries: tuple[Entry, ...], masked: frozenset[str], cache: Cache
    ) -> None:
        self.place, self.header, self.entries = place, header, entries
        self._masked = masked  # keys of the entries that have a mask
        self._cache = cache
        self._readers: dict[str, Callable[[I64, I64], Planes]] = {}  # by entry's key
        self._digests = Chunks(
            1, header.n, header.block, width=8, load=lambda draw, block: self._chunk(f"example_digest/c/{block}", 8)
        )

    def entry(self, key: str) -> Entry:
        """The entry of that SOURCE/ATTACK.

        Raises
        ------
        UnknownNameError
            There is none; the message lists those that exist.
        """
        for entry in self.entries:
            if entry.key == key:
                return entry
        raise UnknownNameError(f"source/attack in {self.place}", key, [entry.key for entry in self.entries])

    def has_mask(self, entry: Entry) -> bool:
        """Whether any value of the entry is zero."""
        return entry.key in self._masked

    def gather(self, entry: Entry, draws_B: I64, rows_B: I64) -> Planes:
        """Rows of one entry, in the order asked for.

        Parameters
        ----------
        draws_B, rows_B
            int64 of shape (B,): draw and example of each row.

        Returns
        -------
        Planes
            Packed rows of shape (B, ⌈D/8⌉), or int8 (B, D) for deltas.

        Raises
        ------
        InputError
            An example or a draw is out of range.
        ChunkError
            A chunk is missing, truncated or corrupted.
        """
        try:
            read = self._readers[entry.key]
        except KeyError:
            read = self._reader(entry)
        try:
            return read(draws_B, rows_B)
        except InputError as error:
            raise InputError(f"{self.place}: {error}") from None

    def check_shape(self, shape: tuple[int, ...], data: str) -> None:
        """Refuse images of another shape (C, H, W) than the store's, by the name of their data set.

        Raises
        ------
        InputError
            The message has both shapes.
        """
        if self.header.shape != shape:
            raise InputError(
                f"{self.place}: expected directions for images of shape {shape}, found {self.header.shape}; "
                + (self._prepared() or f"was the store made for {self.header.data} rather than {data}?")
            )

    def _prepared(self) -> str:
        """How the images were preprocessed that the store was made for; of images that need none, nothing."""
        images = self.header.plan.get("images")
        how = images.get("preprocess") if isinstance(images, dict) else None
        if not isinstance(how, dict):
            return ""
        keys = ("size", "crop" if how.get("crop") == "squash" else "resize", "interpolation")
        given = [f"{key}={how[key]}" for key in keys if key in how] + ["scaled=yes"] * (how.get("scaled") is True)
        option = quoted(",".join(given))
        return f"it was made for {self.header.data} with --preprocess {option}"

    def prove(self, found_N: U64, rows_N: I64) -> None:
        """Refuse images that are not those that the store was made for.

        Parameters
        ----------
        found_N, rows_N
            uint64 digests of images, and int64 which examples they are to be.

        Raises
        ------
        AlignmentError
            The message has index, expected and found digest.
        """
        expected_N = self._digests.gather(np.zeros(len(rows_N), np.int64), rows_N).view("<u8")[:, 0]
        if len(wrong := np.flatnonzero(found_N != expected_N)):
            first, about = wrong[0], self.header
            raise AlignmentError(
                f"{self.place}: example {rows_N[first]}: expected an image with digest {int(expected_N[first]):016x}, "
                f"found {int(found_N[first]):016x}; the store was made for other images "
                f"({about.data}/{about.split}, {about.n} of them)"
                + (f"; {prepared}: are the files, and that, as they were?" if (prepared := self._prepared()) else "")
            )

    def example_digests(self) -> U64:
        """uint64 digests of all examples, shape (N,)."""
        parts = [self._chunk(f"example_digest/c/{block}", 8).view("<u8") for block in range(self.header.blocks)]
        return np.concatenate(parts).ravel()[: self.header.n].astype(np.uint64, copy=False)

    def labels(self, entry: Entry) -> npt.NDArray[np.int32]:
        """int32 labels that the attack used, shape (N,)."""
        parts = [self._chunk(f"{entry.key}/label/c/{block}", 4).view("<i4") for block in range(self.header.blocks)]
        return np.concatenate(parts).ravel()[: self.header.n].astype(np.int32, copy=False)

    def held_bytes(self, entry: Entry, blocks: int, draws: int) -> int:
        """Bytes that so many blocks and draws of an entry take in memory: maps of files take none."""
        header = self.header
        chunks = min(blocks, header.blocks) * min(draws, header.draws)
        return chunks * sum(chunk_rows(name, header) for name in self._row_arrays(entry) if self._is_held(name, entry))

    def object_sizes(self, entry: Entry) -> dict[str, int]:
        """Bytes on disk of each array of an entry.

        Raises
        ------
        ChunkError
            A chunk is missing.
        """
        names = ("label", *self._row_arrays(entry))
        keys = {name: list(chunk_keys(f"{entry.key}/{name}", self.header)) for name in names}
        sizes = self.place.sizes(key for chunks in keys.values() for key in chunks)
        for key in (key for chunks in keys.values() for key in chunks if key not in sizes):
            raise self._missing(key)
        return {name: sum(sizes[key] for key in chunks) for name, chunks in keys.items()}

    def _row_arrays(self, entry: Entry) -> tuple[str, ...]:
        return row_arrays(entry.kind, masked=self.has_mask(entry))

    def _is_held(self, name: str, entry: Entry) -> bool:
        """Whether the chunks of an array of rows take memory, decompressed or fetched, and are not maps of files."""
        return zstd_level(name, entry.kind, self.header) is not None or not self.place.is_mapped

    def _reader(self, entry: Entry) -> Callable[[I64, I64], Planes]:
        """What gathers rows of an entry; with no look-up in it: a batch of small rows takes two microseconds."""
        arrays = self._opened(entry)
        first, *rest = (array.gather for array in arrays.values())  # direction and perhaps nonzero; or delta
        if entry.kind == "delta":

            def read(draws_B: I64, rows_B: I64) -> Planes:
                return Planes(delta=first(draws_B, rows_B).view(np.int8))

        elif rest:

            def read(draws_B: I64, rows_B: I64) -> Planes:
                return Planes(first(draws_B, rows_B), rest[0](draws_B, rows_B))

        else:

            def read(draws_B: I64, rows_B: I64) -> Planes:
                return _planes(Planes, (first(draws_B, rows_B), None, None, None))

        self._readers[entry.key] = read
        return read

    def _opened(self, entry: Entry) -> dict[str, Chunks]:
        """The arrays of rows of an entry, by name: chunks are memory-mapped, or decompressed and held for a time."""
        header, opened = self.header, {}
        for name in self._row_arrays(entry):
            raw = zstd_level(name, entry.kind, header) is None
            width = header.d if name == "delta" else row_bytes(header.d)

            def load(draw: int, block: int, *, name: str = name, width: int = width, raw: bool = raw) -> U8:
                return self._chunk(f"{entry.key}/{name}/c/{draw}/{block}/0", width, raw=raw)

            opened[name] = Chunks(
                header.draws,
                header.n,
                header.block,
                width=width,
                load=load,
                cache=self._cache if self._is_held(name, entry) else None,
                at_once=1 if self.place.is_local else AT_ONCE,
            )
        return opened

    def _chunk(self, key: str, width: int, *, raw: bool = True) -> U8:
        """One chunk as uint8 (S, width), checked; fetched again where it may have been damaged on its way."""
        read = self._mapped if raw else self._decompressed
        try:
            return read(key, width)
        except ChunkError:
            if self.place.is_local:
                raise
            self.place.forget(key)
            return read(key, width)

    def _mapped(self, key: str, width: int) -> U8:
        """One chunk as uint8 (S, width), memory-mapped where it is a file; its size and checksum are checked."""
        try:
            mapped = self.place.array(key)
        except OSError:
            raise self._missing(key) from None
        try:
            rows = decode_chunk(mapped, size=self.header.block * width, raw=True)
        except ChunkError as error:
            raise ChunkError(f"{self.place}/{key}: {error}: {_REMEDY}") from None
        return rows.reshape(self.header.block, width)

    def _decompressed(self, key: str, width: int) -> U8:
        """One chunk that was a zstd frame as uint8 (S, width); the frame has a checksum of its own."""
        try:
            data = np.frombuffer(self.place.read(key), np.uint8)
        except OSError:
            raise self._missing(key) from None
        try:
            plane = decode_chunk(data, size=self.header.block * width, raw=False)
        except ChunkError as error:
            raise ChunkError(f"{self.place}/{key}: {error}; the chunk is corrupted: {_REMEDY}") from None
        return plane.reshape(self.header.block, width)

    def _missing(self, key: str) -> ChunkError:
        return ChunkError(f"{self.place}/{key}: the chunk is missing; {_REMEDY}")


def read_store(path: Objects, *, cache: Cache | None = None) -> Store:
    """A complete store, for reading; arguments and errors as those of ``open_store``, which opens exported sets too."""
    attributes = root_attributes(path)
    if attributes is None or attributes.get("format") != FORMAT:
        raise InputError(f"expected a store at {path}, found none; make one with: ensadv-data precompute --out STORE")
    plan = attributes.get("plan")
    if attributes.get("version") != (wanted := format_version(plan if isinstance(plan, dict) else {})):
        raise InputError(f"{path}: expected format version {wanted}, found {quoted(attributes.get('version'))}")
    try:
        manifest = path.read_at_most("manifest.json", OWN_MANIFEST.size)
    except FileNotFoundError:
        done = path.keys("progress/")
        for move in ("pull", "push"):
            if f"progress/{move}.json" in done:
                raise InputError(
                    f"{path}: the copy of a store is unfinished; run the same {move} command again"
                ) from None
        raise InputError(
            f"{path}: the store is unfinished ({len(done)} blocks done); run the same precompute command again"
        ) from None
    try:
        about = parse_json(manifest, what=f"{path}/manifest.json", limits=OWN_MANIFEST)
        zeros = about.get("zeros", {})
        masked = frozenset(key for key in attributes["groups"] if zeros.get(key))
        header = header_from(attributes)
        if attributes["block"] != header.block:
            raise InputError(f"{path}: expected blocks of {header.block} examples, found {quoted(attributes['block'])}")
        if header.draws * header.blocks > max(len(about["objects"]), _FEW):  # before room is made for any of them
            raise ValueError(f"{header.draws} × {header.blocks} chunks of an array, {len(about['objects'])} objects")
        groups = groups_here(path, manifest, header)
        root = fetched_group(path, groups, masked)
        entries = []
        for key in groups:
            source, _, attack = key.partition("/")
            if key not in root:
                raise ChunkError(f"{path}: the group {key} is missing; copy the store again")
            leaf = root[key]
            if not isinstance(leaf, zarr.Group):
                raise TypeError(f"{key} is no group")
            entry = Entry(source=source, **dict(root[source].attrs), **dict(leaf.attrs))  # type: ignore[arg-type]
            if entry.attack != attack:
                raise IntegrityError(
                    f"{path}: expected {attack} in the group {key}, found {quoted(entry.attack)}; copy the store again"
                )
            entries.append(entry)
            for name in (*row_arrays(entry.kind, masked=key in masked), "label"):
                _check_array(leaf, name, entry.kind, header, path)
        _check_array(root, "example_digest", "", header, path)
        if cache and cache.shelf and not path.is_local:
            known = {key: (int(o["bytes"]), str(o["sha256"])) for key, o in about["objects"].items()}
            path = Kept(path, cache.shelf, known)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise IntegrityError(f"{path}: the store's metadata is damaged: {error}; copy the store again") from None
    return Store(path, header, tuple(entries), masked, cache or Cache())


def _check_array(group: zarr.Group, name: str, kind: str, header: Header, path: Objects) -> None:
    """No other codec, shape or dtype is accepted than the ones of this format."""
    if name not in group:
        raise ChunkError(f"{path}: the array {group.name}/{name} is missing; copy the store again")
    array = group[name]
    shape, dtype = layout(name, header)
    codecs = [codec.to_dict()["name"] for codec in array.metadata.codecs]  # type: ignore[union-attr]
    expected = ["bytes", "crc32c" if zstd_level(name, kind, header) is None else "zstd"]
    if array.shape != shape or str(array.dtype) != dtype or codecs != expected:  # type: ignore[union-attr]
        raise IntegrityError(
            f"{path}: {group.name}/{name}: expected {dtype} {shape} with codecs {expected}, "
            f"found {array.dtype} {array.shape} with {codecs}"  # type: ignore[union-attr]
        )
