"""What a store will take, held against stores that were made."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ensadv_data import sizing
from ensadv_data.data import open_dataset
from ensadv_data.entries import entries_of
from ensadv_data.models import build_model, load_model, save_model
from ensadv_data.perturbation import perturb_block
from ensadv_data.precompute import header_of, precompute_store
from ensadv_data.sizing import Span, store_reading, store_size, worker_bytes
from ensadv_data.spec import DataSpec, PrecomputeSpec
from ensadv_data.store import Store, open_store
from ensadv_data.trials import Trials

pytestmark = pytest.mark.usefixtures("without_fsync")

DATA = DataSpec(data="mnist-mini", limit=128)


@pytest.fixture(scope="module")
def references(tmp_path_factory) -> dict[str, str]:
    folder, found = tmp_path_factory.mktemp("models"), {}
    for name in "CD":
        module = build_model(name, shape=(1, 28, 28), classes=10, seed=1)
        found[name] = str(folder / f"{name}.safetensors")
        record = {"seed": 1, "of": name}
        save_model(Path(found[name]), module, architecture=name, shape=(1, 28, 28), classes=10, record=record)
    return found


def planned(spec: PrecomputeSpec):
    """Header, entries and models of the store that a spec makes."""
    data = open_dataset(DATA.data, spec.split, limit=DATA.limit)
    models = [load_model(reference, name=name) for name, reference in spec.models.items()]
    entries = tuple(entry for model in models for entry in entries_of(spec, model).values())
    return header_of(spec, data, models), entries, models


def made(spec: PrecomputeSpec, folder: Path) -> tuple[Store, list[Path]]:
    precompute_store(spec, DATA, folder, workers=0)
    return open_store(folder), [path for path in folder.rglob("*") if path.is_file()]


def masks_of(store: Store) -> int:
    return sum(store.has_mask(entry) for entry in store.entries)


@pytest.mark.parametrize(
    "fields",
    [
        {"models": "D", "attacks": ("pgd:steps=2", "i-fgsm:steps=2")},
        {"models": "CD", "attacks": ("r-fgsm", "pgd:steps=1"), "zeros": "fill", "draws": 3},
    ],
)
def test_what_is_not_compressed_is_known_to_the_byte(tmp_path, references, fields):
    spec = PrecomputeSpec(**{**fields, "models": {name: references[name] for name in fields["models"]}})
    size = store_size(*planned(spec))
    _, files = made(spec, tmp_path / "s")
    assert size.objects == Span.exactly(len(files))
    bytes_ = sum(path.stat().st_size for path in files)
    # the manifest counts the zeros of directions, which nobody knows before
    assert size.bytes.least <= bytes_ <= size.bytes.most <= size.bytes.least + 16
    if fields["models"] == "D":
        assert size.bytes == Span.exactly(bytes_)


def test_a_store_without_zeros_is_the_least_and_one_with_masks_is_between(tmp_path, references):
    spec = PrecomputeSpec(models={"d": references["D"]}, attacks=("r-fgsm",), draws=2)
    size = store_size(*planned(spec))
    store, files = made(spec, tmp_path / "s")
    if masks_of(store):
        pytest.skip("a gradient of this model has a zero here")
    assert (size.objects.least, size.bytes.least) == (len(files), sum(path.stat().st_size for path in files))


def test_what_is_compressed_lies_between_the_bounds_and_near_the_sample(tmp_path, references):
    spec = PrecomputeSpec(models={"c": references["C"], "d": references["D"]}, attacks=("fgsm", "r-step-ll"), draws=2)
    header, entries, models = planned(spec)
    trials, sample = Trials(open_dataset(DATA.data, "train", limit=DATA.limit)), {}
    for model in models:
        sample |= trials.sample(spec, model, header)[0]
    size = store_size(header, entries, models, sample=sample)
    store, files = made(spec, tmp_path / "s")
    bytes_ = sum(path.stat().st_size for path in files)
    assert masks_of(store) >= 2, "a max-pooling net has zeros, and so the masks that are to be foretold"
    assert size.objects.least < len(files) <= size.objects.most
    assert len(files) == size.objects.least + masks_of(store) * (1 + header.draws * header.blocks)
    assert size.bytes.least < bytes_ < size.bytes.most
    assert size.about == pytest.approx(bytes_, rel=0.15)
    assert {path.rpartition("/")[0] for path in sample if path.endswith("nonzero")} <= {
        entry.key for entry in entries if store.has_mask(entry)
    }


def test_a_worker_holds_the_planes_of_a_block(references):
    spec = PrecomputeSpec(models={"c": references["C"]}, attacks=("fgsm", "pgd:steps=1"), draws=2, batch_size=8)
    header, entries, models = planned(spec)
    images, labels = open_dataset(DATA.data, "train").read(np.arange(header.block))
    rows = perturb_block(
        models[0], images, spec, {entry.attack: entry for entry in entries}, first=0, y_true_N=labels
    ).values()
    arrays = [array for planes in rows for array in planes if array is not None]
    assert len(arrays) == 5, "directions, deltas and a mask, and two labels"
    held = sum(array.nbytes for array in arrays) + images.nbytes + 8 * header.block  # all images are one part
    largest = max(array.nbytes // (header.draws if array.ndim == 3 else 1) for array in arrays)
    assert worker_bytes(header, entries, batch_size=8) == held + largest


def test_reading_is_what_the_reader_holds(tmp_path, references):
    spec = PrecomputeSpec(models={"c": references["C"]}, attacks=("fgsm", "pgd:steps=1"), draws=2)
    store, _ = made(spec, tmp_path / "s")
    reading = store_reading(store.header, store.entries)
    everything = store.header.blocks, store.header.draws
    assert masks_of(store) == 1
    here = sum(store.held_bytes(entry, *everything) for entry in store.entries)
    store.place.is_mapped = False  # as from afar, where nothing is a map of a file
    assert reading.held.most == sum(store.held_bytes(entry, *everything) for entry in store.entries) > here > 0


@settings(max_examples=100)
@given(
    st.lists(st.tuples(st.integers(0, 99), st.integers(0, 99)).map(sorted), min_size=2, max_size=2), st.integers(0, 9)
)
def test_spans_hold_what_their_ends_hold(ends, times):
    one, two = (Span(*each) for each in ends)
    for a in (one.least, one.most):
        for b in (two.least, two.most):
            added, either = one + two, one | two
            assert added.least <= a + b <= added.most
            assert either.least <= min(a, b) <= max(a, b) <= either.most
        assert (one * times).least <= a * times <= (one * times).most


def test_records_of_the_client_grow_with_the_blocks(references, monkeypatch):
    header, entries, models = planned(PrecomputeSpec(models={"d": references["D"]}, attacks=("fgsm",)))
    large = replace(header, n=600_000_000)  # 1753 blocks
    on_a_line = sizing.client_bytes(large, entries, models)
    monkeypatch.setattr(sizing, "_SAMPLE", 10**6)
    measured = sizing.client_bytes(large, entries, models)
    assert on_a_line == pytest.approx(measured, rel=0.2)
    assert measured > large.blocks * 4 * 64  # at least the digests of a block's objects
