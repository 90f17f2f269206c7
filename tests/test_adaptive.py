"""Adversaries that query: estimated gradients against true ones, counts of queries, surrogates that transfer."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import cross_entropy

from ensadv_data.attacks.catalogue import noise_of
from ensadv_data.attacks.gradient import input_gradient
from ensadv_data.attacks.single import r_fgsm
from ensadv_data.data import ArrayDataset, open_dataset
from ensadv_data.errors import EnsadvError, InputError, ModelError, UnknownNameError
from ensadv_data.evaluation import run
from ensadv_data.evaluation.adaptive import (
    Oracle,
    estimated_gradient,
    measure_adaptive,
    measure_estimated,
    measure_surrogate,
)
from ensadv_data.evaluation.run import evaluate
from ensadv_data.evaluation.suites import suite_named
from ensadv_data.evaluation.summary import summary_rows
from ensadv_data.keys import derive_key
from ensadv_data.models import Model, build_model, save_model, weights_digest
from ensadv_data.spec import ADAPTIVE, DataSpec, EvaluateSpec, parse_adaptive, parse_attack


class Exact(nn.Module):
    """Tanh net in float64: smooth, and without rounding worth mentioning."""

    def __init__(self, d: int, classes: int, *, seed: int, width: int = 16) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.first = nn.Parameter(torch.randn(d, width, generator=generator, dtype=torch.float64) / d**0.5)
        self.second = nn.Parameter(torch.randn(width, classes, generator=generator, dtype=torch.float64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x.double().flatten(1) @ self.first).tanh() @ self.second


def model_of(module: nn.Module, name: str = "m") -> Model:
    return Model(name, module.eval(), "here", "none", weights_digest(module))


def tiny(n: int = 12, *, seed: int = 0) -> ArrayDataset:
    generator = np.random.default_rng(seed)
    images = generator.integers(0, 256, (n, 2, 3, 3), dtype=np.uint8)
    return ArrayDataset(images, generator.integers(0, 4, n), name="tiny", split="test", classes=4)


@given(st.integers(0, 1000), st.sampled_from(["margin", "ce", "cw"]))
@settings(max_examples=25, deadline=None)
def test_an_estimated_gradient_is_the_gradient(seed, loss):
    module = Exact(18, 4, seed=seed)
    x = torch.rand(2, 3, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    label = torch.tensor(seed % 4)
    oracle = Oracle(Model("m", module, "", "", ""))
    estimated = estimated_gradient(oracle.scores, x, label, step=1e-4, loss=loss)
    true = input_gradient(module, x[None], label[None], loss=loss)[0]
    assert torch.allclose(estimated, true, atol=1e-5)
    assert oracle.queries == 2 * 18


def test_along_an_estimated_gradient_it_is_r_fgsm():
    """The same images are fooled as by R+FGSM with the true gradient and the same random step."""
    target, data = model_of(Exact(18, 4, seed=3)), tiny(40)
    got = measure_estimated(target, data, parse_adaptive("estimated:alpha=0.05,step=0.001", epsilon=0.2), seed=5)
    images, labels = data.read(np.arange(40))
    x, y = torch.from_numpy(images).float() / 255, torch.from_numpy(labels)
    attack = parse_attack("r-fgsm:alpha=0.05", epsilon=0.2)
    noise = noise_of(attack, data.shape, seed=derive_key("estimated", 5), examples=np.arange(40))
    x_adv = r_fgsm(target.module, x, y, epsilon=0.2, alpha=0.05, random_sign=noise)
    assert got.rate.errors == int((target.module(x_adv).argmax(1) != y).sum())
    assert (got.rate.n, got.queries) == (40, 40 * 2 * 18)
    assert got.to_json()["queries_per_image"] == 36


@pytest.fixture(scope="module")
def digits():
    """A linear model of digits, which a surrogate can learn from few images."""
    images, labels = open_dataset("mnist-mini", "train").read(np.arange(3000))
    x, y = torch.from_numpy(images).float() / 255, torch.from_numpy(labels)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    optimizer = torch.optim.Adam(module.parameters(), lr=0.01)
    for _ in range(60):
        optimizer.zero_grad()
        cross_entropy(module(x), y).backward()
        optimizer.step()
    return model_of(module.requires_grad_(False), "digits")


def test_a_surrogate_transfers_and_every_query_is_counted(digits):
    data, samples = open_dataset("mnist-mini", "test", limit=200), open_dataset("mnist-mini", "train")
    seen = []
    adversary = parse_adaptive("surrogate:rounds=3,epochs=8,samples=100", epsilon=0.1)
    state = torch.get_rng_state()
    got = measure_surrogate(digits, data, samples, adversary, seed=2, advance=seen.append)
    assert torch.equal(state, torch.get_rng_state())
    assert got.queries == 100 * 2**3
    assert sum(seen) == 200
    assert seen[-1] < 10  # most of the work is the training, and is told as it goes
    images, labels = data.read(np.arange(200))
    clean = int((digits.module(torch.from_numpy(images).float() / 255).argmax(1).numpy() != labels).sum())
    random = torch.from_numpy(images).float() / 255
    random = (random + 0.1 * torch.randn(random.shape, generator=torch.Generator().manual_seed(1)).sign()).clamp(0, 1)
    by_chance = int((digits.module(random).argmax(1).numpy() != labels).sum())
    assert got.rate.errors > 2 * by_chance > clean
    assert measure_surrogate(digits, data, samples, adversary, seed=2) == got


def test_the_target_s_labels_are_all_that_a_surrogate_learns_from(digits):
    """The true labels of the adversary's images are not looked at."""
    data, samples = open_dataset("mnist-mini", "test", limit=50), open_dataset("mnist-mini", "train", limit=60)
    images, labels = samples.read(np.arange(60))
    wrong = ArrayDataset(images, (labels + 1) % 10, name="wrong", split="train", classes=10)
    adversary = parse_adaptive("surrogate:rounds=1,epochs=3,samples=60", epsilon=0.1)
    assert measure_surrogate(digits, data, samples, adversary) == measure_surrogate(digits, data, wrong, adversary)


