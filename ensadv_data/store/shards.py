"""The exchange format: a store as WebDataset shards, tar files that any reader of tar and npy can read.

    SET/
      index.json                       what the set is, and its shards
      manifest.json                    that of the store
      manifest.sig.json                its signature, if somebody signed it
      NAME-000000.tar …                records, one after the other; uncompressed, USTAR

A record is a block of examples where a row is small, and one example where it is large. Its members, in this order:

    KEY.image.npy, KEY.class.npy                   uint8 (n, C, H, W) and int64 (n,), in a joint set only
    KEY.digest.npy                                 uint64 (n,), which image each row belongs to
    KEY.eJ.label.npy                               int32 (n,), for the J-th entry of the index
    KEY.eJ.direction.npy, KEY.eJ.nonzero.npy       uint8 (K, n, ⌈D/8⌉); a mask where the entry has zeros
    KEY.eJ.delta.npy                               int8 (K, n, D)
    KEY.crc32c.npy                                 uint32, the CRC-32C of each member before it, header of npy included

Names, sizes and the order are functions of the index. So whatever a shard should be can be computed, and compared with
what it is; nothing of a tar is parsed.
"""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import google_crc32c
import numpy as np
import numpy.typing as npt

from ensadv_data.codec import row_bytes
from ensadv_data.errors import ChunkError, IntegrityError
from ensadv_data.objects import Objects
from ensadv_data.store.chunks import Cache
from ensadv_data.store.layout import Entry, Header, row_arrays
from ensadv_data.store.reader import Store

__all__ = ["EXPORT_FORMAT", "INDEX", "ExportedStore", "Member", "Records", "Shard", "tar_header"]

EXPORT_FORMAT, INDEX = "ensadv-data-export", "index.json"
LARGE = 4096  # bytes of a row from which on a record is one example
TAR_END = 1024
_TAR = 512

U8 = npt.NDArray[np.uint8]


