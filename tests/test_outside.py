"""Attacks of other libraries, of one's own, and suites from a file; what they return is not trusted."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import nn

from ensadv_data.data import open_dataset
from ensadv_data.errors import EnsadvError, InputError, UnknownNameError
from ensadv_data.evaluation import outside
from ensadv_data.evaluation.outside import is_outside, parse_outside
from ensadv_data.evaluation.suites import Suite, suite_named
from ensadv_data.evaluation.transfer import measure_transfer
from ensadv_data.models import Model, build_model, weights_digest
from laws import leaves_model_alone

EPSILON = 0.1


def model_of(seed: int) -> Model:
    module = build_model("D", shape=(1, 28, 28), classes=10, seed=seed).eval()
    return Model(f"m{seed}", module, "here", "D", weights_digest(module))


@pytest.fixture(scope="module")
def dataset():
    return open_dataset("mnist-mini", "test", limit=60)


@pytest.fixture
def mine(tmp_path, monkeypatch):
    (tmp_path / "mine_attacks.py").write_text(
        "import torch\n"
        "def nothing(model, x, y, epsilon):\n    assert not model.training\n    return x\n"
        "def noise(model, x, y, epsilon):\n"
        "    return (x + epsilon * torch.randn_like(x).sign()).clamp(0, 1)\n"
        "def far(model, x, y, epsilon):\n    return (x + 2 * epsilon).clamp(0, 1)\n"
        "def out(model, x, y, epsilon):\n    return x + epsilon\n"
        "def nan(model, x, y, epsilon):\n    return x * float('nan')\n"
        "def flat(model, x, y, epsilon):\n    return x.flatten(1)\n"
        "def array(model, x, y, epsilon):\n    return x.numpy()\n"
        "def fails(model, x, y, epsilon):\n    raise KeyError('budget')\n"
        "def spoils(model, x, y, epsilon):\n    x.zero_()\n    y.zero_()\n    return x + epsilon\n"
        "number = 3\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_other_libraries_give_what_ours_gives(dataset):
    """FGSM three times: by us on cross-entropy, by foolbox, by torchattacks; as white-box and transferred."""
    texts = ("fgsm:loss=ce", "foolbox:LinfFastGradientAttack", "torchattacks:FGSM")
    white, black = Suite(texts, texts, about="").attacks(epsilon=EPSILON)
    targets, sources = [model_of(1)], [model_of(2)]
    with leaves_model_alone(targets[0].module):
        got = measure_transfer(targets, sources, dataset, white_box=white, black_box=black, epsilon=EPSILON)
    (row,) = got.targets
    assert list(row.white_box) == list(texts)
    for rates in (row.white_box, row.black_box["m2"]):
        assert len({rate.errors for rate in rates.values()}) == 1
    assert json.loads(json.dumps(got.to_json()))["targets"]["m1"]["white_box"]["torchattacks:FGSM"]


def test_options_reach_the_library(dataset):
    one, two = (
        parse_outside(f"foolbox:LinfBasicIterativeAttack:steps={n},rel_stepsize=0.5", epsilon=EPSILON) for n in (1, 4)
    )
    model = model_of(1)
    x, y = (torch.from_numpy(each) for each in dataset.read(np.arange(4)))
    x = x.float() / 255
    assert (one.perturb(model.module, x, y) - x).abs().max() == pytest.approx(EPSILON / 2, abs=1e-6)
    assert (two.perturb(model.module, x, y) - x).abs().max() == pytest.approx(EPSILON, abs=1e-6)
    with pytest.raises(InputError, match=r"torchattacks:PGD:eps=0\.3: expected perturbations within epsilon = 0\.1"):
        parse_outside("torchattacks:PGD:eps=0.3", epsilon=EPSILON).perturb(model.module, x, y)


def test_values_are_read_as_what_they_look_like():
    text = "torchattacks:PGD:steps=3,alpha=0.01,random_start=False,norm=inf-norm"
    assert outside._options(text.split(":")[2], text) == {
        "steps": 3,
        "alpha": 0.01,
        "random_start": False,
        "norm": "inf-norm",
    }


def test_one_s_own_function_is_called_with_images_and_named_by_the_seed(dataset, mine):
    attack = parse_outside("python:mine_attacks:noise", epsilon=EPSILON)
    model = model_of(1)

    def count(seed):
        got = measure_transfer([model], [], dataset, white_box=[attack], black_box=(), epsilon=EPSILON, seed=seed)
        return got.targets[0].white_box["python:mine_attacks:noise"]

    state = torch.get_rng_state()
    assert count(1) == count(1)
    assert torch.equal(state, torch.get_rng_state())
    unchanged = parse_outside("python:mine_attacks:nothing", epsilon=EPSILON)
    got = measure_transfer([model], [], dataset, white_box=[unchanged], black_box=(), epsilon=EPSILON)
    assert got.targets[0].white_box[unchanged.label] == got.targets[0].clean


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("far", "within epsilon = 0.1, got one of 0.2"),
        ("out", "expected pixels in [0, 1], got some from 0.1 to 1.1"),
        ("nan", "got one of nan"),
        ("flat", "expected images of shape (2, 1, 28, 28), got (2, 784)"),
        ("array", "got ndarray"),
        ("fails", "failed with KeyError: 'budget'"),
    ],
)
def test_what_an_attack_returns_is_checked(mine, name, words):
    attack = parse_outside(f"python:mine_attacks:{name}", epsilon=EPSILON)
    x = torch.full((2, 1, 28, 28), 0.5)
    x[:, :, 0, 0] = 0
    x[:, :, 1, 1] = 1
    with pytest.raises(InputError) as caught:
        attack.perturb(model_of(1).module, x, torch.tensor([1, 2]))
    assert words in str(caught.value)
    assert str(caught.value).startswith(f"attack python:mine_attacks:{name}: ")


def test_an_attack_cannot_spoil_the_images(mine):
    x, y = torch.zeros(1, 1, 28, 28), torch.tensor([3])
    parse_outside("python:mine_attacks:spoils", epsilon=EPSILON).perturb(model_of(1).module, x, y)
    assert (x == 0).all()
    assert y.tolist() == [3]


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        ("foolbox:LinfNothing", UnknownNameError, "unknown attack of foolbox 'LinfNothing'; known: "),
        ("torchattacks:FGSM:steps", InputError, "torchattacks:FGSM:steps: expected KEY=VALUE, got 'steps'"),
        ("foolbox:LinfPGD:stepz=3", InputError, "'stepz'; LinfPGD takes rel_stepsize, abs_stepsize, steps, random_st"),
        ("torchattacks:MIFGSM:stepz=3", InputError, "'stepz'; MIFGSM takes eps, alpha, steps, decay"),
        ("torchattacks:PGD:model=3", InputError, "'model'; PGD takes eps, alpha, steps, random_start"),
        ("python:mine_attacks:missing", InputError, "expected a function, got none of that name"),
        ("python:mine_attacks:number", InputError, "expected a function, got 3"),
        ("python:no_such_module:f", InputError, "add its folder to PYTHONPATH"),
        ("python:a b:f", InputError, "expected python:MODULE:FUNCTION"),
    ],
)
def test_what_is_no_attack_is_refused(mine, text, error, words):
    with pytest.raises(error) as caught:
        parse_outside(text, epsilon=EPSILON)
    assert words in str(caught.value)


def test_a_library_that_is_missing_comes_with_a_remedy(monkeypatch):
    monkeypatch.setitem(outside._LIBRARIES, "foolbox", "no_such_library.attacks")
    with pytest.raises(InputError, match="pip install foolbox"):
        parse_outside("foolbox:LinfPGD", epsilon=EPSILON)


def test_names_of_ours_are_not_outside():
    assert not is_outside("fgsm:loss=ce")
    assert not is_outside("python")
    assert is_outside("foolbox:LinfPGD")


# Suites from a file


def test_a_suite_may_come_from_a_file(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('about = "x"\nwhite_box = ["fgsm", "torchattacks:FGSM"]\nblack_box = ["r-step-ll:alpha={half}"]\n')
    white, black = suite_named(str(path)).attacks(epsilon=0.2)
    assert [attack.label for attack in white] == ["fgsm", "torchattacks:FGSM"]
    assert {attack.epsilon for attack in (*white, *black)} == {0.2}
    assert black[0].label == "r-step-ll:alpha=0.1"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "expected attacks in white_box, black_box or adaptive, got none"),
        ("white = ['fgsm']", "unknown key"),
        ("white_box = 'fgsm'", "white_box: expected a list of attacks"),
        ("white_box = [1]", "expected a list of attacks"),
        ("black_box = ['fgsm', 'fgsm']", "expected each attack once"),
        ("black_box = ['fgms']", "unknown attack 'fgms'"),
        ("black_box = ['fgsm:epsilon=0.1']", "without an epsilon of their own"),
    ],
)
def test_a_file_that_is_no_suite_is_refused(tmp_path, text, words):
    path = tmp_path / "bad.toml"
    path.write_text(text)
    with pytest.raises(EnsadvError) as caught:
        suite_named(str(path)).attacks(epsilon=0.3)
    assert words in str(caught.value)


def test_a_net_with_dropout_is_attacked_without_it(mine):
    module = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(784, 10)).train()
    parse_outside("python:mine_attacks:nothing", epsilon=EPSILON).perturb(
        module, torch.zeros(1, 1, 28, 28), torch.tensor([0])
    )
    assert module.training
