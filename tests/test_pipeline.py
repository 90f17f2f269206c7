"""Recipes: what is refused, in which order stages run, what is skipped, and what survives a failure."""

from __future__ import annotations

import json
import shutil
import signal
import sys
import time
from importlib.resources import files
from pathlib import Path

import psutil
import pytest
import torch

from ensadv_data import arithmetic, pipeline
from ensadv_data.errors import EnsadvError, InputError, ModelError, OutputError, QuantityError, UnknownNameError
from ensadv_data.evaluation.run import evaluate
from ensadv_data.models import build_model, load_model, read_metadata, save_model
from ensadv_data.outputs import Outputs
from ensadv_data.pipeline import run_recipe
from ensadv_data.recipe import on_device, packaged_recipe, read_recipe, selected
from ensadv_data.spec import DataSpec, EvaluateSpec, TrainSpec, read_toml
from ensadv_data.store import open_store
from laws import started, wait_until

TINY = """
name = "tiny"
[data]
data = "mnist-mini"
limit = 200
[defaults.train]
architecture = "D"
epochs = 1
[train.ens]
seed = 3
online = "step-ll"
shards = ["shards"]
[train.static]
seed = 1
[train.other]
seed = 2
[precompute.shards]
models = ["static"]
attacks = ["fgsm"]
[evaluate.result]
targets = ["ens", "static"]
sources = { holdout = "other" }
suite = "single-step"
images = 100
[report]
title = "tiny & small"
"""

NAMES = ("static", "other", "shards", "ens", "result", "report")


@pytest.fixture(scope="module", autouse=True)
def one_process():
    """Stores are computed in this process: the bytes are the same, and a cluster takes seconds to start."""
    with pytest.MonkeyPatch.context() as patch:
        real = pipeline.precompute_store
        patch.setattr(pipeline, "precompute_store", lambda *args, workers: real(*args, workers=0))
        patch.setenv("ENSADV_QUIET", "1")
        yield


def written(folder: Path, text: str) -> Path:
    path = folder / "recipe.toml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The tiny recipe and its outputs; never changed."""
    folder = tmp_path_factory.mktemp("tiny")
    recipe = read_recipe(written(folder, TINY))
    lines: list[str] = []
    runs = run_recipe(recipe, folder / "out", jobs=1, say=lines.append)
    assert [run.skipped for run in runs] == [False] * 6
    assert len(lines) == 6
    return folder


@pytest.fixture
def copied(finished, tmp_path):
    """A copy of the outputs, to be changed."""
    shutil.copytree(finished / "out", tmp_path / "out")
    return tmp_path


def rerun(folder: Path, text: str = TINY, **options) -> dict[str, str]:
    """Run again: for each stage, whether it ran."""
    runs = run_recipe(read_recipe(written(folder, text)), folder / "out", jobs=1, **options)
    return {run.stage.name: "skipped" if run.skipped else "ran" for run in runs}