class Member(NamedTuple):
    """One array of a record."""

    name: str  # without the record's key
    dtype: str
    shape: tuple[int, ...]

    @property
    def npy(self) -> bytes:
        """What comes before its values in the file."""
        return _npy_header(self.dtype, self.shape)

    @property
    def bytes(self) -> int:
        """Bytes of the file."""
        return len(self.npy) + int(np.dtype(self.dtype).itemsize * np.prod(self.shape, dtype=np.int64))

    @property
    def room(self) -> int:
        """Bytes that it takes in a tar."""
        return _TAR + -(-self.bytes // _TAR) * _TAR


class Shard(NamedTuple):
    """One tar file, and the records that it has, both ends included."""

    name: str
    first: int
    last: int
    bytes: int
    sha256: str


@dataclass(frozen=True, eq=False)
class Records:
    """The records of a set: what is where, computed."""

    header: Header
    entries: tuple[Entry, ...]
    masked: frozenset[str]
    is_joint: bool

    @cached_property
    def size(self) -> int:
        """Examples of a record."""
        return 1 if row_bytes(self.header.d) >= LARGE else self.header.block

    @cached_property
    def count(self) -> int:
        """Number of records."""
        return -(-self.header.n // self.size)

    def key(self, record: int) -> str:
        """The name of a record, by which a reader knows what belongs together."""
        return f"{record:09d}"

    def examples(self, record: int) -> range:
        """The examples of a record."""
        return range(record * self.size, min((record + 1) * self.size, self.header.n))

    def members(self, record: int) -> tuple[Member, ...]:
        """The members of a record, in their order."""
        return self._members(len(self.examples(record)))

    def bytes(self, record: int) -> int:
        """Bytes of a record in a tar."""
        return self._bytes(len(self.examples(record)))

    def offset(self, record: int, name: str) -> int:
        """Where in a record a member's values begin."""
        at = 0
        for member in self.members(record):
            if member.name == name:
                return at + _TAR + len(member.npy)
            at += member.room
        raise KeyError(name)

    def shard_bytes(self, first: int, last: int) -> int:
        """Bytes of a shard with these records."""
        return (last - first) * self._bytes(self.size) + self.bytes(last) + TAR_END

    @lru_cache(maxsize=4)  # noqa: B019 - there are two kinds of records, the last one being shorter
    def _members(self, n: int) -> tuple[Member, ...]:
        header = self.header
        found = []
        if self.is_joint:
            found += [Member("image.npy", "|u1", (n, *header.shape)), Member("class.npy", "<i8", (n,))]
        found.append(Member("digest.npy", "<u8", (n,)))
        for number, entry in enumerate(self.entries):
            found.append(Member(f"e{number}.label.npy", "<i4", (n,)))
            for name in row_arrays(entry.kind, masked=entry.key in self.masked):
                dtype, width = ("|i1", header.d) if name == "delta" else ("|u1", row_bytes(header.d))
                found.append(Member(f"e{number}.{name}.npy", dtype, (header.draws, n, width)))
        return (*found, Member("crc32c.npy", "<u4", (len(found),)))

    @lru_cache(maxsize=4)  # noqa: B019 - as above
    def _bytes(self, n: int) -> int:
        return sum(member.room for member in self._members(n))


@lru_cache(maxsize=64)
def _npy_header(dtype: str, shape: tuple[int, ...]) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": dtype, "fortran_order": False, "shape": shape})
    return file.getvalue()


def tar_header(name: str, size: int) -> bytes:
    """The 512 bytes before a file of a tar: no owner, no time."""
    about = tarfile.TarInfo(name)
    about.size, about.mode = size, 0o644
    return about.tobuf(tarfile.USTAR_FORMAT)


class ExportedStore(Store):
    """A set of shards, read as a store is: rows in any order, each block checked the first time it is used.

    Parameters
    ----------
    shards
        In the order of their records, which they have all of.
    """

    def __init__(self, place: Objects, records: Records, shards: tuple[Shard, ...], cache: Cache) -> None:
        super().__init__(place, records.header, records.entries, records.masked, cache)
        self.records, self.shards = records, shards
        self._last = np.array([shard.last for shard in shards])
        self._maps: dict[str, U8] = {}
        self._numbers = {entry.key: number for number, entry in enumerate(records.entries)}

    def object_sizes(self, entry: Entry) -> dict[str, int]:
        """Bytes of each array of an entry in all records."""
        number, sizes = self._numbers[entry.key], dict[str, int]()
        last = self.records.count - 1
        for name in ("label", *self._row_arrays(entry)):
            for record, times in ((0, last), (last, 1)):
                member = next(m for m in self.records.members(record) if m.name == f"e{number}.{name}.npy")
                sizes[name] = sizes.get(name, 0) + times * member.bytes
        return sizes

    def check_shard(self, shard: Shard) -> None:
        """Look at a whole shard.

        Raises
        ------
        IntegrityError
            It has another digest, or files that the index does not tell of.
        """
        where = f"{self.place}/{shard.name}"
        try:
            data = self.place.array(shard.name)
        except FileNotFoundError:
            raise IntegrityError(f"{where}: the shard is missing; fetch it again") from None
        if (size := len(data)) != shard.bytes:
            raise IntegrityError(f"{where}: expected {shard.bytes} bytes, found {size}; fetch it again")
        if (found := hashlib.sha256(data.data).hexdigest()) != shard.sha256:
            raise IntegrityError(f"{where}: expected SHA-256 {shard.sha256[:16]}…, found {found[:16]}…; fetch it again")
        at = 0
        for record in range(shard.first, shard.last + 1):
            for member in self.records.members(record):
                name = f"{self.records.key(record)}.{member.name}"
                expected = tar_header(name, member.bytes) + member.npy
                if data[at : at + len(expected)].tobytes() != expected:
                    raise IntegrityError(f"{where}: expected the file {name} at byte {at}, found another")
                at += member.room
        if data[at:].any():
            raise IntegrityError(f"{where}: expected the end at byte {at}, found more files")

    def _is_held(self, name: str, entry: Entry) -> bool:
        """As of a store; nothing is compressed here, but a block of several records is put together from them."""
        return not self.place.is_mapped or self.records.size < self.header.block

    def _chunk(self, key: str, width: int, *, raw: bool = True) -> U8:
        """What is the chunk of a store, uint8 (S, width), from the records that have its rows."""
        array, _, numbers = key.rpartition("/c/")
        entry, _, name = array.rpartition("/")
        draw, block = ([0, *map(int, numbers.split("/"))] if entry == "" or name == "label" else
                       list(map(int, numbers.split("/")))[:2])  # fmt: skip
        member = "digest.npy" if not entry else f"e{self._numbers[entry]}.{name}.npy"
        first = block * self.header.block
        rows = range(first, min(first + self.header.block, self.header.n))
        records = range(rows.start // self.records.size, (rows.stop - 1) // self.records.size + 1)
        parts: list[U8] = [self._values(record, member, width)[draw] for record in records]
        if len(parts) == 1 and len(parts[0]) == self.header.block:
            return parts[0]
        whole = np.zeros((self.header.block, width), np.uint8)
        np.concatenate(parts, out=whole[: len(rows)])
        return whole

    def _values(self, record: int, name: str, width: int) -> U8:
        """The values of a member as uint8 (K, n, width), or (1, n, width); their checksum is compared."""
        number = int(np.searchsorted(self._last, record))
        shard = self.shards[number]
        base = (record - shard.first) * self.records.bytes(shard.first)
        members = self.records.members(record)
        place = next(index for index, member in enumerate(members) if member.name == name)
        member, sums = members[place], members[-1]
        begin = base + self.records.offset(record, name) - len(member.npy)
        data = self._bytes(shard, begin, member.bytes)
        known = self._bytes(shard, base + self.records.offset(record, sums.name), 4 * sums.shape[0]).view("<u4")
        if int(google_crc32c.value(data)) != int(known[place]):
            raise ChunkError(
                f"{self.place}/{shard.name}: record {self.records.key(record)}: {name}: the checksum does not match; "
                "the shard is corrupted: fetch it again"
            )
        values: U8 = data[len(member.npy) :].reshape(-1, len(self.records.examples(record)), width)
        return values

    def _bytes(self, shard: Shard, begin: int, size: int) -> U8:
        try:
            if self.place.is_mapped and shard.name not in self._maps:
                self._maps[shard.name] = self.place.array(shard.name)
            mapped = self._maps.get(shard.name)
            data = self.place.part(shard.name, begin, size) if mapped is None else mapped[begin : begin + size]
        except FileNotFoundError:
            raise ChunkError(f"{self.place}/{shard.name}: the shard is missing; fetch it again") from None
        if len(data) != size:
            raise ChunkError(
                f"{self.place}/{shard.name}: expected {shard.bytes} bytes, found fewer; the shard is truncated: fetch "
                "it again"
            )
        return data


def is_exported(place: Objects) -> bool:
    """Whether an exported set is there rather than a store."""
    return place.has(INDEX) and not place.has("zarr.json")


def members_of(records: Records, record: int, values: Mapping[str, npt.NDArray[Any]]) -> Iterator[bytes]:
    """A record of a tar, part by part, from the values of all its members but the last."""
    sums: list[int] = []
    for member in records.members(record):
        array = np.array(sums, "<u4") if member.name == "crc32c.npy" else values[member.name]
        data = np.ascontiguousarray(array, dtype=member.dtype)
        if data.shape != member.shape:
            raise ValueError(f"{member.name}: expected {member.shape}, got {data.shape}")
        body = member.npy + data.tobytes()
        sums.append(int(google_crc32c.value(body)))
        yield tar_header(f"{records.key(record)}.{member.name}", len(body))
        yield body
        yield bytes(-len(body) % _TAR)
