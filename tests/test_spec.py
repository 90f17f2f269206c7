"""What a user asks for: the forms that are read, the ones that are refused, and in which words."""

from __future__ import annotations

import math
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from ensadv_data.errors import InputError, QuantityError, UnknownNameError
from ensadv_data.evaluation.suites import SUITES, suite_named
from ensadv_data.spec import (
    ATTACKS,
    AttackSpec,
    DataSpec,
    EpsilonSpec,
    EvaluateSpec,
    PrecomputeSpec,
    TrainSpec,
    checked,
    parse_attack,
    parse_bytes,
    parse_epsilon,
    parse_quantity,
    read_toml,
)

# Quantities


@given(st.integers(-1000, 1000), st.integers(1, 1000))
def test_fractions_are_divided(over, under):
    assert parse_quantity(f"{over}/{under}", name="q") == over / under
    assert parse_quantity(f" {over} / {under} ", name="q") == over / under


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_numbers_are_read_as_they_are(value):
    assert parse_quantity(value, name="q") == value
    assert parse_quantity(repr(value), name="q") == value


@pytest.mark.parametrize(
    "text",
    [
        *("", "a", "1/0", "1/2/3", "1/", "/2", "0.3.1", "0,3", "nan", "inf", "-inf", "1e400", "nan/2", "1/nan"),
        *(math.nan, math.inf, -math.inf, True, False, None, [], 10**400),
    ],
)
def test_what_is_no_finite_number_is_refused(text):
    with pytest.raises(QuantityError, match=r"^q: expected a number or a fraction such as 0\.3 or 16/255, got "):
        parse_quantity(text, name="q")


@pytest.mark.parametrize(
    ("text", "size"),
    [("0", 0), (7, 7), ("512MiB", 512 * 2**20), ("2GB", 2 * 10**9), ("1.5 KiB", 1536), ("1gib", 2**30)],
)
def test_sizes_have_units(text, size):
    assert parse_bytes(text, name="cache-bytes") == size


@pytest.mark.parametrize("text", ["", "-1", "1XB", "much", "nan", "GiB", None])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(QuantityError, match=r"^cache-bytes: expected a size in bytes such as 512MiB or 2GB, got "):
        parse_bytes(text, name="cache-bytes")


@given(st.floats(0, 1))
def test_every_epsilon_in_the_unit_interval_is_read(value):
    assert parse_epsilon(value) == parse_epsilon(repr(value)) == EpsilonSpec(epsilon=value)
    assert AttackSpec(name="fgsm", epsilon=value).epsilon == value


@given(st.floats(allow_nan=False).filter(lambda value: not 0 <= value <= 1))
def test_no_other_epsilon_is_read(value):
    for make in (parse_epsilon, lambda v: EpsilonSpec(epsilon=v), lambda v: AttackSpec(name="fgsm", epsilon=v)):
        with pytest.raises(QuantityError, match=r"^epsilon: expected"):
            make(value)


def test_epsilon_is_read_in_all_its_forms():
    assert parse_epsilon("16/255").epsilon == 16 / 255
    assert parse_epsilon("normal:8/255,16/255") == EpsilonSpec(sigma=8 / 255, epsilon=16 / 255)
    assert parse_epsilon("0.3").sigma is None
    assert parse_epsilon(1) == EpsilonSpec(epsilon=1.0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("normal:0.1", "expected normal:SIGMA,MAX such as normal:8/255,16/255, got 'normal:0.1'"),
        ("normal:1,2,3", "expected normal:SIGMA,MAX"),
        ("normal:x,0.1", "expected a number or a fraction"),
        ("normal:0,0.1", "sigma: expected a standard deviation above 0, got 0; leave it out"),
        ("normal:0.1,16", "expected an L∞ radius in [0, 1] (pixels are in [0, 1]), got 16; write 16/255"),
        ("16", "write 16/255 if you count in grey levels"),
        ("gauss:0.1,0.3", "expected a number or a fraction"),
    ],
)
def test_an_epsilon_of_another_form_is_refused(text, message):
    with pytest.raises(QuantityError) as caught:
        parse_epsilon(text)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


# Attacks


