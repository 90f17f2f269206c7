"""Exported sets: read by stock tools, imported again bit for bit, and refused where they are not what they say."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset

from ensadv_data import exchange
from ensadv_data.__main__ import main as call
from ensadv_data.codec import unpack_signs
from ensadv_data.data import open_data
from ensadv_data.errors import AlignmentError, InputError, IntegrityError, Interrupted, OutputError
from ensadv_data.exchange import export_store, import_store
from ensadv_data.inspection import describe_store
from ensadv_data.manifest import read_manifest
from ensadv_data.models import build_model, save_model
from ensadv_data.objects import Folder
from ensadv_data.precompute import precompute_store
from ensadv_data.remote import Wanted as Some
from ensadv_data.remote import pull
from ensadv_data.signature import make_key
from ensadv_data.spec import DataSpec, PrecomputeSpec
from ensadv_data.store import Cache, ExportedStore, open_store, shards
from ensadv_data.terminal import print_store
from ensadv_data.trust import Memory, read_trust
from ensadv_data.verification import Wanted, sign_store, verified
from faults import DATA, spec_in, trained
from photographs import cut_photographs

pytestmark = pytest.mark.usefixtures("without_fsync")

PAGE = Path(__file__).parents[1] / "docs" / "sharing.md"
KIND = ("fgsm", "r-fgsm", "pgd:steps=1")


@pytest.fixture(scope="module")
def spec(tmp_path_factory) -> PrecomputeSpec:
    base = spec_in(tmp_path_factory.mktemp("models"))
    return PrecomputeSpec.model_validate({**base.model_dump(), "attacks": KIND, "zeros": "keep"})


@pytest.fixture(scope="module")
def store(tmp_path_factory, without_fsync, spec) -> Path:
    """Signs with and without masks, signs at random points, and deltas."""
    out = tmp_path_factory.mktemp("made") / "store"
    precompute_store(spec, DATA, out, workers=0)
    return out


@pytest.fixture(params=["blocks", "examples"])
def large(request, monkeypatch) -> bool:
    """Whether a record is one example, as it is of large images."""
    if request.param == "examples":
        monkeypatch.setattr(shards, "LARGE", 1)
    return request.param == "examples"


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("size", [10**9, 200_000])
def test_a_round_trip_gives_the_same_store(tmp_path, store, large, size):
    made = export_store(store, tmp_path / "set", shard_bytes=size)
    assert (made.shards > 1) == (size < 10**9)
    assert made.records == (400 if large else 16)
    back = import_store(tmp_path / "set", tmp_path / "back")
    assert back.is_equal
    assert back.digest == made.digest == read_manifest(store).digest
    assert files(tmp_path / "back") == files(store)


def test_the_signature_goes_along_and_comes_back(tmp_path, store):
    signed = Path(shutil.copytree(store, tmp_path / "signed" / store.name))
    trust = Path(tmp_path / "trust.toml")
    trust.write_text(f'[a]\nkeys = ["{make_key(tmp_path / "a.key", "a")}"]')
    list(sign_store(Folder(signed), tmp_path / "a.key", name="set", days=9))
    export_store(store, tmp_path / "set")
    export_store(signed, tmp_path / "set")  # signed meanwhile
    import_store(tmp_path / "set", tmp_path / "back")
    assert files(tmp_path / "back") == files(signed)
    memory = Memory(tmp_path / "versions.json")
    lines = list(verified(Folder(tmp_path / "back"), Wanted(read_trust(trust), memory)))
    assert lines[0].holds.endswith("signed this manifest as set")


def test_a_set_of_a_part_is_trained_on_and_not_imported(tmp_path, store):
    pull(store, tmp_path / "part", wanted=Some(sources=("D",), attacks=("fgsm",)))
    export_store(tmp_path / "part", tmp_path / "set")
    assert [entry.key for entry in open_store(tmp_path / "set").entries] == ["D/fgsm"]
    with pytest.raises(InputError, match=r"expected a set of a whole store at .*, found one of a part \(D/fgsm\)"):
        import_store(tmp_path / "set", tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_the_index_tells_urls_sizes_counts_and_digests(tmp_path, store):
    export_store(store, tmp_path / "set", shard_bytes=200_000)
    index = json.loads((tmp_path / "set" / "index.json").read_bytes())
    assert sorted(path.name for path in (tmp_path / "set").iterdir()) == sorted(
        ["index.json", "manifest.json", *(shard["url"] for shard in index["shards"])]
    )
    for shard in index["shards"]:
        data = (tmp_path / "set" / shard["url"]).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (shard["bytes"], shard["sha256"])
    assert sum(shard["last"] + 1 - shard["first"] for shard in index["shards"]) == index["records"]


def test_inspect_tells_the_bytes_of_the_tars(tmp_path, store, capsys):
    export_store(store, tmp_path / "set", shard_bytes=200_000)
    tars = sorted((tmp_path / "set").glob("*.tar"))
    summary = describe_store(tmp_path / "set")
    assert (summary.bytes, summary.shards) == (sum(tar.stat().st_size for tar in tars), len(tars))
    plain = describe_store(store)
    assert plain.shards is None
    assert summary.digest == plain.digest
    print_store(summary)
    assert f"{summary.bytes:,} bytes in {len(tars)} WebDataset shards," in capsys.readouterr().out


def test_training_reads_a_set_as_it_reads_the_store(tmp_path, store, large):
    export_store(store, tmp_path / "set", shard_bytes=200_000)
    assert isinstance(open_store(tmp_path / "set"), ExportedStore)
    near = trained(store, tmp_path / "near.safetensors")
    assert trained(tmp_path / "set", tmp_path / "far.safetensors") == near


def test_blocks_that_are_put_together_share_the_room_for_them(tmp_path, store, large):
    export_store(store, tmp_path / "set")
    cache = Cache(50_000)
    exported, whole = open_store(tmp_path / "set", cache=cache), open_store(store)
    rows, draws = np.random.default_rng(0).permutation(400), np.zeros(400, np.int64)
    for entry in whole.entries:
        assert (exported.held_bytes(entry, 16, 1) > 0) == large
        for found, expected in zip(exported.gather(entry, draws, rows), whole.gather(entry, draws, rows), strict=True):
            assert np.array_equal(found, expected)
    assert 0 < cache.held <= 50_000 if large else cache.held == 0  # a block of one record is a map of its tar


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # webdataset leaves files to be closed
def test_stock_webdataset_and_numpy_read_it(tmp_path, store, spec):
    """Nothing of ours but the store, to compare with."""
    export_store(store, tmp_path / "set", images=open_data(DATA, "train"))
    index = json.loads((tmp_path / "set" / "index.json").read_bytes())
    urls = [str(tmp_path / "set" / shard["url"]) for shard in index["shards"]]
    found = open_store(store)
    pixels, classes = open_data(DATA, "train").read(np.arange(400))
    at = 0
    for record in webdataset.WebDataset(urls, shardshuffle=False):
        arrays = {
            name: np.load(io.BytesIO(data), allow_pickle=False)
            for name, data in record.items()
            if name.endswith(".npy")
        }
        n = len(arrays["class.npy"])
        rows = np.arange(at, at + n)
        assert np.array_equal(arrays["image.npy"], pixels[at : at + n])
        assert np.array_equal(arrays["class.npy"], classes[at : at + n])
        for number, about in enumerate(index["entries"]):
            entry = found.entry(f"{about['source']}/{about['attack']}")
            planes = found.gather(entry, np.ones(n, np.int64), rows)
            if about["kind"] == "delta":
                assert np.array_equal(arrays[f"e{number}.delta.npy"][1], planes.delta)
                continue
            signs = np.unpackbits(arrays[f"e{number}.direction.npy"][1], axis=-1, count=784, bitorder="little")
            expected = np.unpackbits(planes.direction, axis=-1, count=784, bitorder="little")
            assert np.array_equal(signs, expected)
        at += n
    assert at == 400
    with tarfile.open(urls[0]) as tar:
        assert all(member.isreg() and member.uid == member.mtime == 0 for member in tar)


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # as above
@pytest.mark.skipif(not PAGE.is_file(), reason="not in the repository")
def test_the_code_on_the_sharing_page_reads_a_set(tmp_path, store, large):
    names: dict[str, Any] = {}
    exec(compile(PAGE.read_text(encoding="utf-8").split("```python\n")[1].split("```")[0], str(PAGE), "exec"), names)  # noqa: S102 - our own page
    export_store(store, tmp_path / "set")
    digests, signs = zip(*names["records"](tmp_path / "set"), strict=True)
    found = open_store(store)
    assert np.array_equal(np.concatenate(digests), found.example_digests())
    signed = [entry for entry in found.entries if entry.kind != "delta"]
    assert len(signed) == len(signs[0]) == 4
    for entry in signed:
        whole = np.concatenate([one[entry.source, entry.attack] for one in signs], axis=1)
        for draw in range(found.header.draws):
            planes = found.gather(entry, np.full(400, draw), np.arange(400))
            expected = unpack_signs(planes.direction, planes.nonzero, d=784)
            assert np.array_equal(whole[draw], expected)


def test_an_overlay_has_no_image(tmp_path, store):
    export_store(store, tmp_path / "set")
    with tarfile.open(next((tmp_path / "set").glob("*.tar"))) as tar:
        assert not [name for name in tar.getnames() if "image" in name or "class" in name]


def test_other_images_are_refused(tmp_path, store, spec):
    other = DataSpec(data="mnist-mini", limit=400)
    images = open_data(other, "train")

    class Shifted:
        name, split, shape, classes = images.name, images.split, images.shape, images.classes

        def __len__(self) -> int:
            return 400

        def read(self, indices):
            return images.read((indices + 1) % 400)

    with pytest.raises(AlignmentError, match="expected an image with digest"):
        export_store(store, tmp_path / "set", images=Shifted())
    assert not (tmp_path / "set" / "index.json").exists()


def test_an_export_that_was_stopped_goes_on(tmp_path, store, monkeypatch):
    export_store(store, tmp_path / "whole", shard_bytes=200_000)
    real, times = exchange._values, []

    def stop(*arguments):
        times.append(1)
        if len(times) == 12:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(exchange, "_values", stop)
    with pytest.raises(Interrupted, match="every whole shard is kept, and the same command resumes"):
        export_store(store, tmp_path / "set", shard_bytes=200_000)
    kept = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "set").glob("*.tar")}
    assert kept
    export_store(store, tmp_path / "set", shard_bytes=200_000)
    assert {name: (tmp_path / "set" / name).stat().st_mtime_ns for name in kept} == kept
    assert files(tmp_path / "set") == files(tmp_path / "whole")
    export_store(store, tmp_path / "set", shard_bytes=200_000)
    with pytest.raises(OutputError, match="holds another exported set"):
        export_store(store, tmp_path / "set", shard_bytes=300_000)
    assert files(tmp_path / "set") == files(tmp_path / "whole")


def test_what_is_there_stays(tmp_path, store, spec):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match=r"holds something else \(notes.txt\)"):
        export_store(store, tmp_path / "mine")
    assert files(tmp_path / "mine") == {"notes.txt": b"mine"}
    (tmp_path / "mine" / "notes.txt").rename(tmp_path / "mine" / "index.json")
    with pytest.raises(OutputError, match=r"index.json: expected JSON: .* it was not touched: choose another --out"):
        export_store(store, tmp_path / "mine")
    assert files(tmp_path / "mine") == {"index.json": b"mine"}


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("flip", "expected SHA-256"),
        ("cut", "expected .* bytes"),
        ("gone", "the shard is missing"),
        ("renamed member", "expected the file 000000000.* at byte"),
        ("link", "expected the file 000000000.* at byte"),
        ("more", "expected .* bytes for its records"),
        ("manifest", "expected the manifest of the store that index.json tells of"),
        ("records", "expected 16 records of 25 examples"),
        ("huge", "greater than or equal|less than or equal|expected"),
        ("path", "string should match pattern"),
        ("json", "index.json"),
    ],
)
def test_a_set_that_is_not_what_it_says_is_refused(tmp_path, store, spec, kind, said):
    out = tmp_path / "set"
    export_store(store, out, shard_bytes=200_000)
    index = json.loads((out / "index.json").read_bytes())
    first = index["shards"][0]
    path = out / first["url"]
    data = bytearray(path.read_bytes())
    if kind == "flip":
        data[5000] ^= 1
    elif kind == "cut":
        del data[-2000:]
    elif kind == "renamed member":
        data[:9] = b"../../etc"
        first["sha256"] = hashlib.sha256(data).hexdigest()
    elif kind == "link":
        data[156:157] = b"2"
        first["sha256"] = hashlib.sha256(data).hexdigest()
    elif kind == "more":
        data += bytes(512)
        first |= {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    elif kind == "manifest":
        other = spec.model_copy(update={"models": {"D": spec.models["D"]}})
        precompute_store(other, DATA, tmp_path / "other", workers=0)
        shutil.copy(tmp_path / "other" / "manifest.json", out / "manifest.json")
        index["manifest"] = hashlib.sha256((out / "manifest.json").read_bytes()).hexdigest()
    elif kind == "records":
        index["records"] = 15
    elif kind == "huge":
        index["store"]["n"] = 2**62
    elif kind == "path":
        first["url"] = "../mine.tar"
    path.write_bytes(data)
    if kind == "gone":
        path.unlink()
    (out / "index.json").write_text("[" if kind == "json" else json.dumps(index))
    with pytest.raises(IntegrityError, match=said):
        import_store(out, tmp_path / "back")
    assert not (tmp_path / "back" / "manifest.json").exists()


def test_a_flipped_bit_is_found_in_training(tmp_path, store, large):
    out = tmp_path / "set"
    export_store(store, out)
    path = next(out.glob("*.tar"))
    data = bytearray(path.read_bytes())
    at = data.index(b".e0.direction.npy") // 512 * 512 + 512 + 128 + 5
    data[at] ^= 1
    path.write_bytes(data)
    source = open_store(out)
    with pytest.raises(IntegrityError, match=r"e0.direction.npy: the checksum does not match"):
        source.gather(source.entries[0], np.zeros(400, np.int64), np.arange(400))


def test_a_set_of_photographs_is_verified_and_exported_by_the_words_that_made_it(tmp_path, capsys):
    folder = cut_photographs(tmp_path / "cut", classes=2, train=3, test=2)
    model = tmp_path / "d.safetensors"
    save_model(
        model,
        build_model("D", shape=(3, 16, 16), classes=2, seed=1),
        architecture="D",
        shape=(3, 16, 16),
        classes=2,
        record={},
    )
    images = ["--data", f"folder:{folder}", "--data-dir", str(tmp_path / "index"), "--preprocess", "size=16"]
    store, words = str(tmp_path / "s"), ["--model", f"d={model}", "--attack", "r-fgsm:alpha=0.1", "--split", "test"]
    for line in (
        ["precompute", *images, *words, "--out", store, "--workers", "0"],
        ["verify", store, "--unsigned", *images, "--recompute", "2", "--model", f"d={model}"],
        ["export", store, "--out", str(tmp_path / "set"), *images],
        ["import", str(tmp_path / "set"), "--out", str(tmp_path / "back")],
    ):
        call(line)
        told = capsys.readouterr()
        if line[0] == "verify":
            assert "all 4 images of folder:cut/test are those of the store" in told.out
    assert files(tmp_path / "back") == files(Path(store))
    images[-1] = "size=24"
    with pytest.raises(SystemExit) as ended:
        call(["verify", store, "--unsigned", *images])
    assert ended.value.code == 4
    said = capsys.readouterr().err
    assert "expected images of shape (3, 16, 16)" in said
    assert "found (3, 24, 24)" in said
