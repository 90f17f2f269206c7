"""The store: bytes of the format, what strangers' readers see, and everything that is refused."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorstore
import torch
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from ensadv_data.attacks.gradient import input_gradient, logits_of
from ensadv_data.codec import pack_signs, row_bytes, unpack_signs
from ensadv_data.compression import zstd_decode
from ensadv_data.data import ArrayDataset, Dataset, open_dataset
from ensadv_data.errors import ChunkError, InputError, IntegrityError, OutputError, UnknownNameError
from ensadv_data.inspection import describe_model, describe_store, is_store
from ensadv_data.manifest import DataRecord, Manifest, ObjectRecord, SourceRecord, read_manifest
from ensadv_data.models import build_model, save_model
from ensadv_data.precompute import precompute_store
from ensadv_data.spec import ATTACKS, DataSpec, PrecomputeSpec, TrainSpec
from ensadv_data.store import Cache, Entry, Header, Planes, Store, StoreWriter, block_size, layout, open_store
from ensadv_data.training import train

pytestmark = pytest.mark.usefixtures("without_fsync")

MNIST = (1, 28, 28)
N = 40  # 13 full blocks of 3, and one with a single row


# A store by hand: random directions for images in memory. The tests of mixing and training use it too.


def make_images(n: int, *, shape: tuple[int, int, int] = (1, 4, 5), seed: int = 0, classes: int = 4) -> ArrayDataset:
    generator = np.random.default_rng(seed)
    images = generator.integers(0, 256, (n, *shape), dtype=np.uint8)
    return ArrayDataset(images, generator.integers(0, classes, n), name="tiny", split="train", classes=classes)


def make_header(data: Dataset, keys: tuple[str, ...], *, draws: int = 1, **plan: Any) -> Header:
    return Header(
        data=data.name,
        split=data.split,
        data_digest=data.digest,
        shape=data.shape,
        classes=data.classes,
        n=len(data),
        draws=draws,
        groups=keys,
        plan=plan,
    )


def make_entry(key: str, *, epsilon: float = 0.3, alpha: float = 0.1) -> Entry:
    source, attack = key.split("/")
    kind = ATTACKS[attack][0]
    return Entry(
        source=source,
        attack=attack,
        kind=kind,
        epsilon=epsilon if kind == "delta" else None,
        alpha=alpha if kind == "rsign" else None,
        seed=1234567890123456789,
        source_digest=hashlib.sha256(source.encode()).hexdigest(),
        architecture="none",
        loss="margin",
    )


def make_values(data: Dataset, *, draws: int, kind: str, zeros: bool, seed: int) -> np.ndarray:
    generator = np.random.default_rng(seed)
    d = int(np.prod(data.shape))
    if kind == "delta":
        return generator.integers(-127, 128, (draws, len(data), d)).astype(np.int8)
    signs = (2 * generator.integers(0, 2, (draws, len(data), d)) - 1).astype(np.int8)
    return signs * (generator.random(signs.shape) > 0.1) if zeros else signs


def make_planes(values_KND: np.ndarray, label_N: np.ndarray, kind: str) -> Planes:
    if kind == "delta":
        return Planes(delta=values_KND, label=label_N)
    k, n, d = values_KND.shape
    direction, nonzero = pack_signs(values_KND.reshape(k * n, d))
    return Planes(
        direction=direction.reshape(k, n, -1),
        nonzero=None if nonzero is None else nonzero.reshape(k, n, -1),
        label=label_N,
    )


def make_store(
    path: Path,
    data: Dataset,
    keys: tuple[str, ...],
    *,
    draws: int = 1,
    zeros: bool = False,
    seed: int = 0,
    blocks: int | None = None,
) -> dict[str, np.ndarray]:
    """Write a store, or its first blocks, and return the values (K, N, D) of each entry."""
    entries = tuple(make_entry(key) for key in keys)
    header = make_header(data, keys, draws=draws)
    writer = StoreWriter(path, header, entries)
    writer.create()
    values = {
        entry.key: make_values(data, draws=draws, kind=entry.kind, zeros=zeros, seed=seed + number)
        for number, entry in enumerate(entries)
    }
    labels = np.arange(len(data), dtype=np.int32) % data.classes
    digests = data.example_digests()
    for block in range(header.blocks if blocks is None else blocks):
        mine = slice(block * header.block, (block + 1) * header.block)
        planes = {e.key: make_planes(values[e.key][:, mine], labels[mine], e.kind) for e in entries}
        writer.write_block(block, planes, digests[mine])
    if blocks is None:
        close(writer)
    return values


def close(writer: StoreWriter) -> None:
    objects, zeros, _ = writer.collect()
    header = writer.header
    sources = {entry.source: entry.source_digest for entry in writer.entries}
    manifest = Manifest(
        data=DataRecord(
            name=header.data,
            split=header.split,
            n=header.n,
            shape=header.shape,
            classes=header.classes,
            digest=header.data_digest,
        ),
        sources=tuple(SourceRecord(name=name, architecture="none", digest=digest) for name, digest in sources.items()),
        draws=header.draws,
        plan=dict(header.plan),
        zeros=zeros,
        software={},
        objects={key: ObjectRecord(bytes=size, sha256=digest) for key, (size, digest) in objects.items()},
    )
    writer.close(manifest.to_bytes())


def signs_of(store: Store, key: str, draw: int = 0) -> np.ndarray:
    rows = np.arange(store.header.n)
    planes = store.gather(store.entry(key), np.full_like(rows, draw), rows)
    return unpack_signs(planes.direction, planes.nonzero, d=store.header.d)


def content(folder: Path) -> dict[str, tuple[bytes | None, int]]:
    """Every name below a folder with its bytes and its time of change."""
    return {
        str(p.relative_to(folder)): (p.read_bytes() if p.is_file() else None, p.stat().st_mtime_ns)
        for p in folder.rglob("*")
    }


def crc32c(data: bytes) -> int:
    """CRC-32C (RFC 3720, appendix B.4), bit by bit: polynomial 0x1EDC6F41, reflected."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


