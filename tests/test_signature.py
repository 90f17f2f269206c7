"""Keys and envelopes: verified by somebody else's library, and refused when anything is changed."""

from __future__ import annotations

import base64
import copy
import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from hypothesis import given, settings
from hypothesis import strategies as st
from securesystemslib.dsse import Envelope
from securesystemslib.exceptions import VerificationError
from securesystemslib.signer import CryptoSigner, SSlibKey

from ensadv_data.errors import InputError, IntegrityError, OutputError
from ensadv_data.signature import PAYLOAD_TYPE, PublicKey, load_key, make_key, opened, sealed

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
PUBLIC = PublicKey(KEY.public_key().public_bytes_raw())
TRUSTED = {PUBLIC.keyid: PUBLIC}


def theirs(public: PublicKey) -> SSlibKey:
    return SSlibKey(public.keyid, "ed25519", "ed25519", {"public": public.raw.hex()})


@settings(max_examples=60, deadline=None)
@given(st.binary(min_size=1, max_size=300))
def test_securesystemslib_verifies_what_we_sign(payload):
    envelope = Envelope.from_dict(json.loads(sealed(payload, KEY)))
    assert envelope.payload == payload
    assert PUBLIC.keyid in envelope.verify([theirs(PUBLIC)], threshold=1)


def test_we_open_what_securesystemslib_signs():
    signer = CryptoSigner(KEY, theirs(PUBLIC))
    envelope = Envelope(b"what is said", PAYLOAD_TYPE, {})
    envelope.sign(signer)
    assert opened(json.dumps(envelope.to_dict()).encode(), TRUSTED, where="it") == (b"what is said", PUBLIC)


def test_both_refuse_another_payload():
    changed = json.loads(sealed(b"one", KEY)) | {"payload": base64.b64encode(b"two").decode()}
    with pytest.raises(VerificationError):
        Envelope.from_dict(copy.deepcopy(changed)).verify([theirs(PUBLIC)], threshold=1)
    with pytest.raises(IntegrityError, match="does not hold"):
        opened(json.dumps(changed).encode(), TRUSTED, where="it")


def test_the_golden_bytes_of_an_envelope():
    """Ed25519 is deterministic: the bytes are a function of key and payload (RFC 8032)."""
    assert sealed(b"hello", KEY).decode() == (
        '{"payload":"aGVsbG8=","payloadType":"application/vnd.in-toto+json","signatures":[{"keyid":'
        '"56475aa75463474c0285df5dbf2bcab73da651358839e9b77481b2eab107708c","sig":"'
        'R/ktUVtMSRXwr3QkADkHgY8NunINJo/aoF0Qukw7UMrTod81wZw6HgF9jmkmmf4xE21ojwqiFX8lEksdUNQ8Ag=="}]}\n'
    )


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_flipped_bit_is_refused(data):
    raw = bytearray(sealed(b'{"what": "is said"}', KEY))
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(IntegrityError):
        opened(bytes(raw), TRUSTED, where="it")


def changed(**fields: object) -> bytes:
    return json.dumps(json.loads(sealed(b"said", KEY)) | fields).encode()


ONE = json.loads(sealed(b"said", KEY))["signatures"][0]
NO_ENVELOPE = {
    "a list": b"[]",
    "a key too many": changed(more=1),
    "a key too few": b'{"payload": "aGVsbG8="}',
    "another type": changed(payloadType="text/plain"),
    "no signature": changed(signatures=[]),
    "seventeen": changed(signatures=[ONE] * 17),
    "a signature that is none": changed(signatures=["x"]),
    "a keyid that is none": changed(signatures=[{**ONE, "keyid": None}]),
    "a number as payload": changed(payload=5),
    "no payload": changed(payload=""),
    "base64 of the web": changed(payload="_-_-"),
    "base64 with a break": changed(payload="aGVs\nbG8="),
    "base64 with bits behind its end": changed(payload="aGVsbG9="),
}


@pytest.mark.parametrize("what", NO_ENVELOPE)
def test_what_is_no_envelope_is_refused(what):
    with pytest.raises(IntegrityError, match="expected a DSSE envelope"):
        opened(NO_ENVELOPE[what], TRUSTED, where="it")


def test_a_key_that_is_not_trusted_is_named():
    with pytest.raises(IntegrityError, match=rf"signature of a trusted key, found those of {PUBLIC.keyid[:13]}"):
        opened(sealed(b"said", KEY), {}, where="it")


def test_one_trusted_signature_among_others_is_enough_but_it_must_hold():
    other = json.loads(sealed(b"said", Ed25519PrivateKey.generate()))["signatures"][0]
    assert opened(changed(signatures=[other, ONE]), TRUSTED, where="it")[0] == b"said"
    with pytest.raises(IntegrityError, match="does not hold"):
        opened(changed(signatures=[{**other, "keyid": PUBLIC.keyid}, ONE]), TRUSTED, where="it")


# Files of keys


def test_a_pair_is_made_for_its_owner_only_and_never_over_another(tmp_path):
    public = make_key(tmp_path / "new" / "a.key", "team-a")
    assert (tmp_path / "new" / "a.key").stat().st_mode & 0o777 == 0o600
    line = (tmp_path / "new" / "a.key.pub").read_text()
    assert line == f"{public} team-a\n"
    assert PublicKey.parse(line) == public
    assert load_key(tmp_path / "new" / "a.key").public_key().public_bytes_raw() == public.raw
    before = (tmp_path / "new" / "a.key").read_bytes()
    with pytest.raises(OutputError, match="left alone"):
        make_key(tmp_path / "new" / "a.key", "team-a")
    assert (tmp_path / "new" / "a.key").read_bytes() == before
    (tmp_path / "b.key.pub").symlink_to(tmp_path / "nowhere")
    with pytest.raises(OutputError, match="left alone"):
        make_key(tmp_path / "b.key", "team-b")


def pem(key: object, path: Path, mode: int = 0o600) -> Path:
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))  # type: ignore[attr-defined]
    path.chmod(mode)
    return path


def test_other_keys_and_keys_that_others_may_read_are_refused(tmp_path):
    with pytest.raises(InputError, match="ensadv-data keygen"):
        load_key(tmp_path / "none")
    with pytest.raises(InputError, match="found mode 640"):
        load_key(pem(KEY, tmp_path / "open", 0o640))
    with pytest.raises(InputError, match="expected an Ed25519 key"):
        load_key(pem(generate_private_key(SECP256R1()), tmp_path / "other"))
    (tmp_path / "junk").write_bytes(b"junk")
    (tmp_path / "junk").chmod(0o600)
    with pytest.raises(InputError, match="expected an Ed25519 key"):
        load_key(tmp_path / "junk")


@pytest.mark.parametrize(
    "text", ["", "ed25519:", "ed25519:AAAA", "rsa:" + "A" * 43 + "=", "A" * 43 + "=", "ed25519:\x1b[2J"]
)
def test_what_is_no_public_key_is_refused(text):
    with pytest.raises(InputError, match="expected a public key ed25519:BASE64") as caught:
        PublicKey.parse(text)
    assert str(caught.value).isprintable()