def results_of(folder: Path) -> dict[str, bytes]:
    """Every output that must be the same in each run; logs and report show times."""
    patterns = ("models/*.safetensors", "results/*.json", "shards/**/*")
    paths = sorted(path for pattern in patterns for path in folder.glob(pattern) if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


# Reading


def refusal(folder: Path, text: str, kind: type[Exception] = InputError) -> str:
    with pytest.raises(kind) as caught:
        read_recipe(written(folder, text))
    message = str(caught.value)
    assert "\n" not in message
    return message


BAD = [
    ("[data]\ndata = 'mnist-mini'\n[trian.x]\n", UnknownNameError, "unknown table in", "'trian'; known: name, data"),
    ("[train.x]\narchitecture = 'D'\n", InputError, "data: data: field required", "got {}"),
    (TINY.replace("epochs = 1", "epoch = 1"), UnknownNameError, "unknown key in", "'epoch'; known: architecture"),
    (
        TINY.replace("limit = 200", "limt = 200"),
        UnknownNameError,
        "'limt'; known: data, data_dir, preprocess, on_bad_image, limit",
        "",
    ),
    (TINY.replace("limit = 200", "limit = 0"), InputError, "limit: input should be greater than", "got 0"),
    (TINY.replace("seed = 3", "seed = '3'"), InputError, "train.ens: seed: input should be a valid integer", "'3'"),
    (TINY.replace("[defaults.train]", "[defaults.trian]"), UnknownNameError, "'trian'; known: train, precompute", ""),
    (TINY.replace("title =", "titel ="), UnknownNameError, "'titel'; known: title", ""),
    (TINY.replace('shards = ["shards"]', 'shards = ["shard"]'), UnknownNameError, "precompute stage in", "'shard'"),
    (TINY.replace('shards = ["shards"]', 'shards = ["static"]'), UnknownNameError, "'static'; known: shards", ""),
    (TINY.replace('models = ["static"]', 'models = ["statik"]'), UnknownNameError, "train stage in", "ens, static"),
    (TINY.replace('models = ["static"]', 'models = ["shards"]'), UnknownNameError, "train stage in", "'shards'"),
    (TINY.replace('models = ["static"]', "models = 3"), InputError, "expected a list of stages or a table", "got 3"),
    (TINY.replace('models = ["static"]', "models = []"), InputError, "at least one NAME=REF", ""),
    (TINY.replace('"ens", "static"]', '"ens", "result"]'), UnknownNameError, "train stage in", "'result'"),
    (TINY.replace('["ens", "static"]', "[1]"), InputError, "expected a list of stages or a table", "got [1]"),
    (TINY.replace('["ens", "static"]', "[]"), InputError, "targets: expected at least one", ""),
    (TINY.replace("single-step", "paper-clip"), UnknownNameError, "unknown suite 'paper-clip'", "single-step, paper"),
    (TINY.replace("images = 100", "epsilon = 0"), QuantityError, "epsilon", "above 0"),
    (TINY.replace('"fgsm"', '"fgms"'), UnknownNameError, "unknown attack 'fgms'", "step-ll"),
    (TINY.replace('"D"', '"E"'), UnknownNameError, "unknown architecture in", "'E'; known: A, B, B*, C, D"),
    (TINY.replace("seed = 3", "static = ['shards']"), UnknownNameError, "train stage in", "train.ens 'shards'"),
    (TINY.replace("[evaluate.result]", "[evaluate.shards]"), InputError, "name of its own, got 'shards' twice", ""),
    (TINY.replace("[train.other]", '[train."../other"]'), InputError, "expected a name of letters", "'../other'"),
    (TINY.replace("[evaluate.result]", "[evaluate.report]"), InputError, "that is not 'recipe' or 'report'", ""),
    (TINY.replace("[evaluate.result]", "[evaluate.recipe]"), InputError, "that is not 'recipe' or 'report'", ""),
    (TINY.replace('name = "tiny"', 'name = ""'), InputError, "name: expected the name of a folder", "got ''"),
    (TINY.replace('name = "tiny"', 'name = ["a"]'), InputError, "name: expected the name of a folder", "got ['a']"),
    ("data = 3", InputError, "expected a table [data], got 3", ""),
    ("train = 3\n[data]\ndata = 'mnist-mini'", InputError, "expected a table [train], got 3", ""),
    ("[data]\ndata = 'mnist-mini'\n[train]\nx = 3", InputError, "expected a table [x], got 3", ""),
    ("[data\n", InputError, "expected TOML", "line 1"),
]


@pytest.mark.parametrize(("text", "kind", "first", "second"), BAD)
def test_bad_recipe_is_refused_in_one_line(tmp_path, text, kind, first, second):
    message = refusal(tmp_path, text, kind)
    assert first in message
    assert second in message


def test_circle_is_refused(tmp_path):
    circle = TINY.replace('models = ["static"]', 'models = ["ens"]')
    message = refusal(tmp_path, circle)
    assert "stages read each other in a circle: ens, shards, result, report" in message


def test_missing_recipe_is_refused(tmp_path):
    with pytest.raises(InputError, match="expected a recipe at"):
        read_recipe(tmp_path / "nothing.toml")


def test_stages_stand_after_those_that_they_read(tmp_path):
    recipe = read_recipe(written(tmp_path, TINY))
    names = [stage.name for stage in recipe.stages]
    assert names == ["static", "other", "shards", "ens", "result", "report"]
    for stage in recipe.stages:
        assert all(names.index(name) < names.index(stage.name) for name in stage.inputs)
    assert [stage.output for stage in recipe.stages] == [
        "models/static.safetensors",
        "models/other.safetensors",
        "shards/shards",
        "models/ens.safetensors",
        "results/result.json",
        "report.html",
    ]


def test_until_selects_a_stage_and_what_it_needs(tmp_path):
    recipe = read_recipe(written(tmp_path, TINY))
    assert [stage.name for stage in selected(recipe, "ens")] == ["static", "shards", "ens"]
    assert [stage.name for stage in selected(recipe, "other")] == ["other"]
    assert selected(recipe, None) == selected(recipe, "report") == recipe.stages
    with pytest.raises(UnknownNameError, match="unknown stage 'nothing'; known: static, other"):
        selected(recipe, "nothing")


def test_defaults_give_way_to_the_stage(tmp_path):
    recipe = read_recipe(written(tmp_path, TINY.replace("seed = 2", 'seed = 2\narchitecture = "C"\nepochs = 4')))
    assert (recipe.stage("other").spec.architecture, recipe.stage("other").spec.epochs) == ("C", 4)
    assert (recipe.stage("static").spec.architecture, recipe.stage("static").spec.epochs) == ("D", 1)


def test_references_from_outside_are_no_stages(tmp_path):
    text = TINY.replace(
        '{ holdout = "other" }',
        '{ a = "x.safetensors", b = "timm:resnet18", c = "python:m:f", d = "dir/y", e = "other" }',
    )
    assert read_recipe(written(tmp_path, text)).stage("result").inputs == ("ens", "static", "other")


def test_name_and_title_are_the_files_unless_given(tmp_path):
    text = TINY.replace('name = "tiny"\n', "").replace('title = "tiny & small"', "")
    recipe = read_recipe(written(tmp_path, text))
    assert recipe.name == "recipe"
    assert recipe.stage("report").options["title"] == "recipe"


# The recipes of the package

PACKAGED = sorted(entry.name for entry in (files("ensadv_data") / "pipelines").iterdir() if entry.name[0] != ".")


PACKAGED_KINDS = {
    "fashion-mnist.toml": {"train", "precompute", "evaluate", "report"},
    "imagenet-models.toml": set(),
    "inception-resnet-v2-ens.toml": {"train", "precompute", "evaluate", "report"},
    "inception-v3-ens3.toml": {"train", "precompute", "evaluate", "report"},
    "inception-v3-ens4.toml": {"train", "precompute", "evaluate", "report"},
    "mnist-adaptive.toml": {"train", "precompute", "evaluate", "report"},
    "mnist-claims.toml": {"train", "precompute", "evaluate", "diagnose"},
    "mnist-draws.toml": {"train", "precompute", "evaluate", "diagnose", "report"},
    "mnist-demo.toml": {"train", "precompute", "evaluate", "report"},
    "mnist-models.toml": {"train", "precompute"},
    "mnist-rounding.toml": {"train", "precompute", "evaluate", "diagnose", "report"},
    "mnist-table6.toml": {"train", "diagnose"},
    "mnist-table7.toml": {"train", "evaluate", "report"},
    "mnist-table8.toml": {"train", "precompute", "evaluate", "report"},
    "mnist-c1.toml": {"train", "evaluate", "report"},
}


@pytest.mark.parametrize("name", PACKAGED)
def test_packaged_recipe_is_read(name):
    path = Path(str(files("ensadv_data") / "pipelines" / name))
    recipe = read_recipe(path)
    shares = "mnist-paper" if name.startswith("mnist-") and name != "mnist-demo.toml" else ""
    shares = "imagenet" if name.startswith(("imagenet-", "inception-")) else shares
    assert recipe.name == (shares or name.removesuffix(".toml"))
    kinds = {stage.kind for stage in recipe.stages}
    assert kinds == PACKAGED_KINDS[name]
    # what attacks are transferred from in the end is no source of any training
    stages = {stage.name: stage for stage in recipe.stages}
    learnt = {
        ref for s in stages.values() if s.kind == "train" for one in s.inputs for ref in (one, *stages[one].inputs)
    }
    read = {ref for s in stages.values() if s.kind == "evaluate" for ref in s.spec.shards}
    held_out = {ref for store in read for ref in stages[store].inputs}
    held_out |= {ref for s in stages.values() for ref in s.options.get("sources", {}).values() if "holdout" in ref}
    assert not held_out & learnt
    if name in ("mnist-demo.toml", "mnist-table8.toml", "mnist-draws.toml", "fashion-mnist.toml"):
        assert len(held_out) >= 3
        assert learnt


TABLE_3 = {  # what is trained, its static models, and the holdouts of all
    "inception-v3-ens3": ("inception_v3", {"inception_v3", "resnetv2_50"}),
    "inception-v3-ens4": ("inception_v3", {"inception_v3", "resnetv2_50", "inception_resnet_v2"}),
    "inception-resnet-v2-ens": ("inception_resnet_v2", {"inception_v3", "inception_resnet_v2"}),
}
HOLDOUTS = {"inception_v4", "resnet50", "resnetv2_101"}


@pytest.mark.parametrize("scale", [None, "tiny"])
@pytest.mark.parametrize("name", TABLE_3)
def test_recipes_of_table_3_have_its_networks(name, scale):
    recipe = read_recipe(packaged_recipe(name), scale=scale)
    stages = {stage.name: stage for stage in recipe.stages}

    def network(reference: str) -> str:
        kept = stages[reference].spec.architecture if reference in stages else reference.partition(",")[0]
        return kept.removeprefix("timm:").partition(".")[0]

    trained, static = TABLE_3[name]
    (precompute,) = (stage for stage in recipe.stages if stage.kind == "precompute")
    (ensemble,) = (stage for stage in recipe.stages if stage.kind == "train" and stage.spec.shards)
    (evaluate,) = (stage for stage in recipe.stages if stage.kind == "evaluate")
    assert network(ensemble.name) == trained
    assert {network(reference) for reference in precompute.spec.models.values()} == static
    sources = dict(evaluate.options["sources"])
    together = sources.pop("together").removeprefix("mean-probabilities:").split("+")
    assert {network(one) for one in sources.values()} == {network(one) for one in together} == HOLDOUTS
    assert evaluate.options["targets"][ensemble.name] == ensemble.name
    assert ensemble.spec.rate == (0.045 if scale is None else 0.001)
    assert (ensemble.spec.batches, ensemble.spec.online.name) == ("replace", "step-ll")


def test_a_scale_is_laid_over_the_recipe_and_single_fields_over_it(tmp_path):
    path = written(tmp_path, TINY + "[scale.more.train.static]\nepochs = 5\n[scale.more.data]\nlimit = 300\n")
    assert read_recipe(path).stage("static").spec.epochs == 1
    recipe = read_recipe(path, scale="more")
    assert (recipe.stage("static").spec.epochs, recipe.data.limit) == (5, 300)
    recipe = read_recipe(path, scale="more", overrides=["train.static.epochs=6"])
    assert recipe.stage("static").spec.epochs == 6
    with pytest.raises(UnknownNameError, match=r"unknown scale in .* 'less'; known: more"):
        read_recipe(path, scale="less")
    with pytest.raises(InputError, match=r"scale: expected tables \[scale.NAME\]"):
        read_recipe(written(tmp_path, TINY + "[scale]\nmore = 1\n"))


def test_recipes_of_the_tables_share_their_models():
    """A stage of one name is the same stage in all that extend the models: each is trained once."""
    folder = Path(str(files("ensadv_data") / "pipelines"))
    every = {stage.name: stage for stage in read_recipe(folder / "mnist-models.toml").stages}
    for name in PACKAGED:
        if name.startswith("mnist-") and read_toml(folder / name).get("extends"):
            for stage in read_recipe(folder / name).stages:
                if stage.kind != "report":
                    assert stage == every.setdefault(stage.name, stage)


EXTENDING = """
extends = "tiny.toml"
[train.static]
epochs = 3
[evaluate.second]
targets = ["static"]
sources = { also = "mean-logits:static+other" }
"""


def test_a_recipe_extends_another_and_takes_what_it_needs(tmp_path):
    (tmp_path / "tiny.toml").write_text(TINY, encoding="utf-8")
    recipe = read_recipe(written(tmp_path, EXTENDING))
    assert recipe.name == "tiny"
    assert [stage.name for stage in recipe.stages] == ["static", "other", "second", "report"]
    spec = recipe.stage("static").spec
    assert isinstance(spec, TrainSpec)
    assert (spec.architecture, spec.epochs, spec.seed) == ("D", 3, 1)
    assert recipe.stage("report").inputs == ("static", "other", "second")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('extends = "recipe.toml"', "extends this one"),
        ("extends = 3", "path of a recipe, got 3"),
        ('extends = "x"', "x"),
    ],
)
def test_what_cannot_be_extended_is_refused(tmp_path, text, words):
    with pytest.raises(InputError, match=words):
        read_recipe(written(tmp_path, text))