class SoundInside(nn.Module):
    """Finite on images, and not where an estimate asks it: a little below 0."""

    def forward(self, x_NCHW: torch.Tensor) -> torch.Tensor:
        return (x_NCHW.flatten(1)[:, :10] + 0.001).sqrt()


def test_an_adversary_that_is_answered_no_number_is_not_said_to_fool():
    data = open_dataset("mnist-mini", "test", limit=2)
    target = Model("sound", SoundInside(), "", "", "")
    with pytest.raises(ModelError, match=r"^sound: expected finite logits, .* outside \[0, 1\] as well"):
        measure_adaptive(target, data, data, parse_adaptive("estimated", epsilon=0.1))


def test_more_samples_than_there_are_is_refused(digits):
    data, samples = open_dataset("mnist-mini", "test", limit=5), open_dataset("mnist-mini", "train", limit=60)
    with pytest.raises(InputError, match="at most 60 samples, the training images there are, got 61; ask for fewer"):
        measure_surrogate(digits, data, samples, parse_adaptive("surrogate:samples=61", epsilon=0.1))
    with pytest.raises(UnknownNameError, match="unknown architecture 'Z'"):
        measure_adaptive(digits, data, samples, parse_adaptive("surrogate:architecture=Z", epsilon=0.1))
    for name in ADAPTIVE:
        with pytest.raises(ModelError, match="digits: the model cannot read"):
            measure_adaptive(digits, tiny(), tiny(), parse_adaptive(name, epsilon=0.1))


def test_samples_that_there_are_not_are_refused_before_any_other_attack_is_made(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "measure_transfer", lambda *_, **__: pytest.fail("something was attacked"))
    path = tmp_path / "many.toml"
    path.write_text('white_box = ["pgd"]\nadaptive = ["surrogate:samples=99999"]')
    net = build_model("D", shape=(1, 28, 28), classes=10, seed=1)
    save_model(tmp_path / "d.safetensors", net, architecture="D", shape=(1, 28, 28), classes=10, record={})
    spec, data = EvaluateSpec(suite=str(path), images=5), DataSpec(data="mnist-mini")
    with pytest.raises(InputError, match="surrogate:samples=99999: expected at most 10000 samples"):
        run.evaluate(spec, data, targets={"d": str(tmp_path / "d.safetensors")}, sources={})


def test_a_suite_names_them_and_the_summary_tells_their_cost(tmp_path):
    net = build_model("D", shape=(1, 28, 28), classes=10)
    reference = str(tmp_path / "d.safetensors")
    save_model(tmp_path / "d.safetensors", net, architecture="D", shape=(1, 28, 28), classes=10, record={})
    suite = tmp_path / "suite.toml"
    suite.write_text(
        'white_box = ["fgsm"]\n'
        'adaptive = ["estimated:alpha={half},step=0.02", "surrogate:samples=20,rounds=1,epochs=1"]\n'
    )
    spec = EvaluateSpec(suite=str(suite), images=3, epsilon=0.2, seed=1)
    got = evaluate(spec, DataSpec(data="mnist-mini"), targets={"d": reference}, sources={})
    told = json.loads(json.dumps(got.to_json()))
    (estimated, surrogate) = told["targets"]["d"]["adaptive"]
    assert (estimated, surrogate) == ("estimated:alpha=0.1,step=0.02", "surrogate:samples=20,rounds=1,epochs=1")
    assert told["targets"]["d"]["adaptive"][estimated]["queries"] == 3 * 2 * 784
    assert told["targets"]["d"]["adaptive"][surrogate]["queries"] == 40
    columns, rows = summary_rows(told)
    assert columns[3] == "estimated (alpha=0.1,step=0.02), by queries"
    assert rows[0][3].endswith(", 1,568 queries an image")


def test_the_suite_of_the_package():
    adversaries = suite_named("adaptive").adversaries(epsilon=0.3)
    assert [each.name for each in adversaries] == [*ADAPTIVE, "surrogate"]
    assert adversaries[1].architecture != adversaries[2].architecture  # one of them is not the target's
    assert adversaries[0].alpha == 0.15
    assert suite_named("paper").adversaries(epsilon=0.3) == ()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("oracle", "unknown adaptive adversary 'oracle'; known: estimated, surrogate"),
        ("estimated:rounds=3", "unknown quantity of estimated 'rounds=3'; known: alpha, step"),
        ("surrogate:rounds", "quantity of surrogate: expected rounds=VALUE, got 'rounds'"),
        ("surrogate:rounds=-1", "rounds"),
        ("surrogate:samples=1.5", "samples"),
        ("estimated:step=0", "step"),
        ("estimated:alpha=x", "alpha: expected a number"),
    ],
)
def test_what_is_no_adversary_is_refused(text, words):
    with pytest.raises(EnsadvError) as caught:
        parse_adaptive(text, epsilon=0.3)
    assert words in str(caught.value)