# The bytes


def test_the_bit_by_bit_crc32c_gives_the_check_value_of_its_definition():
    assert crc32c(b"123456789") == 0xE3069283


def test_a_tiny_store_has_the_bytes_that_the_format_says(tmp_path):
    data = ArrayDataset(
        np.arange(30, dtype=np.uint8).reshape(3, 1, 2, 5),
        np.array([0, 1, 2]),
        name="tiny",
        split="train",
        classes=3,
    )
    keys = ("m/fgsm", "m/r-fgsm", "m/pgd")
    writer = StoreWriter(tmp_path / "s", make_header(data, keys), tuple(make_entry(key) for key in keys))
    writer.create()
    signs = np.array([[[1, -1, 1, 1, -1, -1, -1, 1, 1, -1], [1] * 10, [-1, 0, 1, 0, 0, 1, -1, 1, 0, -1]]], np.int8)
    deltas = np.array([[[127, -127, 0, 1, -1, 2, 3, 4, 5, 6]] * 3], np.int8)
    labels = np.array([2, 0, 1], np.int32)
    for i in range(3):  # three images, three blocks of one row
        planes = {
            "m/fgsm": make_planes(signs[:, i : i + 1], labels[i : i + 1], "sign"),
            "m/r-fgsm": make_planes(signs[:, i : i + 1], labels[i : i + 1], "rsign"),
            "m/pgd": make_planes(deltas[:, i : i + 1], labels[i : i + 1], "delta"),
        }
        writer.write_block(i, planes, data.example_digests()[i : i + 1])
    close(writer)

    def chunk(name: str) -> bytes:
        return (tmp_path / "s" / name).read_bytes()

    rows = [bytes([0b10001101, 0b01]), bytes([0xFF, 0b11]), bytes([0b10100100, 0b00])]
    masks = [bytes([0xFF, 0b11]), bytes([0xFF, 0b11]), bytes([0b11100101, 0b10])]
    assert rows[0].hex() == "8d01"
    assert chunk("m/r-fgsm/direction/c/0/0/0").hex(" ") == "8d 01 " + struct.pack("<I", crc32c(rows[0])).hex(" ")
    for i in range(3):
        assert chunk(f"m/r-fgsm/direction/c/0/{i}/0") == rows[i] + struct.pack("<I", crc32c(rows[i]))
        assert zstd_decode(chunk(f"m/fgsm/direction/c/0/{i}/0"), size=2).tobytes() == rows[i]
        assert zstd_decode(chunk(f"m/fgsm/nonzero/c/0/{i}/0"), size=2).tobytes() == masks[i]
        assert chunk(f"m/fgsm/nonzero/c/0/{i}/0") == chunk(f"m/r-fgsm/nonzero/c/0/{i}/0")
        delta = bytes([127, 129, 0, 1, 255, 2, 3, 4, 5, 6])
        assert chunk(f"m/pgd/delta/c/0/{i}/0") == delta + struct.pack("<I", crc32c(delta))
        label = struct.pack("<i", labels[i])
        assert chunk(f"m/fgsm/label/c/{i}") == label + struct.pack("<I", crc32c(label))
        digest = hashlib.sha256(struct.pack("<3I", 1, 2, 5) + bytes(range(10 * i, 10 * i + 10))).digest()[:8]
        assert chunk(f"example_digest/c/{i}") == digest + struct.pack("<I", crc32c(digest))
    files = {str(p.relative_to(tmp_path / "s")) for p in (tmp_path / "s").rglob("*") if p.is_file()}
    arrays = {f"m/{name}": "c/0/{}/0" for name in ("fgsm/direction", "fgsm/nonzero", "pgd/delta")}
    arrays |= {f"m/r-fgsm/{name}": "c/0/{}/0" for name in ("direction", "nonzero")}
    arrays |= {f"{key}/label": "c/{}" for key in keys} | {"example_digest": "c/{}"}
    metadata = {"zarr.json", "manifest.json", "m/zarr.json", *(f"{key}/zarr.json" for key in keys)}
    expected = metadata | {f"{name}/zarr.json" for name in arrays}
    assert files == expected | {f"{name}/{key.format(i)}" for name, key in arrays.items() for i in range(3)}