DIAGNOSING = """
data = { data = "mnist-mini", limit = 64 }
[defaults.train]
architecture = "D"
epochs = 1
[train.one]
[train.two]
seed = 1
[diagnose.both]
measures = ["rounding", "discrepancy"]
models = ["one", "two"]
static = ["one"]
holdouts = ["two"]
images = 20
"""


def test_a_diagnosis_is_a_stage(tmp_path):
    assert rerun(tmp_path, DIAGNOSING)["both"] == "ran"
    found = json.loads((tmp_path / "out/results/both.json").read_text())
    assert set(found["models"]) == {"one", "two"}
    assert set(found["discrepancy"]) == {"two"}
    assert set(rerun(tmp_path, DIAGNOSING).values()) == {"skipped"}


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('models = ["one", "two"]', "", "models: expected at least one train stage or reference"),
        ('static = ["one"]', "", "discrepancy: expected at least two models, one static source"),
        ('holdouts = ["two"]', 'holdouts = ["three"]', "unknown train stage"),
        ("images = 20", 'epsilon = 0.1\nsingle = "fgsm:epsilon=0.3"', "no epsilon in the attack"),
        ("images = 20", "image = 20", "unknown key"),
    ],
)
def test_a_bad_diagnosis_is_refused_before_anything_runs(tmp_path, old, new, words):
    with pytest.raises(EnsadvError, match=words):
        read_recipe(written(tmp_path, DIAGNOSING.replace(old, new)))


