"""A small signed store changed at random, again and again: every change is found, with its own message.

    python tests/mutations.py --mutations 2000 --seed 1

Some changes are a stranger's, who has no key: bits, bytes, files, blocks, names. Others are those of somebody who has a
trusted key and signs what he made: values out of bounds, frames of zstd that are none, manifests that contradict
themselves. A change that is not found, that is found with another message than its own, or that ends with any other
exception fails the run; so does a file of the store that verifying changed. The summary is JSON.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import re
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pytest

from ensadv_data.compression import zstd_decode, zstd_encode
from ensadv_data.data import ArrayDataset, open_dataset
from ensadv_data.errors import IntegrityError
from ensadv_data.manifest import Manifest, read_manifest
from ensadv_data.models import build_model, save_model
from ensadv_data.objects import Folder
from ensadv_data.precompute import precompute_store
from ensadv_data.signature import load_key, make_key, sealed
from ensadv_data.spec import DataSpec, PrecomputeSpec
from ensadv_data.statement import make_statement
from ensadv_data.trust import ENVELOPE_NAME, Memory, Trust, read_trust
from ensadv_data.verification import Wanted, checks, sign_store, verified

LIMIT, NAME = 5, "small"
DATA = DataSpec(data="mnist-mini", limit=LIMIT)
Change = Callable[["World", Path, random.Random], None]


@dataclass(frozen=True)
class World:
    """A store of five images, signed twice by a key that is trusted; the second version was seen."""

    folder: Path

    @property
    def store(self) -> Path:
        return self.folder / "store"

    @property
    def trust(self) -> Trust:
        return read_trust(self.folder / "trust.toml")

    def wanted(self, **options: Any) -> Wanted:
        fields = {"trust": self.trust, "memory": Memory(self.folder / "versions.json"), "name": NAME, "data": DATA}
        return Wanted(**(fields | options))

    def sign(self, path: Path, *, key: str = "a.key", version: int = 3, age: int = 0, **fields: Any) -> None:
        """Sign whatever lies there, as one who has the key can."""
        raw, now = (path / "manifest.json").read_bytes(), datetime.now(UTC) - timedelta(days=age)
        about = {"name": NAME, "version": version, "created": now, "expires": now + timedelta(days=30), **fields}
        about.setdefault("store", _digest_of(raw))
        statement = make_statement(hashlib.sha256(raw).hexdigest(), **about)
        (path / ENVELOPE_NAME).write_bytes(sealed(statement.to_bytes(), load_key(self.folder / key)))


def make_world(folder: Path) -> World:
    """Models, store, keys and trust file."""
    world = World(folder)
    models = {}
    for name in "CD":
        module = build_model(name, shape=(1, 28, 28), classes=10, seed=1)
        save_model(folder / f"{name}.safetensors", module, architecture=name, shape=(1, 28, 28), classes=10, record={})
        models[name.lower()] = str(folder / f"{name}.safetensors")
    attacks = ("fgsm", "r-fgsm", "i-fgsm:steps=2")
    precompute_store(PrecomputeSpec(models=models, attacks=attacks, draws=2), DATA, world.store, workers=0)
    lines = [f'[{team}]\nkeys = ["{make_key(folder / f"{team}.key", team)}"]' for team in "ab"]
    (folder / "trust.toml").write_text(lines[0], encoding="utf-8")
    for _ in range(2):
        for _ in sign_store(Folder(world.store), folder / "a.key", name=NAME, days=30):
            pass
        shutil.copy(world.store / ENVELOPE_NAME, folder / f"version{len(list(folder.glob('version*'))) + 1}")
        assert len(list(verified(Folder(world.store), world.wanted()))) == 9
    return world


def objects_of(path: Path, ending: str = "") -> list[str]:
    """Keys of the chunks of a store, of one array perhaps."""
    return sorted(key for key in read_manifest(path).objects if ending in key)


def documents_of(path: Path) -> list[str]:
    """Keys of the Zarr documents."""
    return sorted(file.relative_to(path).as_posix() for file in path.rglob("zarr.json"))


def _digest_of(raw: bytes) -> str:
    try:
        return Manifest.model_validate_json(raw).digest
    except ValueError:
        return "0" * 64


# A stranger's changes: (name, what is done, what is said)


def flip(path: Path, chance: random.Random) -> None:
    data = bytearray(path.read_bytes())
    data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    path.write_bytes(data)


def cut(path: Path, chance: random.Random) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: chance.randrange(len(data))])


def flipped(of: Callable[[Path], list[str]]) -> Change:
    return lambda world, path, chance: flip(path / chance.choice(of(path)), chance)


def truncated(of: Callable[[Path], list[str]]) -> Change:
    return lambda world, path, chance: cut(path / chance.choice(of(path)), chance)


def removed(of: Callable[[Path], list[str]]) -> Change:
    return lambda world, path, chance: (path / chance.choice(of(path))).unlink()


def extra(world: World, path: Path, chance: random.Random) -> None:
    folder = chance.choice(["", "d/", "d/fgsm/", "c/r-fgsm/direction/c/", "new/", ".partial-", "progress/"])
    file = path / f"{folder}{chance.choice(['x', '.zarray', 'weights.pkl', 'c0', 'MANIFEST.JSON'])}"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(chance.randbytes(chance.randrange(20)))


def linked(world: World, path: Path, chance: random.Random) -> None:
    file = path / chance.choice(objects_of(path) + documents_of(path))
    file.rename(world.folder / "elsewhere")
    file.symlink_to(world.folder / "elsewhere")


def swapped(world: World, path: Path, chance: random.Random) -> None:
    pairs: list[tuple[str, str]] = []
    while not pairs:
        array = chance.choice(["direction", "delta", "example_digest", "nonzero"])
        one, other = chance.sample(objects_of(path, f"{array}/c/"), 2)
        size = [(path / key).stat().st_size for key in (one, other)]
        pairs = [(one, other)] * (size[0] == size[1] and (path / one).read_bytes() != (path / other).read_bytes())
    for one, other in pairs:
        data = (path / one).read_bytes()
        (path / one).write_bytes((path / other).read_bytes())
        (path / other).write_bytes(data)


def renamed(world: World, path: Path, chance: random.Random) -> None:
    (path / chance.choice("cd")).rename(path / chance.choice(["e", "D2", "other"]))


def renamed_everywhere(world: World, path: Path, chance: random.Random) -> None:
    renamed(world, path, chance)
    (path / "manifest.json").write_bytes((path / "manifest.json").read_bytes().replace(b'"d', b'"e'))


def older(world: World, path: Path, chance: random.Random) -> None:
    shutil.copy(world.folder / "version1", path / ENVELOPE_NAME)


def wrong_key(world: World, path: Path, chance: random.Random) -> None:
    world.sign(path, key="b.key", version=chance.randrange(1, 9))


def borrowed_keyid(world: World, path: Path, chance: random.Random) -> None:
    theirs = json.loads((path / ENVELOPE_NAME).read_bytes())["signatures"][0]["keyid"]
    wrong_key(world, path, chance)
    found = json.loads((path / ENVELOPE_NAME).read_bytes())
    found["signatures"][0]["keyid"] = theirs
    (path / ENVELOPE_NAME).write_text(json.dumps(found))


def expired(world: World, path: Path, chance: random.Random) -> None:
    world.sign(path, age=chance.randrange(31, 3000))


def of_the_future(world: World, path: Path, chance: random.Random) -> None:
    world.sign(path, age=-chance.randrange(3, 300))


def other_name(world: World, path: Path, chance: random.Random) -> None:
    world.sign(path, name=chance.choice(["smal", "small2", "Small", "x"]))


def same_version(world: World, path: Path, chance: random.Random) -> None:
    edited(path, lambda found: found["software"].update(torch=str(chance.random())))
    world.sign(path, version=2)


# Those of somebody who has the key


def edited(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    found = json.loads((path / "manifest.json").read_bytes())
    change(found)
    (path / "manifest.json").write_text(json.dumps(found, sort_keys=True, separators=(",", ":")) + "\n")


def replaced(path: Path, key: str, data: bytes) -> None:
    """Other bytes of an object, and a manifest that has them."""
    (path / key).write_bytes(data)
    record = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    edited(path, lambda found: found["objects"].update({key: record}))


def raw(rows: np.ndarray) -> bytes:
    data = rows.tobytes()
    return data + int(google_crc32c.value(data)).to_bytes(4, "little")


def signed(change: Callable[[Path, random.Random], None]) -> Change:
    def both(world: World, path: Path, chance: random.Random) -> None:
        change(path, chance)
        world.sign(path)

    return both


def out_of_range(ending: str, dtype: str, values: list[int]) -> Change:
    def change(path: Path, chance: random.Random) -> None:
        key = chance.choice(objects_of(path, ending))
        rows = np.frombuffer((path / key).read_bytes()[:-4], dtype).copy()
        rows[chance.randrange(len(rows))] = chance.choice(values)
        replaced(path, key, raw(rows))

    return signed(change)


def mask_of(path: Path, chance: random.Random) -> tuple[str, np.ndarray]:
    key = chance.choice(objects_of(path, "c/fgsm/nonzero/c/"))
    return key, zstd_decode((path / key).read_bytes(), size=98).copy()


def sign_at_zero(path: Path, chance: random.Random) -> None:
    key, mask = mask_of(path, chance)
    bits = np.unpackbits(mask, bitorder="little")
    zero = chance.choice(np.flatnonzero(bits == 0).tolist())
    key = key.replace("nonzero", "direction")
    rows = zstd_decode((path / key).read_bytes(), size=98).copy()
    rows[zero // 8] |= 1 << zero % 8
    replaced(path, key, zstd_encode(rows, level=3))


def uncounted_zero(path: Path, chance: random.Random) -> None:
    key, mask = mask_of(path, chance)
    direction = zstd_decode((path / key.replace("nonzero", "direction")).read_bytes(), size=98)
    free = np.flatnonzero(np.unpackbits(mask & ~direction, bitorder="little"))
    at = chance.choice(free.tolist())
    mask[at // 8] &= ~np.uint8(1 << at % 8)
    replaced(path, key, zstd_encode(mask, level=3))


def frames(path: Path, chance: random.Random) -> None:
    """Two frames, a frame and an empty one, a skippable one behind, one of another size, one without a checksum."""
    key, mask = mask_of(path, chance)
    whole = zstd_encode(mask, level=3)
    made = [
        zstd_encode(mask[:49], level=3) + zstd_encode(mask[49:], level=3),
        whole + zstd_encode(b"", level=3),
        whole + b"\x50\x2a\x4d\x18\x02\x00\x00\x00hi",
        zstd_encode(bytes(2 ** chance.randrange(8, 24)), level=3),
        whole[:4] + bytes([whole[4] & ~4]) + whole[5:-4],
    ]
    data = chance.choice([data for data in made if len(data) <= 119])
    replaced(path, key, data)


def another_document(path: Path, chance: random.Random) -> None:
    """What would have chunks decoded otherwise, or room made for what is not there."""
    key = chance.choice(
        [key for key in documents_of(path) if json.loads((path / key).read_bytes())["node_type"] == "array"]
    )
    found = json.loads((path / key).read_bytes())
    change: dict[str, Any] = chance.choice(
        [
            {"shape": [2**62] * len(found["shape"])},
            {"data_type": "float64"},
            {"zarr_format": 2},
            {"codecs": [{"name": "bytes"}, {"name": "gzip", "configuration": {"level": 9}}]},
            {"codecs": [{"name": "numcodecs.pickle"}]},
            {"fill_value": chance.randrange(1, 99)},
            {"chunk_key_encoding": {"name": "v2", "configuration": {"separator": "."}}},
            {"storage_transformers": [{"name": "x"}]},
            {"attributes": {"a": chance.random()}},
            {"attributes": chance.choice([0, False, [], None])},
            {"storage_transformers": chance.choice([0, False, {}, None])},
            {chr(chance.randrange(97, 123)): chance.random()},
        ]
    )
    (path / key).write_text(json.dumps(found | change))


def other_attributes(path: Path, chance: random.Random) -> None:
    """What a reader would believe of an entry: its step, its radius, the random signs that it replays."""
    key = chance.choice(["c/r-fgsm", "d/r-fgsm", "d/i-fgsm"])
    found = json.loads((path / key / "zarr.json").read_bytes())
    name = chance.choice(["seed", "alpha", "epsilon", "loss", "kind"])
    values = [value for value in (None, 1, 0.25, "ce", "other") if value != found["attributes"][name]]
    found["attributes"][name] = chance.choice(values)
    (path / key / "zarr.json").write_text(json.dumps(found))


def contradiction(path: Path, chance: random.Random) -> None:
    """A manifest that cannot be, signed nevertheless."""

    def bad_key(found: dict[str, Any]) -> None:
        key = chance.choice(sorted(found["objects"]))
        to = chance.choice(
            ["../x", "/etc/x", "a//b", "a/./b", "c:/x", "a\\b", "a\x00b", "é", "x" * 300, key.upper(), f"{key}/x"]
        )
        found["objects"][to] = found["objects"][key]

    changes: list[Callable[[dict[str, Any]], object]] = [
        bad_key,
        lambda found: found["data"].update(n=chance.choice([4, 6, 2**40, 2**62, 0, -1])),
        lambda found: found["data"].update(shape=chance.choice([[2**62, 1, 1], [2**26, 2, 1], [1, 28], [1, 28, 29]])),
        lambda found: found.update(draws=chance.choice([1, 3, 2**16, 2**70])),
        lambda found: found["zeros"].update({"d/fgsm": chance.choice([-1, 2**60, 1])}),
        lambda found: found["plan"].update(
            chance.choice([{"seed": 5.5}, {"device": "x"}, {"more": 1}, {"attacks": 3}])
        ),
        lambda found: found["plan"]["attacks"].append(found["plan"]["attacks"][0]),
        lambda found: found["sources"].append(found["sources"][0]),
        lambda found: found["objects"].pop(chance.choice(sorted(found["objects"]))),
        lambda found: found["objects"][chance.choice(sorted(found["objects"]))].update(bytes=chance.choice([0, 2**50])),
    ]
    edited(path, chance.choice(changes))


def strange_json(path: Path, chance: random.Random) -> None:
    """A manifest that parsers stumble over."""
    text = (path / "manifest.json").read_text()
    data = chance.choice(
        [
            b"[" * 10**5,
            b'{"a":' * 10**5,
            text.replace('"draws":2', '"draws":2,"draws":2').encode(),
            text.replace('"draws":2', '"draws":NaN').encode(),
            text.replace('"draws":2', '"draws":' + "9" * 5000).encode(),
            text.replace('"draws":2', '"draws":1e999').encode(),
            text.replace('"draws":2', '"draws": 2').encode(),
            text.replace('"d"', '"\\ud800"').encode(),
            b"\xff\xfe" + text.encode(),
            b'"' + b'\\"' * 10**5,
            b"",
            b"0",
        ]
    )
    (path / "manifest.json").write_bytes(data)


DAMAGED = "expected JSON|expected at most|to be zero|expected nothing"
CHANGES: dict[str, tuple[Change, str]] = {
    "a flipped bit of a chunk": (flipped(objects_of), "expected SHA-256 .* damaged or another one"),
    "a flipped bit of a document": (flipped(documents_of), r"zarr.json: .*(expected JSON|as the manifest has it)"),
    "a flipped bit of the manifest": (flipped(lambda _: ["manifest.json"]), "the manifest was changed"),
    "a flipped bit of the envelope": (
        flipped(lambda _: [ENVELOPE_NAME]),
        "expected JSON|expected a DSSE envelope|does not hold|signature of a trusted key",
    ),
    "a truncated chunk": (truncated(objects_of), "another size: expected [0-9,]+ bytes"),
    "a truncated document": (truncated(documents_of), "zarr.json: expected JSON"),
    "a truncated manifest": (truncated(lambda _: ["manifest.json"]), "the manifest was changed"),
    "a truncated envelope": (truncated(lambda _: [ENVELOPE_NAME]), "sig.json: expected JSON"),
    "a missing chunk": (removed(objects_of), "is missing; copy"),
    "a missing document": (removed(documents_of), "zarr.json.* is missing; copy"),
    "a missing manifest": (removed(lambda _: ["manifest.json"]), "expected the manifest that was signed, found none"),
    "a missing envelope": (removed(lambda _: [ENVELOPE_NAME]), "expected a signature, found none"),
    "an extra file": (extra, "is there that the manifest does not have"),
    "a link": (linked, "found a link at"),
    "swapped blocks": (swapped, "expected SHA-256 .* damaged or another one"),
    "a renamed source": (renamed, "are missing; copy"),
    "a renamed source, in the manifest too": (renamed_everywhere, "the manifest was changed"),
    "an older version": (older, "found version 1, which is older"),
    "a wrong key": (wrong_key, "expected the signature of a trusted key"),
    "a wrong key that says it is another": (borrowed_keyid, "signature of key .* does not hold"),
    "an expired signature": (expired, "the signature expired on"),
    "a signature of the future": (of_the_future, "in the future"),
    "a signature of another store": (other_name, "expected the store 'small', found a signature of"),
    "two stores of one version": (same_version, "another under the same version"),
    "signed: a label that no class has": (out_of_range("label/c/", "<i4", [-1, 10, 2**31 - 1]), "labels from 0 to 9"),
    "signed: a delta of -128": (out_of_range("delta/c/", "<i1", [-128]), "deltas from −127 to 127"),
    "signed: digests of other images": (
        out_of_range("digest/c/", "<u8", [0, 1, 2**63]),
        "expected an image with digest",
    ),
    "signed: a sign where the mask has a zero": (signed(sign_at_zero), "no sign where the mask has a zero"),
    "signed: a zero that was not counted": (signed(uncounted_zero), "values to be zero, found"),
    "signed: what is not one zstd frame": (signed(frames), "of zstd data, got|expected 1 to 119 bytes"),
    "signed: another Zarr document": (signed(another_document), "zarr.json: .*as the manifest has it"),
    "signed: other attributes": (signed(other_attributes), "zarr.json: .*as the manifest has it"),
    "signed: a contradiction": (signed(contradiction), "manifest.json: "),
    "signed: strange JSON": (signed(strange_json), "manifest.json: .*(expected|should be|draws)"),
}


def other_images(world: World, chance: random.Random) -> ArrayDataset:
    """The same images but for one pixel."""
    images, labels = open_dataset("mnist-mini", "train", limit=LIMIT).read(np.arange(LIMIT))
    images = images.copy()
    images[chance.randrange(LIMIT), 0, chance.randrange(28), chance.randrange(28)] ^= 1 << chance.randrange(8)
    return ArrayDataset(images, labels, name="other", split="train", classes=10)


def found(world: World, name: str, chance: random.Random) -> str:
    """Change a copy of the store, and return what verifying it says."""
    path = world.folder / "copy"
    shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(world.store, path)
    with pytest.MonkeyPatch.context() as patch:
        if name == OTHER_IMAGES:
            dataset = other_images(world, chance)
            patch.setattr(checks, "open_data", lambda spec, split: dataset)
        else:
            CHANGES[name][0](world, path, chance)
        before = content_of(path)
        seen = (world.folder / "versions.json").read_bytes()
        said = ""
        try:
            list(verified(Folder(path), world.wanted()))
        except IntegrityError as error:
            said = str(error)
    assert said, f"{name}: not found"
    assert content_of(path) == before, f"{name}: verifying changed the store"
    assert (world.folder / "versions.json").read_bytes() == seen, f"{name}: the version was remembered"
    assert "\n" not in said
    assert said.isprintable(), ascii(said)
    return said


OTHER_IMAGES = "a store of the same shape for other images"
KINDS = {**{name: said for name, (_, said) in CHANGES.items()}, OTHER_IMAGES: "expected an image with digest"}


def content_of(path: Path) -> dict[str, str]:
    """SHA-256 of every file."""
    return {
        file.relative_to(path).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in path.rglob("*")
        if file.is_file()
    }


def run(*, mutations: int, seed: int, folder: Path) -> dict[str, Any]:
    """Change the store so many times, each kind in turn."""
    world, chance, seen = make_world(folder), random.Random(seed), Counter[str]()  # noqa: S311 - which change
    for number in range(mutations):
        name = list(KINDS)[number % len(KINDS)]
        said = found(world, name, chance)
        assert re.search(KINDS[name], said), f"seed {seed}, mutation {number}, {name}: {said}"
        seen[name] += 1
    list(verified(Folder(world.store), world.wanted()))  # it was not the store itself
    return {"seed": seed, "mutations": mutations, "found": seen.total(), "kinds": dict(seen)}


def main() -> None:
    """As the module says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mutations", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    began = time.perf_counter()
    os.environ.setdefault("ENSADV_QUIET", "1")
    with tempfile.TemporaryDirectory() as folder:
        summary = run(mutations=arguments.mutations, seed=arguments.seed, folder=Path(folder))
    print(json.dumps({**summary, "minutes": round((time.perf_counter() - began) / 60, 1)}, indent=1))


if __name__ == "__main__":
    main()