def test_the_last_block_is_padded_with_zeros(tmp_path):
    data = make_images(17)
    values = make_store(tmp_path / "s", data, ("m/fgsm", "m/r-fgsm"))
    store = open_store(tmp_path / "s")
    assert (store.header.block, store.header.blocks) == (2, 9)
    for key in values:
        chunk = (tmp_path / f"s/{key}/direction/c/0/8/0").read_bytes()
        plane = chunk[:-4] if key == "m/r-fgsm" else zstd_decode(chunk, size=6).tobytes()
        assert plane == pack_signs(values[key][0, 16:])[0].tobytes() + bytes(3)
        assert (tmp_path / f"s/{key}/label/c/8").read_bytes()[4:8] == bytes(4)
        assert (signs_of(store, key) == values[key][0]).all()


def test_a_large_store_keeps_all_directions_raw(tmp_path, monkeypatch):
    monkeypatch.setattr(layout, "HELD_BYTES", 2 * 20 * 3 - 1)  # two planes of 20 rows of 3 bytes, less one
    values = make_store(tmp_path / "s", make_images(20), ("m/fgsm",))
    store = open_store(tmp_path / "s")
    assert (tmp_path / "s/m/fgsm/direction/c/0/0/0").read_bytes()[:3] == pack_signs(values["m/fgsm"][0])[0][0].tobytes()
    assert (signs_of(store, "m/fgsm") == values["m/fgsm"][0]).all()


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 2_000_000), st.integers(1, 400_000))
def test_blocks_cover_all_images_and_waste_less_than_a_row_each(n, d):
    size = block_size(n, d)
    blocks = -(-n // size)
    assert size == block_size(n, d)
    assert blocks * size >= n > (blocks - 1) * size
    assert 2 * blocks >= min(n, 16)
    assert blocks * size - n < blocks
    assert size * row_bytes(d) < 32 * 2**20 + row_bytes(d)
    assert blocks == n or n < 17 or size > 1


@settings(max_examples=12, deadline=None)
@given(
    n=st.integers(1, 40),
    draws=st.integers(1, 3),
    zeros=st.booleans(),
    seed=st.integers(0, 999),
    picks=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 10**6)), max_size=20),
)
def test_rows_come_back_in_the_order_asked_for(tmp_path_factory, n, draws, zeros, seed, picks):
    path = tmp_path_factory.mktemp("gather") / "s"
    keys = ("m/fgsm", "m/r-fgsm", "m/pgd")
    values = make_store(path, make_images(n, shape=(1, 2, 5)), keys, draws=draws, zeros=zeros, seed=seed)
    store = open_store(path)
    draws_B = np.array([k % draws for k, _ in picks], np.int64)
    rows_B = np.array([row % n for _, row in picks], np.int64)
    for key in keys:
        planes = store.gather(store.entry(key), draws_B, rows_B)
        expected = values[key][draws_B, rows_B]
        if planes.delta is not None:
            assert (planes.delta == expected).all()
        else:
            assert store.has_mask(store.entry(key)) == bool((values[key] == 0).any())
            assert (unpack_signs(planes.direction, planes.nonzero, d=10) == expected).all()
    shutil.rmtree(path)


