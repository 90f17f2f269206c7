"""Stores in an object store: a real S3 server on localhost, and the network before it failing at random."""

from __future__ import annotations

import json
import shutil
import signal
import socket
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import boto3
import numpy as np
import pytest
import zarr
from obstore.store import from_url
from zarr.storage import ObjectStore

from ensadv_data.data import open_dataset
from ensadv_data.errors import ChunkError, InputError, IntegrityError, OutputError
from ensadv_data.files import sha256_of_file
from ensadv_data.inspection import compare_stores, describe_store
from ensadv_data.manifest import read_manifest
from ensadv_data.objects import Bucket, Shelf, objects_at
from ensadv_data.precompute import precompute_store
from ensadv_data.spec import PrecomputeSpec, TrainSpec
from ensadv_data.store import Cache, open_store
from ensadv_data.training import train
from faults import DATA, LIMIT, shaken, spec_in, trained
from laws import started
from s3 import BUCKET, CREDENTIALS, s3_server


@pytest.fixture(scope="module")
def server():
    with s3_server() as port:
        yield port


@pytest.fixture(scope="module")
def spec(tmp_path_factory) -> PrecomputeSpec:
    return spec_in(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def near(tmp_path_factory, spec) -> Path:
    """The store on a disk."""
    folder = tmp_path_factory.mktemp("near") / "store"
    precompute_store(spec, DATA, folder, workers=0)
    return folder


@pytest.fixture(scope="module")
def far(server, spec) -> str:
    """The same, computed by two workers straight into the bucket."""
    url = f"s3://{BUCKET}/team/store"
    made = precompute_store(spec, DATA, url, workers=2)
    assert (made.blocks, made.computed) == (16, 16)
    return url


def keys_of(prefix: str) -> set[str]:
    pages = boto3.client("s3").get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix)
    return {about["Key"].removeprefix(prefix + "/") for page in pages for about in page.get("Contents", ())}


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serving(folder: Path, handler: type[Quiet] = Quiet) -> Iterator[str]:
    """The URL of a folder behind a web server."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(folder))) as web:
        Thread(target=web.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{web.server_port}"
        web.shutdown()


def test_the_objects_are_the_files(near, far):
    assert read_manifest(far).to_bytes() == read_manifest(near).to_bytes()
    assert keys_of("team/store") == {path.relative_to(near).as_posix() for path in near.rglob("*") if path.is_file()}
    here, there = objects_at(near), objects_at(far)
    for key in [*read_manifest(near).objects, "manifest.json"]:
        assert there.read(key) == here.read(key)
    assert here.sizes([*read_manifest(near).objects, "absent"]) == there.sizes([*read_manifest(near).objects, "absent"])


def test_a_finished_store_is_left_alone_and_another_plan_refused(far, spec):
    again = precompute_store(spec, DATA, far, workers=0)
    assert again.was_complete
    with pytest.raises(OutputError, match=rf"{far} holds a store of another plan \(draws differs"):
        precompute_store(spec.model_copy(update={"draws": 3}), DATA, far, workers=0)
    boto3.client("s3").put_object(Bucket=BUCKET, Key="mine/notes.txt", Body=b"mine")
    with pytest.raises(OutputError, match="holds something else than a store"):
        precompute_store(spec, DATA, f"s3://{BUCKET}/mine", workers=0)
    assert keys_of("mine") == {"notes.txt"}


def test_an_interrupted_precompute_computes_what_is_missing(far, spec, monkeypatch):
    url, blocks = f"s3://{BUCKET}/stopped", []
    compute = precompute_store.__globals__["compute_block"]

    def stop(job, block):
        blocks.append(block.index)
        if len(blocks) == 5:
            raise KeyboardInterrupt
        return compute(job, block)

    monkeypatch.setattr("ensadv_data.precompute.compute_block", stop)
    with pytest.raises(Exception, match="the same command resumes"):
        precompute_store(spec, DATA, url, workers=0)
    with pytest.raises(InputError, match=r"unfinished \(4 blocks done\)"):
        open_store(url)
    made = precompute_store(spec, DATA, url, workers=0)
    assert (made.computed, sorted(set(blocks))) == (12, list(range(16)))
    assert read_manifest(url).to_bytes() == read_manifest(far).to_bytes()
    assert not any(key.startswith("progress/") for key in keys_of("stopped"))


@pytest.mark.parametrize("cache_bytes", [2**30, 300_000])
def test_training_reads_from_afar_what_it_reads_from_a_disk(tmp_path, near, far, cache_bytes):
    """With room for all, and for a few chunks only: then with a window."""
    window = {} if cache_bytes == 2**30 else {"window": 2}
    spec = TrainSpec(architecture="D", epochs=1, batch_size=50, online="step-ll", threads=1, **window)
    data = open_dataset("mnist-mini", "train", limit=LIMIT)
    weights = {}
    for name, store in (("near", str(near)), ("far", far)):
        out = tmp_path / f"{name}.safetensors"
        train(spec.model_copy(update={"shards": (store,)}), data, out, cache=Cache(cache_bytes))
        weights[name] = out.read_bytes()
    assert weights["near"] == weights["far"]


def test_what_is_kept_on_a_disk_is_fetched_once(tmp_path, near, far, monkeypatch):
    """By two runs, one after the other; what arrives damaged is not kept, and a copy that has gone bad not used."""
    fetched: Counter[str] = Counter()
    read, hurt = Bucket.read_at_most, "D/r-fgsm/direction/c/1/3/0"

    def counted(self, key, limit):
        fetched[key] += 1
        data = read(self, key, limit)
        return data[::-1] if key == hurt and fetched[key] == 1 else data

    monkeypatch.setattr(Bucket, "read_at_most", counted)
    expected = trained(near, tmp_path / "near.safetensors")
    shelf = Shelf(tmp_path / "kept", 10**8)
    for name in "ab":
        small = Cache(320_000, Shelf(shelf.folder, shelf.limit))  # a global shuffle needs memory for masks alone then
        assert trained(far, tmp_path / f"{name}.safetensors", cache=small) == expected
    chunks = {key: count for key, count in fetched.items() if "/c/" in key}
    assert chunks.pop(hurt) == 2
    assert len(chunks) > 100
    assert set(chunks.values()) == {1}

    copies = [path for path in shelf.folder.rglob("*") if path.is_file()]
    assert all(sha256_of_file(path) == path.name for path in copies)
    gone = next(key for key in chunks if "/r-fgsm/direction/" in key)
    digest = read_manifest(far).objects[gone].sha256
    shelf.path(digest).write_bytes(bytes(shelf.path(digest).stat().st_size))
    assert trained(far, tmp_path / "c.safetensors", cache=small) == expected
    assert sha256_of_file(shelf.path(digest)) == digest
    assert fetched[gone] == 2


def test_copies_make_place_for_others(tmp_path, near, far):
    """Where the store does not fit, blocks are read in windows, and no more than the limit stays."""
    limit, shelf = 60_000, tmp_path / "kept"
    sizes = []

    class Watched(Shelf):
        def put(self, digest, data):
            super().put(digest, data)
            sizes.append(sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file()))

    data = open_dataset("mnist-mini", "train", limit=LIMIT)
    weights = []
    for store, cache in ((near, None), (far, Cache(300_000, Watched(shelf, limit)))):
        spec = TrainSpec(architecture="D", epochs=1, batch_size=50, shards=(str(store),), threads=1, window=2)
        out = tmp_path / f"{len(weights)}.safetensors"
        train(spec, data, out, cache=cache)
        weights.append(out.read_bytes())
    assert weights[0] == weights[1]
    assert len(sizes) > 40
    assert limit / 2 < max(sizes) <= limit
    (shelf / "ab").mkdir(exist_ok=True)
    mine = shelf / "ab" / "notes.txt"
    mine.write_text("mine")
    Shelf(shelf, 1).put("ab" * 32, b"xyz")
    assert {path.name for path in shelf.rglob("*") if path.is_file()} == {"notes.txt", "ab" * 32}


def test_a_manifest_cannot_name_files_elsewhere(tmp_path, far, near):
    there = json.loads((near / "manifest.json").read_bytes())
    key = next(iter(there["objects"]))
    there["objects"][key]["sha256"] = "../../evil"
    shutil.copytree(near, tmp_path / "store")
    (tmp_path / "store/manifest.json").write_text(json.dumps(there))
    with (
        serving(tmp_path / "store") as url,
        pytest.raises(IntegrityError, match=r"expected a SHA-256, got '\.\./\.\./evil'"),
    ):
        open_store(url, cache=Cache(10**6, Shelf(tmp_path / "kept", 10**8)))
    assert not (tmp_path / "kept").exists()


@pytest.mark.parametrize("place", ["a file", "a file/in", "/proc/ensadv-data"])
def test_copies_without_a_folder_are_refused_before_training(tmp_path, far, place):
    (tmp_path / "a file").touch()
    with pytest.raises(OutputError, match=r"cannot write .*; .*choose another"):
        trained(far, tmp_path / "m.safetensors", cache=Cache(10**6, Shelf(tmp_path / place, 10**8)))
    assert not (tmp_path / "m.jsonl").exists()


def test_a_cache_that_would_fetch_chunks_again_and_again_is_refused(tmp_path, far):
    with pytest.raises(
        InputError, match=r"expected a global shuffle of s3://shards/team/store to fit in --cache-bytes"
    ):
        trained(far, tmp_path / "m.safetensors", cache=Cache(300_000))


def test_masks_that_would_be_decompressed_again_and_again_are_refused_on_a_disk_too(tmp_path, near):
    store = open_store(near)
    needed = sum(store.held_bytes(entry, store.header.blocks, store.header.draws) for entry in store.entries)
    message = (
        rf"a global shuffle of {near} to fit in --cache-bytes, {needed - 1:,} bytes, found {needed:,} of masks and "
        r"other arrays that are decompressed; .*, more --cache-bytes, or a store that was made with --zeros fill"
    )
    with pytest.raises(InputError, match=message):
        trained(near, tmp_path / "m.safetensors", cache=Cache(needed - 1))


def test_stores_are_inspected_and_compared_from_afar(near, far):
    here, there = describe_store(near).to_json(), describe_store(far).to_json()
    assert there.pop("path") == far
    assert {name: value for name, value in here.items() if name != "path"} == there
    assert all(row.opposite == row.zero_here == row.zero_there == 0 for row in compare_stores(far, near))


def test_stock_zarr_reads_it(near, far):
    there = zarr.open_group(ObjectStore(from_url(far, client_options={"allow_http": True}), read_only=True), mode="r")
    here = zarr.open_group(near, mode="r")
    for name in ("C/r-fgsm/direction", "D/fgsm/label", "example_digest"):
        assert np.array_equal(there[name][:], here[name][:])


def test_a_web_server_is_read_and_not_written(tmp_path, near, spec):
    shutil.copytree(near, tmp_path / "files/store")
    with serving(tmp_path / "files") as root:
        url = f"{root}/store"
        assert trained(url, tmp_path / "a.safetensors") == trained(near, tmp_path / "b.safetensors")
        with pytest.raises(OutputError, match="a web server is for reading"):
            precompute_store(spec, DATA, url, workers=0)


def test_a_damaged_and_a_missing_chunk_are_named(server, far):
    client = boto3.client("s3")
    for key in keys_of("team/store"):
        client.copy_object(Bucket=BUCKET, Key=f"hurt/{key}", CopySource=f"{BUCKET}/team/store/{key}")
    rows, draws = np.arange(10), np.zeros(10, np.int64)
    key = "hurt/D/r-fgsm/direction/c/0/0/0"
    whole = client.get_object(Bucket=BUCKET, Key=key)["Body"].read()
    for damaged, said in (
        (whole[:-1], "truncated"),
        (bytes([whole[0] ^ 1]) + whole[1:], "the checksum does not match"),
    ):
        client.put_object(Bucket=BUCKET, Key=key, Body=damaged)
        store = open_store(f"s3://{BUCKET}/hurt")
        with pytest.raises(ChunkError, match=said):
            store.gather(store.entry("D/r-fgsm"), draws, rows)
    client.delete_object(Bucket=BUCKET, Key=key)
    store = open_store(f"s3://{BUCKET}/hurt")
    with pytest.raises(ChunkError, match="the chunk is missing"):
        store.gather(store.entry("D/r-fgsm"), draws, rows)


def test_a_chunk_that_is_damaged_on_its_way_is_fetched_again(near, far, monkeypatch):
    fetch, damaged = Bucket.array, []

    def once(self, key):
        data = fetch(self, key)
        if key.endswith("direction/c/1/3/0") and key not in damaged:
            damaged.append(key)
            data = data ^ np.uint8(1)
        return data

    monkeypatch.setattr(Bucket, "array", once)
    here, there = open_store(near), open_store(far)
    rows, draws = np.arange(LIMIT), np.ones(LIMIT, np.int64)
    key = "D/r-fgsm"
    found, expected = (store.gather(store.entry(key), draws, rows).direction for store in (there, here))
    assert np.array_equal(found, expected)
    assert damaged == [f"{key}/direction/c/1/3/0"]


def test_a_network_that_fails_at_random_changes_nothing(tmp_path, server, spec, near):
    """Errors 500 and 503, connections refused and cut in the middle of an answer, and slow ones."""
    faults = shaken(spec, near, tmp_path, server, seed=4, share=0.15, workers=0)
    assert faults.total() > 30
    assert min(faults.values()) > 0, faults


def test_what_cannot_be_reached_is_said_without_secrets(server, monkeypatch, capsys):
    monkeypatch.setattr("ensadv_data.objects.bucket._RETRY", {"max_retries": 0})
    for url, said in (
        ("s3://no-such-bucket/store", "expected a store at s3://no-such-bucket/store, found none"),
        ("s3:/shards/store", r"expected a folder or s3://…, got s3:/shards/store"),
        (
            "ftp://host/store",
            r"expected a folder, or a URL s3://…, gs://…, az://…, http://…, https://…, hf://…, got ftp",
        ),
        ("https://me:hush@host/store", r"without user, query and fragment, got https://host/store"),
        ("https://host/store?token=hush", r"got https://host/store; credentials are taken from the environment"),
    ):
        with pytest.raises(InputError, match=said) as caught:
            open_store(url)
        assert "hush" not in str(caught.value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(
        InputError, match=r"cannot read s3://shards/x/zarr\.json: .*goes on when it can be reached"
    ) as caught:
        open_store(f"s3://{BUCKET}/x")
    assert CREDENTIALS["AWS_SECRET_ACCESS_KEY"] not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_bucket_that_does_not_exist_is_to_be_made_first(server, spec):
    with pytest.raises(OutputError, match="cannot list s3://no-such-bucket/s: expected a bucket that exists"):
        precompute_store(spec, DATA, "s3://no-such-bucket/s", workers=0)


def test_an_environment_without_credentials_is_told_which_it_needs(server, spec, monkeypatch):
    """And once: nobody is asked again and again for what is not there."""
    for name in CREDENTIALS:
        monkeypatch.delenv(name)
    monkeypatch.setattr("ensadv_data.objects.bucket._RETRY", {"max_retries": 0})
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", f"http://127.0.0.1:{port}")
    with pytest.raises(InputError, match=r"s3://shards/s: expected credentials in the environment \(AWS_ACCESS_KEY_ID"):
        precompute_store(spec, DATA, f"s3://{BUCKET}/s", workers=0)


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_a_server_that_never_answers_can_be_given_up(server, monkeypatch, sent):
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        deaf.settimeout(60)
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{deaf.getsockname()[1]}")
        process = started("inspect", f"s3://{BUCKET}/x")
        connection, _ = deaf.accept()
        with connection:
            process.send_signal(sent)
            _, errors = process.communicate(timeout=20)
    assert process.returncode == 130, errors


def test_a_web_server_that_denies_what_is_not_there_is_read(near, tmp_path):
    """As S3 does where nobody may list the bucket."""

    class Denying(Quiet):
        def send_error(self, code, *_):
            super().send_error(403 if code == 404 else code)

    with serving(near, Denying) as url:
        store, here = open_store(url), open_store(near)
        assert [store.has_mask(entry) for entry in store.entries] == [here.has_mask(entry) for entry in here.entries]


def test_progress_of_killed_clients_is_no_store(server, far):
    client = boto3.client("s3")
    attributes = client.get_object(Bucket=BUCKET, Key="team/store/zarr.json")["Body"].read()
    client.put_object(Bucket=BUCKET, Key="half/zarr.json", Body=attributes)
    client.put_object(Bucket=BUCKET, Key="half/progress/block-000000.json", Body=json.dumps({"block": 0}).encode())
    with pytest.raises(InputError, match="unfinished"):
        open_store(f"s3://{BUCKET}/half")
