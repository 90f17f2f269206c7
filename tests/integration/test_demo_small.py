"""The demo, scaled down: the whole chain through the command line, twice, to the same bytes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from importlib.resources import files
from itertools import count
from pathlib import Path

import pytest

from ensadv_data.recipe import read_recipe


def scaled_down() -> str:
    """The packaged recipe with few images, one epoch, one small architecture, and a seed of its own for each model."""
    text = (files("ensadv_data") / "pipelines" / "mnist-demo.toml").read_text(encoding="utf-8")
    seeds = count(1)
    for pattern, replacement in (
        (r'(?m)^architecture = ".*"$', 'architecture = "D"'),
        (r"(?m)^epochs = \d+$", "epochs = 1"),
        (r"(?m)^seed = \d+$", lambda _: f"seed = {next(seeds)}"),
        (r"(?m)^draws = \d+$", "draws = 2"),
        (r'(?m)^data = "mnist-mini"$', 'data = "mnist-mini"\nlimit = 640'),
        (r'(?m)^suite = "(.*)"$', r'suite = "\1"\nimages = 200'),
    ):
        text, replaced = re.subn(pattern, replacement, text)
        assert replaced, f"the demo has no line like {pattern}"
    return text


def run(recipe: Path, out: Path, *, jobs: int) -> subprocess.CompletedProcess[str]:
    """As a user does: the command line, in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "ensadv_data", "run", str(recipe), "--out", str(out), "--jobs", str(jobs)],
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
        env={**os.environ, "ENSADV_QUIET": "1", "OMP_NUM_THREADS": "1"},
    )


@pytest.mark.slow
def test_whole_chain_ends_in_a_report_and_is_repeatable(tmp_path):
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(scaled_down(), encoding="utf-8")
    stages = read_recipe(recipe).stages
    tables = tomllib.loads(recipe.read_text(encoding="utf-8"))
    names = {name for kind in ("train", "precompute", "evaluate") for name in tables[kind]} | {"report"}
    outputs = []
    for folder, jobs in ((tmp_path / "one", 2), (tmp_path / "two", 1)):
        done = run(recipe, folder, jobs=jobs)
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        lines = done.stdout.splitlines()
        assert {line.split()[1] for line in lines[: len(stages)]} == names
        assert lines[-1] == f"report: {folder / 'report.html'}"
        table = "\n".join(lines[len(stages) :])
        assert "mnist-mini/test, 200 images" in table
        for target in tables["evaluate"]["robustness"]["targets"]:
            assert re.search(rf"│ {target} +│ +\d+\.\d \[", table)
        outputs.append(folder)
    one, two = outputs
    for pattern in ("models/*.safetensors", "results/*.json", "shards/**/*"):
        paths = sorted(path.relative_to(one) for path in one.glob(pattern) if path.is_file())
        assert paths == sorted(path.relative_to(two) for path in two.glob(pattern) if path.is_file())
        assert paths
        for path in paths:
            assert (one / path).read_bytes() == (two / path).read_bytes(), path
    page = (one / "report.html").read_text(encoding="utf-8")
    result = json.loads((one / "results/robustness.json").read_bytes())
    for target, row in result["targets"].items():
        assert target in page
        assert f"{100 * row['clean']['error']:.1f}" in page
