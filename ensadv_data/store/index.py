"""The index of an exported set: what the set is, and the shards that it is made of (``index.json``)."""

from __future__ import annotations

import json
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ensadv_data.errors import IntegrityError
from ensadv_data.store.layout import Entry, Header, format_version, header_from
from ensadv_data.store.shards import Records, Shard
from ensadv_data.untrusted import MANIFEST, check_portable, parse_json, quoted

__all__ = ["ExportIndex", "parse_index"]

_DIGEST = r"^[0-9a-f]{64}$"


class _Record(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class ShardRecord(_Record):
    """One shard; ``url`` is relative to the index."""

    url: str = Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]{0,199}\.tar$")
    first: int = Field(ge=0)
    last: int = Field(ge=0)
    bytes: int = Field(ge=1)
    sha256: str = Field(pattern=_DIGEST)


class EntryRecord(_Record):
    """One source under one attack: the J-th has the members ``eJ.…``."""

    source: str
    attack: str
    kind: Literal["sign", "rsign", "delta"]
    epsilon: float | None
    alpha: float | None
    seed: int
    source_digest: str = Field(pattern=_DIGEST)
    architecture: str
    loss: str
    masked: bool


class StoreRecord(_Record):
    """What all rows share, as in the attributes of a store."""

    data: str
    split: str
    data_digest: str
    shape: tuple[int, int, int] = Field(strict=False)
    classes: int = Field(ge=2)
    n: int = Field(ge=1, le=2**40)
    draws: int = Field(ge=1, le=2**16)
    plan: dict[str, Any]


class ExportIndex(_Record):
    """The whole index."""

    format: Literal["ensadv-data-export"] = "ensadv-data-export"
    version: Literal[1, 2] = 1  # 2: of views
    kind: Literal["overlay", "joint"]
    manifest: str = Field(pattern=_DIGEST)  # SHA-256 of the store's manifest
    store: StoreRecord
    entries: tuple[EntryRecord, ...] = Field(strict=False, min_length=1)
    records: int = Field(ge=1)
    examples_per_record: int = Field(ge=1)
    shards: tuple[ShardRecord, ...] = Field(strict=False, min_length=1)

    @model_validator(mode="after")
    def _of_its_version(self) -> Self:
        if self.version != (wanted := format_version(self.store.plan)):
            raise ValueError(f"expected version {wanted} with such a plan, found {self.version}")
        if self.version != 1 and self.kind == "joint":
            raise ValueError("expected an overlay, since its directions belong to views, found joint")
        return self

    def to_bytes(self) -> bytes:
        """Canonical JSON that people can read."""
        return (json.dumps(self.model_dump(mode="json"), sort_keys=True, indent=1) + "\n").encode()

    def layout(self) -> Records:
        """What is where in the shards."""
        about = self.store.model_dump()
        groups = tuple(f"{entry.source}/{entry.attack}" for entry in self.entries)
        entries = tuple(Entry(**entry.model_dump(exclude={"masked"})) for entry in self.entries)
        masked = frozenset(group for group, entry in zip(groups, self.entries, strict=True) if entry.masked)
        return Records(Header(groups=groups, **about), entries, masked, self.kind == "joint")

    def shard_list(self) -> tuple[Shard, ...]:
        """The shards."""
        return tuple(Shard(shard.url, shard.first, shard.last, shard.bytes, shard.sha256) for shard in self.shards)


def parse_index(raw: bytes, where: str) -> tuple[Records, tuple[Shard, ...], ExportIndex]:
    """What an index tells, proved to fit together: the shards have all records, in order, and their bytes.

    Raises
    ------
    IntegrityError
        It is no index of this version, or contradicts itself.
    """
    try:
        index = ExportIndex.model_validate(parse_json(raw, what=where, limits=MANIFEST))
        records, shards = index.layout(), index.shard_list()
        header_from(records.header.attributes())
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        said = quoted(f"{field}: {first['msg'].lower()}", 200)[1:-1]
        raise IntegrityError(f"{where}: {said}; fetch the set again") from None
    except ValueError as error:
        raise IntegrityError(f"{where}: {error}; fetch the set again") from None
    check_portable(records.header.groups, what=where)
    if (records.count, records.size) != (index.records, index.examples_per_record):
        raise IntegrityError(
            f"{where}: expected {records.count} records of {records.size} examples for {records.header.n} examples, "
            f"found {index.records} of {index.examples_per_record}"
        )
    following = 0
    for shard in shards:
        if shard.first != following or not shard.first <= shard.last < records.count:
            raise IntegrityError(f"{where}: {shard.name}: expected records from {following} on, found {shard.first}")
        if shard.bytes != (size := records.shard_bytes(shard.first, shard.last)):
            raise IntegrityError(f"{where}: {shard.name}: expected {size} bytes for its records, found {shard.bytes}")
        following = shard.last + 1
    if following != records.count or len({shard.name for shard in shards}) != len(shards):
        raise IntegrityError(f"{where}: expected {records.count} records in shards of their own, found {following}")
    if len(set(records.header.groups)) != len(records.entries):
        raise IntegrityError(f"{where}: expected entries of different names, found one twice")
    return records, shards, index
