"""Commands and options: the reviewed list, and no drift between the flags and the fields of the specs."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from ensadv_data import recipe as recipes
from ensadv_data.cli import cli
from ensadv_data.spec import DataSpec, DiagnoseSpec, EvaluateSpec, PrecomputeSpec, TrainSpec, checked, parse_attack

DATA = {
    "--data": "mnist-mini",
    "--data-dir": None,
    "--limit": None,
    "--preprocess": None,
    "--on-bad-image": "fail",
}
REQUIRED = "required"
MANY = ()

# command → argument or option → default
REVIEWED = {
    "demo": {"--out": "demo", "--jobs": None},
    "catalogue": {"FOLDER": REQUIRED, "--out": REQUIRED, "--trust": None, "--title": "Stores"},
    "describe": {
        "STORE": REQUIRED,
        "--name": None,
        "--licence": None,
        "--creator": None,
        "--citation": None,
        "--url": None,
    },
    "diagnose": {
        **DATA,
        "--model": REQUIRED,
        "--measure": MANY,
        "--other": MANY,
        "--static": MANY,
        "--holdout": MANY,
        "--epsilon": "0.3",
        "--epsilons": MANY,
        "--single": "fgsm",
        "--iterative": "pgd:loss=margin",
        "--loss": "margin",
        "--points": 500,
        "--example": MANY,
        "--resolution": 41,
        "--seed": 0,
        "--batch-size": 250,
        "--device": "cpu",
        "--out": None,
    },
    "bench": {
        **DATA,
        "--architecture": "D",
        "--batch-size": 64,
        "--rounds": 9,
        "--threads": 1,
        "--device": "cpu",
        "--out": None,
    },
    "evaluate": {
        **DATA,
        "--target": REQUIRED,
        "--source": MANY,
        "--shards": MANY,
        "--suite": "paper",
        "--epsilon": "0.3",
        "--seed": 0,
        "--batch-size": 250,
        "--device": "cpu",
        "--loss": "margin",
        "--shift": None,
        "--pictures": 0,
        "--matrix": False,
        "--csv": None,
        "--out": None,
    },
    "export": {
        "STORE": REQUIRED,
        "--out": REQUIRED,
        "--shard-bytes": "1GB",
        **DATA,
        "--data": None,
    },
    "import": {"SHARDS": REQUIRED, "--out": REQUIRED},
    "pull": {
        "STORE": REQUIRED,
        "--from": None,
        "--out": REQUIRED,
        "--source": MANY,
        "--attack": MANY,
        "--trust": None,
        "--unsigned": False,
        "--name": None,
        "--blocks": None,
        "--dry-run": False,
    },
    "push": {"STORE": REQUIRED, "TO": REQUIRED},
    "fetch": {"NAME": REQUIRED, "--data-dir": None, "--mirror": MANY},
    "inspect": {
        "PATH": REQUIRED,
        "--against": None,
        "--agreement": False,
        "--sample-blocks": 4,
        "--html": None,
        "--data": None,
        "--data-dir": None,
        "--limit": None,
        "--json": False,
    },
    "keygen": {"--out": REQUIRED, "--name": "me"},
    "plan": {
        "RECIPE": REQUIRED,
        "--out": None,
        "--until": None,
        "--scale": None,
        "--data": None,
        "--data-dir": None,
        "--set": MANY,
        "--workers": None,
        "--device": None,
        "--price": None,
        "--no-calibrate": False,
        "--json": None,
    },
    "precompute": {
        **DATA,
        "--model": REQUIRED,
        "--attack": REQUIRED,
        "--out": REQUIRED,
        "--draws": None,
        "--split": "train",
        "--labels": "predicted",
        "--mode": "eval",
        "--augment": None,
        "--zeros": "keep",
        "--loss": "margin",
        "--seed": 0,
        "--batch-size": "64",
        "--precision": "float32",
        "--compile": False,
        "--device": "cpu",
        "--workers": None,
        "--scheduler": None,
        "--gpus": 0,
        "--listen": "127.0.0.1",
        "--tls": None,
        "--worker-timeout": 120,
        "--repair": False,
    },
    "report": {
        **DATA,
        "--result": MANY,
        "--log": MANY,
        "--store": MANY,
        "--title": "ensadv-data",
        "--out": REQUIRED,
    },
    "run": {
        "RECIPE": REQUIRED,
        "--out": None,
        "--until": None,
        "--jobs": None,
        "--scale": None,
        "--data": None,
        "--data-dir": None,
        "--device": None,
        "--set": MANY,
        "--dry-run": False,
    },
    "sign": {
        "STORE": REQUIRED,
        "--key": REQUIRED,
        "--name": REQUIRED,
        "--version": None,
        "--days": 365,
        "--creator": "",
        "--licence": "",
        "--citation": "",
        "--model-licence": (),
    },
    "train": {
        **DATA,
        "--architecture": REQUIRED,
        "--out": REQUIRED,
        "--epochs": 6,
        "--batch-size": 64,
        "--seed": 0,
        "--optimizer": "adam",
        "--learning-rate": None,
        "--online": None,
        "--shards": MANY,
        "--draws": None,
        "--static": MANY,
        "--static-attack": None,
        "--static-mode": "eval",
        "--source-per": "batch",
        "--epsilon": "0.3",
        "--batches": "pair",
        "--adversarial-weight": None,
        "--random-step": "stored",
        "--online-mode": "train",
        "--label-smoothing": 0.0,
        "--auxiliary-weight": 0.0,
        "--ema": None,
        "--accumulate": 1,
        "--augment": None,
        "--amp": False,
        "--threads": None,
        "--window": 0,
        "--device": "cpu",
        "--checkpoint-every": 200,
        "--log-every": 10,
        "--prefetch": 2,
        "--cache-bytes": "1GiB",
        "--cache": None,
        "--cache-limit": "20GiB",
        "--tensorboard": None,
    },
    "verify": {
        "STORE": REQUIRED,
        "--trust": None,
        "--unsigned": False,
        "--name": None,
        **DATA,
        "--data": None,
        "--recompute": 0,
        "--model": MANY,
        "--seed": None,
        "--tolerance": None,
        "--device": "cpu",
    },
}


def parameters_of(command: str) -> list[click.Parameter]:
    return cli.commands[command].params


def default_of(parameter: click.Parameter) -> object:
    if parameter.required:
        return REQUIRED
    if parameter.multiple if isinstance(parameter, click.Option) else False:
        return MANY
    return parameter.to_info_dict()["default"]


def spelling(parameter: click.Parameter) -> str:
    return parameter.opts[0] if isinstance(parameter, click.Option) else str(parameter.name).upper()


def test_commands_and_options_are_the_reviewed_ones():
    found = {name: {spelling(one): default_of(one) for one in parameters_of(name)} for name in cli.commands}
    found = {
        name: {key: str(v) if key == "--out" and v else v for key, v in row.items()} for name, row in found.items()
    }
    assert found == REVIEWED


@pytest.mark.parametrize("command", REVIEWED)
def test_help_has_a_purpose_and_an_example(command):
    done = CliRunner().invoke(cli, [command, "--help"])
    assert done.exit_code == 0
    assert cli.commands[command].help
    assert f"ensadv-data {command}" in done.output.split("Example")[1]


def test_example_lines_name_options_that_exist():
    for name, command in cli.commands.items():
        words = (command.epilog or "").replace(";", " ").replace("(", " ").replace(")", " ").split()
        options = {word for word in words if word.startswith("--")}
        assert options <= set(REVIEWED[name]), name


def test_help_of_all_lists_every_command():
    for flag in ("--help", "-h"):
        done = CliRunner().invoke(cli, [flag])
        assert done.exit_code == 0
        for command in REVIEWED:
            assert f"  {command} " in done.output
    assert "0.1.0" in CliRunner().invoke(cli, ["--version"]).output


# Fields without an option of their name, and options that are no field, each with its reason.
COMMANDS = {
    "train": (TrainSpec, {"architecture": "D"}),
    "precompute": (PrecomputeSpec, {"models": {"a": "a.safetensors"}, "attacks": ["fgsm"]}),
    "evaluate": (EvaluateSpec, {}),
    "diagnose": (DiagnoseSpec, {}),
}
ELSEWHERE = {
    "train": {
        "out": "where to, not what",
        "checkpoint_every": "changes what a crash costs, not the weights",
        "log_every": "changes the log only",
        "prefetch": "the weights do not depend on it",
        "cache_bytes": "the weights do not depend on it",
        "cache": "the weights do not depend on it",
        "cache_limit": "the weights do not depend on it",
        "tensorboard": "changes the log only",
    },
    "precompute": {
        "out": "where to, not what",
        "workers": "the bytes do not depend on it",
        "scheduler": "the bytes do not depend on it",
        "gpus": "the bytes do not depend on it",
        "listen": "the bytes do not depend on it",
        "tls": "the bytes do not depend on it",
        "worker_timeout": "the bytes do not depend on it",
        "repair": "the bytes do not depend on it",
    },
    "evaluate": {
        "out": "where to, not what",
        "csv": "where to, not what",
        "matrix": "how much is printed",
        "targets": "the recipe's names of stages, the command's references",
        "sources": "the recipe's names of stages, the command's references",
    },
    "diagnose": {
        "out": "where to, not what",
        "models": "references",
        "others": "references",
        "static": "references",
        "holdouts": "references",
    },
}
# --limit cuts the images that a command reads: test images for evaluate, whose field in a recipe is `images`
# because [data] limit is about the training images.
ALIASES = {"evaluate": {"images": "limit"}, "diagnose": {"images": "limit"}}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_field_has_an_option_and_every_option_a_field(command):
    spec, _ = COMMANDS[command]
    aliases = ALIASES.get(command, {})
    options = {str(one.name) for one in parameters_of(command)}
    assert {aliases.get(name, name) for name in spec.model_fields} <= options
    assert options - set(aliases.values()) - set(spec.model_fields) - set(DataSpec.model_fields) == set(
        ELSEWHERE[command]
    )
    assert set(DataSpec.model_fields) <= options


@pytest.mark.parametrize("command", COMMANDS)
def test_options_are_spelled_like_their_fields(command):
    many = ("models", "attacks", "targets", "sources", "measures", "others", "holdouts", "examples")
    singular = {f"--{name.removesuffix('s')}": name for name in many}
    for one in parameters_of(command):
        assert singular.get(spelling(one), spelling(one).removeprefix("--").replace("-", "_")) == one.name


@pytest.mark.parametrize("command", COMMANDS)
def test_options_have_the_defaults_of_their_fields(command):
    spec, needed = COMMANDS[command]
    defaults = {str(one.name): default_of(one) for one in parameters_of(command)}
    given = {
        name: value
        for name, value in defaults.items()
        if name in spec.model_fields and value not in (None, REQUIRED, MANY)
    }
    assert checked(spec, {**needed, **given}, where=command) == checked(spec, needed, where=command)
    for name, value in defaults.items():
        if name in spec.model_fields and value is None:
            field = spec.model_fields[name]
            assert field.default is None or field.default_factory is not None, name


@pytest.mark.parametrize("command", ["train", "precompute", "evaluate", "diagnose", "report"])
def test_data_options_have_the_defaults_of_the_data_spec(command):
    defaults = {str(one.name): default_of(one) for one in parameters_of(command)}
    for name, field in DataSpec.model_fields.items():
        assert name in defaults
        if not field.is_required():
            assert defaults[name] == field.default


# The guide

GUIDE = Path(recipes.__file__).parent.parent / "docs" / "guide.md"
in_repository = pytest.mark.skipif(not GUIDE.exists(), reason="installed without the repository around it")


def blocks_of(language: str, page: Path = GUIDE) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


@in_repository
def test_scripts_of_the_cluster_page_are_scripts():
    page = GUIDE.with_name("cluster.md")
    (script,) = blocks_of("bash", page)
    assert script.startswith("#!/bin/bash\n#SBATCH ")
    for text in (script, *blocks_of("sh", page)):
        subprocess.run(["bash", "-n"], input=text, text=True, check=True)
    (code,) = blocks_of("python", page)
    compile(code, str(page), "exec")
    lines = "\n".join((script, *blocks_of("sh", page))).replace("\\\n", " ").splitlines()
    ours = [line[line.index("ensadv-data") :] for line in lines if "ensadv-data" in line]
    assert len(ours) == 5
    for line in ours:
        _, command, *words = shlex.split(line.replace("--device cuda", "--device cpu"))
        cli.commands[command].make_context(command, words)
    for words in (["scheduler"], ["worker"]):
        known = subprocess.run(
            [sys.executable, "-m", "dask", *words, "--help"], capture_output=True, text=True, check=True
        )
        for line in (line for line in lines if f"dask {words[0]}" in line and "cuda worker" not in line):
            for option in re.findall(r"--[a-z-]+", line.partition(f"dask {words[0]}")[2]):
                assert option in known.stdout, (line, option)


@in_repository
def test_command_lines_of_the_guide_are_understood():
    lines = [line for block in blocks_of("sh") for line in block.splitlines()]
    assert len(lines) > 10
    for line in lines:
        program, command, *words = shlex.split(
            re.sub(r"^torchrun --nproc-per-node \d+ -m ensadv_data", "ensadv-data", line)
        )
        assert program == "ensadv-data"
        cli.commands[command].make_context(command, words)  # parses, and runs nothing
    assert {shlex.split(line)[1] for line in lines} >= set(REVIEWED) - {"fetch"}


@in_repository
def test_command_lines_of_the_sharing_page_are_understood():
    lines = [line for block in blocks_of("sh", GUIDE.with_name("sharing.md")) for line in block.splitlines()]
    commands = {"precompute", "keygen", "sign", "push", "pull", "verify", "train", "export", "import"}
    assert {shlex.split(line)[1] for line in lines} == commands | {"inspect", "describe", "catalogue"}
    for line in lines:
        _, command, *words = shlex.split(line)
        cli.commands[command].make_context(command, words)


@in_repository
@pytest.mark.parametrize("page", ["reliability", "security"])
def test_tests_that_a_page_names_exist(page):
    named = set(re.findall(r"`(test_\w+)`", GUIDE.with_name(f"{page}.md").read_text(encoding="utf-8")))
    assert len(named) > 10
    code = "\n".join(file.read_text(encoding="utf-8") for file in Path(__file__).parent.rglob("test_*.py"))
    assert {name for name in named if f"def {name}(" not in code} == set()


@in_repository
def test_recipe_of_the_guide_is_read(tmp_path):
    (text,) = blocks_of("toml")
    (tmp_path / "mine.toml").write_text(text, encoding="utf-8")
    recipe = recipes.read_recipe(tmp_path / "mine.toml")
    assert recipe.name == tomllib.loads(text)["name"]
    assert len(recipe.stages) == 6


@in_repository
def test_words_of_the_guide_exist():
    text = GUIDE.read_text(encoding="utf-8")
    known = {option for options in REVIEWED.values() for option in options} | {"--help", "--nproc-per-node"}
    assert set(re.findall(r"--[a-z][a-z-]*[a-z]", text)) <= known
    for spelling_of_attack in re.findall(r"`([a-z+-]+:[a-z_]+=[^`]*)`", text):
        parse_attack(spelling_of_attack)
