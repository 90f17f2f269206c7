"""What is signed: an in-toto Statement about one manifest, with the name, version and dates of what is published.

Authorship is here and not in the manifest, so that equal stores keep equal manifests, whoever made them and when:

    _type          https://in-toto.io/Statement/v1
    subject        [{"name": NAME, "digest": {"sha256": SHA-256 of manifest.json}}]
    predicateType  urn:ensadv-data:store:1
    predicate      store (its digest), name, version, created, expires, creator, licence, citation, model_licences
"""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from ensadv_data.errors import InputError, IntegrityError
from ensadv_data.untrusted import ENVELOPE, parse_json, quoted

__all__ = ["Predicate", "Statement", "make_statement", "moment", "parse_statement"]

_TIME = "%Y-%m-%dT%H:%M:%SZ"


def moment(text: str) -> datetime:
    """The time that ``2026-01-31T12:00:00Z`` is; raises ValueError."""
    time = datetime.strptime(text, _TIME).replace(tzinfo=UTC)
    if time.strftime(_TIME) != text:
        raise ValueError(f"expected a time such as 2026-01-31T12:00:00Z, got {text!r}")
    return time


def _time(text: str) -> str:
    moment(text)
    return text


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("expected one line of text that can be printed")
    return text


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


def _name(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", text):
        raise ValueError("expected 1 to 100 letters, digits, '.', '_' and '-', the first a letter or a digit")
    return text


Name = Annotated[str, Field(max_length=100), AfterValidator(_name)]
Text = Annotated[str, Field(max_length=2000), AfterValidator(_printable)]
Time = Annotated[str, Field(max_length=20), AfterValidator(_time)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Digest(_Part):
    sha256: Sha256


class Subject(_Part):
    """What the statement is about: the bytes of a manifest."""

    name: Name
    digest: _Digest


class Predicate(_Part):
    """What its signer says of the store. A version only grows; times are UTC; texts are one line each, or empty."""

    store: Sha256
    name: Name
    version: int = Field(ge=1, le=2**53)
    created: Time
    expires: Time
    creator: Text = ""
    licence: Text = ""
    citation: Text = ""
    model_licences: dict[Text, Text] = Field(default={}, max_length=1000)  # by source


class Statement(_Part):
    """An in-toto Statement, version 1."""

    type_: Literal["https://in-toto.io/Statement/v1"] = Field(alias="_type")
    subject: tuple[Subject] = Field(strict=False)
    predicate_type: Literal["urn:ensadv-data:store:1"] = Field(alias="predicateType")
    predicate: Predicate

    def to_bytes(self) -> bytes:
        """Canonical JSON."""
        found = self.model_dump(mode="json", by_alias=True)
        return json.dumps(found, sort_keys=True, separators=(",", ":")).encode()


def make_statement(manifest: str, **predicate: Any) -> Statement:
    """A statement about the manifest of that SHA-256.

    Raises
    ------
    InputError
        A field of the predicate is not as it should be.
    """
    for name in ("created", "expires"):
        predicate[name] = predicate[name].astimezone(UTC).strftime(_TIME)
    try:
        subject = Subject(name=predicate["name"], digest=_Digest(sha256=manifest))
        return Statement(
            _type="https://in-toto.io/Statement/v1",
            subject=(subject,),
            predicateType="urn:ensadv-data:store:1",
            predicate=Predicate(**predicate),
        )
    except ValidationError as error:
        raise InputError(f"{_first(error)}, got {quoted(error.errors()[0]['input'])}") from None


def parse_statement(payload: bytes, *, where: str) -> Statement:
    """Read the payload of an envelope whose signature was checked.

    Raises
    ------
    IntegrityError
        It is no statement of this kind.
    """
    found = parse_json(payload, what=where, limits=ENVELOPE)
    try:
        statement = Statement.model_validate(found)
    except ValidationError as error:
        raise IntegrityError(f"{where}: expected a statement about a store: {_first(error)}; copy it again") from None
    if statement.subject[0].name != statement.predicate.name:
        raise IntegrityError(
            f"{where}: expected one name in a statement, found two; it was made otherwise than by sign"
        )
    return statement


def _first(error: ValidationError) -> str:
    first = error.errors()[0]
    message = first["msg"].removeprefix("Value error, ")
    return f"{quoted('.'.join(str(part) for part in first['loc']))[1:-1]}: {message[:1].lower()}{message[1:]}"
