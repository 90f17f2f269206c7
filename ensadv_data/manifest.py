"""The manifest of a store: what it holds, what it was made from, and the SHA-256 of every object.

Its bytes are canonical JSON without times or paths of a machine, so that equal stores have equal manifests.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from ensadv_data.errors import InputError, IntegrityError
from ensadv_data.objects import Objects, objects_at
from ensadv_data.untrusted import MANIFEST, OWN_MANIFEST, Limits, check_keys, check_portable, parse_json, quoted

__all__ = ["DataRecord", "Manifest", "ObjectRecord", "SourceRecord", "parse_manifest", "read_manifest"]

# Far beyond any data set, and small enough that no product of them is a surprise.
_MOST_IMAGES, _MOST_VALUES, _MOST_CLASSES, _MOST_DRAWS = 2**40, 2**26, 2**20, 2**16
_MOST_OBJECT, _MOST_STORE = 5 * 2**30, 2**53  # bytes: of one put of S3; that every JSON reader holds exactly


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("expected text that can be printed")
    return text


_Name = Annotated[str, Field(max_length=4096), AfterValidator(_printable)]  # names are shown in terminals


_Side = Annotated[int, Field(ge=1, le=_MOST_VALUES)]


class _Record(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class DataRecord(_Record):
    """The images that the rows belong to, by digest; the images themselves are not in a store."""

    name: _Name
    split: _Name
    n: int = Field(ge=1, le=_MOST_IMAGES)
    shape: tuple[_Side, _Side, _Side] = Field(strict=False)
    classes: int = Field(ge=2, le=_MOST_CLASSES)
    digest: str = Field(pattern=r"^[0-9a-f]{64}$")


class SourceRecord(_Record):
    """A static model: name, architecture, digest of its weights, and how it was trained, where known."""

    name: _Name
    architecture: _Name
    digest: str = Field(pattern=r"^[0-9a-f]{64}$")
    record: dict[str, Any] = {}


class ObjectRecord(_Record):
    """One object of the store."""

    bytes: int = Field(ge=0, le=_MOST_OBJECT)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class Manifest(_Record):
    """What a complete store holds. ``plan`` has the attacks, mode, seed, precision, threads and batch size."""

    format: Literal["ensadv-data"] = "ensadv-data"
    version: Literal[1, 2] = 1  # 2: of views
    data: DataRecord
    sources: tuple[SourceRecord, ...] = Field(strict=False)
    draws: int = Field(ge=1, le=_MOST_DRAWS)
    plan: dict[str, Any]
    zeros: dict[str, int]
    software: dict[str, str]
    objects: dict[str, ObjectRecord]

    @model_validator(mode="after")
    def _of_its_version(self) -> Self:
        if self.version != (wanted := 1 if self.plan.get("augment") is None else 2):
            raise ValueError(f"expected version {wanted} with such a plan, found {self.version}")
        return self

    @property
    def digest(self) -> str:
        """The store's digest: SHA-256 over the sorted names and digests of its objects."""
        lines = [f"{name} {record.sha256}\n" for name, record in sorted(self.objects.items())]
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    def to_bytes(self) -> bytes:
        """Canonical JSON: sorted keys, no spaces, one line."""
        return (json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":")) + "\n").encode()


def parse_manifest(raw: bytes, where: str, *, limits: Limits = MANIFEST) -> Manifest:
    """Check the bytes of a manifest, whoever wrote them.

    Parameters
    ----------
    raw
        Its bytes.
    where
        Where they are from, for messages.
    limits
        What the document may be at most: 64 MiB unless said otherwise. Within :data:`OWN_MANIFEST` keys may also
        differ only in case, as on the disk of whoever made the store.

    Raises
    ------
    IntegrityError
        They are no manifest of this version in canonical form, or pass a limit: images N ≤ 2⁴⁰, values of an image
        D ≤ 2²⁶, classes ≤ 2²⁰, draws ≤ 2¹⁶, an object ≤ 5 GiB, all together ≤ 2⁵³ bytes; or a key is not safe.
    """
    found = parse_json(raw, what=where, limits=limits)
    try:
        manifest = Manifest.model_validate(found)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise IntegrityError(f"{where}: {quoted(place)[1:-1]}: {first['msg'].lower()}; copy the store again") from None
    if manifest.to_bytes() != raw:
        raise IntegrityError(
            f"{where}: expected canonical JSON (keys sorted, no spaces, one line), found it written otherwise; "
            "copy the store again"
        )
    values = manifest.data.shape[0] * manifest.data.shape[1] * manifest.data.shape[2]
    if values > _MOST_VALUES:
        raise IntegrityError(f"{where}: expected images of at most {_MOST_VALUES:,} values, found {values:,}")
    if (total := sum(record.bytes for record in manifest.objects.values())) > _MOST_STORE:
        raise IntegrityError(f"{where}: expected objects of at most {_MOST_STORE:,} bytes together, found {total:,}")
    (check_keys if limits is OWN_MANIFEST else check_portable)(manifest.objects, what=where)
    return manifest


def read_manifest(store: Objects | Path | str) -> Manifest:
    """Read and check the manifest of a store.

    Raises
    ------
    InputError
        There is none.
    IntegrityError
        It is not a manifest of this version, or not as :func:`parse_manifest` wants it.
    """
    place = objects_at(store)
    try:
        raw = place.read_at_most("manifest.json", OWN_MANIFEST.size)
    except OSError:
        raise InputError(f"expected a manifest at {place}/manifest.json, found none; is the store finished?") from None
    return parse_manifest(raw, f"{place}/manifest.json", limits=OWN_MANIFEST)
