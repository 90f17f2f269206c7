"""Evaluation from a store: the same counts as computing, read as often as one likes; and what cannot serve."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from ensadv_data.attacks.catalogue import attack_label, perturb
from ensadv_data.data import open_dataset
from ensadv_data.errors import AlignmentError, InputError
from ensadv_data.evaluation.run import evaluate
from ensadv_data.evaluation.stored import stored_sources
from ensadv_data.manifest import read_manifest
from ensadv_data.models import load_model
from ensadv_data.precompute import precompute_store
from ensadv_data.spec import AttackSpec, DataSpec, EvaluateSpec, PrecomputeSpec, TrainSpec, parse_attack
from ensadv_data.training import train

pytestmark = pytest.mark.usefixtures("without_fsync")

IMAGES = 120
MINI = DataSpec(data="mnist-mini")
ATTACKS = ("fgsm", "step-ll", "r-fgsm", "i-fgsm:steps=3")
SUITE = """
white_box = ["fgsm"]
black_box = ["fgsm", "step-ll", "r-fgsm", "i-fgsm:steps=3"]
"""


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, str]:
    """Three nets that are right more often than not."""
    folder = tmp_path_factory.mktemp("models")
    data = open_dataset("mnist-mini", "train", limit=1600)
    for seed, name in enumerate(("target", "first", "second")):
        train(TrainSpec(architecture="D", epochs=2, seed=seed, threads=1), data, folder / f"{name}.safetensors")
    return {path.stem: str(path) for path in sorted(folder.glob("*.safetensors"))}


@pytest.fixture(scope="module")
def suite(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("suite") / "suite.toml"
    path.write_text(SUITE)
    return str(path)


def made(models: dict[str, str], out: Path, *, limit: int = IMAGES, **fields: object) -> str:
    """A store of the two sources for the test images."""
    sources = {name: models[name] for name in ("first", "second")}
    asked = {"models": sources, "attacks": ATTACKS, "split": "test", "labels": "true", **fields}
    precompute_store(PrecomputeSpec(**asked), DataSpec(data="mnist-mini", limit=limit), out, workers=0)
    return str(out)


@pytest.fixture(scope="module")
def store(models, tmp_path_factory) -> str:
    return made(models, tmp_path_factory.mktemp("store") / "holdouts")


def test_reading_gives_the_counts_of_computing(models, store, suite):
    """Signs are exact. A random step is another one, and an iterative attack is exact to ε/254."""
    spec = EvaluateSpec(suite=suite, images=IMAGES)
    target = {"target": models["target"]}
    computed = evaluate(spec, MINI, targets=target, sources={n: models[n] for n in ("first", "second")}).targets[0]
    read = evaluate(spec.model_copy(update={"shards": (store,)}), MINI, targets=target, sources={}).targets[0]
    assert (read.clean, read.white_box) == (computed.clean, computed.white_box)
    assert list(read.black_box) == ["first", "second"]
    for source, by in computed.black_box.items():
        for attack, rate in by.items():
            off = abs(rate.errors - read.black_box[source][attack].errors)
            assert off <= {"r-fgsm": IMAGES // 10, "i-fgsm:steps=3": 1}.get(attack, 0), (source, attack)
    errors = {rate.errors for by in read.black_box.values() for rate in by.values()}
    assert len(errors) > 2
    assert min(errors) > computed.clean.errors


def test_the_images_are_those_of_the_attacks_with_true_labels(models, store):
    dataset = open_dataset("mnist-mini", "test", limit=40)
    images, labels = dataset.read(np.arange(40))
    x, y = torch.from_numpy(images).float() / 255, torch.from_numpy(labels)
    attacks = [parse_attack(text, epsilon=0.3) for text in ATTACKS]
    first, second = stored_sources([store], dataset, attacks)
    assert (first.name, second.name) == ("first", "second")
    model = load_model(models["second"])
    assert second.digest == model.digest
    for attack in attacks:
        x_adv = second.perturbed(attack, x, np.arange(40))
        assert (x_adv - x).abs().max() <= 0.3 + 1e-6
        if attack.name != "r-fgsm":
            own = perturb(model.module, x, attack_label(model.module, x, attack, y), attack)
            assert (x_adv - own).abs().max() <= (0.3 / 254 + 1e-6 if attack.kind == "delta" else 0)


def test_an_epsilon_that_no_attack_was_made_with_serves_signs(models, tmp_path):
    store = made(models, tmp_path / "s", limit=40, attacks=("fgsm",))
    dataset = open_dataset("mnist-mini", "test", limit=40)
    (source, _) = stored_sources([store], dataset, [AttackSpec(name="fgsm", epsilon=0.1)])
    x = torch.from_numpy(dataset.read(np.arange(40))[0]).float() / 255
    moved = (source.perturbed(AttackSpec(name="fgsm", epsilon=0.1), x, np.arange(40)) - x).abs().max()
    assert 0.09 < moved <= 0.1 + 1e-6


def test_a_source_with_the_weights_of_the_target_is_white_box(models, store, suite):
    spec = EvaluateSpec(suite=suite, images=40, shards=(store,))
    (row,) = evaluate(spec, MINI, targets={"other name": models["first"]}, sources={}).targets
    assert row.twin == "first"
    assert list(row.black_box) == ["second"]
    assert set(row.white_box) == {parse_attack(text).label for text in ATTACKS}


def test_the_result_names_the_store(models, store, suite):
    spec = EvaluateSpec(suite=suite, images=40)
    target = {"target": models["target"]}
    read = evaluate(spec.model_copy(update={"shards": (store,)}), MINI, targets=target, sources={}).to_json()
    assert read["stores"] == {name: [read_manifest(Path(store)).digest] for name in ("first", "second")}
    assert "stores" not in evaluate(spec, MINI, targets=target, sources={"first": models["first"]}).to_json()


@pytest.mark.parametrize("suite", ["c1", "table2", "adaptive"])
def test_a_source_that_the_suite_has_no_use_for_is_refused(models, store, suite):
    target = {"target": models["target"]}
    words = f"suite {suite}: attacks targets by themselves only; expected no source, got "
    with pytest.raises(InputError, match=words + "first"):
        evaluate(EvaluateSpec(suite=suite, images=40), MINI, targets=target, sources={"first": models["first"]})
    with pytest.raises(InputError, match=words + store):
        evaluate(EvaluateSpec(suite=suite, images=40, shards=(store,)), MINI, targets=target, sources={})


def test_a_source_may_have_its_attacks_in_several_stores(models, store, suite, tmp_path):
    """The first store that has an attack serves it; what is in no store is named."""
    some = made(models, tmp_path / "some", attacks=("fgsm", "i-fgsm:steps=3"))
    rest = made(models, tmp_path / "rest", attacks=("step-ll", "r-fgsm", "fgsm"))
    spec = EvaluateSpec(suite=suite, images=IMAGES)
    target = {"target": models["target"]}

    def read(*shards: str) -> dict[str, object]:
        return evaluate(spec.model_copy(update={"shards": shards}), MINI, targets=target, sources={}).to_json()

    whole, parts = read(store), read(some, rest)
    assert parts["stores"] == {
        name: [read_manifest(Path(path)).digest for path in (some, rest)] for name in ("first", "second")
    }
    assert parts | {"stores": None} == whole | {"stores": None}
    assert read(store, some)["stores"] == whole["stores"]  # the second has nothing new
    with pytest.raises(
        InputError, match=r"first in .*some: expected step-ll by margin from every source, .*found fgsm by"
    ):
        read(some)
    useless = made(models, tmp_path / "useless", attacks=("iter-ll",))
    with pytest.raises(InputError, match=r"useless: expected fgsm by margin from every source.*found iter-ll"):
        read(store, useless)


def test_a_store_that_is_named_twice_is_refused(models, store, suite):
    spec = EvaluateSpec(suite=suite, images=40, shards=(store, store))
    with pytest.raises(InputError, match="shards: expected each store once, got"):
        evaluate(spec, MINI, targets={"target": models["target"]}, sources={})


def test_names_of_stored_and_of_computed_sources_differ(models, store, suite):
    spec = EvaluateSpec(suite=suite, images=40, shards=(store,))
    with pytest.raises(InputError, match="a name of its own for each source, got first, first, second"):
        evaluate(spec, MINI, targets={"target": models["target"]}, sources={"first": models["first"]})


UNFIT = {
    "split": (
        {"split": "train", "labels": "predicted"},
        "expected a store .* mnist-mini/test, found .* mnist-mini/train",
    ),
    "labels": ({"labels": "predicted"}, "expected a store made with labels = true, found predicted"),
    "mode": ({"mode": "train"}, "expected a store made with mode = eval, found train"),
    "zeros": ({"zeros": "fill"}, "expected a store made with zeros = keep, found fill"),
    "steps": (
        {"attacks": ("fgsm", "i-fgsm:steps=4")},
        "as the suite has it, found fgsm by margin, i-fgsm by margin, 4",
    ),
    "epsilon": (
        {"attacks": ("i-fgsm:steps=3,epsilon=0.2",)},
        "margin, 3 steps of 0.1 at epsilon 0.3 from every source",
    ),
    "loss": ({"loss": "ce"}, "expected i-fgsm by margin, .*, found i-fgsm by ce, 3 steps"),
    "few": ({"limit": 30}, "expected perturbations of 40 images, found 30"),
}


@pytest.mark.parametrize("why", UNFIT)
def test_a_store_that_cannot_serve_is_refused_with_the_command_that_makes_one(models, tmp_path, why):
    fields, words = UNFIT[why]
    store = made(models, tmp_path / "s", **({"limit": 40, "attacks": ("i-fgsm:steps=3",)} | fields))
    dataset = open_dataset("mnist-mini", "test", limit=40)
    with pytest.raises(InputError, match=words) as caught:
        stored_sources([store], dataset, [parse_attack("i-fgsm:steps=3", epsilon=0.3)])
    assert "precompute --split test --labels true" in str(caught.value)


def test_a_store_for_other_images_is_refused(models, tmp_path, suite):
    store = made(models, tmp_path / "s", limit=40)
    target = {"target": models["target"]}
    with pytest.raises(AlignmentError, match="example 0"):
        evaluate(
            EvaluateSpec(suite=suite, images=40, shards=(store,), shift="rotate=20"), MINI, targets=target, sources={}
        )


def test_stores_for_training_are_called_what_they_were_called_before():
    """Split and labels are told only where they are not those of training, so that such stores keep their bytes."""
    spec = PrecomputeSpec(models={"a": "a.safetensors"}, attacks=("fgsm",))
    assert {"split", "labels"} & set(spec.model_dump()) == set()
    assert spec.model_copy(update={"labels": "true"}).model_dump()["labels"] == "true"
