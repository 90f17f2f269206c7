"""What a store and a model say about themselves."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from ensadv_data.data import open_dataset
from ensadv_data.errors import ChunkError, InputError, IntegrityError, ModelError
from ensadv_data.inspection import compare_stores, describe_model, describe_store, is_store
from ensadv_data.manifest import read_manifest
from ensadv_data.models import build_model, save_model
from ensadv_data.precompute import precompute_store
from ensadv_data.spec import DataSpec, PrecomputeSpec
from ensadv_data.store import open_store
from test_store import make_images, make_store

IMAGES, VALUES = 100, 784


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inspection")
    digests = {}
    for name, architecture in (("d", "D"), ("c", "C")):
        module = build_model(architecture, shape=(1, 28, 28), classes=10, seed=1)
        digests[name] = save_model(
            folder / f"{name}.safetensors",
            module,
            architecture=architecture,
            shape=(1, 28, 28),
            classes=10,
            record={"why": "a test"},
        )
    spec = PrecomputeSpec(
        models={name: str(folder / f"{name}.safetensors") for name in digests},
        attacks=("fgsm", "r-step-ll:alpha=0.1", "i-fgsm:epsilon=0.2,steps=1"),
        draws=2,
    )
    precompute_store(spec, DataSpec(data="mnist-mini", limit=IMAGES), folder / "store", workers=0)
    return folder, digests


def test_store_says_what_it_holds(made):
    folder, digests = made
    summary = describe_store(folder / "store")
    assert (summary.n, summary.draws, summary.shape) == (IMAGES, 2, (1, 28, 28))
    assert (summary.mode, summary.labels) == ("eval", "predicted")
    assert (summary.block, summary.blocks) == (7, 15)
    assert summary.data == "mnist-mini/train"
    assert summary.data_digest == open_dataset("mnist-mini", "train").digest
    assert summary.digest == read_manifest(folder / "store").digest
    assert [(row.source, row.attack) for row in summary.entries] == [
        (source, attack) for source in ("d", "c") for attack in ("fgsm", "r-step-ll", "i-fgsm")
    ]
    assert {row.attack: (row.kind, row.epsilon) for row in summary.entries} == {
        "fgsm": ("sign", "any epsilon"),
        "r-step-ll": ("rsign", "any epsilon above alpha = 0.1"),
        "i-fgsm": ("delta", "epsilon = 0.2 only"),
    }
    for row in summary.entries:
        assert row.source_digest == digests[row.source]
        assert row.architecture == row.source.upper()


def test_sizes_are_those_on_the_disk(made):
    store = made[0] / "store"
    summary = describe_store(store)
    chunks = [path for path in store.rglob("*") if path.is_file() and "c" in path.relative_to(store).parts[:-1]]
    keys = {str(path.relative_to(store)) for path in chunks}
    objects = {key for key in read_manifest(store).objects if not key.endswith("zarr.json")}
    assert objects <= keys
    assert summary.bytes >= sum((store / key).stat().st_size for key in objects)
    for row in summary.entries:
        on_disk = sum(
            path.stat().st_size
            for path in (store / row.source / row.attack).rglob("*")
            if path.is_file() and path.name != "zarr.json" and "label" not in path.parts
        )
        assert row.bits_per_value == pytest.approx(8 * on_disk / (2 * IMAGES * VALUES))


def test_zeros_are_the_share_of_values_that_are_zero(made):
    store = open_store(made[0] / "store")
    rows = np.arange(IMAGES)
    for row in describe_store(store.place).entries:
        if row.kind == "delta":
            assert row.zeros is None
            continue
        entry, zeros = store.entry(f"{row.source}/{row.attack}"), 0
        for draw in range(2):
            mask = store.gather(entry, np.full(IMAGES, draw), rows).nonzero
            zeros += 0 if mask is None else IMAGES * VALUES - int(np.bitwise_count(mask).sum())
        assert row.zeros == zeros / (2 * IMAGES * VALUES)
    shares = {(row.source, row.attack): row.zeros for row in describe_store(store.place).entries}
    assert shares["c", "fgsm"] > 0, "max pooling has structural zeros"


def test_summary_is_json(made):
    summary = describe_store(made[0] / "store")
    loaded = json.loads(json.dumps(summary.to_json()))
    assert loaded["digest"] == summary.digest
    assert [row["source"] for row in loaded["entries"]] == [row.source for row in summary.entries]


def test_missing_chunk_is_noticed_though_none_is_read(made, tmp_path):
    copy = shutil.copytree(made[0] / "store", tmp_path / "store")
    (copy / "d/fgsm/direction/c/1/3/0").unlink()
    with pytest.raises(ChunkError, match="direction/c/1/3/0"):
        describe_store(copy)


def test_unfinished_store_and_other_folders_are_refused(made, tmp_path):
    copy = shutil.copytree(made[0] / "store", tmp_path / "store")
    manifest = copy / "manifest.json"
    manifest.write_text('{"format": "ensadv-data"}')
    with pytest.raises(IntegrityError, match="copy the store again"):
        describe_store(copy)
    manifest.unlink()
    with pytest.raises(InputError, match="unfinished"):
        describe_store(copy)
    (tmp_path / "other").mkdir()
    with pytest.raises(InputError, match="expected a store"):
        describe_store(tmp_path / "other")


def test_model_says_how_it_came_to_be(made):
    folder, digests = made
    about = describe_model(folder / "c.safetensors")
    assert about == {
        "architecture": "C",
        "shape": [1, 28, 28],
        "classes": 10,
        "digest": digests["c"],
        "record": {"why": "a test"},
    }


def test_model_that_is_none_is_refused(tmp_path):
    path = tmp_path / "m.safetensors"
    path.write_bytes(b"not a model")
    with pytest.raises(ModelError, match="expected a safetensors file written by ensadv-data"):
        describe_model(path)


def test_folders_are_stores_and_files_are_models(made, tmp_path):
    assert is_store(made[0] / "store")
    assert not is_store(made[0] / "c.safetensors")
    with pytest.raises(InputError, match="found nothing"):
        is_store(tmp_path / "nothing")


# Two stores


def test_two_stores_are_compared_value_by_value(tmp_path, without_fsync):
    data, keys = make_images(45), ("m/fgsm", "m/r-fgsm", "m/pgd")
    here = make_store(tmp_path / "a", data, keys, draws=3, zeros=True, seed=1)
    there = make_store(tmp_path / "b", data, (*keys, "n/fgsm"), draws=2, zeros=True, seed=2)
    found = {row.key: row for row in compare_stores(tmp_path / "a", tmp_path / "b")}
    assert list(found) == list(keys)
    for key in keys:
        one, two = here[key][:2], there[key]
        assert found[key].draws == 2
        if key == "m/pgd":
            assert found[key].opposite == (one != two).mean()
            assert (found[key].zero_here, found[key].zero_there) == (0, 0)
        else:
            assert found[key].opposite == pytest.approx((one * two < 0).mean())
            assert found[key].zero_here == pytest.approx(((one == 0) & (two != 0)).mean())
            assert found[key].zero_there == pytest.approx(((one != 0) & (two == 0)).mean())
    assert all(row.opposite == row.zero_here == row.zero_there == 0 for row in compare_stores(*2 * [tmp_path / "a"]))


def test_stores_that_cannot_be_compared_are_refused(tmp_path, without_fsync):
    data = make_images(20)
    make_store(tmp_path / "a", data, ("m/fgsm",))
    make_store(tmp_path / "b", data, ("m/r-fgsm",))
    make_store(tmp_path / "c", make_images(20, seed=1), ("m/fgsm",))
    with pytest.raises(InputError, match=r"expected a source and attack of .*a, which has m/fgsm; found m/r-fgsm"):
        compare_stores(tmp_path / "a", tmp_path / "b")
    with pytest.raises(InputError, match=r"c: expected a store of the 20 images of .*a, found 20"):
        compare_stores(tmp_path / "a", tmp_path / "c")
