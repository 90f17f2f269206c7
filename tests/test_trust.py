"""Whom one trusts, what was signed, until when, and that versions only grow."""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ensadv_data.errors import InputError, IntegrityError, OutputError
from ensadv_data.objects import Folder
from ensadv_data.signature import PublicKey, sealed
from ensadv_data.statement import make_statement, parse_statement
from ensadv_data.trust import (
    Memory,
    Signed,
    Trust,
    checked_expiry,
    checked_signature,
    default_memory,
    default_trust,
    read_trust,
)

KEYS = [Ed25519PrivateKey.from_private_bytes(bytes([n]) * 32) for n in range(3)]
PUBLIC = [PublicKey(key.public_key().public_bytes_raw()) for key in KEYS]
NOW = datetime(2026, 5, 4, 3, 2, 1, tzinfo=UTC)
MANIFEST = b"the bytes of a manifest"


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture
def trust(tmp_path) -> Trust:
    text = f'[team-a]\nkeys = ["{PUBLIC[0]}", "{PUBLIC[1]} the old one"]\n["team b"]\nkeys = ["{PUBLIC[2]}"]\n'
    return read_trust(write(tmp_path / "trust.toml", text))


def envelope(*, key: int = 0, manifest: bytes = MANIFEST, **fields: object) -> bytes:
    about = {"store": "0" * 64, "name": "mnist", "version": 1, "created": NOW, "expires": NOW + timedelta(days=9)}
    statement = make_statement(hashlib.sha256(manifest).hexdigest(), **(about | fields))
    return sealed(statement.to_bytes(), KEYS[key])


def signed(trust: Trust, **fields: object) -> Signed:
    manifest = fields.get("manifest", MANIFEST)
    return checked_signature(envelope(**fields), manifest, trust, where="it")  # type: ignore[arg-type]


# The trust file


def test_teams_and_their_keys_are_read(trust):
    assert list(trust.teams.values()) == ["team-a", "team-a", "team b"]
    assert [trust.keys[key.keyid] for key in PUBLIC] == PUBLIC


NO_TRUST = {
    "empty": ("", "found none"),
    "no TOML": ("[a", "expected TOML"),
    "no UTF-8": ("\udcff", "expected TOML"),
    "no section": (f'keys = ["{PUBLIC[0]}"]', "nothing else in the section"),
    "no keys": ("[a]\nkeys = []", "nothing else in the section"),
    "something else": (f'[a]\nkeys = ["{PUBLIC[0]}"]\nmore = 1', "nothing else in the section"),
    "a number": ("[a]\nkeys = [1]", "nothing else in the section"),
    "no key": ('[a]\nkeys = ["ed25519:x"]', "expected a public key"),
    "one key of two": (f'[a]\nkeys = ["{PUBLIC[0]}"]\n[b]\nkeys = ["{PUBLIC[0]}"]', "expected a key in one section"),
}


@pytest.mark.parametrize("what", NO_TRUST)
def test_another_file_is_refused(tmp_path, what):
    text, said = NO_TRUST[what]
    (tmp_path / "trust.toml").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(InputError, match=said):
        read_trust(tmp_path / "trust.toml")


def test_the_users_own_files_are_where_others_keep_theirs(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "c"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "s"))
    assert default_trust() == tmp_path / "c" / "ensadv-data" / "trust.toml"
    assert default_memory() == tmp_path / "s" / "ensadv-data" / "versions.json"
    with pytest.raises(InputError, match=r"expected a file of trusted keys at .*c/ensadv-data/trust.toml"):
        read_trust()
    monkeypatch.delenv("XDG_CONFIG_HOME")
    assert default_trust() == Path.home() / ".config" / "ensadv-data" / "trust.toml"


def test_a_key_beside_the_data_is_refused(tmp_path, trust):
    trust.check_apart(Folder(tmp_path / "store"))
    (tmp_path / "store").mkdir(exist_ok=True)
    (tmp_path / "store" / "theirs.toml").write_text("[a", encoding="utf-8")
    with pytest.raises(InputError, match="proves nothing"):  # before anything of it is parsed
        read_trust(tmp_path / "store" / "theirs.toml", apart=Folder(tmp_path / "store"))
    for beside in (tmp_path, tmp_path / "x" / ".."):
        with pytest.raises(InputError, match="a key beside the data proves nothing"):
            trust.check_apart(Folder(beside))


# The signature and what it says


def test_who_signed_what_is_told(trust):
    found = signed(trust, key=2, creator="B", licence="CC0-1.0", citation="B, 2026")
    about = found.statement.predicate
    assert (found.team, about.name, about.version) == ("team b", "mnist", 1)
    assert (about.creator, about.licence, about.citation) == ("B", "CC0-1.0", "B, 2026")
    assert (about.created, about.expires) == ("2026-05-04T03:02:01Z", "2026-05-13T03:02:01Z")


def test_the_statement_is_in_totos():
    payload = json.loads(
        make_statement("1" * 64, store="0" * 64, name="n", version=1, created=NOW, expires=NOW).to_bytes()
    )
    assert payload["_type"] == "https://in-toto.io/Statement/v1"
    assert payload["subject"] == [{"name": "n", "digest": {"sha256": "1" * 64}}]
    assert payload["predicateType"] == "urn:ensadv-data:store:1"
    assert payload.keys() == {"_type", "subject", "predicateType", "predicate"}


