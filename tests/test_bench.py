"""What bench times: that it is the work that it names, and that its figures arrive. No time is asserted."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from ensadv_data.bench import (
    apply_alternatives,
    gather_alternatives,
    gradient_alternatives,
    random_store,
    run_bench,
    save_untrained,
    step_alternatives,
)
from ensadv_data.data import open_dataset
from ensadv_data.models import load_model
from ensadv_data.store import open_store


@pytest.fixture(scope="module")
def dataset():
    return open_dataset("mnist-mini", "train", limit=160)


def test_random_store_is_for_the_images_and_half_of_its_signs_are_positive(dataset, tmp_path):
    store = open_store(random_store(dataset, tmp_path / "store", sources=("a", "b"), draws=3))
    assert [entry.key for entry in store.entries] == ["a/r-fgsm", "b/r-fgsm"]
    assert (store.header.draws, store.header.n, store.header.data_digest) == (3, 160, dataset.digest)
    rows = np.arange(160)
    store.prove(dataset.example_digests(), rows)
    found = [store.gather(entry, np.zeros(160, np.int64), rows).direction for entry in store.entries]
    assert not np.array_equal(*found)
    assert abs(np.unpackbits(found[0]).mean() - 0.5) < 0.01


def test_rows_of_the_map_are_those_of_the_store(dataset, tmp_path):
    ways = gather_alternatives(open_store(random_store(dataset, tmp_path / "store")), tmp_path, batch_size=8)
    for _ in range(3):
        assert np.array_equal(ways["memory map"](), ways["store"]().direction)


def test_each_step_trains_on_as_many_images(dataset, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(torch.nn.Sequential, "forward", counting(torch.nn.Sequential.forward, seen))
    for name, step in step_alternatives(dataset, tmp_path, architecture="D", batch_size=16).items():
        seen.clear()
        step()
        forward = {"clean": [32], "store": [32], "online": [16, 16, 32], "static": [16, 16, 32]}[name]
        assert seen == forward, name


def counting(forward, seen):
    def counted(self, x):
        seen.append(len(x))
        return forward(self, x)

    return counted


def test_precompute_packs_the_gradients_of_the_bare_loop(dataset, tmp_path):
    model = load_model(save_untrained("D", dataset, tmp_path / "d.safetensors"), name="d")
    images, _ = dataset.read(np.arange(40))
    ways = gradient_alternatives(model, images, batch_size=16)
    ways["bare"]()
    (planes,) = ways["precompute"]().values()
    assert planes.direction.shape == (1, 40, 98)


def test_apply_is_timed_on_all_values():
    ways = apply_alternatives(784, 4)
    assert ways["apply"]().shape == (4, 784)
    assert ways["pack"]()[0].shape == (4, 98)
    for name in ("fill", "copy"):
        ways[name]()


def test_bench_answers_every_question_with_ratios(dataset):
    found = run_bench(dataset, architecture="D", batch_size=8, rounds=7)
    assert json.loads(json.dumps(found)) == found
    for question in ("step", "apply", "rows", "precompute"):
        names = found[question]["milliseconds"]
        for pair, (middle, low, high) in found[question]["ratios"].items():
            over, under = pair.split(" / ")
            assert {over, under} <= set(names)
            assert 0 < low <= middle <= high
