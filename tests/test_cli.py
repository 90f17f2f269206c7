"""The command line: exit codes, messages of one line, and what a signal leaves behind."""

from __future__ import annotations

import errno
import hashlib
import http.server
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from ensadv_data.__main__ import main
from ensadv_data.commands import chains, making
from ensadv_data.data import ArrayDataset, open_dataset, opening
from ensadv_data.errors import InputError
from ensadv_data.models import build_model, read_metadata, save_model
from ensadv_data.precompute import precompute_store
from ensadv_data.spec import DataSpec, PrecomputeSpec
from laws import started, wait_until

LIMIT = ("--limit", "100")


def digest(seed: int, path: Path) -> str:
    module = build_model("D", shape=(1, 28, 28), classes=10, seed=seed)
    return save_model(path, module, architecture="D", shape=(1, 28, 28), classes=10, record={"seed": seed})


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Two models, and a store of one of them."""
    folder = tmp_path_factory.mktemp("cli")
    for seed, name in enumerate("ab"):
        digest(seed, folder / f"{name}.safetensors")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ENSADV_QUIET", "1")
        patch.setattr(sys, "path", sys.path[:])
        model = f"a={folder / 'a.safetensors'}"
        words = ["precompute", "--model", model, "--attack", "r-fgsm:alpha=0.1", *LIMIT, "--workers", "0"]
        main([*words, "--out", str(folder / "store")])
    return folder


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    monkeypatch.setenv("ENSADV_QUIET", "1")
    monkeypatch.setattr(sys, "path", sys.path[:])  # main appends the folder one stands in


class Ended:
    """What a command line said, and how it ended."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


@pytest.fixture
def command(capsys):
    """Run a command line in this process."""

    def run(*words: str | Path) -> Ended:
        code: object = 0
        try:
            main([str(word) for word in words])
        except SystemExit as stop:
            code = stop.code
        assert isinstance(code, int)
        return Ended(code, *capsys.readouterr())

    return run


@pytest.fixture
def refused(command):
    """Run a command line that must end with an exit code and one line on the error stream."""

    def run(code: int, *words: str | Path) -> str:
        ended = command(*words)
        assert ended.code == code, ended.err
        assert ended.out == ""
        assert "Traceback" not in ended.err
        assert ended.err.startswith("error: ")
        assert ended.err.count("\n") == 1
        assert ended.err.endswith("\n")
        return ended.err

    return run


# 0: what works


def test_train_says_what_it_made_and_leaves_it_alone_the_second_time(command, tmp_path):
    out = tmp_path / "new" / "d.safetensors"
    words = ("train", "--architecture", "D", "--epochs", "1", *LIMIT, "--out", out)
    first, second = command(*words), command(*words)
    assert (first.code, second.code) == (0, 0)
    weights = read_metadata(out)["digest"][:16]
    assert first.out.startswith(f"{out}: 1 steps, ")
    assert first.out.endswith(f"weights {weights}\n")
    assert second.out == f"{out}: was finished before and was left alone; weights {weights}\n"


def test_ensemble_training_reads_a_store(command, made, tmp_path):
    out = tmp_path / "ens.safetensors"
    words = ("train", "--architecture", "D", "--epochs", "2", *LIMIT, "--online", "step-ll", "--threads", "1")
    ended = command(*words, "--shards", made / "store", "--epsilon", "76/255", "--out", out)
    assert ended.code == 0, ended.err
    how = read_metadata(out)["record"]["training"]
    assert how["epsilon"]["epsilon"] == 76 / 255
    assert how["shards"][0]["sources"] == ["a"]


def test_precompute_leaves_a_finished_store_alone_and_notes_equal_draws(command, made, tmp_path):
    model = f"a={made / 'a.safetensors'}"
    words = ("precompute", "--model", model, *LIMIT, "--workers", "0", "--attack")
    again = command(*words, "r-fgsm:alpha=0.1", "--out", made / "store")
    assert again.code == 0
    assert "was finished before and was left alone; store " in again.out
    new = command(*words, "fgsm", "--draws", "2", "--out", tmp_path / "store")
    assert "15 of 15 blocks computed" in new.out
    assert new.err.startswith("note: a/fgsm: all 2 draws are equal")