def test_the_catalogue_of_attacks():
    assert dict(ATTACKS) == {
        "fgsm": ("sign", "true"),
        "step-ll": ("sign", "least-likely"),
        "r-fgsm": ("rsign", "true"),
        "r-step-ll": ("rsign", "least-likely"),
        "i-fgsm": ("delta", "true"),
        "iter-ll": ("delta", "least-likely"),
        "pgd": ("delta", "true"),
    }


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_is_read_from_its_name(name):
    attack = parse_attack(name)
    assert attack == AttackSpec(name=name)
    assert attack == parse_attack(f"  {name.upper()}: ")
    assert (attack.kind, attack.least_likely) == (ATTACKS[name][0], ATTACKS[name][1] == "least-likely")
    assert attack.epsilon == 0.3
    assert attack.label == name
    assert attack.loss_form == ("cw" if name == "pgd" else "margin")
    assert parse_attack(name, epsilon=0.2).epsilon == 0.2
    assert parse_attack(f"{name}:epsilon=0.25", epsilon=0.2).epsilon == 0.25


def test_defaults_are_those_of_the_paper_and_its_code():
    assert parse_attack("r+fgsm") == AttackSpec(name="r-fgsm")
    assert parse_attack("r+fgsm").random_step == 0.05
    assert AttackSpec(name="r-fgsm", epsilon=16 / 255).random_step == 8 / 255
    assert AttackSpec(name="r-step-ll", epsilon=0.1).random_step == 0.05
    assert parse_attack("r-fgsm:alpha=0.1").random_step == 0.1
    assert parse_attack("fgsm").random_step == parse_attack("pgd").random_step == 0
    assert parse_attack("pgd").iterations == (40, 0.01)
    assert parse_attack("i-fgsm").iterations == (10, 0.3 / 10)
    assert parse_attack("iter-ll:steps=4").iterations == (4, 0.3 / 4)
    assert parse_attack("pgd:steps=7,step-size=2/255").iterations == (7, 2 / 255)
    assert parse_attack("i-fgsm:step_size=0").iterations == (10, 0)
    assert parse_attack("pgd:loss=ce").loss_form == "ce"


def test_the_label_tells_attacks_apart_that_differ():
    texts = ["r-fgsm", "r-fgsm:alpha=0.1", "pgd", "pgd:steps=7", "pgd:steps=7,step_size=0.02", "pgd:loss=ce"]
    attacks = [parse_attack(text) for text in texts]
    assert [attack.label for attack in attacks] == texts
    assert [parse_attack(attack.label) for attack in attacks] == attacks


@pytest.mark.parametrize(
    ("text", "kind", "message"),
    [
        ("fgms", UnknownNameError, "unknown attack 'fgms'; known: fgsm, step-ll, r-fgsm, r-step-ll, i-fgsm, iter-ll"),
        ("", UnknownNameError, "unknown attack ''"),
        ("fgsm:size=1", UnknownNameError, "unknown quantity of attack fgsm 'size=1'; known: alpha, epsilon, loss"),
        ("fgsm:epsilon", InputError, "quantity of attack fgsm: expected epsilon=VALUE, got 'epsilon'"),
        ("fgsm:name=pgd", UnknownNameError, "unknown quantity of attack fgsm 'name=pgd'"),
        ("fgsm:epsilon=2", QuantityError, "write 2/255"),
        ("fgsm:epsilon=nan", QuantityError, "got 'nan'"),
        ("fgsm:epsilon=", QuantityError, "epsilon: expected a number"),
        ("fgsm:alpha=0.1", QuantityError, "alpha belongs to the R+ attacks (r-fgsm, r-step-ll), not to fgsm"),
        ("step-ll:steps=3", QuantityError, "steps and step_size belong to i-fgsm, iter-ll and pgd, not to step-ll"),
        ("r-fgsm:step_size=0.1", QuantityError, "not to r-fgsm"),
        ("r-fgsm:alpha=0.3", QuantityError, "a random step smaller than epsilon = 0.3, got 0.3; nothing would be"),
        ("r-fgsm:alpha=0.4", QuantityError, "a random step smaller than epsilon = 0.3, got 0.4"),
        ("r-fgsm:alpha=0", QuantityError, "alpha: expected a random step in (0, epsilon), got 0"),
        ("r-fgsm:alpha=1.5", QuantityError, "alpha: expected a random step in (0, epsilon), got 1.5"),
        ("r-fgsm:epsilon=0", QuantityError, "smaller than epsilon = 0"),
        ("pgd:steps=0", InputError, "attack 'pgd:steps=0': steps: input should be greater than or equal to 1, got 0"),
        ("pgd:steps=2.5", InputError, "attack 'pgd:steps=2.5': steps: "),
        ("pgd:steps=inf", QuantityError, "steps: expected a number"),
        ("pgd:step_size=-0.1", QuantityError, "expected an L∞ radius"),
        ("pgd:loss=mse", InputError, "loss: input should be 'margin', 'ce' or 'cw', got 'mse'"),
    ],
)
def test_an_attack_that_makes_no_sense_is_refused(text, kind, message):
    with pytest.raises(InputError) as caught:
        parse_attack(text)
    assert type(caught.value) is kind
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_specs_are_frozen_and_closed():
    attack = parse_attack("fgsm")
    with pytest.raises(ValidationError, match="frozen"):
        attack.epsilon = 0.1
    with pytest.raises(ValidationError, match="extra"):
        AttackSpec(name="fgsm", size=1)
    assert hash(attack) == hash(parse_attack("fgsm"))