def test_demo_is_packaged_and_recipes_are_found_from_the_root():
    assert "mnist-demo.toml" in PACKAGED
    link = Path(pipeline.__file__).parent.parent / "pipelines"
    if not link.exists():
        pytest.skip("installed without the repository around it")
    assert sorted(path.name for path in link.glob("*.toml")) == PACKAGED


# Skipping


def test_second_run_skips_everything_and_says_so(copied):
    before, lines = results_of(copied / "out"), []
    assert set(rerun(copied, say=lines.append).values()) == {"skipped"}
    assert len(lines) == 6
    assert all(line.endswith("unchanged") for line in lines)
    assert results_of(copied / "out") == before


@pytest.mark.parametrize(
    ("old", "new", "ran"),
    [
        ("images = 100", "images = 90", {"result", "report"}),
        ("tiny & small", "another title", {"report"}),
        ("seed = 3", "seed = 4", {"ens", "result", "report"}),
        ('attacks = ["fgsm"]', 'attacks = ["step-ll"]', {"shards", "ens", "result", "report"}),
        ("limit = 200", "limit = 192", {"static", "other", "shards", "ens", "result", "report"}),
    ],
)
def test_change_reruns_the_stage_and_what_depends_on_it(copied, old, new, ran):
    got = rerun(copied, TINY.replace(old, new))
    assert {name for name, state in got.items() if state == "ran"} == ran
    assert set(rerun(copied, TINY.replace(old, new)).values()) == {"skipped"}


