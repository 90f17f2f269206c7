"""The batch size found by trial: which one is taken, by times that are made up."""

from __future__ import annotations

import pytest
import torch

from ensadv_data import calibration
from ensadv_data.bench import save_untrained
from ensadv_data.calibration import best_batch_size
from ensadv_data.data import open_dataset
from ensadv_data.models import load_model


@pytest.fixture(scope="module")
def dataset():
    return open_dataset("mnist-mini", "train", limit=600)


def timed(monkeypatch, seconds):
    tried = []

    def of(models, x):
        tried.append(len(x))
        return seconds(len(x))

    monkeypatch.setattr(calibration, "_seconds", of)
    return tried


def test_the_batch_grows_while_it_pays(dataset, monkeypatch):
    tried = timed(
        monkeypatch, lambda n: {16: 1.6, 32: 2.4, 64: 4.0, 128: 7.9}[n]
    )  # 0.1, 0.075, 0.0625, 0.0617 an image
    assert best_batch_size([], dataset, device="cpu", most=600) == 64
    assert sorted(set(tried)) == [16, 32, 64, 128]


@pytest.mark.parametrize(("most", "size"), [(600, 512), (100, 64), (16, 16), (7, 7)])
def test_it_is_at_most_what_a_block_has(dataset, monkeypatch, most, size):
    timed(monkeypatch, lambda n: 1.0)
    assert best_batch_size([], dataset, device="cpu", most=most) == size


def test_a_device_that_is_too_small_ends_the_trial(dataset, monkeypatch):
    def seconds(n: int) -> float:
        if n > 32:
            raise torch.OutOfMemoryError
        return 1.0

    timed(monkeypatch, seconds)
    assert best_batch_size([], dataset, device="cpu", most=600) == 32
    monkeypatch.setattr(calibration, "_SMALLEST", 64)
    with pytest.raises(torch.OutOfMemoryError):
        best_batch_size([], dataset, device="cpu", most=600)


def test_models_are_tried(dataset, tmp_path):
    model = load_model(save_untrained("D", dataset, tmp_path / "d.safetensors"))
    assert best_batch_size([model, model], dataset, device="cpu", most=64, trials=1) in (16, 32, 64)
