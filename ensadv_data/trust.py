"""Whom one trusts, and what one has seen: pinned public keys of teams, and the highest version of each of their stores.

    TRUST.toml                                            VERSIONS.json, in the user's state folder
    [team-a]                                              {"KEYID NAME": {"version": 3, "manifest": SHA-256}}
    keys = ["ed25519:BASE64"]

A key is got from its owner, never from where the data lie.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ensadv_data.errors import InputError, IntegrityError
from ensadv_data.files import naming_trouble, write_atomic
from ensadv_data.objects import Folder, Objects
from ensadv_data.signature import PublicKey, opened, unchecked
from ensadv_data.statement import Statement, moment, parse_statement

__all__ = [
    "ENVELOPE_NAME",
    "Memory",
    "Signed",
    "Trust",
    "checked_expiry",
    "checked_signature",
    "claimed",
    "default_memory",
    "default_trust",
    "read_trust",
]

ENVELOPE_NAME = "manifest.sig.json"  # beside manifest.json
_MOST = 2**20  # bytes of a trust file


@dataclass(frozen=True)
class Trust:
    """The keys of a trust file.

    Attributes
    ----------
    path
        The file.
    keys
        By key id.
    teams
        The team of each key id.
    """

    path: Path
    keys: Mapping[str, PublicKey]
    teams: Mapping[str, str]

    def check_apart(self, place: Objects) -> None:
        """Refuse a trust file that lies with the data: whoever can change these can change it; raises InputError."""
        _check_apart(self.path, place)


@dataclass(frozen=True)
class Signed:
    """A statement whose signature holds, and who signed it."""

    statement: Statement
    key: PublicKey
    team: str


def default_trust() -> Path:
    """Where the user's trust file is unless another is named."""
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "ensadv-data" / "trust.toml"


def default_memory() -> Path:
    """Where the versions that were seen are kept."""
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "ensadv-data" / "versions.json"


def _check_apart(path: Path, place: Objects) -> None:
    if isinstance(place, Folder) and path.resolve().is_relative_to(place.path.resolve()):
        raise InputError(
            f"expected a trust file apart from the data, got {path} in the store; a key beside the data proves "
            "nothing: get it from its owner and keep it elsewhere"
        )


def read_trust(path: Path | None = None, *, apart: Objects | None = None) -> Trust:
    """Read a trust file; the user's, unless one is named.

    Parameters
    ----------
    apart
        A store that it must not lie in, which is looked at before it is read.

    Raises
    ------
    InputError
        There is none, or it is not as the top of this module has it, or a key is of two teams.
    """
    path = default_trust() if path is None else path
    if apart is not None:
        _check_apart(path, apart)
    try:
        with path.open("rb") as file:
            found = tomllib.loads(file.read(_MOST).decode("utf-8"))
    except OSError as error:
        raise InputError(
            f"expected a file of trusted keys at {path}: {error.strerror}; write one, with a section [TEAM] and "
            'keys = ["ed25519:…"] in it, or name one with --trust'
        ) from None
    except ValueError as error:
        raise InputError(
            f'{path}: expected TOML, a section [TEAM] with keys = ["ed25519:…"], as the two last lines of keygen are; '
            f"got something else: {error}"
        ) from None
    keys: dict[str, PublicKey] = {}
    teams: dict[str, str] = {}
    for team, section in found.items():
        texts = section.get("keys") if isinstance(section, dict) and section.keys() == {"keys"} else None
        if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
            raise InputError(f'{path}: expected keys = ["ed25519:…"] and nothing else in the section [{team}]')
        for key in (_parsed(text, f"{path}: [{team}]") for text in texts):
            if teams.setdefault(key.keyid, team) != team:
                raise InputError(
                    f"{path}: expected a key in one section, found {key} in [{teams[key.keyid]}] and [{team}]"
                )
            keys[key.keyid] = key
    if not keys:
        raise InputError(f'{path}: expected a section [TEAM] with keys = ["ed25519:…"], found none')
    return Trust(path, keys, teams)


def _parsed(text: str, where: str) -> PublicKey:
    try:
        return PublicKey.parse(text)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


