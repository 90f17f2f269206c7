"""diagnose: every measure is the one of its module, by reference, with a progress bar that ends at its end."""

from __future__ import annotations

import json
import sys
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from ensadv_data import terminal
from ensadv_data.attacks.single import fgsm
from ensadv_data.data import ArrayDataset, open_dataset
from ensadv_data.errors import InputError, ModelError, QuantityError
from ensadv_data.evaluation import diagnosis
from ensadv_data.evaluation.cone import measure_cone
from ensadv_data.evaluation.diagnosis import diagnose
from ensadv_data.evaluation.discrepancy import measure_discrepancy
from ensadv_data.evaluation.flips import measure_flips
from ensadv_data.evaluation.masking import measure_masking, measure_rounding
from ensadv_data.evaluation.surface import measure_surface
from ensadv_data.models import build_model, load_model, save_model
from ensadv_data.spec import MEASURES, DataSpec, DiagnoseSpec, parse_attack

MINI = DataSpec(data="mnist-mini")
SPEC = DiagnoseSpec(
    measures=MEASURES,
    images=40,
    points=6,
    examples=(3, 5),
    resolution=5,
    epsilon=0.2,
    iterative="i-fgsm:steps=3",
    batch_size=25,
    seed=4,
)


@pytest.fixture(scope="module")
def references(tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("models")
    made = {}
    for seed, name in enumerate("abst"):
        net = build_model("D", shape=(1, 28, 28), classes=10, seed=seed)
        path = folder / f"{name}.safetensors"
        save_model(path, net, architecture="D", shape=(1, 28, 28), classes=10, record={})
        made[name] = str(path)
    return made


@pytest.fixture(scope="module")
def found(references):
    return diagnose(
        SPEC,
        MINI,
        models={"a": references["a"], "b": references["b"]},
        others={"s": references["s"]},
        static={"s": references["s"]},
        holdouts={"t": references["t"]},
    )


def test_every_measure_is_the_one_of_its_module(found, references):
    some, whole = open_dataset("mnist-mini", "test", limit=40), open_dataset("mnist-mini", "test")
    model, other = load_model(references["a"], name="a"), load_model(references["s"], name="s")
    got = found.models["a"]
    single, iterative = parse_attack("fgsm", epsilon=0.2), parse_attack("i-fgsm:steps=3", epsilon=0.2)
    assert (
        got["masking"]
        == measure_masking(model, some, single=single, iterative=iterative, seed=4, batch_size=25).to_json()
    )
    assert got["rounding"] == measure_rounding(model, some, batch_size=25).to_json()
    assert got["flips"] == measure_flips(model, some, batch_size=25).to_json()
    radii = (0.05, 0.125, 0.2)
    assert got["cone"] == measure_cone(model, whole, epsilons=radii, points=6, seed=4, batch_size=25).to_json()
    assert [(each["example"], max(each["axis"])) for each in got["surface"]] == [
        (3, 0.2),
        (3, 0.02),
        (5, 0.2),
        (5, 0.02),
    ]
    expected = measure_surface(model, whole, 5, radius=0.02, resolution=5, other=other, seed=4, batch_size=25)
    assert got["surface"][3] == expected.to_json()
    assert (got["digest"], got["architecture"]) == (model.digest, "D")
    assert json.loads(json.dumps(found.to_json()))["n"] == 40


def test_one_other_serves_every_model(found):
    assert [each["across"] for each in found.models["b"]["surface"]] == ["s"] * 4


def test_the_other_of_one_model_is_no_other_s(references):
    spec = SPEC.model_copy(update={"measures": ("surface",), "examples": (3,)})
    models = {"a": references["a"], "b": references["b"]}
    got = diagnose(spec, MINI, models=models, others={"a": references["t"]})
    across = {name: [each["across"] for each in found["surface"]] for name, found in got.models.items()}
    assert across == {"a": ["t", "t"], "b": ["random", "random"]}  # called as its file is, not as the model it is for


def test_the_discrepancy_is_that_of_fgsm_from_each_source(found, references):
    images, labels = open_dataset("mnist-mini", "test", limit=40).read(np.arange(40))
    x, y = torch.from_numpy(images).float() / 255, torch.from_numpy(labels)
    nets = {name: load_model(reference).module for name, reference in references.items()}

    def answers(source):
        x_adv = fgsm(nets[source], x, y, epsilon=0.2)
        return {name: nets[name](x_adv).argmax(1).numpy() for name in "ab"}

    expected = measure_discrepancy({"s": answers("s")}, answers("t"), labels)
    assert found.discrepancy["t"] == expected.to_json()


def test_the_discrepancy_reads_no_image_more_than_its_attacks_need(references, monkeypatch):
    read, inner = [], ArrayDataset.read

    def watched(self, rows):
        read.append(len(rows))
        return inner(self, rows)

    monkeypatch.setattr(ArrayDataset, "read", watched)
    models = {name: references[name] for name in "ab"}
    spec = SPEC.model_copy(update={"measures": ("discrepancy",)})
    diagnose(spec, MINI, models=models, static={"s": references["s"]}, holdouts={"t": references["t"]})
    batches = sorted(count for count in read if count > 2)  # a look at each model takes two
    assert batches == [15, 15, 25, 25], "40 images for each of the two sources"


@pytest.mark.parametrize("measures", [MEASURES, ("masking",), ("cone", "surface"), ("discrepancy",)])
def test_the_bar_ends_where_the_work_ends(references, monkeypatch, measures):
    seen = {"total": 0, "done": 0}

    @contextmanager
    def bar(what, *, total, unit):
        seen["total"] = total

        def advance(steps):
            seen["done"] += steps

        yield advance

    monkeypatch.setattr(diagnosis, "progress_bar", bar)
    diagnose(
        SPEC.model_copy(update={"measures": measures}),
        MINI,
        models={"a": references["a"], "b": references["b"]},
        static={"s": references["s"]},
        holdouts={"t": references["t"]},
    )
    assert seen["done"] == seen["total"] > 0


def test_tables_name_every_model_and_measure(found, capsys):
    terminal.print_diagnosis(found.to_json())
    said = capsys.readouterr().out
    for words in (
        "gradient masking",
        "lost to float32",
        "flipped direction",
        "cone of a",
        "cone of b",
        "discrepancy",
        "40 images",
    ):
        assert words in said


def test_a_model_without_a_point_is_said_to_have_none(capsys):
    cone = {"points": 0, "skipped": 7}
    result = {"data": "d", "n": 7, "epsilon": 0.3, "models": {"m": {"cone": cone}}, "discrepancy": {}}
    terminal.print_diagnosis(result)
    assert capsys.readouterr().out == ("cone of m: no correctly classified image among 7, so nothing to search at\n")


@pytest.mark.parametrize(
    ("models", "static", "holdouts", "words"),
    [
        ("a", "s", "t", "got 1, 1 and 1"),
        ("ab", "", "t", "got 2, 0 and 1"),
        ("ab", "s", "", "got 2, 1 and 0"),
    ],
)
def test_a_discrepancy_needs_models_and_sources(references, models, static, holdouts, words):
    roles = [{name: references[name] for name in names} for names in (models, static, holdouts)]
    with pytest.raises(InputError, match=words):
        diagnose(SPEC, MINI, models=roles[0], static=roles[1], holdouts=roles[2])


def test_others_belong_to_models(references):
    spec = SPEC.model_copy(update={"measures": ("surface",)})
    with pytest.raises(InputError, match="got x"):
        diagnose(spec, MINI, models={"a": references["a"]}, others={"a": references["s"], "x": references["t"]})


BROKEN = """
import torch
from torch import nn

class Broken(nn.Module):
    def __init__(self, fault):
        super().__init__()
        self.fault, self.weight = fault, nn.Parameter(torch.ones(1))

    def forward(self, x):
        logits = self.weight * x.flatten(1)[:, 300:310]
        if self.fault == "logits":
            return logits * float("nan")
        if self.fault == "some":  # of the images that are white near their middle
            return torch.where(x.flatten(1)[:, 350:351] > 0.9, torch.nan, logits)
        return logits + (0 * x.flatten(1)[:, :10]).sqrt()

logits, some, gradients = (lambda fault=fault: Broken(fault) for fault in ("logits", "some", "gradients"))
"""


@pytest.mark.parametrize("measure", [measure for measure in MEASURES if measure != "discrepancy"])
@pytest.mark.parametrize("fault", ["logits", "some", "gradients"])
def test_a_model_that_answers_no_number_is_not_called_one_that_nothing_fools(tmp_path, monkeypatch, fault, measure):
    (tmp_path / "numberless_models.py").write_text(BROKEN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "numberless_models", raising=False)
    images, _ = open_dataset("mnist-mini", "test").read(np.arange(300))
    bright = int(np.flatnonzero(images.reshape(300, -1)[:, 350] > 0.9 * 255)[0])
    spec = SPEC.model_copy(update={"measures": (measure,), "images": 300, "points": 300, "examples": (bright,)})
    what = "gradients" if fault == "gradients" else "logits"
    with pytest.raises(ModelError, match=f"^m: expected finite {what}, got NaN or infinity; look at its weights"):
        diagnose(spec, MINI, models={"m": f"python:numberless_models:{fault}"})


def test_the_discrepancy_of_a_model_that_answers_no_number_is_none(tmp_path, monkeypatch, references):
    (tmp_path / "numberless_models.py").write_text(BROKEN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "numberless_models", raising=False)
    spec = SPEC.model_copy(update={"measures": ("discrepancy",)})
    bad, roles = (
        "python:numberless_models:{}".format,
        {"static": {"s": references["s"]}, "holdouts": {"t": references["t"]}},
    )
    with pytest.raises(ModelError, match=r"^m: expected finite logits"):
        diagnose(spec, MINI, models={"m": bad("logits"), "a": references["a"]}, **roles)
    both = {"a": references["a"], "b": references["b"]}
    with pytest.raises(ModelError, match=r"^s: expected finite gradients"):
        diagnose(spec, MINI, models=both, **roles | {"static": {"s": bad("gradients")}})


def test_small_images_have_the_cone_s_orders_that_fit(tmp_path, monkeypatch):
    """No more orthogonal directions than values: 64 of 8 × 8."""
    (tmp_path / "small_models.py").write_text(
        "from torch import nn\n\ndef net():\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "small_models", raising=False)
    images, labels = open_dataset("mnist-mini", "test").read(np.arange(60))
    small = ArrayDataset(images[:, :, 10:18, 10:18].copy(), labels, name="small", split="test", classes=10)
    monkeypatch.setattr(diagnosis, "open_data", lambda data, split: small)
    spec = SPEC.model_copy(update={"measures": ("cone",)})
    cone = diagnose(spec, MINI, models={"m": "python:small_models:net"}).models["m"]["cone"]
    assert cone["orders"] == [1, 4, 16, 36, 64]


def test_more_images_than_there_are_is_all_of_them(references):
    spec = SPEC.model_copy(update={"measures": ("rounding",), "images": 10**6, "batch_size": 1000})
    assert diagnose(spec, MINI, models={"a": references["a"]}).n == 2000


def test_an_attack_has_the_epsilon_of_all():
    spec = DiagnoseSpec(epsilon=0.1, single="step-ll", iterative="i-fgsm")
    assert (spec.single.epsilon, spec.iterative.iterations) == (0.1, (10, 0.01))
    assert (DiagnoseSpec(epsilon=0.1).single.epsilon, DiagnoseSpec(epsilon=0.1).iterative.epsilon) == (0.1, 0.1)
    assert DiagnoseSpec(epsilon=0.16).radii == pytest.approx((0.04, 0.1, 0.16))
    assert DiagnoseSpec(epsilons=(0.1,)).radii == (0.1,)
    with pytest.raises(QuantityError, match="single: expected no epsilon in the attack"):
        DiagnoseSpec(epsilon=0.1, single="fgsm:epsilon=0.3")