def test_evaluate_prints_a_table_and_writes_json(command, made, tmp_path):
    out = tmp_path / "result.json"
    models = ("--target", f"t={made / 'a.safetensors'}", "--source", made / "b.safetensors")
    ended = command("evaluate", *models, *LIMIT, "--suite", "single-step", "--epsilon", "16/255", "--out", out)
    assert ended.code == 0, ended.err
    assert "mnist-mini/test, 100 images, epsilon 0.0627" in ended.out
    assert "FGSM from b" in ended.out
    assert ended.err == ""
    result = json.loads(out.read_bytes())
    assert result["epsilon"] == 16 / 255
    assert list(result["sources"]) == ["b"]
    assert f"{100 * result['targets']['t']['clean']['error']:.1f} [" in ended.out
    again = command("evaluate", *models, *LIMIT, "--suite", "single-step", "--epsilon", "16/255")
    assert again.out == ended.out
    table = tmp_path / "table.csv"
    more = command(
        "evaluate", *models, *LIMIT, "--suite", "single-step", "--epsilon", "16/255", "--matrix", "--csv", table
    )
    assert more.out.startswith(ended.out)
    assert "* the strongest of a target" in more.out
    lines = table.read_text().splitlines()
    assert lines[0] == "source,attack,t"
    assert lines[1] == f",clean,{1 - result['targets']['t']['clean']['error']:.4f}"
    assert lines[2].startswith("white-box,fgsm,")


def test_evaluate_says_what_a_reader_should_know(command, made):
    models = ("--target", f"t={made / 'a.safetensors'}", "--source", f"same={made / 'a.safetensors'}")
    ended = command("evaluate", *models, "--limit", "20", "--suite", "table1")
    assert ended.err == (
        "note: source same has the weights of target t: its attacks there are white-box\n"
        "note: 20 images are few: 10 misclassified would be an error of 50% with the 95% interval [30%, 70%]\n"
    )
    assert "white-box Step-LL" in ended.out


def test_a_model_without_a_gradient_is_measured_by_those_that_have_one(command, made, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "stepped_models.py").write_text(GIVEN)
    (tmp_path / "stepped.toml").write_text('black_box = ["fgsm"]')
    words = ("evaluate", "--target", "python:stepped_models:stepped", *LIMIT, "--suite", "stepped.toml")
    ended = command(*words, "--source", f"s={made / 'a.safetensors'}")
    assert ended.code == 0, ended.err
    assert "FGSM from s" in ended.out


def test_an_ensemble_without_a_name_is_called_after_its_members(command, made):
    both = "+".join(str(made / f"{name}.safetensors") for name in "ab")
    words = ("--limit", "20", "--suite", "single-step")
    ended = command("evaluate", "--target", made / "a.safetensors", "--source", f"mean-logits:{both}", *words)
    assert "source mean-logits:a+b shares weights with target a" in ended.err


