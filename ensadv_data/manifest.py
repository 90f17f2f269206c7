"""The manifest of a store: what it holds, what it was made from, and the SHA-256 of every object.

Its bytes are canonical JSON without times or paths of a machine, so that equal stores have equal manifests.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ensadv_data.errors import InputError, IntegrityError
from ensadv_data.objects import Objects, objects_at

__all__ = ["DataRecord", "Manifest", "ObjectRecord", "SourceRecord", "parse_manifest", "read_manifest"]


class _Record(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class DataRecord(_Record):
    """The images that the rows belong to, by digest; the images themselves are not in a store."""

    name: str
    split: str
    n: int = Field(ge=1)
    shape: tuple[int, int, int] = Field(strict=False)
    classes: int = Field(ge=2)
    digest: str = Field(pattern=r"^[0-9a-f]{64}$")


class SourceRecord(_Record):
    """A static model: name, architecture, digest of its weights, and how it was trained, where known."""

    name: str
    architecture: str
    digest: str = Field(pattern=r"^[0-9a-f]{64}$")
    record: dict[str, Any] = {}


class ObjectRecord(_Record):
    """One object of the store."""

    bytes: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class Manifest(_Record):
    """What a complete store holds. ``plan`` has the attacks, mode, seed, precision, threads and batch size."""

    format: Literal["ensadv-data"] = "ensadv-data"
    version: Literal[1] = 1
    data: DataRecord
    sources: tuple[SourceRecord, ...] = Field(strict=False)
    draws: int = Field(ge=1)
    plan: dict[str, Any]
    zeros: dict[str, int]
    software: dict[str, str]
    objects: dict[str, ObjectRecord]

    @property
    def digest(self) -> str:
        """The store's digest: SHA-256 over the sorted names and digests of its objects."""
        lines = [f"{name} {record.sha256}\n" for name, record in sorted(self.objects.items())]
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    def to_bytes(self) -> bytes:
        """Canonical JSON: sorted keys, no spaces, one line."""
        return (json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":")) + "\n").encode()


def read_manifest(store: Objects | Path | str) -> Manifest:
    """Read and check the manifest of a store.

    Raises
    ------
    InputError
        There is none.
    IntegrityError
        It is not a manifest of this version.
    """
    place = objects_at(store)
    try:
        raw = place.read("manifest.json")
    except OSError:
        raise InputError(f"expected a manifest at {place}/manifest.json, found none; is the store finished?") from None
    return parse_manifest(raw, f"{place}/manifest.json")


def parse_manifest(raw: bytes, where: str) -> Manifest:
    """The manifest that some bytes are.

    Raises
    ------
    IntegrityError
        They are not a manifest of this version; the message begins with ``where``.
    """
    try:
        return Manifest.model_validate_json(raw)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise IntegrityError(f"{where}: {field}: {first['msg'].lower()}; copy the store again") from None