# Stages

TRAIN = {"architecture": "A"}
PRECOMPUTE = {"models": {"B": "b.safetensors"}, "attacks": ["step-ll"]}


def test_training_has_the_defaults_of_the_design():
    spec = checked(TrainSpec, TRAIN, where="train")
    assert (spec.epochs, spec.batch_size, spec.optimizer, spec.rate) == (6, 64, "adam", 1e-3)
    assert (spec.online, spec.shards, spec.epsilon, spec.batches, spec.weight) == (None, (), EpsilonSpec(), "pair", 1)
    assert TrainSpec(architecture="A", optimizer="rmsprop").rate == 0.045
    assert TrainSpec(architecture="A", batches="replace").weight == 0.3
    assert TrainSpec(architecture="A", adversarial_weight=0.0, learning_rate=0.5).weight == 0
    assert TrainSpec(architecture="A", learning_rate=0.5).rate == 0.5


def test_training_reads_attacks_and_epsilon_as_text_and_as_specs():
    fields = {"architecture": "A", "online": "r-fgsm:alpha=0.1", "shards": ["a", "b"], "epsilon": "normal:0.1,0.3"}
    with pytest.raises(QuantityError, match="expected fgsm or step-ll where epsilon is drawn, got r-fgsm"):
        checked(TrainSpec, fields, where="train")
    spec = checked(TrainSpec, fields | {"online": "step-ll"}, where="train")
    assert spec.online == parse_attack("step-ll")
    assert spec.shards == ("a", "b")
    assert spec.epsilon == EpsilonSpec(sigma=0.1, epsilon=0.3)
    assert spec == TrainSpec(architecture="A", online=parse_attack("step-ll"), shards=("a", "b"), epsilon=spec.epsilon)
    assert TrainSpec.model_validate_json(spec.model_dump_json()) == spec