def test_a_stopped_measurement_says_that_it_starts_again(refused, made, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("ensadv_data.commands.measuring.evaluate_models", stop)
    told = refused(130, "evaluate", "--target", made / "a.safetensors", *LIMIT)
    assert told == "error: stopped; the same command starts from the beginning\n"


def test_diagnose_prints_tables_and_writes_json(command, made, tmp_path):
    out = tmp_path / "found.json"
    words = ("diagnose", "--model", f"m={made / 'a.safetensors'}", "--limit", "20", "--points", "2", "--example", "1")
    words = (*words, "--resolution", "3", "--iterative", "i-fgsm:steps=2", "--epsilon", "16/255")
    ended = command(*words, "--out", out)
    assert ended.code == 0, ended.err
    assert ended.err == ""
    found = json.loads(out.read_bytes())
    assert set(found["models"]["m"]) == {"digest", "architecture", "masking", "rounding", "cone", "surface"}
    assert found["epsilon"] == 16 / 255
    assert found["models"]["m"]["masking"]["iterative"] == "i-fgsm:steps=2"
    for title in ("gradient masking; mnist-mini/test, 20 images", "lost to float32", "cone of m"):
        assert title in ended.out
    only = command(*words, "--measure", "rounding")
    assert "gradient masking" not in only.out


def test_inspect_shows_a_store(command, made):
    ended = command("inspect", made / "store")
    assert ended.code == 0
    summary = json.loads(command("inspect", made / "store", "--json").out)
    for word in (
        summary["digest"],
        summary["data_digest"],
        "mnist-mini/train: 100 images 1×28×28",
        "r-fgsm",
        "rsign",
        "any epsilon above alpha = 0.1",
        f"{summary['entries'][0]['bits_per_value']:.4f}",
        summary["entries"][0]["source_digest"][:16],
        "4 draws",  # unless given
        "eval",
    ):
        assert word in ended.out
    assert summary["entries"][0]["source_digest"] == read_metadata(made / "a.safetensors")["digest"]


def test_bench_prints_tables_and_writes_json(command, refused, tmp_path):
    done = command("bench", "--limit", "64", "--batch-size", "8", "--rounds", "7", "--out", tmp_path / "bench.json")
    assert done.code == 0
    for words in ("a training step of architecture D", "static / store", "memory map", "bare / precompute"):
        assert words in done.out
    assert json.loads((tmp_path / "bench.json").read_text(encoding="utf-8"))["batch_size"] == 8
    assert "unknown architecture 'Q'" in refused(3, "bench", "--architecture", "Q")
    few = refused(3, "bench", "--limit", "64", "--batch-size", "40")
    assert "batch_size: expected at most the 64 training images" in few


def test_inspect_compares_two_stores(command, refused, made, tmp_path):
    words = ("precompute", "--model", f"a={made / 'a.safetensors'}", "--limit", "100", "--workers", "0")
    assert command(*words, "--attack", "fgsm", "--loss", "ce", "--out", tmp_path / "ce").code == 0
    assert command(*words, "--attack", "fgsm", "--out", tmp_path / "margin").code == 0
    compared = ("inspect", tmp_path / "margin", "--against", tmp_path / "ce")
    (row,) = json.loads(command(*compared, "--json").out)
    assert row["key"] == "a/fgsm"
    assert 0 <= row["opposite"] < 0.5
    shown = command(*compared)
    assert f"{100 * row['opposite']:.4g}%" in shown.out
    assert "expected a store at" in refused(3, "inspect", tmp_path / "margin", "--against", tmp_path / "nowhere")


def test_inspect_shows_a_model(command, made):
    for words in ((), ("--json",)):
        about = json.loads(command("inspect", made / "a.safetensors", *words).out)
        assert about == read_metadata(made / "a.safetensors")


def test_report_is_written(command, made, tmp_path):
    result, out = tmp_path / "result.json", tmp_path / "report.html"
    target = ("--target", f"t={made / 'a.safetensors'}", "--source", made / "b.safetensors")
    words = ("--suite", "single-step", "--epsilon", "0.1")
    assert command("evaluate", *target, *LIMIT, *words, "--out", result).code == 0
    training = ("train", "--architecture", "D", "--epochs", "1", *LIMIT)
    assert command(*training, "--out", tmp_path / "d.safetensors").code == 0
    inputs = ("--result", result, "--log", tmp_path / "d.jsonl", "--store", made / "store", *LIMIT)
    ended = command("report", *inputs, "--title", "A <title>", "--out", out)
    assert (ended.code, ended.out) == (0, f"report: {out}\n")
    page = out.read_text(encoding="utf-8")
    assert "A &lt;title&gt;" in page
    assert "pixels in [0, 1])</dt><dd>0.1</dd>" in page
    assert "http://" not in page.replace("http://www.w3.org", "")


def test_fetch_of_the_embedded_images_needs_nothing(command):
    ended = command("fetch", "mnist-mini")
    assert ended.code == 0
    assert ended.out.startswith("mnist-mini: checked, in ")


def test_dry_run_prints_the_stages(command, tmp_path):
    ended = command("run", "mnist-table8", "--dry-run", "--until", "table8-D", "--out", tmp_path / "out")
    assert ended.code == 0
    lines = [line.split() for line in ended.out.splitlines()]
    assert lines[-1][:3] == ["evaluate", "table8-D", "results/table8-D.json"]
    assert ["train", "static-D", "models/static-D.safetensors", "needs:", "–"] in lines
    assert not (tmp_path / "out").exists()


RECIPE = """
data = { data = "mnist-mini", limit = 100 }
[train.one]
architecture = "D"
epochs = 1
[evaluate.result]
targets = ["one"]
suite = "single-step"
images = 50
[report]
"""


PLANNED = """
data = { data = "mnist-mini", limit = 64 }
[train.one]
architecture = "D"
epochs = 1
[precompute.shards]
models = ["one"]
attacks = ["fgsm"]
[train.two]
architecture = "D"
shards = ["shards"]
"""


def test_run_prints_stages_table_and_report(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mine.toml").write_text(RECIPE)
    ended = command("run", "mine.toml", "--jobs", "1")
    assert ended.code == 0, ended.err
    assert "mnist-mini/test, 50 images" in ended.out
    assert "note: no source, so nothing was transferred" in ended.err
    assert "note: 50 images are few: 25 misclassified would be an error of 50%" in ended.err
    assert ended.out.endswith("report: mine/report.html\n")
    again = command("run", "mine.toml", "--jobs", "1", "--data-dir", tmp_path)
    assert again.out.count("unchanged") == 3


def test_plan_prints_tables_and_writes_only_the_json_that_was_asked_for(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("ensadv_data.trials._SECONDS", 0.0)
    Path("mine.toml").write_text(PLANNED)
    ended = command("plan", "mine.toml", "--workers", "50", "--price", "0.5")
    assert ended.code == 0, ended.err
    assert ended.out.startswith("plan of mine: requests as of a store in a bucket")
    assert "after how many epochs a store has taken less than gradients computed at each step" in ended.out
    assert "trainings from a store in a bucket" in ended.out
    assert "note: shards: 16 blocks, so no more workers than that have work" in ended.err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.toml"]
    bare = command("plan", "mine.toml", "--no-calibrate", "--until", "shards", "--json", "plan.json")
    assert bare.code == 0, bare.err
    assert "epochs" not in bare.out
    assert [stage["name"] for stage in json.loads(Path("plan.json").read_text())["stages"]] == ["one", "shards"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.toml", "plan.json"]


def test_plan_refuses_what_run_refuses(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mine.toml").write_text(PLANNED)
    for words in (
        ("absent",),
        ("mine.toml", "--until", "absent"),
        ("mine.toml", "--set", "train.one.epochs=0"),
        ("mine.toml", "--set", "data.data='absent'"),
        ("mine.toml", "--set", "data.limit=99999"),
    ):
        planned, run = command("plan", *words), command("run", *words)
        assert (planned.code, planned.err) == (run.code, run.err)
        assert planned.code == 3
    assert "device: expected cpu, or cuda" in command("plan", "mine.toml", "--device", "nowhere").err


def test_demo_runs_the_packaged_recipe(command, tmp_path, monkeypatch):
    seen = {}

    def watched(recipe, out, **options):
        seen.update(options, recipe=recipe, out=out)
        return []

    monkeypatch.setattr(chains, "run_recipe", watched)
    assert command("demo", "--out", tmp_path / "d", "--jobs", "3").code == 0
    assert (seen["recipe"].name, seen["out"], seen["until"], seen["jobs"]) == ("mnist-demo", tmp_path / "d", None, 3)


# 2: usage


@pytest.mark.parametrize(
    "words",
    [
        ("train", "--bogus"),
        ("train", "--out", "x"),
        ("train", "--architecture", "D", "--out", "x", "--epochs", "many"),
        ("bogus",),
        ("run", "mnist-demo", "--jobs", "0"),
        ("inspect",),
        (),
    ],
)
def test_usage(command, words):
    ended = command(*words)
    assert ended.code == 2
    assert ended.out == ""
    assert "Usage: " in ended.err
    assert "Traceback" not in ended.err


def test_help_and_version_end_well(command):
    assert command("--help").code == command("train", "-h").code == command("--version").code == 0


# 3: bad input

TRAIN = ("train", "--architecture", "D", *LIMIT, "--out", "never.safetensors")
PRECOMPUTE = ("precompute", *LIMIT, "--workers", "0", "--out", "never", "--attack")
EVALUATE = ("evaluate", *LIMIT, "--target", "a.safetensors")
DIAGNOSE = ("diagnose", *LIMIT, "--model", "a.safetensors")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ((*PRECOMPUTE, "fgms", "--model", "a=a.safetensors"), "unknown attack 'fgms'; known: fgsm, step-ll, r-fgsm"),
        ((*TRAIN, "--online", "fgms"), "unknown attack 'fgms'; known: fgsm"),
        ((*TRAIN, "--online", "r-fgsm:beta=1"), "known: alpha, epsilon, loss, step_size, steps"),
        (
            ("train", "--architecture", "E", *LIMIT, "--out", "x.safetensors"),
            "unknown architecture 'E'; known: A, B, B*, C, D",
        ),
        (
            (*TRAIN, "--data", "minst"),
            "unknown data set 'minst'; known: mnist-mini, mnist, fashion-mnist, folder:PATH, wds:PATH, wds:URL, ",
        ),
        ((*EVALUATE, "--suite", "papers"), "unknown suite 'papers'; known: single-step, paper"),
        (
            (*EVALUATE, "--suite", "mine.toml"),
            "expected a suite at mine.toml, found no file; write one, or name one of",
        ),
        (("run", "mnist-dmeo"), "unknown recipe 'mnist-dmeo'; known: fashion-mnist, imagenet-models, inception-"),
        (("run", "mnist-demo", "--until", "repot", "--out", "never"), "unknown stage 'repot'; known: static-B"),
        (("run", "here.toml"), "expected a recipe at here.toml, found no file"),
        (("fetch", "cifar"), "unknown data set 'cifar'; known: "),
        (("evaluate", *LIMIT, "--target", "missing.safetensors"), "expected a model at missing.safetensors"),
        (("evaluate", *LIMIT, "--target", "python:nowhere:factory"), "is the module on the Python path?"),
        (("evaluate", *LIMIT, "--target", "python:nowhere"), "expected python:MODULE:FACTORY"),
        ((*EVALUATE, "--epsilon", "1.5"), "epsilon: expected an L∞ radius in [0, 1] (pixels are in [0, 1]), got 1.5"),
        ((*EVALUATE, "--epsilon", "-0.1"), "epsilon: expected an L∞ radius in [0, 1]"),
        ((*EVALUATE, "--epsilon", "abc"), "expected a number or a fraction such as 0.3 or 16/255, got 'abc'"),
        ((*EVALUATE, "--epsilon", "nan"), "expected a number or a fraction such as 0.3 or 16/255, got 'nan'"),
        ((*EVALUATE, "--epsilon", "1/0"), "got '1/0'"),
        ((*EVALUATE, "--epsilon", "0"), "epsilon: expected an L∞ radius above 0, got 0, which perturbs nothing"),
        ((*DIAGNOSE, "--epsilon", "0"), "epsilon: expected an L∞ radius above 0, got 0, which perturbs nothing"),
        ((*TRAIN, "--epsilon", "2"), "epsilon: expected an L∞ radius"),
        ((*TRAIN, "--epsilon", "normal:1"), "expected normal:SIGMA,MAX"),
        ((*TRAIN, "--online", "r-fgsm:alpha=0.4"), "alpha: expected a random step smaller than epsilon = 0.3, got 0.4"),
        ((*PRECOMPUTE, "r-fgsm:alpha=0.3", "--model", "a=a.safetensors"), "smaller than epsilon = 0.3, got 0.3"),
        ((*PRECOMPUTE, "fgsm", "--model", "a/b=a.safetensors"), "expected a name of letters"),
        ((*PRECOMPUTE, "fgsm", "--model", "a=a.safetensors", "--model", "a=b.safetensors"), "'a' twice; use NAME=REF"),
        ((*PRECOMPUTE, "fgsm", "--model", "a=a.safetensors", "--draws", "0"), "precompute: draws: "),
        ((*TRAIN, "--epochs", "0"), "train: epochs: input should be greater than or equal to 1, got 0"),
        ((*TRAIN, "--learning-rate", "nan"), "train: learning_rate: "),
        ((*TRAIN, "--batch-size", "101"), "batch_size: expected at most the 100 training images, got 101"),
        ((*TRAIN, "--device", "moon"), "device: expected cpu, or cuda where there is one, got 'moon'"),
        (("train", "--architecture", "D", "--limit", "10001", "--out", "x"), "limit"),
        ((*TRAIN, "--shards", "nowhere"), "nowhere"),
        (("inspect", "nowhere"), "expected a store or a .safetensors file at nowhere, found nothing"),
        (("inspect", "a.safetensors.d"), "expected a store at a.safetensors.d, found none"),
        (
            (*DIAGNOSE, "--measure", "cones"),
            "diagnose: measures: input should be 'masking', 'rounding', 'cone', 'surface', 'flips' or 'discrepancy'",
        ),
        ((*DIAGNOSE, "--single", "fgsm:epsilon=0.1"), "single: expected no epsilon in the attack, got 0.1"),
        ((*DIAGNOSE, "--example", "5000"), "example: expected an index in 0 … 1999, got 5000"),
        ((*DIAGNOSE, "--resolution", "4"), "resolution: expected an odd number"),
        ((*DIAGNOSE, "--measure", "discrepancy"), "expected at least two models, one static source and one holdout"),
        ((*DIAGNOSE, "--other", "x=b/a.safetensors", "--other", "y=b/a.safetensors"), "got x, y"),
        (("report", "--result", "nowhere.json", "--out", "never.html"), "nowhere.json"),
        ((*EVALUATE, "--target", "b/a.safetensors"), "expected a name of its own for each model, got 'a' twice"),
        ((*EVALUATE, "--target", "python:given_models:one_column"), "expected logits of shape (2, K)"),
        ((*EVALUATE, "--target", "python:given_models:three_classes"), "expected 10 logits an image, got 3"),
        ((*EVALUATE, "--target", "python:given_models:nan"), "expected finite logits, got NaN or infinity"),
        ((*EVALUATE, "--source", "python:given_models:nan"), "expected finite logits, got NaN or infinity"),
        ((*EVALUATE, "--target", "python:given_models:colour"), "the model cannot read images of shape (1, 28, 28)"),
        ((*EVALUATE, "--target", "python:given_models:stepped"), "stepped: expected a gradient that reaches the image"),
        ((*EVALUATE, "--source", "python:given_models:detached"), "detached: expected a gradient that reaches the"),
        ((*DIAGNOSE, "--model", "s=python:given_models:stepped"), "s: expected a gradient that reaches the image"),
        ((*PRECOMPUTE, "fgsm", "--model", "s=python:given_models:stepped"), "s: expected a gradient that reaches the"),
        (
            (*EVALUATE, "--source", "e=mean-logits:a.safetensors+python:given_models:three_classes"),
            "e: expected members that have the same classes, got logits for 10, 3",
        ),
        (
            (*EVALUATE, "--out", "a.safetensors"),
            "cannot write a.safetensors: expected another file than those that are",
        ),
        ((*EVALUATE, "--csv", "a.safetensors"), "cannot write a.safetensors: expected another file"),
        (
            (*DIAGNOSE, "--other", "b.safetensors", "--out", "b.safetensors"),
            "cannot write b.safetensors: expected anot",
        ),
        ((*EVALUATE, "--out", "x", "--csv", "./x"), "expected a file of its own for each output, got x twice"),
        (
            (*EVALUATE, "--source", "python:given_models:Given", "--out", "given_models.py"),
            "cannot write given_models.py: expected another file",
        ),
        (
            (*EVALUATE, "--target", "python:given_package.models:net"),
            "python:given_package.models:net: importing given_package.models failed with RuntimeError",
        ),
        ((*EVALUATE, "--target", "=a.safetensors"), "expected NAME=REF, or REF alone, got '=a.safetensors'"),
        ((*EVALUATE, "--target", "t="), "expected NAME=REF, or REF alone, got 't='"),
        ((*DIAGNOSE, "--measure", "surface"), "--measure surface: expected --out FILE beside it"),
        (
            ("report", "--result", "given_models.py", "--out", "given_models.py"),
            "cannot write given_models.py: expected",
        ),
        ((*EVALUATE, "--target", "python:given_models:no_model"), "to return a torch.nn.Module, got int"),
        ((*PRECOMPUTE, "fgsm", "--model", "a=python:given_models:one_column"), "expected logits of shape"),
        ((*PRECOMPUTE, "fgsm", "--model", "a=python:given_models:nan"), "source a, example 0: expected finite logits"),
        ((*EVALUATE, "--target", "wide.safetensors"), "do not fit the architecture"),
    ],
)
def test_bad_input_is_refused_in_one_line(refused, made, tmp_path, monkeypatch, words, says):
    monkeypatch.chdir(tmp_path)
    for name in "ab":
        shutil.copy(made / f"{name}.safetensors", tmp_path)
    (tmp_path / "a.safetensors.d").mkdir()
    given = tmp_path / "given_models.py"
    given.write_text(GIVEN)
    monkeypatch.delitem(sys.modules, "given_models", raising=False)
    package = tmp_path / "given_package"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('on import')")
    module = build_model("C", shape=(1, 28, 28), classes=10)
    save_model(tmp_path / "wide.safetensors", module, architecture="D", shape=(1, 28, 28), classes=10, record={})
    before = sorted(path.name for path in tmp_path.iterdir())
    assert says in refused(3, *words)
    after = {path.name for path in tmp_path.iterdir()} - {"__pycache__"}
    assert after - set(before) <= {"never"}  # a store that was begun, never a finished thing
    assert not (tmp_path / "never" / "manifest.json").exists()


GIVEN = """
import torch
from torch import nn

class Given(nn.Module):
    def __init__(self, columns=10, factor=1.0):
        super().__init__()
        self.columns, self.factor = columns, factor

    def forward(self, x):
        return x.flatten(1)[:, :self.columns] * self.factor

def one_column():
    return Given(columns=1)

def three_classes():
    return Given(columns=3)

def nan():
    return Given(factor=float("nan"))

def colour():
    return nn.Sequential(nn.Conv2d(3, 10, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())

def no_model():
    return 3

class Stepped(nn.Module):
    def forward(self, x):
        return (x > 0.5).float().flatten(1)[:, :10]

def stepped():
    return Stepped()

class Detached(Given):
    def forward(self, x):
        return super().forward(x.detach())

def detached():
    return Detached()
"""


def test_model_of_ones_own_is_found_in_the_folder_one_stands_in(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_models.py").write_text(GIVEN)
    ended = command("evaluate", *LIMIT, "--target", "own=python:own_models:Given", "--suite", "single-step")
    assert ended.code == 0, ended.err
    assert "own" in ended.out


@pytest.mark.parametrize("is_late", [False, True])
@pytest.mark.parametrize("trouble", [errno.EROFS, errno.EACCES, errno.ENOSPC])
def test_folder_that_cannot_be_written_costs_no_result(command, made, tmp_path, monkeypatch, trouble, is_late):
    """Refused by hand: root, who runs many a container, may write everywhere."""
    asked, allow = [], tempfile.mkstemp

    def refuse(*words, **options):
        asked.append(words)
        if len(asked) == 1 + is_late:
            raise OSError(trouble, os.strerror(trouble))
        return allow(*words, **options)

    monkeypatch.setattr("ensadv_data.files.tempfile.mkstemp", refuse)
    words = ("evaluate", "--target", made / "a.safetensors", *LIMIT, "--suite", "single-step")
    ended = command(*words, "--out", tmp_path / "x.json")
    assert ended.code == 3
    assert list(tmp_path.iterdir()) == []
    if not is_late:
        assert ended.out == ""  # refused before anything is computed
        return
    note, error = ended.err.splitlines()
    assert note.startswith("note: no source, so nothing was transferred")
    assert error.startswith(f"error: cannot write {tmp_path / 'x.json'}: ")
    assert os.strerror(trouble) in error
    assert "mnist-mini/test, 100 images" in ended.out


def test_file_in_the_way_of_a_folder_is_refused(refused, made, tmp_path):
    (tmp_path / "file").write_text("mine")
    words = ("train", "--architecture", "D", "--epochs", "1", *LIMIT)
    assert "choose another folder" in refused(3, *words, "--out", tmp_path / "file" / "d.safetensors")
    model = f"a={made / 'a.safetensors'}"
    words = ("precompute", "--model", model, "--attack", "fgsm", *LIMIT, "--workers", "0")
    assert "expected a folder for the store" in refused(3, *words, "--out", tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


def test_folder_that_holds_something_else_is_not_touched(refused, made, tmp_path):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.tex").write_text("mine")
    words = ("precompute", "--model", f"a={made / 'a.safetensors'}", "--attack", "fgsm", *LIMIT, "--workers", "0")
    assert "was not touched" in refused(3, *words, "--out", mine)
    (tmp_path / "r.toml").write_text(RECIPE)
    assert "was not touched" in refused(3, "run", tmp_path / "r.toml", "--out", mine, "--jobs", "1")
    assert "was not touched" in refused(3, *TRAIN[:-1], made / "b.safetensors")
    assert [path.name for path in mine.iterdir()] == ["thesis.tex"]
    assert "choose another --out" in refused(3, *words, "--out", made / "store")


def test_missing_data_set_comes_with_a_remedy(refused, tmp_path, monkeypatch):
    monkeypatch.setattr(opening, "SYSTEM_HOMES", ())
    monkeypatch.setattr(opening, "cache_home", lambda: tmp_path / "cache")
    monkeypatch.delenv("ENSADV_DATA_HOME", raising=False)
    words = ("train", "--architecture", "D", "--data", "mnist", "--data-dir", tmp_path)
    message = refused(3, *words, "--out", tmp_path / "x")
    assert "run `ensadv-data fetch mnist`" in message
    assert str(tmp_path / "mnist") in message


class Wrong(http.server.BaseHTTPRequestHandler):
    """A mirror that sends something else."""

    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"not MNIST")

    def log_message(self, *_):
        pass


def test_wrong_bytes_from_a_mirror_are_refused(refused, tmp_path, monkeypatch):
    monkeypatch.delenv("ENSADV_MIRRORS", raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Wrong)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        mirror = f"http://127.0.0.1:{server.server_port}/"
        message = refused(3, "fetch", "mnist", "--mirror", mirror, "--data-dir", tmp_path)
    finally:
        server.shutdown()
        server.server_close()
    assert "expected it from one of 1 mirrors" in message
    assert mirror in message
    assert list((tmp_path / "mnist").iterdir()) == []


# 4: integrity


def test_flipped_bit_in_a_store_is_noticed(refused, made, tmp_path):
    store = shutil.copytree(made / "store", tmp_path / "store")
    for chunk in (store / "a/r-fgsm/direction/c/0").glob("*/0"):
        content = bytearray(chunk.read_bytes())
        content[5] ^= 1
        chunk.write_bytes(content)
    out = tmp_path / "x.safetensors"
    message = refused(4, "train", "--architecture", "D", *LIMIT, "--shards", store, "--epochs", "1", "--out", out)
    assert "the checksum does not match" in message
    assert not out.exists()


def test_missing_chunk_is_noticed(refused, made, tmp_path):
    store = shutil.copytree(made / "store", tmp_path / "store")
    (store / "a/r-fgsm/direction/c/0/2/0").unlink()
    assert "direction/c/0/2/0: the chunk is missing" in refused(4, "inspect", store)


def test_store_of_other_images_is_refused(refused, made, tmp_path, monkeypatch):
    """The same images in another order: every count fits, no pixel does."""
    images, labels = open_dataset("mnist-mini", "train").read(np.arange(99, -1, -1))
    turned = ArrayDataset(images, labels, name="mnist-mini", split="train", classes=10)
    for module in ("blocks", "precompute"):
        monkeypatch.setattr(f"ensadv_data.{module}.dataset_of", lambda *_: turned)
    spec = PrecomputeSpec(models={"a": str(made / "a.safetensors")}, attacks=("fgsm",))
    precompute_store(spec, DataSpec(data="mnist-mini"), tmp_path / "store", workers=0)
    out = tmp_path / "x.safetensors"
    refused(4, "train", "--architecture", "D", *LIMIT, "--shards", tmp_path / "store", "--epochs", "1", "--out", out)
    assert not out.exists()


def test_store_whose_images_were_exchanged_is_refused(refused, made, tmp_path):
    """Whole chunks, each with a right checksum, in each other's place."""
    store = shutil.copytree(made / "store", tmp_path / "store")
    first, second = store / "example_digest/c/0", store / "example_digest/c/1"
    one, two = first.read_bytes(), second.read_bytes()
    first.write_bytes(two)
    second.write_bytes(one)
    out = tmp_path / "x.safetensors"
    refused(4, "train", "--architecture", "D", *LIMIT, "--shards", store, "--epochs", "1", "--out", out)
    assert not out.exists()


def test_weights_that_are_not_their_digest_are_refused(refused, made, tmp_path):
    path = tmp_path / "a.safetensors"
    content = bytearray((made / "a.safetensors").read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert "expected weights of digest" in refused(4, "evaluate", "--target", path, *LIMIT)


# 1: unexpected


def test_what_nobody_expected_ends_with_1_and_a_trace(command, monkeypatch):
    def fail(*_, **__):
        raise ZeroDivisionError("boom")

    monkeypatch.setattr(making, "fetch_data", fail)
    ended = command("fetch", "mnist-mini")
    assert ended.code == 1
    assert "Traceback" in ended.err
    assert ended.err.endswith("error: unexpected ZeroDivisionError; please report it with the lines above\n")


def test_interrupt_anywhere_ends_with_130(command, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(making, "fetch_data", stop)
    ended = command("fetch", "mnist-mini")
    assert (ended.code, ended.err.strip()) == (130, "stopped; the same command resumes")


LOADING = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)

class Stop:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            signal.raise_signal(signal.SIGINT)

sys.meta_path.insert(0, Stop())
from ensadv_data.__main__ import main
main(["--version"])
"""


def test_ctrl_c_while_the_commands_are_loaded_ends_with_130():
    done = subprocess.run([sys.executable, "-c", LOADING], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "stopped before anything was done\n")


def test_the_package_runs_as_a_module():
    command = [sys.executable, "-m", "ensadv_data", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("ensadv-data")


def test_message_of_several_lines_is_told_in_one(refused, monkeypatch):
    def fail(*_, **__):
        raise InputError("first\n\tsecond\n")

    monkeypatch.setattr(making, "fetch_data", fail)
    assert refused(3, "fetch", "mnist-mini") == "error: first second\n"


# 130: real signals to real processes


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_training_goes_on_to_the_same_weights(command, tmp_path, sent):
    words = ("train", "--architecture", "D", "--limit", "64", "--epochs", "150", "--threads", "1")
    words = (*words, "--checkpoint-every", "5")
    out = tmp_path / "d.safetensors"
    process = started(*words, "--out", out)
    wait_until(out.with_suffix(".checkpoint").exists, process)
    os.killpg(process.pid, sent)  # what a terminal does, and the supervisor of a preempted job
    said, error = process.communicate(timeout=60)
    assert process.returncode == 130, error
    assert said == ""
    assert error.startswith(f"error: {out}: stopped after step ")
    assert error.count("\n") == 1
    assert not out.exists()
    assert command(*words, "--out", out).code == 0
    assert not out.with_suffix(".checkpoint").exists()
    straight = tmp_path / "straight.safetensors"
    assert command(*words, "--out", straight).code == 0
    assert hashlib.sha256(out.read_bytes()).digest() == hashlib.sha256(straight.read_bytes()).digest()


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_run_stops_its_stages_and_is_resumed(command, tmp_path, sent):
    """The signal goes to the parent alone, as from a supervisor; the stages must not be waited for."""
    recipe, out = tmp_path / "long.toml", tmp_path / "out"
    recipe.write_text(
        'data = { data = "mnist-mini", limit = 64 }\n[defaults.train]\narchitecture = "D"\n'
        "[train.short]\nepochs = 1\n[train.long]\nepochs = 300\n"
    )
    process = started("run", recipe, "--out", out, "--jobs", "2")
    state = out / "state/short.json"  # written when the stage begins, and again with its digest when it has ended
    wait_until(lambda: state.exists() and b'"digest"' in state.read_bytes(), process)
    wait_until((out / "models/long.jsonl").exists, process)
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(sent)
    began = time.monotonic()
    _, error = process.communicate(timeout=60)
    assert time.monotonic() - began < 10
    assert process.returncode == 130, error
    assert error.endswith("stopped; what is done is kept, and the same command resumes\n")
    assert "Traceback" not in error
    deadline = time.monotonic() + 5  # the resource tracker goes a moment after its parent
    while alive := [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]:
        assert time.monotonic() < deadline, alive
        time.sleep(0.05)
    assert not (out / "models/long.safetensors").exists()
    ended = command("run", recipe, "--out", out, "--jobs", "1")
    assert ended.code == 0, ended.err
    short, long = ended.out.splitlines()
    assert short.split() == ["train", "short", "unchanged"]
    assert long.endswith(" s")


def test_real_process_ends_with_the_code_and_one_line(tmp_path):
    process = started("inspect", "nothing", cwd=tmp_path)
    said, error = process.communicate(timeout=60)
    assert (process.returncode, said) == (3, "")
    assert error == "error: expected a store or a .safetensors file at nothing, found nothing\n"
