"""Ed25519 keys and DSSE envelopes: who says so, proved over the bytes before anybody parses them.

    {"payload": BASE64, "payloadType": "application/vnd.in-toto+json",
     "signatures": [{"keyid": SHA-256 of the public key, hexadecimal, "sig": BASE64}]}

What is signed is PAE(type, payload) = ``DSSEv1 LEN(type) type LEN(payload) payload`` (secure-systems-lab/dsse,
protocol.md, version 1), so that nothing has to be canonical to be checked. A key is a file of its own; a public key is
one line, ``ed25519:BASE64 NAME``.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from ensadv_data.errors import InputError, IntegrityError, OutputError
from ensadv_data.files import naming_trouble
from ensadv_data.untrusted import ENVELOPE, parse_json, quoted

__all__ = ["PAYLOAD_TYPE", "PublicKey", "load_key", "make_key", "opened", "sealed", "unchecked"]

PAYLOAD_TYPE = "application/vnd.in-toto+json"
_PREFIX, _MOST_SIGNATURES = "ed25519:", 16


@dataclass(frozen=True)
class PublicKey:
    """A public key.

    Attributes
    ----------
    raw
        Its 32 bytes.
    """

    raw: bytes

    @property
    def keyid(self) -> str:
        """SHA-256 of the raw key, hexadecimal."""
        return hashlib.sha256(self.raw).hexdigest()

    def __str__(self) -> str:
        return _PREFIX + base64.b64encode(self.raw).decode()

    @classmethod
    def parse(cls, text: str) -> PublicKey:
        """Read ``ed25519:BASE64``; what follows a space is a remark.

        Raises
        ------
        InputError
            It is no public key.
        """
        word = (text.split() or [""])[0]
        try:
            raw = base64.b64decode(word.removeprefix(_PREFIX), validate=True)
            if not word.startswith(_PREFIX) or len(raw) != 32:
                raise ValueError
            Ed25519PublicKey.from_public_bytes(raw)
        except ValueError:
            raise InputError(
                f"expected a public key {_PREFIX}BASE64, as keygen prints it, got {quoted(text)}"
            ) from None
        return cls(raw)


def make_key(path: Path, name: str) -> PublicKey:
    """Make a key pair: the private key at ``path`` (PKCS #8, PEM, mode 0600), the public one beside it with ``.pub``.

    Raises
    ------
    OutputError
        One of the files is there already, or cannot be written.
    """
    private = Ed25519PrivateKey.generate()
    public = PublicKey(private.public_key().public_bytes_raw())
    beside = path.with_name(path.name + ".pub")
    for file in (path, beside):
        if os.path.lexists(file):
            raise OutputError(
                f"expected a new file for the key, found one at {file}; it was left alone: choose another"
            )
    with naming_trouble(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(handle, "wb") as out:
            out.write(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        beside.write_text(f"{public} {name}\n", encoding="utf-8")
    return public


def load_key(path: Path) -> Ed25519PrivateKey:
    """Read a private key.

    Raises
    ------
    InputError
        There is none, it is another kind of key, is encrypted, or others may read it.
    """
    try:
        mode, data = path.stat().st_mode, path.read_bytes()
    except OSError as error:
        raise InputError(
            f"expected a private key at {path}: {error.strerror}; make one with: ensadv-data keygen"
        ) from None
    if stat.S_IMODE(mode) & 0o077:
        raise InputError(
            f"{path}: expected a private key that only you may read, found mode {mode & 0o777:o}; chmod 600"
        )
    try:
        key = load_pem_private_key(data, password=None)
    except (ValueError, TypeError):
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise InputError(f"{path}: expected an Ed25519 key as PKCS #8 PEM without a password, as keygen writes it")
    return key


def sealed(payload: bytes, key: Ed25519PrivateKey) -> bytes:
    """An envelope around a payload, signed with one key."""
    public = PublicKey(key.public_key().public_bytes_raw())
    envelope = {
        "payload": base64.b64encode(payload).decode(),
        "payloadType": PAYLOAD_TYPE,
        "signatures": [{"keyid": public.keyid, "sig": base64.b64encode(key.sign(_pae(payload))).decode()}],
    }
    return (json.dumps(envelope, sort_keys=True, separators=(",", ":")) + "\n").encode()


def opened(raw: bytes, keys: Mapping[str, PublicKey], *, where: str) -> tuple[bytes, PublicKey]:
    """The payload of an envelope, which was not looked at, and the key that signed it.

    Parameters
    ----------
    raw
        The envelope.
    keys
        Those that are trusted, by key id.
    where
        Where the envelope is from, for messages.

    Raises
    ------
    IntegrityError
        It is no envelope; no trusted key is among those that signed it; or a signature does not hold.
    """
    found = parse_json(raw, what=where, limits=ENVELOPE)
    payload, signatures = _parts(found, where)
    for keyid, signature in signatures:
        if (key := keys.get(keyid)) is None:
            continue
        try:
            Ed25519PublicKey.from_public_bytes(key.raw).verify(signature, _pae(payload))
        except InvalidSignature:
            raise IntegrityError(
                f"{where}: the signature of key {keyid[:16]} does not hold: the statement was changed after it was "
                "signed; get it again from whom you trust"
            ) from None
        return payload, key
    signers = ", ".join(quoted(keyid[:16])[1:-1] for keyid, _ in signatures)
    raise IntegrityError(
        f"{where}: expected the signature of a trusted key, found those of {signers} only; if you trust one, add its "
        "public key, got from its owner, to your trust file"
    )


def unchecked(raw: bytes, *, where: str) -> bytes:
    """The payload of an envelope whose signatures nobody checked: what somebody says, and no more.

    Raises
    ------
    IntegrityError
        It is no envelope.
    """
    return _parts(parse_json(raw, what=where, limits=ENVELOPE), where)[0]


def _parts(found: object, where: str) -> tuple[bytes, list[tuple[str, bytes]]]:
    try:
        if not isinstance(found, dict) or found.keys() != {"payload", "payloadType", "signatures"}:
            raise ValueError("the keys payload, payloadType and signatures")
        if found["payloadType"] != PAYLOAD_TYPE:
            raise ValueError(f"the payload type {PAYLOAD_TYPE}")
        signatures = found["signatures"]
        if not isinstance(signatures, list) or not 1 <= len(signatures) <= _MOST_SIGNATURES:
            raise ValueError(f"1 to {_MOST_SIGNATURES} signatures")
        pairs = []
        for one in signatures:
            if not isinstance(one, dict) or one.keys() != {"keyid", "sig"} or not isinstance(one["keyid"], str):
                raise ValueError("a keyid and a sig of each signature")
            pairs.append((one["keyid"], _decoded(one["sig"])))
        return _decoded(found["payload"]), pairs
    except ValueError as error:
        raise IntegrityError(f"{where}: expected a DSSE envelope with {error}; copy it again") from None


def _decoded(text: object) -> bytes:
    """Base64 in the one way in which these bytes are written."""
    try:
        data = base64.b64decode(text, validate=True) if isinstance(text, str) else b""
    except binascii.Error:
        data = b""
    if not data or base64.b64encode(data).decode() != text:
        raise ValueError("payload and signatures in base64")
    return data


def _pae(payload: bytes) -> bytes:
    kind = PAYLOAD_TYPE.encode()
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)