def checked_signature(envelope: bytes, manifest: bytes, trust: Trust, *, where: str) -> Signed:
    """Check that a trusted key signed these bytes of a manifest, which is not parsed.

    Parameters
    ----------
    envelope, manifest
        The bytes of both files.
    where
        Where the envelope is from, for messages.

    Raises
    ------
    IntegrityError
        The envelope is none, is not of a trusted key, was changed, or is about another manifest.
    """
    payload, key = opened(envelope, trust.keys, where=where)
    return Signed(_about(payload, manifest, where), key, trust.teams[key.keyid])


def claimed(envelope: bytes, manifest: bytes, *, where: str) -> Statement:
    """What an envelope says of a manifest, its signature not checked: for showing, never for believing.

    Raises
    ------
    IntegrityError
        The envelope is none, or is about another manifest.
    """
    return _about(unchecked(envelope, where=where), manifest, where)


def _about(payload: bytes, manifest: bytes, where: str) -> Statement:
    statement = parse_statement(payload, where=where)
    signed, found = statement.subject[0].digest.sha256, hashlib.sha256(manifest).hexdigest()
    if signed != found:
        raise IntegrityError(
            f"{where}: expected the manifest with SHA-256 {signed[:16]}… that was signed, found {found[:16]}…; the "
            "manifest was changed, or belongs to another version: get both again"
        )
    return statement


def checked_expiry(signed: Signed, *, where: str, now: datetime | None = None) -> datetime:
    """When a signature expires; refused where it has, or where it was made in the future.

    Raises
    ------
    IntegrityError
        The signature has expired, or is not valid yet by more than a day.
    """
    about, now = signed.statement.predicate, now or datetime.now(UTC)
    expires, created = moment(about.expires), moment(about.created)
    if expires <= now:
        raise IntegrityError(f"{where}: the signature expired on {about.expires}; ask {signed.team} for a newer one")
    if (created - now).total_seconds() > 24 * 3600:
        raise IntegrityError(
            f"{where}: the signature is of {about.created}, in the future; is this machine's clock right?"
        )
    return expires


class Memory:
    """The highest version that was seen of every key's stores, in a file that any number of processes may share."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = default_memory() if path is None else path

    def checked(self, signed: Signed, *, where: str, note: bool = True) -> int | None:
        """Refuse an older version than was seen before, or another store under the same version.

        Parameters
        ----------
        signed
            What was found.
        where
            Where, for messages.
        note
            Whether to remember it. Do so when everything else was checked.

        Returns
        -------
        int or None
            The version seen before, if any.

        Raises
        ------
        IntegrityError
            It is older, or of the same version and another manifest.
        InputError
            The file of versions is damaged.
        OutputError
            It cannot be written.
        """
        about, manifest = signed.statement.predicate, signed.statement.subject[0].digest.sha256
        name = f"{signed.key.keyid} {about.name}"
        with self._locked() if note else _unlocked():
            seen = self._read()
            before = seen.get(name)
            if before is not None:
                if about.version < before["version"]:
                    raise IntegrityError(
                        f"{where}: expected version {before['version']} of {about.name} or a newer one, found version "
                        f"{about.version}, which is older; get the newest, or, if you do want it, take the name out "
                        f"of {self.path}"
                    )
                if about.version == before["version"] and manifest != before["manifest"]:
                    raise IntegrityError(
                        f"{where}: expected the store that version {about.version} of {about.name} was before, found "
                        f"another under the same version; ask {signed.team} which one it is"
                    )
            new = {"version": about.version, "manifest": manifest}
            if note and new != before:
                seen[name] = new
                write_atomic(self.path, (json.dumps(seen, indent=1, sort_keys=True) + "\n").encode())
        return None if before is None else int(before["version"])

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with naming_trouble(self.path, hint="; XDG_STATE_HOME says where it is"):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(
                self.path.with_name(self.path.name + ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600
            )
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)

    def _read(self) -> dict[str, dict[str, Any]]:
        try:
            found = json.loads(self.path.read_bytes())
            if not all(isinstance(one["version"], int) and isinstance(one["manifest"], str) for one in found.values()):
                raise TypeError
        except FileNotFoundError:
            return {}
        except (ValueError, TypeError, KeyError, AttributeError):
            raise InputError(
                f"{self.path}: expected the versions that were seen, found something else; delete it to forget them all"
            ) from None
        return dict(found)


@contextmanager
def _unlocked() -> Iterator[None]:
    yield