def test_deleted_output_is_made_again_and_nothing_else(copied):
    before = results_of(copied / "out")
    (copied / "out/models/static.safetensors").unlink()
    assert {name for name, state in rerun(copied).items() if state == "ran"} == {"static"}  # it became the same file
    shutil.rmtree(copied / "out/shards/shards")
    assert {name for name, state in rerun(copied).items() if state == "ran"} == {"shards"}
    (copied / "out/results/result.json").unlink()
    assert {name for name, state in rerun(copied).items() if state == "ran"} == {"result"}
    assert results_of(copied / "out") == before


SEEDED = """
[train.many]
seeds = [7, 8]
[evaluate.several]
targets = ["ens", "many"]
sources = ["other"]
suite = "single-step"
images = 100
"""


def test_a_training_with_seeds_is_several_stages_and_its_name_stands_for_them(copied):
    ran = rerun(copied, TINY + SEEDED)
    assert {name for name, state in ran.items() if state == "ran"} == {"many.7", "many.8", "several", "report"}
    result = json.loads((copied / "out/results/several.json").read_text())
    assert list(result["targets"]) == ["ens", "many.7", "many.8"]
    for seed in (7, 8):
        record = load_model(str(copied / f"out/models/many.{seed}.safetensors")).record
        assert record["training"]["seed"] == seed


def test_a_stage_with_the_name_of_a_table_of_seeds_is_refused(tmp_path):
    text = TINY + SEEDED.replace("[evaluate.several]", "[evaluate.many]")
    assert "expected each stage to have a name of its own, got 'many' twice" in refusal(tmp_path, text)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ('suite = "c1"', "attacks targets by themselves only; expected no source, got other; leave sources"),
        ('suite = "nips17"\npictures = 2', "no attack on the target itself to picture; expected pictures = 0, got 2"),
    ],
)
def test_what_a_suite_has_no_use_for_is_refused_before_anything_runs(tmp_path, fields, words):
    text = TINY + SEEDED.replace('suite = "single-step"', fields)
    assert words in refusal(tmp_path, text)


def test_until_takes_the_name_of_several_seeds(tmp_path):
    recipe = read_recipe(written(tmp_path, TINY + SEEDED))
    assert [stage.name for stage in selected(recipe, "many")] == ["many.7", "many.8"]
    assert [stage.name for stage in selected(recipe, "many.8")] == ["many.8"]
    with pytest.raises(UnknownNameError, match=r"known: static, other, .*many\.7, .*, many$"):
        selected(recipe, "any")


def test_a_recipe_that_extends_one_of_seeds_reads_all_of_them(tmp_path):
    written(tmp_path, TINY + SEEDED)
    (tmp_path / "more.toml").write_text('extends = "recipe.toml"\n[diagnose.d]\nmodels = ["many"]\n')
    assert [stage.name for stage in read_recipe(tmp_path / "more.toml").stages] == ["many.7", "many.8", "d", "report"]


@pytest.mark.parametrize("seeds", ["[]", "[7, 7]", "7", "[7]\nseed = 8", '["7"]'])
def test_seeds_that_are_none_are_refused(tmp_path, seeds):
    assert "many" in refusal(tmp_path, TINY + SEEDED.replace("[7, 8]", seeds))


def test_sources_of_an_evaluation_are_read_from_a_store_of_the_test_images(copied):
    tables = '[precompute.holdouts]\nmodels = ["other"]\nattacks = ["fgsm"]\nsplit = "test"\nlabels = "true"\n'
    tables += (
        '[evaluate.again]\ntargets = ["ens", "static"]\nshards = ["holdouts"]\nsuite = "single-step"\nimages = 100\n'
    )
    ran = rerun(copied, TINY + tables)
    assert {name for name, state in ran.items() if state == "ran"} == {"holdouts", "again", "report"}
    assert open_store(copied / "out/shards/holdouts").header.n == 2000  # the recipe's limit is about training images
    results = [json.loads((copied / f"out/results/{name}.json").read_text()) for name in ("result", "again")]
    for target in ("ens", "static"):
        computed, read = (result["targets"][target] for result in results)
        assert read["black_box"] == {"other": computed["black_box"]["holdout"]}
        assert read["white_box"] == computed["white_box"]


def test_static_models_of_a_training_are_stages_that_it_needs(copied):
    text = TINY + '[train.beside]\nstatic = ["static"]\nstatic_attack = "step-ll"\n'
    assert rerun(copied, text) == {
        name: "ran" if name in ("beside", "report") else "skipped" for name in (*NAMES, "beside")
    }
    made = load_model(str(copied / "out/models/beside.safetensors"))
    static = load_model(str(copied / "out/models/static.safetensors"))
    assert made.record["training"]["static"] == {"static": static.digest}
    later = rerun(copied, text.replace("seed = 1", "seed = 11"))
    assert [name for name, state in later.items() if state == "skipped"] == ["other"]


