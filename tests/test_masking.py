"""Approximation ratio, cosine, gradient norm and rounding: against formulas, float64 and models without masking."""

from __future__ import annotations

import json

import numpy as np
import pytest
import scipy.stats
import torch
from torch import nn
from torch.nn.functional import cosine_similarity, cross_entropy

from ensadv_data.attacks.iterative import i_fgsm
from ensadv_data.attacks.single import fgsm
from ensadv_data.data import ArrayDataset, open_dataset
from ensadv_data.errors import ModelError
from ensadv_data.evaluation.masking import measure_masking, measure_rounding
from ensadv_data.models import Model
from ensadv_data.spec import parse_attack
from laws import leaves_model_alone

FGSM, ITERATED = parse_attack("fgsm", epsilon=0.1), parse_attack("i-fgsm:steps=4", epsilon=0.1)


@pytest.fixture(scope="module")
def dataset():
    return open_dataset("mnist-mini", "test", limit=80)


def net(scale: float = 1.0, *, width: int = 24) -> Model:
    """A net that has learned something, with its logits multiplied."""
    images, labels = open_dataset("mnist-mini", "train").read(np.arange(1000))
    x, y = torch.from_numpy(images).float() / 255, torch.from_numpy(labels)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        module = nn.Sequential(nn.Flatten(), nn.Linear(784, width), nn.Tanh(), nn.Linear(width, 10))
    optimizer = torch.optim.Adam(module.parameters(), lr=0.01)
    for _ in range(40):
        optimizer.zero_grad()
        cross_entropy(module(x), y).backward()
        optimizer.step()
    with torch.no_grad():
        module[3].weight *= scale
        module[3].bias *= scale
    return Model("net", module.eval().requires_grad_(False), "here", "none", "0" * 64)


def test_against_plain_formulas_in_float64(dataset):
    model = net()
    got = measure_masking(model, dataset, single=FGSM, iterative=ITERATED, batch_size=30)
    images, labels = dataset.read(np.arange(80))
    x, y = torch.from_numpy(images).float() / 255, torch.from_numpy(labels)
    one = fgsm(model.module, x, y, epsilon=0.1, loss="ce")
    many = i_fgsm(model.module, x, y, epsilon=0.1, steps=4, loss="ce")
    exact = nn.Sequential(*model.module).double()

    def loss(inputs):
        return cross_entropy(exact(inputs.double()), y, reduction="none").detach()

    losses = [loss(inputs) for inputs in (x, one, many)]
    assert got.ratio == pytest.approx(float((losses[1] / losses[2]).mean()), rel=1e-3)
    assert got.ratio_of_means == pytest.approx(float(losses[1].mean() / losses[2].mean()), rel=1e-3)
    for found, expected in zip((got.loss_clean, got.loss_single, got.loss_iterative), losses, strict=True):
        assert found == pytest.approx(float(expected.mean()), rel=1e-3)
    cosine = cosine_similarity((one - x).double().flatten(1), (many - x).double().flatten(1))
    assert got.cosine == pytest.approx(float(cosine.mean()), rel=1e-4)
    point = x.double().requires_grad_(True)
    gradient = torch.autograd.grad(cross_entropy(exact(point), y, reduction="sum"), point)[0]
    assert got.gradient_norm == pytest.approx(float(gradient.flatten(1).norm(dim=1).mean()), rel=1e-3)
    assert (got.n, got.ratio_excluded, got.cosine_excluded) == (80, 0, 0)
    assert (got.single, got.iterative) == ("fgsm", "i-fgsm:steps=4")
    best = torch.maximum(losses[1], losses[2])
    assert got.ratio_to_best == pytest.approx(float((losses[1] / best).mean()), rel=1e-3)
    assert got.above_one == int((losses[1] > losses[2]).sum())
    assert 0 < got.ratio < 1
    assert got.ratio_to_best_stderr == pytest.approx(scipy.stats.sem((losses[1] / best).numpy()), rel=1e-3)
    assert json.loads(json.dumps(got.to_json()))["n"] == 80


class Linear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(-1, 1, 36))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        score = x.flatten(1) @ self.weight
        return torch.stack([-score, score], dim=1)


def grey(n: int) -> ArrayDataset:
    images = np.full((n, 1, 6, 6), 128, np.uint8)
    return ArrayDataset(images, np.arange(n) % 2, name="grey", split="test", classes=2)


def test_on_a_linear_model_one_step_is_as_good_as_many():
    model = Model("linear", Linear(), "here", "none", "0" * 64)
    got = measure_masking(model, grey(6), single=FGSM, iterative=ITERATED)
    assert got.ratio == pytest.approx(1, abs=1e-5)
    assert got.ratio_of_means == pytest.approx(1, abs=1e-5)
    assert got.cosine == pytest.approx(1, abs=1e-6)