@pytest.mark.parametrize("limit", [0, 20, 40, 10**6])
def test_decompressed_chunks_are_dropped_from_the_cache_when_it_is_full_and_read_again(tmp_path, limit):
    values = make_store(tmp_path / "s", make_images(40), ("m/fgsm", "m/step-ll"), zeros=True)
    cache = Cache(limit)
    store = open_store(tmp_path / "s", cache=cache)
    rows = np.random.default_rng(0).permutation(40)
    for key in ("m/fgsm", "m/step-ll", "m/fgsm"):
        planes = store.gather(store.entry(key), np.zeros(40, np.int64), rows)
        assert (unpack_signs(planes.direction, planes.nonzero, d=store.header.d) == values[key][0][rows]).all()
        chunk = store.header.block * row_bytes(store.header.d)
        assert cache.held <= max(limit, chunk)
    everything = 4 * store.header.blocks * chunk
    assert cache.held == min(everything, max(1, limit // chunk) * chunk)


# A store of real models, as strangers see it


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("models")
    for name in "CD":
        module = build_model(name, shape=MNIST, classes=10, seed=3)
        save_model(folder / f"{name}.safetensors", module, architecture=name, shape=MNIST, classes=10, record={})
    return {name.lower(): str(folder / f"{name}.safetensors") for name in "CD"}


@pytest.fixture(scope="module")
def real(tmp_path_factory, models) -> Store:
    path = tmp_path_factory.mktemp("real") / "store"
    spec = PrecomputeSpec(models=models, attacks=("fgsm", "step-ll", "r-fgsm"), draws=1)
    precompute_store(spec, DataSpec(data="mnist-mini", limit=N), path, workers=0)
    return open_store(path)


def signs_directly(architecture: str, attack: str, *, block: int) -> np.ndarray:
    """The definition, block by block, since another batch size moves about one sign in a million."""
    images, _ = open_dataset("mnist-mini", "train", limit=N).read(np.arange(N))
    module = build_model(architecture, shape=MNIST, classes=10, seed=3).eval()
    parts = []
    for start in range(0, N, block):
        x = torch.from_numpy(images[start : start + block]).float() / 255
        logits = logits_of(module, x)
        label = logits.argmin(1) if attack == "step-ll" else logits.argmax(1)
        sign = input_gradient(module, x, label).sign().flatten(1).to(torch.int8).numpy()
        parts.append(-sign if attack == "step-ll" else sign)
    return np.concatenate(parts)


@pytest.mark.parametrize("attack", ["fgsm", "step-ll"])
@pytest.mark.parametrize("source", ["c", "d"])
def test_unpacked_directions_are_the_signs_of_the_gradient(real, one_thread, source, attack):
    expected = signs_directly(source.upper(), attack, block=real.header.block)
    assert (signs_of(real, f"{source}/{attack}") == expected).all()
    entry = real.entry(f"{source}/{attack}")
    assert real.has_mask(entry) == bool((expected == 0).any()) == (source == "c")
    assert (real.place.path / entry.key / "nonzero").exists() == (source == "c")
    assert read_manifest(real.place.path).zeros[entry.key] == (expected == 0).sum()


def test_stock_zarr_reads_the_store(real):
    expected = signs_of(real, "c/fgsm")
    group = zarr.open_group(real.place.path, mode="r")
    direction, nonzero = group["c/fgsm/direction"][0], group["c/fgsm/nonzero"][0]
    assert (unpack_signs(direction, nonzero, d=784) == expected).all()
    assert (group["c/fgsm/label"][:] == real.labels(real.entry("c/fgsm"))).all()
    digests = open_dataset("mnist-mini", "train", limit=N).example_digests()
    assert (group["example_digest"][:] == digests).all()
    assert (real.example_digests() == digests).all()


def test_tensorstore_reads_the_store(real):
    def read(name: str) -> np.ndarray:
        spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{real.place.path / name}/"}}
        return tensorstore.open(spec, read=True, open=True).result().read().result()

    signs = unpack_signs(read("c/step-ll/direction")[0], read("c/step-ll/nonzero")[0], d=784)
    assert (signs == signs_of(real, "c/step-ll")).all()
    assert (read("example_digest") == real.example_digests()).all()


def test_a_row_is_where_a_plain_memory_map_expects_it(real):
    row = 29
    block, offset = divmod(row, real.header.block)
    mapped = np.memmap(real.place.path / f"d/r-fgsm/direction/c/0/{block}/0", np.uint8, mode="r")
    bits = np.unpackbits(mapped[offset * 98 : (offset + 1) * 98], bitorder="little")
    assert (2 * bits.astype(np.int8) - 1 == signs_of(real, "d/r-fgsm")[row]).all()


def test_filled_zeros_need_no_mask_and_change_nothing_else(real, models, tmp_path):
    spec = PrecomputeSpec(models={"c": models["c"]}, attacks=("fgsm",), zeros="fill")
    precompute_store(spec, DataSpec(data="mnist-mini", limit=N), tmp_path / "s", workers=0)
    store = open_store(tmp_path / "s")
    filled, kept = signs_of(store, "c/fgsm"), signs_of(real, "c/fgsm")
    assert not (tmp_path / "s/c/fgsm/nonzero").exists()
    assert set(np.unique(filled)) == {-1, 1}
    assert (filled == kept)[kept != 0].all()
    zeros = kept == 0
    assert 0.4 < (filled[zeros] > 0).mean() < 0.6
    assert len(np.unique(filled[zeros][:60].reshape(-1, 6), axis=0)) > 1


def test_a_description_counts_bytes_zeros_and_draws(real):
    summary = describe_store(real.place.path)
    assert (summary.n, summary.draws, summary.blocks, summary.block) == (N, 1, 14, 3)
    assert summary.to_json()["entries"][0]["source"] == "c"
    assert summary.bytes == sum(record.bytes for record in read_manifest(real.place.path).objects.values())
    by_source = {(row.source, row.attack): row for row in summary.entries}
    assert by_source["d", "fgsm"].zeros == 0
    assert by_source["c", "fgsm"].zeros == (signs_of(real, "c/fgsm") == 0).mean()
    assert by_source["d", "r-fgsm"].bits_per_value == 8 * 14 * (3 * 98 + 4) / (N * 784)
    assert {row.epsilon for row in summary.entries} == {"any epsilon", "any epsilon above alpha = 0.05"}
    assert is_store(real.place.path)
    with pytest.raises(InputError, match="found nothing"):
        is_store(real.place.path / "absent")


def test_a_weights_file_is_described_by_its_metadata(models):
    about = describe_model(Path(models["c"]))
    assert (about["architecture"], about["shape"], about["classes"], about["record"]) == ("C", [1, 28, 28], 10, {})


def test_deltas_and_random_steps_are_described_with_what_they_are_tied_to(tmp_path):
    make_store(tmp_path / "s", make_images(20), ("m/r-fgsm", "m/pgd"))
    rows = {row.kind: row for row in describe_store(tmp_path / "s").entries}
    assert rows["rsign"].epsilon == "any epsilon above alpha = 0.1"
    assert rows["delta"].epsilon == "epsilon = 0.3 only"
    assert rows["delta"].zeros is None


def test_a_value_costs_at_most_one_bit_and_the_mask_little_more(tmp_path):
    """A net with max-pooling after a few steps of training; most of its zeros are at fixed places.

    After a random step only those are left, and a value takes one bit and a mask of next to nothing. Under plain
    FGSM (19.3% zeros) the mask takes 0.0470 bits in blocks of 625 images, 0.0914 in these of 25; the directions are
    compressed then, and pay for it.
    """
    train(
        TrainSpec(architecture="C", epochs=1, batch_size=16, threads=1),
        open_dataset("mnist-mini", "train", limit=160),
        tmp_path / "m.safetensors",
    )
    models = {"m": str(tmp_path / "m.safetensors")}
    spec = PrecomputeSpec(models=models, attacks=("fgsm", "r-fgsm:alpha=0.1"), draws=1)
    precompute_store(spec, DataSpec(data="mnist-mini", limit=400), tmp_path / "s", workers=0)
    store = open_store(tmp_path / "s")
    plain, random = describe_store(tmp_path / "s").entries
    assert plain.zeros is not None
    assert random.zeros is not None
    assert 0.12 < random.zeros < 0.15 < plain.zeros < 0.25
    bits = {
        row.attack: 8 * store.object_sizes(store.entry(f"m/{row.attack}"))["direction"] / (400 * 784)
        for row in (plain, random)
    }
    assert bits["fgsm"] < 0.95 < 1 < bits["r-fgsm"] <= 1.002
    assert plain.bits_per_value <= 1.03
    assert random.bits_per_value <= 1.03


# What a reader refuses


@pytest.fixture
def made(tmp_path) -> Path:
    make_store(tmp_path / "s", make_images(40), ("m/fgsm", "m/r-fgsm", "m/pgd"), draws=2, zeros=True)
    return tmp_path / "s"


def read_all(path: Path) -> None:
    store = open_store(path)
    rows = np.arange(store.header.n)
    store.example_digests()
    for entry in store.entries:
        store.labels(entry)
        for draw in range(store.header.draws):
            store.gather(entry, np.full_like(rows, draw), rows)


CHUNKS = ["m/fgsm/direction/c/1/3/0", "m/fgsm/nonzero/c/0/5/0", "m/pgd/delta/c/0/0/0", "m/fgsm/label/c/2"]
CHUNKS += ["example_digest/c/13", "m/r-fgsm/direction/c/1/3/0"]
FRAMES = CHUNKS[:2]  # what follows a zstd frame is no part of it


@pytest.mark.parametrize("key", CHUNKS)
@pytest.mark.parametrize("harm", ["missing", "truncated", "empty", "longer", "flipped"])
def test_a_damaged_chunk_is_named_and_never_read_as_zeros(made, key, harm):
    read_all(made)
    chunk = made / key
    data = chunk.read_bytes()
    flipped = bytearray(data)
    flipped[len(data) // 2] ^= 4
    chunk.unlink()
    if harm != "missing":
        chunk.write_bytes(
            {"truncated": data[:-3], "empty": b"", "longer": data + b"x", "flipped": bytes(flipped)}[harm]
        )
    if key in FRAMES and harm == "longer":
        return
    with pytest.raises(ChunkError) as caught:
        read_all(made)
    assert str(chunk) in str(caught.value)
    assert "copy the store again" in str(caught.value)
    assert caught.value.exit_code == 4


def test_a_description_notices_a_missing_chunk(made):
    (made / CHUNKS[0]).unlink()
    with pytest.raises(ChunkError, match=CHUNKS[0]):
        describe_store(made)


@pytest.mark.parametrize(
    "name", ["m/fgsm/direction", "m/fgsm/nonzero", "m/pgd/delta", "m/pgd/label", "example_digest", "m/fgsm"]
)
def test_missing_metadata_is_an_error_that_names_it(made, name):
    (made / name / "zarr.json").unlink()
    with pytest.raises(ChunkError, match=f"{name} is missing"):
        open_store(made)


def change(path: Path, **fields: Any) -> None:
    node = json.loads(path.read_text())
    path.write_text(json.dumps(node | fields))


FOREIGN = {
    "another codec": (
        "m/r-fgsm/direction",
        {"codecs": [{"name": "bytes"}, {"name": "gzip", "configuration": {"level": 1}}]},
    ),
    "compressed where it is to be mapped": (
        "m/r-fgsm/direction",
        {"codecs": [{"name": "bytes"}, {"name": "zstd", "configuration": {"level": 3, "checksum": True}}]},
    ),
    "no checksum": ("m/r-fgsm/direction", {"codecs": [{"name": "bytes"}]}),
    "unknown codec": ("m/fgsm/direction", {"codecs": [{"name": "bytes"}, {"name": "acme.secret"}]}),
    "uncompressed mask": ("m/fgsm/nonzero", {"codecs": [{"name": "bytes"}, {"name": "crc32c"}]}),
    "another dtype": ("m/pgd/delta", {"data_type": "uint8"}),
    "another shape": ("m/fgsm/label", {"shape": [41]}),
    "no shape": ("m/fgsm/label", {"shape": None}),
    "zarr v2": ("m/fgsm/label", {"zarr_format": 2}),
}


@pytest.mark.parametrize("what", FOREIGN)
def test_an_array_that_is_not_of_this_format_is_refused(made, what):
    name, fields = FOREIGN[what]
    change(made / name / "zarr.json", **fields)
    with pytest.raises(IntegrityError) as caught:
        open_store(made)
    assert str(made) in str(caught.value)


def attributes_of(path: Path) -> dict[str, Any]:
    return json.loads((path / "zarr.json").read_text())["attributes"]


def test_groups_that_say_something_else_are_refused(made):
    saved = (made / "m/fgsm/zarr.json").read_bytes()
    change(made / "m/fgsm/zarr.json", attributes=attributes_of(made / "m/fgsm") | {"attack": "step-ll"})
    with pytest.raises(IntegrityError, match="expected fgsm in the group m/fgsm, found 'step-ll'"):
        open_store(made)
    (made / "m/fgsm/zarr.json").write_bytes(saved)
    change(made / "m/zarr.json", attributes={})
    with pytest.raises(IntegrityError, match="metadata is damaged"):
        open_store(made)


def test_a_later_version_and_other_blocks_are_refused(made):
    attributes = attributes_of(made)
    change(made / "zarr.json", attributes=attributes | {"block": 7})
    with pytest.raises(InputError, match="blocks of 3 examples, found '7'"):
        open_store(made)
    change(made / "zarr.json", attributes=attributes | {"version": 2})
    with pytest.raises(InputError, match="expected format version 1, found '2'"):
        open_store(made)
    change(made / "zarr.json", attributes=attributes | {"n": "many"})
    with pytest.raises(IntegrityError, match="metadata is damaged"):
        open_store(made)


def test_a_folder_of_zarr_v2_is_no_store(made, tmp_path):
    zarr.create_group(tmp_path / "v2", zarr_format=2, attributes=attributes_of(made))
    with pytest.raises(InputError, match="expected a store"):
        open_store(tmp_path / "v2")
    change(made / "zarr.json", zarr_format=2)
    with pytest.raises(InputError, match="expected a store"):
        open_store(made)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"zarr_format": 3, "node_type": "group", "attributes": 3}'])
def test_a_folder_with_other_metadata_is_no_store(tmp_path, text):
    (tmp_path / "zarr.json").write_text(text)
    with pytest.raises(InputError, match="expected a store"):
        open_store(str(tmp_path))


def test_an_unfinished_store_says_how_to_go_on(tmp_path):
    make_store(tmp_path / "s", make_images(40), ("m/fgsm",), blocks=3)
    with pytest.raises(InputError, match=r"unfinished \(3 blocks done\); run the same precompute command again"):
        open_store(tmp_path / "s")


def test_examples_draws_and_entries_out_of_range_are_refused(made):
    store = open_store(made)
    entry = store.entry("m/fgsm")
    for draws, rows in (([0], [40]), ([0], [-1])):
        with pytest.raises(InputError, match=r"expected examples in 0 … 39"):
            store.gather(entry, np.array(draws), np.array(rows))
    for draw in (2, -1):
        with pytest.raises(InputError, match=r"expected draws in 0 … 1"):
            store.gather(entry, np.array([draw]), np.array([0]))
    with pytest.raises(UnknownNameError, match="m/fgsm, m/r-fgsm, m/pgd"):
        store.entry("m/step-ll")


# What a writer refuses, and what it goes on from


def writer_at(path: Path, **plan: Any) -> StoreWriter:
    return StoreWriter(path, make_header(make_images(40), ("m/fgsm",), **plan), (make_entry("m/fgsm"),))


def test_a_folder_that_holds_something_else_is_never_touched(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/a.jpg").write_bytes(b"holiday")
    zarr.create_group(tmp_path / "zarr", zarr_format=3, attributes={"format": "else"})
    for name in ("photos", "zarr"):
        before = content(tmp_path / name)
        with pytest.raises(OutputError, match="it was not touched"):
            writer_at(tmp_path / name).create()
        assert content(tmp_path / name) == before


def test_a_store_of_another_plan_is_never_touched(tmp_path):
    make_store(tmp_path / "s", make_images(40), ("m/fgsm",))
    before = content(tmp_path / "s")
    with pytest.raises(OutputError, match=r'plan differs: expected \{"seed": 5\}, found \{\}') as caught:
        writer_at(tmp_path / "s", seed=5).create()
    assert "choose another --out" in str(caught.value)
    with pytest.raises(OutputError, match=r"plan differs: .*…, found"):
        writer_at(tmp_path / "s", words="long " * 100).create()
    assert content(tmp_path / "s") == before


def test_a_file_in_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "s").write_text("mine")
    with pytest.raises(OutputError, match="found a file"):
        writer_at(tmp_path / "s").create()
    with pytest.raises(OutputError, match="a part of the path is a file"):
        writer_at(tmp_path / "s" / "deeper").create()
    assert (tmp_path / "s").read_text() == "mine"


def test_a_read_only_folder_is_named(tmp_path):
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o555)
    for parent in tmp_path.parents:  # pytest's folders are closed to others
        if parent.owner() == Path(tmp_path).owner() and parent.name.startswith(("pytest", "popen")):
            parent.chmod(0o755)
    tmp_path.chmod(0o755)
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        with pytest.raises(OutputError, match="this user may not write there"):
            writer_at(folder / "s").create()
    finally:
        if root:
            os.seteuid(0)
    assert list(folder.iterdir()) == []


def test_creating_twice_or_after_a_kill_in_the_middle_gives_the_same(tmp_path):
    writer = writer_at(tmp_path / "s")
    writer.create()
    once = content(tmp_path / "s")
    writer.create()
    assert content(tmp_path / "s") == once
    (tmp_path / "s/m/fgsm/label/zarr.json").unlink()
    (tmp_path / "s/m/fgsm/zarr.json").unlink()
    writer.create()
    assert {k: v[0] for k, v in content(tmp_path / "s").items()} == {k: v[0] for k, v in once.items()}


@pytest.mark.parametrize("left", [".partial-abc-zarr.json", "zarr.0123456789abcdef0123456789abcdef.partial"])
def test_a_run_that_was_killed_before_the_first_file_can_be_resumed(tmp_path, left):
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / left).write_bytes(b'{"attr')
    make_store(tmp_path / "s", make_images(20), ("m/fgsm",))
    assert not (tmp_path / "s" / left).exists()
    open_store(tmp_path / "s")