@pytest.mark.parametrize(
    ("fields", "kind", "message"),
    [
        ({"epochs": 0}, InputError, "train: epochs: input should be greater than or equal to 1, got 0"),
        ({"epochs": "6"}, InputError, "train: epochs: input should be a valid integer, got '6'"),
        ({"epochs": True}, InputError, "train: epochs: "),
        ({"seed": -1}, InputError, "train: seed: "),
        ({"learning_rate": 0.0}, InputError, "train: learning_rate: "),
        ({"learning_rate": math.inf}, InputError, "train: learning_rate: input should be a finite number"),
        ({"learning_rate": math.nan}, InputError, "train: learning_rate: "),
        ({"adversarial_weight": -0.1}, InputError, "train: adversarial_weight: "),
        ({"adversarial_weight": math.inf}, InputError, "train: adversarial_weight: "),
        ({"optimizer": "sgd"}, InputError, "train: optimizer: input should be 'adam' or 'rmsprop', got 'sgd'"),
        ({"batches": "replace", "batch_size": 63}, QuantityError, "expected an even number with batches = replace"),
        ({"online": "fgms"}, UnknownNameError, "unknown attack 'fgms'"),
        ({"online": 3}, InputError, "train: online: "),
        ({"online": "r-fgsm:alpha=0.05", "epsilon": 0.05}, QuantityError, "smaller than epsilon = 0.05, got 0.05"),
        ({"online": "pgd", "epsilon": "normal:0.1,0.2"}, QuantityError, "where epsilon is drawn, got pgd"),
        ({"epsilon": 2}, QuantityError, "write 2/255"),
        ({"epsilon": True}, QuantityError, "got True"),
        ({"epsilon": None}, InputError, "train: epsilon: "),
        ({"window": -1}, InputError, "train: window: "),
        ({"threads": 0}, InputError, "train: threads: "),
        ({"shards": "a"}, InputError, "train: shards: "),
        ({"epoch": 3}, UnknownNameError, "unknown key in train 'epoch'; known: architecture, epochs,"),
    ],
)
def test_a_training_that_makes_no_sense_is_refused(fields, kind, message):
    with pytest.raises(InputError) as caught:
        checked(TrainSpec, TRAIN | fields, where="train")
    assert type(caught.value) is kind
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_field_is_named():
    with pytest.raises(InputError, match=r"^train: architecture: field required, got \{\}$"):
        checked(TrainSpec, {}, where="train")


@pytest.mark.parametrize("online", ["fgsm", "step-ll"])
def test_epsilon_zero_is_a_control_and_not_an_error_of_alpha(online):
    assert TrainSpec(architecture="A", online=online, epsilon=0).epsilon.epsilon == 0


def test_precompute_reads_names_attacks_and_draws():
    spec = checked(PrecomputeSpec, PRECOMPUTE | {"models": {"B*": "b", "my-net_1.0": "c"}}, where="precompute")
    assert spec.attacks == (parse_attack("step-ll"),)
    assert (spec.draws, spec.mode, spec.zeros, spec.loss, spec.seed) == (1, "eval", "keep", "margin", 0)