def test_results_edited_by_hand_are_made_again(copied):
    before = results_of(copied / "out")
    (copied / "out/results/result.json").write_text("{}")
    assert {name for name, state in rerun(copied).items() if state == "ran"} == {"result"}
    assert results_of(copied / "out") == before


def test_model_put_there_by_hand_is_not_overwritten(copied):
    path = copied / "out/models/static.safetensors"
    module = build_model("D", shape=(1, 28, 28), classes=10, seed=77)
    save_model(path, module, architecture="D", shape=(1, 28, 28), classes=10, record={})
    content = path.read_bytes()
    with pytest.raises(OutputError, match="is not the model of this run; it was not touched"):
        rerun(copied)
    assert path.read_bytes() == content


def test_damaged_state_counts_as_none(copied):
    before = results_of(copied / "out")
    (copied / "out/state/result.json").write_text("[1]")
    (copied / "out/state/static.json").write_text("{")
    assert {name for name, state in rerun(copied).items() if state == "ran"} == {"result", "static"}
    assert results_of(copied / "out") == before


def test_weights_from_outside_count_as_an_input(copied):
    outside = copied / "outside.safetensors"
    shutil.copy(copied / "out/models/other.safetensors", outside)
    text = TINY.replace('holdout = "other"', f'holdout = "{outside}"')
    assert rerun(copied, text, until="result")["result"] == "ran"
    assert rerun(copied, text, until="result")["result"] == "skipped"
    shutil.copy(copied / "out/models/ens.safetensors", outside)
    assert rerun(copied, text, until="result")["result"] == "ran"


# The output folder