def test_records_count_only_when_their_chunks_are_there(tmp_path):
    path = tmp_path / "s"
    make_store(path, make_images(40), ("m/fgsm",), blocks=6)
    writer = writer_at(path)
    assert sorted(writer.done()) == [0, 1, 2, 3, 4, 5]
    (path / "m/fgsm/direction/c/0/1/0").unlink()
    (path / "m/fgsm/label/c/2").write_bytes(b"short")
    (path / "progress/block-000003.json").write_bytes(b'{"block": 3')
    shutil.copy(path / "progress/block-000004.json", path / "progress/block-000009.json")
    (path / "progress/block-000008.json").write_bytes(b"[]")
    assert sorted(writer.done()) == [0, 4, 5]
    with pytest.raises(IntegrityError, match=r"no valid record of blocks \[1, 2, 3, 6, 7"):
        writer.collect()


def test_a_block_without_labels_or_directions_is_refused_before_anything_is_written(tmp_path):
    writer = writer_at(tmp_path / "s")
    writer.create()
    before = content(tmp_path / "s")
    with pytest.raises(InputError, match="expected directions and labels"):
        writer.write_block(0, {"m/fgsm": Planes(label=np.zeros(3, np.int32))}, np.zeros(3, np.uint64))
    assert content(tmp_path / "s") == before


FULL = """
import resource, signal, sys
from ensadv_data.__main__ import main
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
limit = int(sys.argv.pop(1))
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
main()
"""


def test_a_full_disk_ends_with_code_3_and_the_same_command_goes_on(tmp_path, models):
    out = tmp_path / "s"
    limit = 700  # blocks of 44 images: chunks of 4316 bytes, beside metadata of less than 3000
    words = ["precompute", "--model", f"d={models['d']}", "--attack", "fgsm", "--limit", str(limit), "--workers", "0"]
    command = [sys.executable, "-c", FULL, "3000", *words, "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 3, done.stderr
    assert f"error: cannot write {out}" in done.stderr
    assert "raise it and run the same command again" in done.stderr
    assert not list(out.rglob(".partial-*"))
    assert not (out / "manifest.json").exists()
    spec = PrecomputeSpec(models={"d": models["d"]}, attacks=("fgsm",))
    outcome = precompute_store(spec, DataSpec(data="mnist-mini", limit=limit), out, workers=0)
    assert outcome.computed == outcome.blocks == 16
    read_all(out)