@pytest.mark.parametrize("key", ["_type", "subject", "predicateType", "predicate"])
def test_a_statement_that_lacks_a_key_is_refused(key):
    about = {"store": "0" * 64, "name": "n", "version": 1, "created": NOW, "expires": NOW}
    payload = json.loads(make_statement("1" * 64, **about).to_bytes())
    del payload[key]
    with pytest.raises(IntegrityError, match=f"statement about a store: {key}"):
        parse_statement(json.dumps(payload).encode(), where="it")


def test_another_manifest_is_refused(trust):
    with pytest.raises(IntegrityError, match="the manifest was changed, or belongs to another version"):
        checked_signature(envelope(), MANIFEST + b" ", trust, where="it")


FIELDS = {
    "no name": {"name": ""},
    "a name that is a path": {"name": "a/b"},
    "a name with an end of line": {"name": "a\n"},
    "version 0": {"version": 0},
    "a version as text": {"version": "1"},
    "two lines": {"licence": "a\nb"},
    "an escape": {"creator": "\x1b[2J"},
    "a long text": {"citation": "x" * 2001},
    "no digest": {"store": "0" * 63},
    "a field too many": {"more": 1},
}


@pytest.mark.parametrize("what", FIELDS)
def test_what_cannot_be_said_is_refused_when_signed_and_when_read(what):
    about = {"store": "0" * 64, "name": "n", "version": 1, "created": NOW, "expires": NOW}
    with pytest.raises(InputError) as caught:
        make_statement("1" * 64, **(about | FIELDS[what]))
    assert str(caught.value).isprintable()
    payload = json.loads(make_statement("1" * 64, **about).to_bytes())
    payload["predicate"].update(FIELDS[what])
    payload["subject"][0]["name"] = payload["predicate"]["name"]
    with pytest.raises(IntegrityError, match="expected a statement about a store") as refused:
        parse_statement(json.dumps(payload).encode(), where="it")
    assert str(refused.value).isprintable()


def test_two_names_and_times_that_are_none_are_refused():
    about = {"store": "0" * 64, "name": "n", "version": 1, "created": NOW, "expires": NOW}
    payload = json.loads(make_statement("1" * 64, **about).to_bytes())
    payload["predicate"]["name"] = "m"
    with pytest.raises(IntegrityError, match="found two"):
        parse_statement(json.dumps(payload).encode(), where="it")
    for time in ("2026-02-30T00:00:00Z", "2026-5-4T3:2:1Z", "2026-05-04", "9" * 20):
        payload["predicate"].update(name="n", expires=time)
        with pytest.raises(IntegrityError, match=r"predicate\.expires"):
            parse_statement(json.dumps(payload).encode(), where="it")


def test_a_signature_holds_until_it_expires(trust):
    found = signed(trust)
    end = NOW + timedelta(days=9)
    assert checked_expiry(found, where="it", now=end - timedelta(seconds=1)) == end
    with pytest.raises(IntegrityError, match="expired on 2026-05-13T03:02:01Z; ask team-a for a newer one"):
        checked_expiry(found, where="it", now=end)
    checked_expiry(found, where="it", now=NOW - timedelta(hours=23))  # clocks differ
    with pytest.raises(IntegrityError, match="in the future"):
        checked_expiry(found, where="it", now=NOW - timedelta(hours=25))


# Versions


def test_versions_only_grow_for_each_key_and_name(tmp_path, trust):
    memory = Memory(tmp_path / "state" / "versions.json")
    assert memory.checked(signed(trust, version=3), where="it") is None
    assert memory.checked(signed(trust, version=3), where="it") == 3
    assert memory.checked(signed(trust, version=5), where="it") == 3
    with pytest.raises(IntegrityError, match="expected version 5 of mnist or a newer one, found version 4"):
        memory.checked(signed(trust, version=4), where="it")
    with pytest.raises(IntegrityError, match="another under the same version"):
        memory.checked(signed(trust, version=5, manifest=b"another"), where="it")
    assert memory.checked(signed(trust, version=1, name="other"), where="it") is None
    assert memory.checked(signed(trust, version=1, key=1), where="it") is None
    assert memory.checked(signed(trust, version=5), where="it") == 5


def test_what_is_only_looked_at_is_not_remembered(tmp_path, trust):
    memory = Memory(tmp_path / "versions.json")
    assert memory.checked(signed(trust, version=9), where="it", note=False) is None
    assert list(tmp_path.glob("versions*")) == []
    assert memory.checked(signed(trust, version=1), where="it") is None


@pytest.mark.parametrize(
    "text", ["", "[]", '{"a": 1}', '{"a": {"version": "1", "manifest": ""}}', '{"a": {"version": 1}}']
)
def test_a_damaged_memory_is_said_and_not_overwritten(tmp_path, trust, text):
    path = write(tmp_path / "versions.json", text)
    with pytest.raises(InputError, match="delete it to forget them all"):
        Memory(path).checked(signed(trust), where="it")
    assert path.read_text() == text


def test_a_memory_that_cannot_be_written_is_said(tmp_path, trust):
    with pytest.raises(OutputError, match="XDG_STATE_HOME"):
        Memory(write(tmp_path / "file", "") / "versions.json").checked(signed(trust), where="it")


def test_many_at_once_forget_nothing(tmp_path, trust):
    memory = Memory(tmp_path / "versions.json")
    found = [signed(trust, name=f"n{n}", version=n + 1) for n in range(20)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda one: memory.checked(one, where="it"), found))
    assert {row["version"] for row in json.loads(memory.path.read_bytes()).values()} == set(range(1, 21))