@pytest.mark.parametrize(
    ("fields", "draws"),
    [
        ({"attacks": ["r-fgsm"]}, 4),
        ({"attacks": ["r-step-ll", "pgd"]}, 4),
        ({"attacks": ["fgsm"], "mode": "train"}, 4),
        ({"attacks": ["r-fgsm", "fgsm"]}, 4),  # one R+ draw would cost more than three equal ones of FGSM
        ({"attacks": ["i-fgsm", "fgsm"], "mode": "train"}, 4),
        ({"attacks": ["i-fgsm", "fgsm"]}, 1),
        ({"attacks": ["i-fgsm"], "mode": "train"}, 1),  # iterative attacks never use dropout
        ({"attacks": ["r-fgsm"], "split": "test"}, 1),
        ({"attacks": ["r-fgsm", "fgsm"], "split": "test"}, 1),
        ({"attacks": ["r-fgsm"], "draws": 2}, 2),
        ({"attacks": ["fgsm"], "draws": 2}, 2),
    ],
)
def test_draws_unless_given_are_four_where_chance_has_a_part_in_an_attack_on_training_images(fields, draws):
    assert checked(PrecomputeSpec, PRECOMPUTE | fields, where="precompute").draws == draws


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"models": {}}, "models: expected at least one NAME=REF, got none"),
        ({"models": {"": "x"}}, "models: expected a name of letters"),
        ({"models": {"a/b": "x"}}, "got 'a/b'"),
        ({"models": {"..": "x"}}, "got '..'"),
        ({"models": {".hidden": "x"}}, "got '.hidden'"),
        ({"models": {"a\nb": "x"}}, r"got 'a\nb'"),
        ({"models": {"progress": "x"}}, "expected a name that the store does not use itself, got 'progress'"),
        ({"models": {"example_digest": "x"}}, "got 'example_digest'"),
        ({"models": {"zarr.json": "x"}}, "got 'zarr.json'"),
        ({"models": {"manifest.json": "x"}}, "got 'manifest.json'"),
        ({"models": {"B": 1}}, "precompute: models.B: input should be a valid string, got 1"),
        ({"attacks": []}, "precompute: attacks: "),
        ({"attacks": ["fgsm", "fgsm:epsilon=0.1"]}, "attacks: expected each name once in a store, got fgsm, fgsm"),
        ({"attacks": ["fgms"]}, "unknown attack 'fgms'"),
        ({"draws": 0}, "precompute: draws: "),
        ({"batch_size": 0}, "batch_size: expected a number of images from 1 on, or auto, got 0"),
        ({"batch_size": "many"}, "batch_size: expected a number of images from 1 on, or auto, got 'many'"),
        ({"batch_size": True}, "batch_size: expected a number of images from 1 on, or auto, got True"),
        ({"precision": "float16"}, "precompute: precision: input should be 'float32', 'tf32', 'bfloat16' or 'exact'"),
        ({"precision": "exact", "loss": "ce"}, "precision: expected float32 with loss = ce, got exact"),
        (
            {"precision": "exact", "attacks": ["pgd"]},
            "expected float32 for iterative attacks alone, got exact",
        ),
        ({"precision": "tf32", "device": "cpu:0"}, "which has no TF32, got tf32"),
        ({"precision": "tf32"}, "precision: expected float32 or bfloat16 on a CPU, which has no TF32, got tf32"),
        ({"precision": "exact", "mode": "train"}, "precision: expected float32 with mode = train, got exact"),
        ({"loss": "cw"}, "precompute: loss: input should be 'margin' or 'ce', got 'cw'"),
        ({"mode": "test"}, "precompute: mode: "),
        ({"zeros": "drop"}, "precompute: zeros: "),
    ],
)
def test_a_store_that_makes_no_sense_is_refused(fields, message):
    with pytest.raises(InputError) as caught:
        checked(PrecomputeSpec, PRECOMPUTE | fields, where="precompute")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_evaluation_and_data_check_their_numbers():
    assert checked(EvaluateSpec, {"epsilon": "16/255"}, where="evaluate").epsilon == 16 / 255
    assert checked(DataSpec, {"data": "mnist"}, where="data").limit is None
    for kind, fields in ((EvaluateSpec, {"epsilon": 1.1}), (EvaluateSpec, {"batch_size": 0})):
        with pytest.raises(InputError):
            checked(kind, fields, where="evaluate")
    with pytest.raises(InputError, match=r"^data: limit: "):
        checked(DataSpec, {"data": "mnist", "limit": 0}, where="data")


# Recipes


def test_toml_is_read(tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_text('name = "é"\n[train.t]\nepochs = 2\n', encoding="utf-8")
    assert read_toml(path) == {"name": "é", "train": {"t": {"epochs": 2}}}


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"a = 1\nb =\n", "line 2"), (b"a = 1\na = 2\n", "expected TOML"), (b"a = '\xff'\n", "expected TOML")],
)
def test_what_is_not_toml_is_refused_with_its_place(tmp_path, content, message):
    path = tmp_path / "recipe.toml"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        read_toml(path)
    assert str(caught.value).startswith(f"{path}: expected TOML: ")


def test_recipes_that_cannot_be_opened_are_refused(tmp_path):
    with pytest.raises(InputError, match="found no file; see the folder pipelines"):
        read_toml(tmp_path / "none.toml")
    with pytest.raises(InputError, match=os.strerror(21)):
        read_toml(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=os.strerror(20)):
        read_toml(tmp_path / "file" / "recipe.toml")


# Suites


def test_suites_are_made_of_attacks_that_exist():
    white, black = suite_named("paper").attacks(epsilon=0.2)
    assert [attack.label for attack in white] == ["fgsm", "r-fgsm"]
    assert [attack.label for attack in black] == ["fgsm", "i-fgsm", "pgd"]
    for suite in SUITES.values():
        white, black = suite.attacks(epsilon=0.2)
        assert {attack.epsilon for attack in (*white, *black)} == {0.2}
        assert suite.about


def test_an_unknown_suite_is_refused_with_the_known_ones():
    with pytest.raises(UnknownNameError, match=f"unknown suite 'x'; known: {', '.join(SUITES)}"):
        suite_named("x")
