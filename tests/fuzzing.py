"""Random documents for everything that reads what a stranger wrote: nothing but an IntegrityError may come of them.

    python tests/fuzzing.py --inputs 1000000 --seed 1

Every input is a genuine document that was changed: half of them byte by byte (bits, cuts, slices put elsewhere, words
that parsers stumble over), half as what they are, so that they reach what lies behind the first checks: JSON (values
exchanged for odd ones, keys moved, added and taken away, written canonically again), or a tar (a field of a header is
an odd one, its checksum right, members moved, twice or left out). A crash is any other exception; the memory that a run
took beyond what it had after its first thousand inputs is told as well. The summary is JSON.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import random
import resource
import tarfile
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ensadv_data.data.tars import samples_of
from ensadv_data.errors import DataError, IntegrityError
from ensadv_data.exchange import export_store
from ensadv_data.manifest import parse_manifest
from ensadv_data.models import build_model, save_model
from ensadv_data.objects import Folder
from ensadv_data.precompute import precompute_store
from ensadv_data.signature import PublicKey, opened, sealed
from ensadv_data.spec import DataSpec, PrecomputeSpec
from ensadv_data.statement import make_statement, moment, parse_statement
from ensadv_data.store import open_store, root_attributes
from ensadv_data.store.index import parse_index
from ensadv_data.store.layout import header_from
from ensadv_data.verification.blueprint import blueprint_of, check_documents

KEY = Ed25519PrivateKey.from_private_bytes(bytes(32))
PUBLIC = PublicKey(KEY.public_key().public_bytes_raw())
WORDS = [b'{"', b"[[", b"]]", b"}", b'"', b"\\", b"\\ud800", b"\x00", b"\xff", b"NaN", b"1e999", b"-", b"9" * 25, b","]
ODD: list[Any] = [None, True, False, 0, -1, 1, 2, 0.5, 1e300, 2**31, 2**53, 2**62, 2**63, 10**19]
ODD += [
    "",
    "0",
    "../x",
    "a/b",
    "x" * 300,
    "\x00",
    "\x1b[2J",
    "é",
    "cpu",
    "cuda",
    "train",
    "test",
    "float64",
    "ce",
    "fill",
]
ODD += [[], {}, [[]], [1, 2, 3], {"a": {}}, [None]]

# Of a tar's header: name, mode, size, time, kind, linked name, magic, prefix. One of the sizes is negative.
FIELDS = [
    (0, 100),
    (100, 108),
    (124, 136),
    (124, 136),
    (136, 148),
    (156, 157),
    (156, 157),
    (157, 257),
    (257, 265),
    (345, 500),
]
IN_TAR = [
    b"",
    b"\xff" * 12,
    b"\x80" + b"\xff" * 11,
    b"\x80" + bytes(10) + b"\x01",
    b"77777777777",
    b"00000000000",
    b"-1",
]
IN_TAR += [
    b"1",
    b"2",
    b"5",
    b"6",
    b"L",
    b"K",
    b"x",
    b"g",
    b"S",
    b"V",
    b"../up",
    b"/etc/x",
    b"a.jpg",
    b"\x1b[2J",
    b"0.cls",
    b"9" * 12,
]

Reader = Callable[[bytes], object]


def mangled(raw: bytes, chance: random.Random) -> bytes:
    """Some bytes of it changed."""
    data = bytearray(raw)
    for _ in range(chance.randrange(1, 4)):
        at, other = chance.randrange(len(data) + 1), chance.randrange(len(data) + 1)
        low, high = min(at, other), min(max(at, other), min(at, other) + 40)
        kind = chance.randrange(5)
        if kind == 0 and data:
            data[at % len(data)] ^= 1 << chance.randrange(8)
        elif kind == 1:
            data[at:at] = chance.choice(WORDS) * chance.choice([1, 1, 1, 30])
        elif kind == 2:
            del data[low:high]
        elif kind == 3:
            data[at:at] = data[low:high]
        else:
            data[low:high] = chance.randbytes(chance.randrange(4))
    return bytes(data)


def rearranged(value: Any, chance: random.Random) -> Any:
    """A copy in which one value, somewhere, is an odd one, or is there twice, or not at all."""
    if chance.random() < 0.15 or not isinstance(value, dict | list) or not value:
        return chance.choice(ODD)
    if isinstance(value, list):
        copy, at = list(value), chance.randrange(len(value))
        kind = chance.random()
        if kind < 0.1:
            del copy[at]
        elif kind < 0.2:
            copy.append(copy[at])
        else:
            copy[at] = rearranged(copy[at], chance)
        return copy
    copy, key = dict(value), chance.choice(list(value))
    kind = chance.random()
    if kind < 0.05:
        del copy[key]
    elif kind < 0.1:
        copy[str(chance.choice(ODD))] = copy[key]
    elif kind < 0.15:
        copy[key] = copy[chance.choice(list(value))]
    else:
        copy[key] = rearranged(copy[key], chance)
    return copy


def reordered(raw: bytes, chance: random.Random) -> bytes:
    """A tar with a header that says something odd, and is right otherwise; or with blocks moved, twice or left out."""
    blocks = [bytearray(raw[at : at + 512]) for at in range(0, len(raw), 512)]
    headers = [number for number, block in enumerate(blocks) if block[257:262] == b"ustar"]
    at, other = chance.choice(headers), chance.randrange(len(blocks))
    kind = chance.random()
    if kind < 0.1:
        del blocks[at]
    elif kind < 0.3:
        blocks[other:other] = [bytearray(blocks[at])] * chance.choice([1, 1, 2, 300])
    else:
        block, (begin, end) = blocks[at], chance.choice(FIELDS)
        odd = chance.choice(IN_TAR)
        block[begin:end] = (odd + bytes(end - begin))[: end - begin]
        block[148:156] = b"%06o\0 " % (sum(block[:148]) + 8 * 32 + sum(block[156:]))
    return b"".join(blocks)


def changed(raw: bytes, chance: random.Random) -> bytes:
    """A document like it."""
    if chance.random() < 0.5:
        return mangled(raw, chance)
    if raw[257:262] == b"ustar":
        return reordered(raw, chance)
    value = json.loads(raw)
    for _ in range(chance.randrange(1, 3)):
        value = rearranged(value, chance)
    return (json.dumps(value, sort_keys=True, separators=(",", ":")) + "\n").encode()


class Document(Folder):
    """A store of which one document is another."""

    def __init__(self, path: Path, key: str) -> None:
        super().__init__(path)
        self.key, self.raw = key, b""

    def read_at_most(self, key: str, limit: int) -> bytes:
        return self.raw if key == self.key else super().read_at_most(key, limit)

    def array(self, key: str) -> Any:
        return np.frombuffer(self.raw, np.uint8) if key == self.key else super().array(key)


def readers(folder: Path) -> dict[str, tuple[list[bytes], Reader]]:
    """For each reader, genuine documents, and a call of it."""
    path = folder / "store"
    module = build_model("D", shape=(1, 28, 28), classes=10, seed=1)
    save_model(folder / "d.safetensors", module, architecture="D", shape=(1, 28, 28), classes=10, record={})
    spec = PrecomputeSpec(models={"d": str(folder / "d.safetensors")}, attacks=("r-fgsm", "i-fgsm:steps=1"), draws=1)
    precompute_store(spec, DataSpec(data="mnist-mini", limit=1), path, workers=0)
    manifest = (path / "manifest.json").read_bytes()
    blueprint = blueprint_of(parse_manifest(manifest, "it"), where="it")
    about = {"store": "0" * 64, "name": "n", "version": 1, "created": moment(_TIME), "expires": moment(_TIME)}
    statement = make_statement("1" * 64, **about).to_bytes()
    made: dict[str, tuple[list[bytes], Reader]] = {
        "manifest": ([manifest], lambda raw: blueprint_of(parse_manifest(raw, "it"), where="it")),
        "envelope": ([sealed(statement, KEY)], lambda raw: opened(raw, {PUBLIC.keyid: PUBLIC}, where="it")),
        "statement": ([statement], lambda raw: parse_statement(raw, where="it")),
    }
    for key in ("zarr.json", "d/r-fgsm/zarr.json", "d/r-fgsm/direction/zarr.json"):
        place = Document(path, key)

        def read(raw: bytes, place: Document = place) -> object:
            place.raw = raw
            return check_documents(place, blueprint)

        made[key] = ([(path / key).read_bytes()], read)
    root = Document(path, "zarr.json")

    def header(raw: bytes) -> object:
        root.raw = raw
        attributes = root_attributes(root)
        try:
            return None if attributes is None else header_from(attributes)
        except (ValueError, KeyError, TypeError) as error:  # which open_store tells as an IntegrityError
            raise IntegrityError(str(error)) from None

    made["header"] = ([(path / "zarr.json").read_bytes()], header)
    return {**made, **readers_of_sets(path, folder)}


def readers_of_sets(path: Path, folder: Path) -> dict[str, tuple[list[bytes], Reader]]:
    """The same for an exported set, whose shard has the digest that the index tells, and for tars of images."""
    export_store(path, folder / "set")
    index = (folder / "set/index.json").read_bytes()
    exported = open_store(folder / "set")
    (whole,) = exported.shards
    place = Document(folder / "set", whole.name)

    def shard(raw: bytes) -> object:
        place.raw = raw
        exported.place, exported._maps = place, {}
        return exported.check_shard(whole._replace(bytes=len(raw), sha256=hashlib.sha256(raw).hexdigest()))

    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w:", format=tarfile.PAX_FORMAT) as file:
        for name, data in (
            ("a/0.jpg", b"\xff\xd8"),
            ("a/0.cls", b"3"),
            ("é" * 60 + ".png", b"x"),
            ("é" * 60 + ".cls", b"1"),
        ):
            about = tarfile.TarInfo(name)
            about.size = len(data)
            file.addfile(about, io.BytesIO(data))

    def images(raw: bytes) -> object:
        return list(samples_of(io.BytesIO(raw), "it"))

    return {
        "index": ([index], lambda raw: parse_index(raw, "it")),
        "shard": ([(folder / "set" / whole.name).read_bytes()], shard),
        "images": ([tar.getvalue()], images),
    }


_TIME = "2026-05-04T03:02:01Z"


def run(*, inputs: int, seed: int, folder: Path) -> dict[str, Any]:
    """So many inputs, for each reader in turn."""
    chance, targets = random.Random(seed), readers(folder)  # noqa: S311 - which inputs
    names, accepted, before = list(targets), Counter[str](), 0
    for number in range(inputs):
        name = names[number % len(names)]
        documents, read = targets[name]
        raw = changed(chance.choice(documents), chance)
        try:
            read(raw)
            accepted[name] += 1
        except (IntegrityError, DataError) as error:
            said = str(error)
            assert said.isprintable(), f"seed {seed}, input {number}, {name}: {said!a}"
        except Exception as error:
            raise AssertionError(f"seed {seed}, input {number}, {name}: {raw!r}") from error
        if number == min(1000, inputs // 2):
            before = _peak()
    return {"seed": seed, "inputs": inputs, "crashes": 0, "accepted": dict(accepted), "grown": _peak() - before}


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    """As the module says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        summary = run(inputs=arguments.inputs, seed=arguments.seed, folder=Path(folder))
    print(json.dumps({**summary, "minutes": round((time.perf_counter() - began) / 60, 1)}, indent=1))


if __name__ == "__main__":
    main()
