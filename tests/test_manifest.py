"""The manifest: canonical bytes, digests that are those of the files, and everything else refused."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from ensadv_data.errors import InputError, IntegrityError
from ensadv_data.manifest import DataRecord, Manifest, ObjectRecord, SourceRecord, read_manifest
from test_store import make_images, make_store

HEX = "0123456789abcdef" * 4


def make_manifest(**fields: Any) -> Manifest:
    complete: dict[str, Any] = {
        "data": DataRecord(name="tiny", split="train", n=2, shape=(1, 2, 5), classes=3, digest=HEX),
        "sources": (SourceRecord(name="m", architecture="D", digest=HEX),),
        "draws": 1,
        "plan": {"seed": 0, "mode": "eval"},
        "zeros": {"m/fgsm": 0},
        "software": {"torch": "2"},
        "objects": {"b": ObjectRecord(bytes=1, sha256=HEX), "a": ObjectRecord(bytes=0, sha256=HEX[::-1])},
    }
    return Manifest(**(complete | fields))


def test_bytes_are_canonical():
    data = make_manifest().to_bytes()
    assert data == make_manifest(objects=dict(reversed(make_manifest().objects.items()))).to_bytes()
    assert data.endswith(b"}\n")
    assert data.count(b"\n") == 1
    assert data == (json.dumps(json.loads(data), sort_keys=True, separators=(",", ":")) + "\n").encode()


def test_the_golden_bytes_of_a_small_manifest():
    expected = (
        '{"data":{"classes":3,"digest":"HEX","n":2,"name":"tiny","shape":[1,2,5],"split":"train"},"draws":1,'
        '"format":"ensadv-data","objects":{"a":{"bytes":0,"sha256":"REV"},"b":{"bytes":1,"sha256":"HEX"}},'
        '"plan":{"mode":"eval","seed":0},"software":{"torch":"2"},'
        '"sources":[{"architecture":"D","digest":"HEX","name":"m","record":{}}],"version":1,"zeros":{"m/fgsm":0}}\n'
    )
    assert make_manifest().to_bytes().decode() == expected.replace("HEX", HEX).replace("REV", HEX[::-1])


def test_it_survives_the_round_trip(tmp_path):
    (tmp_path / "manifest.json").write_bytes(make_manifest().to_bytes())
    again = read_manifest(tmp_path)
    assert again == make_manifest()
    assert again.to_bytes() == make_manifest().to_bytes()


def test_the_digest_is_over_sorted_names_and_digests():
    manifest = make_manifest()
    assert manifest.digest == hashlib.sha256(f"a {HEX[::-1]}\nb {HEX}\n".encode()).hexdigest()
    assert manifest.digest != make_manifest(objects={"a": ObjectRecord(bytes=0, sha256=HEX)}).digest


def test_objects_are_the_chunks_on_disk_with_their_digests_and_nothing_of_this_machine(tmp_path):
    path = tmp_path / "s"
    make_store(path, make_images(20), ("m/fgsm", "m/pgd"), draws=2, zeros=True)
    manifest = read_manifest(path)
    found = {
        str(p.relative_to(path)): ObjectRecord(
            bytes=p.stat().st_size, sha256=hashlib.sha256(p.read_bytes()).hexdigest()
        )
        for p in path.rglob("*")
        if p.is_file() and p.suffix != ".json"
    }
    assert dict(manifest.objects) == found
    assert str(tmp_path) not in (path / "manifest.json").read_text()


def test_none_is_bad_input(tmp_path):
    with pytest.raises(InputError, match="is the store finished"):
        read_manifest(tmp_path)


BROKEN = {
    "not JSON": lambda text: text[:-5],
    "another version": lambda text: text.replace('"version":1', '"version":2'),
    "another format": lambda text: text.replace('"ensadv-data"', '"else"'),
    "a key too many": lambda text: text.replace('"draws":1', '"draws":1,"more":1'),
    "a key too few": lambda text: text.replace('"draws":1,', ""),
    "a digest with a newline": lambda text: text.replace(f'{HEX}","name":"m"', f'{HEX}\\n","name":"m"'),
    "a negative size": lambda text: text.replace('"bytes":1', '"bytes":-1'),
    "a number as text": lambda text: text.replace('"draws":1', '"draws":"1"'),
}


@pytest.mark.parametrize("what", BROKEN)
def test_damage_is_an_integrity_error_with_a_remedy(tmp_path: Path, what):
    text = make_manifest().to_bytes().decode()
    broken = BROKEN[what](text)
    assert broken != text
    (tmp_path / "manifest.json").write_text(broken)
    with pytest.raises(IntegrityError, match="copy the store again") as caught:
        read_manifest(tmp_path)
    assert caught.value.exit_code == 4