def test_foreign_folder_is_not_touched(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.tex").write_text("mine")
    with pytest.raises(OutputError, match="holds something else than a recipe's outputs; it was not touched"):
        rerun(tmp_path)
    assert [path.name for path in out.iterdir()] == ["thesis.tex"]


def test_folder_of_another_recipe_is_refused(copied):
    with pytest.raises(OutputError, match="outputs of another recipe; choose another --out"):
        rerun(copied, TINY.replace('name = "tiny"', 'name = "huge"'))


def test_file_in_the_way_is_refused(tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(OutputError, match="expected a folder at"):
        rerun(tmp_path)


def test_empty_folder_is_welcome(tmp_path):
    (tmp_path / "out").mkdir()
    assert rerun(tmp_path, until="other") == {"other": "ran"}


def test_device_that_is_not_there_is_refused_before_anything_runs(tmp_path):
    with pytest.raises(InputError, match="device: expected cpu, or cuda where there is one, got 'moon'"):
        rerun(tmp_path, TINY.replace("seed = 2", 'seed = 2\ndevice = "moon"'))
    assert not (tmp_path / "out").exists()


def test_what_was_made_on_another_device_stays(copied):
    """A laptop goes on from what a GPU has made; only what is still to run needs the device that it names."""
    before = results_of(copied / "out")
    moon = '\ndevice = "moon"'
    elsewhere = TINY.replace("epochs = 1", f"epochs = 1{moon}").replace('["fgsm"]', f'["fgsm"]{moon}')
    assert set(rerun(copied, elsewhere).values()) == {"skipped"}
    again = rerun(copied, elsewhere.replace("images = 100", "images = 90"))
    assert {name for name, state in again.items() if state == "ran"} == {"result", "report"}
    assert results_of(copied / "out") != before
    with pytest.raises(InputError, match="got 'moon'"):
        rerun(copied, elsewhere.replace("seed = 3", "seed = 4"))


def test_what_a_version_that_counted_the_device_has_made_stays(copied):
    moved = read_recipe(written(copied, TINY.replace("seed = 1", 'seed = 1\ndevice = "moon"')))
    outputs = Outputs(moved, copied / "out")
    path = copied / "out/state/static.json"
    state = json.loads(path.read_text()) | {"digest": outputs.digest(moved.stage("static"), with_device=True)}
    path.write_text(json.dumps(state), encoding="utf-8")
    assert set(rerun(copied, TINY.replace("seed = 1", 'seed = 1\ndevice = "moon"')).values()) == {"skipped"}


def test_a_stage_that_another_device_has_begun_starts_anew(tmp_path):
    """A checkpoint and an unfinished store are of one device to their end."""
    rerun(tmp_path, until="other")
    state, weights = tmp_path / "out/state/static.json", tmp_path / "out/models/static.checkpoint"
    elsewhere = read_recipe(written(tmp_path, TINY.replace("seed = 1", 'seed = 1\ndevice = "moon"')))
    begun = Outputs(elsewhere, tmp_path / "out")
    digest = begun.digest(begun.recipe.stage("static"), with_device=True)
    state.write_text(json.dumps({"started": digest}), encoding="utf-8")
    weights.write_bytes(b"of the moon")
    assert rerun(tmp_path, until="static") == {"static": "ran"}
    assert not weights.exists()


@pytest.mark.parametrize("has", [False, True])
def test_stages_that_train_in_float32_in_spite_of_amp_are_named_before_they_run(copied, monkeypatch, has):
    monkeypatch.setattr(arithmetic, "has_bfloat16", lambda device: has)
    changed = TINY.replace("seed = 3", "seed = 3\namp = true")
    first: list[str] = []
    again: list[str] = []
    rerun(copied, changed, say=first.append)
    rerun(copied, changed, say=again.append)
    note = f"note: {arithmetic.IMITATED}; in float32 in spite of amp = true: ens"
    assert [line for line in first + again if line.startswith("note")] == ([] if has else [note])
    assert has or first[0] == note
    recorded = read_metadata(copied / "out/models/ens.safetensors")["record"]["training"]["amp"]
    assert recorded == has
    elsewhere = changed.replace("amp = true", 'amp = true\ndevice = "moon"')  # what is finished is not asked about
    assert set(rerun(copied, elsewhere).values()) == {"skipped"}


# Processes


def test_two_jobs_give_the_bytes_of_one(finished, tmp_path):
    lines: list[str] = []
    runs = run_recipe(read_recipe(written(tmp_path, TINY)), tmp_path / "out", jobs=2, say=lines.append)
    assert sorted(run.stage.name for run in runs) == sorted(("static", "other", "shards", "ens", "result", "report"))
    assert len(lines) == 6
    assert results_of(tmp_path / "out") == results_of(finished / "out")
    assert (tmp_path / "out/report.html").is_file()


FAILING = """
from torch import nn

class Broken(nn.Module):
    def forward(self, x):
        return x.flatten(1)[:, :10] * float("nan")
"""


@pytest.mark.parametrize("jobs", [1, 2])
def test_failing_stage_keeps_what_is_finished(tmp_path, monkeypatch, jobs):
    (tmp_path / "broken_models.py").write_text(FAILING)
    monkeypatch.syspath_prepend(tmp_path)
    text = """
name = "failing"
data = { data = "mnist-mini", limit = 200 }
[train.good]
architecture = "D"
epochs = 1
[evaluate.bad]
targets = { good = "good", broken = "python:broken_models:Broken" }
images = 20
[report]
"""
    recipe = read_recipe(written(tmp_path, text))
    with pytest.raises(ModelError, match="broken: expected finite logits") as caught:
        run_recipe(recipe, tmp_path / "out", jobs=jobs)
    assert caught.value.exit_code == 3
    assert json.loads((tmp_path / "out/state/good.json").read_bytes())["output"]
    assert load_model(str(tmp_path / "out/models/good.safetensors")).record["training"]["epochs"] == 1
    assert not (tmp_path / "out/results").exists()
    assert not (tmp_path / "out/report.html").exists()


COUNTING = """
import torch

class Counting(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.last = torch.nn.Linear(784, 10)

    def forward(self, x):
        with open(__file__ + ".threads", "a") as file:
            file.write(f"{torch.get_num_threads()}\\n")
        return self.last(x.flatten(1))
"""


@pytest.mark.parametrize(("jobs", "threads"), [(1, 4), (2, 2), (3, 1), (8, 1)])
def test_stages_that_evaluate_share_the_cores(tmp_path, monkeypatch, jobs, threads):
    """Threads of two stages that compete for one core take several times as long."""
    (tmp_path / "counting_models.py").write_text(COUNTING)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "counting_models", raising=False)
    monkeypatch.setattr(pipeline, "available_cores", lambda: 4)
    text = """
data = { data = "mnist-mini" }
[evaluate.e]
targets = { x = "python:counting_models:Counting" }
images = 20
[diagnose.d]
measures = ["masking"]
models = { x = "python:counting_models:Counting" }
images = 20
"""
    recipe, threads_now = (
        read_recipe(written(tmp_path, text)),
        [4],
    )  # told, and not taken: four on two cores take minutes
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads_now[-1])
    monkeypatch.setattr(torch, "set_num_threads", threads_now.append)
    plan = pipeline._Plan(recipe, tmp_path / "out", jobs)
    for stage in recipe.stages:
        pipeline._run_stage(plan, stage)
        told = tmp_path / "counting_models.py.threads"
        assert set(told.read_text().split()) == {str(threads)}
        told.unlink()
        assert threads_now[-1] == 4
    threads_now.append(1)
    assert plan.threads == 1, "no more than PyTorch was told"