def sure(weight: float) -> Model:
    """So sure of class 0 that float64 cannot tell its loss there from 0."""
    model = Model("sure", nn.Sequential(nn.Flatten(), nn.Linear(36, 2)), "here", "none", "0" * 64)
    with torch.no_grad():
        model.module[1].weight.copy_(torch.tensor([weight, -weight])[:, None].expand(2, 36))
        model.module[1].bias.copy_(torch.tensor([2000.0, -2000.0]))
    return model


def test_images_without_a_loss_are_counted_and_left_out():
    got = measure_masking(sure(1e-3), grey(6), single=FGSM, iterative=ITERATED)
    assert (got.ratio_excluded, got.blind, got.cosine_excluded) == (3, 0, 0)  # three are of class 0
    assert got.ratio == pytest.approx(1, abs=1e-5)


def test_a_model_without_a_gradient_has_no_ratio():
    """Neither attack has anything to follow, and both reach the same loss: that is no mark of a good gradient."""
    got = measure_masking(sure(0.0), grey(6), single=FGSM, iterative=ITERATED)
    assert (got.cosine, got.cosine_excluded, got.blind, got.ratio_excluded) == (None, 6, 6, 6)
    assert (got.ratio, got.ratio_of_means, got.ratio_to_best, got.ratio_to_best_stderr) == (None,) * 4
    assert got.loss_single == got.loss_iterative == got.loss_clean


class Plateau(nn.Module):
    """Flat within 0.05 of grey, steep outside: one step from the image sees nothing, one from a random start does."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        score = torch.nn.functional.softshrink(x.flatten(1) - 128 / 255, 0.05).sum(1)
        return torch.stack([-score, score], dim=1)


def test_a_gradient_that_is_zero_at_the_image_alone_is_masking_and_counts():
    model = Model("plateau", Plateau(), "here", "none", "0" * 64)
    got = measure_masking(model, grey(6), single=FGSM, iterative=parse_attack("pgd:loss=margin", epsilon=0.2))
    assert (got.gradient_norm, got.blind, got.ratio_excluded) == (0, 0, 0)
    assert got.ratio < 0.2


def test_a_sure_model_loses_signs_and_gradients_to_cross_entropy_alone(dataset):
    got = measure_rounding(net(40.0), dataset, batch_size=33)  # beyond what cross-entropy keeps even in float64
    assert got.images == 80
    assert got.values == 80 * 784
    assert got.saturated > 0.5
    assert got.lost_ce > 0.3
    assert got.wrong_ce > 0.3
    assert (got.wrong_margin, got.lost_margin) == (0, 0)
    assert got.zeros < 0.01
    assert json.loads(json.dumps(got.to_json()))["lost_ce"] == got.lost_ce


def test_shares_are_those_against_cross_entropy_in_float64(dataset):
    """Logits times 4: float32 rounds some gradients away, float64 none."""
    model = net(4.0)
    got = measure_rounding(model, dataset, batch_size=33)
    images, labels = dataset.read(np.arange(80))
    x, y = torch.from_numpy(images).float() / 255, torch.from_numpy(labels)

    def gradient(module, inputs):
        point = inputs.clone().requires_grad_(True)
        return torch.autograd.grad(cross_entropy(module(point), y, reduction="sum"), point)[0].flatten(1)

    single = gradient(model.module, x)
    exact = nn.Sequential(*model.module).double()
    with torch.no_grad():
        ahead = exact(x.double()).sort(dim=1, descending=True).values
    assert (ahead[:, 0] - ahead[:, 1]).max() < 33
    double = gradient(exact, x.double())
    assert got.wrong_ce == pytest.approx(float((single.sign() != double.sign()).double().mean()), abs=1e-9)
    assert got.lost_ce == float(((single == 0).all(1) & (double != 0).any(1)).double().mean())
    assert got.zeros == float((double == 0).double().mean())
    assert got.wrong_ce > 0.001
    assert got.wrong_margin < 1e-4


def test_an_unsure_model_loses_nothing(dataset):
    got = measure_rounding(net(0.1), dataset)
    assert (got.lost_ce, got.saturated) == (0, 0)
    assert got.wrong_ce < 1e-4
    assert got.wrong_margin < 1e-4


def test_the_model_is_left_alone_and_must_fit(dataset):
    model = net()
    with leaves_model_alone(model.module):
        measure_rounding(model, dataset)
        measure_masking(model, dataset, single=FGSM, iterative=ITERATED)
    for measure in (measure_rounding, lambda *a: measure_masking(*a, single=FGSM, iterative=ITERATED)):
        with pytest.raises(ModelError, match="net: the model cannot read"):
            measure(model, grey(2))