DYING = """
import os, signal

def die():
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_stage_whose_process_dies_is_reported(tmp_path, monkeypatch):
    (tmp_path / "dying_models.py").write_text(DYING)
    monkeypatch.syspath_prepend(tmp_path)
    text = 'data = { data = "mnist-mini" }\n[evaluate.e]\ntargets = { x = "python:dying_models:die" }\n'
    with pytest.raises(EnsadvError, match="a stage's process died") as caught:
        run_recipe(read_recipe(written(tmp_path, text)), tmp_path / "out", jobs=2)
    assert caught.value.exit_code == 1


KILLED = """
name = "killed"
data = { data = "mnist-mini", limit = 320 }
[train.static]
architecture = "D"
epochs = 1
[train.long]
architecture = "D"
epochs = 40
[precompute.shards]
models = ["static"]
attacks = ["pgd:steps=80"]
"""


def test_killed_run_leaves_no_process_and_is_resumed(tmp_path):
    path, out = written(tmp_path, KILLED), tmp_path / "out"
    run = started("run", path, "--out", out, "--jobs", "2")
    try:
        wait_until(lambda: any(out.glob("shards/shards/progress/block-*.json")), run)
        children = psutil.Process(run.pid).children(recursive=True)
        assert len(children) >= 3, "a process a stage, and the store's workers"
    finally:
        run.send_signal(signal.SIGKILL)
        run.communicate()
    deadline = time.monotonic() + 5
    while alive := [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]:
        assert time.monotonic() < deadline, alive
        time.sleep(0.1)
    assert not (out / "shards/shards/manifest.json").exists()
    got = rerun(tmp_path, KILLED)
    assert got["static"] == "skipped"
    assert got["shards"] == "ran"
    assert (out / "shards/shards/manifest.json").is_file()
    assert set(rerun(tmp_path, KILLED).values()) == {"skipped"}


# Evaluation by reference


def test_evaluate_loads_a_model_once_and_names_it_as_asked(finished, monkeypatch):
    loaded: list[str] = []

    def counted(reference, **options):
        loaded.append(reference)
        return load_model(reference, **options)

    monkeypatch.setattr("ensadv_data.models.reference.load_model", counted)
    one, two = (str(finished / f"out/models/{name}.safetensors") for name in ("static", "other"))
    spec = EvaluateSpec(suite="single-step", images=50)
    got = evaluate(spec, DataSpec(data="mnist-mini"), targets={"x": one}, sources={"itself": one, "y": two})
    assert loaded == [one, two]
    assert got.n == 50
    assert list(got.targets[0].black_box) == ["y"]
    assert set(got.sources) == {"itself", "y"}


# Overrides


def test_an_override_replaces_what_the_recipe_says(tmp_path):
    path = written(tmp_path, TINY)
    plain = read_recipe(path)
    stage = next(stage for stage in plain.stages if stage.kind == "train")
    changed = read_recipe(path, overrides=[f"train.{stage.name}.epochs=9", f"train.{stage.name}.online = 'fgsm'"])
    spec = changed.stage(stage.name).spec
    assert isinstance(spec, TrainSpec)
    assert (spec.epochs, spec.online and spec.online.name) == (9, "fgsm")
    assert [s for s in changed.stages if s.name != stage.name] == [s for s in plain.stages if s.name != stage.name]


@pytest.mark.parametrize("text", ["epochs=9", "train.a.epochs", "train.a.epochs=nine", "train..=1\n[x]", "name.x=1"])
def test_an_override_that_is_none_is_refused(tmp_path, text):
    with pytest.raises(InputError) as caught:
        read_recipe(written(tmp_path, TINY), overrides=[text])
    assert "\n" not in str(caught.value)


def test_a_stage_that_was_stopped_and_then_changed_starts_anew(tmp_path):
    """Its checkpoint and its unfinished store are of another plan: nobody should have to find and delete them."""
    out = tmp_path / "out"
    state = out / "state"
    state.mkdir(parents=True)
    (state / "recipe.json").write_text('{"recipe": "tiny"}\n', encoding="utf-8")
    for name in ("static", "shards"):
        (state / f"{name}.json").write_text('{"started": "another plan"}', encoding="utf-8")
    (out / "models").mkdir()
    (out / "models" / "static.checkpoint").write_bytes(b"of another plan")
    (out / "shards" / "shards").mkdir(parents=True)
    (out / "shards" / "shards" / "zarr.json").write_text("{}", encoding="utf-8")
    runs = run_recipe(read_recipe(written(tmp_path, TINY)), out, jobs=1, until="shards")
    assert [(run.stage.name, run.skipped) for run in runs] == [("static", False), ("shards", False)]


def test_a_stage_that_cannot_be_on_a_device_is_refused(tmp_path):
    text = TINY.replace('attacks = ["fgsm"]', 'attacks = ["fgsm"]\nprecision = "tf32"\ndevice = "cuda"')
    with pytest.raises(InputError, match="precision: expected float32 or bfloat16 on a CPU"):
        on_device(read_recipe(written(tmp_path, text)), "cpu")


def test_all_stages_go_to_a_device(tmp_path):
    recipe = read_recipe(written(tmp_path, TINY))
    assert on_device(recipe, None) is recipe
    moved = on_device(recipe, "moon")
    assert {stage.spec.device for stage in moved.stages if stage.spec} == {"moon"}
    assert [stage.inputs for stage in moved.stages] == [stage.inputs for stage in recipe.stages]
    with pytest.raises(InputError, match="got 'moon'"):
        run_recipe(moved, tmp_path / "out")
