"""The recipes of Table 3 on real photographs, with the true networks, from a folder to the report, at 80 pixels."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ensadv_data.manifest import read_manifest
from ensadv_data.recipe import packaged_recipe, read_recipe
from photographs import SAMPLES, cut_photographs

HERE = Path(__file__).parents[1]
RECIPES = ("inception-v3-ens3", "inception-v3-ens4", "inception-resnet-v2-ens")


@pytest.mark.timeout(1200)
def test_all_three_run_from_the_folder_to_the_report(tmp_path):
    folder = cut_photographs(tmp_path / "photos", side=299, train=4, test=3)
    paths = os.pathsep.join([str(HERE / "every_process"), str(HERE.parent), os.environ.get("PYTHONPATH", "")])
    told = ""
    for name in RECIPES:
        words = ("run", name, "--scale", "tiny", "--data", f"folder:{folder}", "--out", "out", "--jobs", "1")
        ran = subprocess.run(
            [sys.executable, "-m", "ensadv_data", *words],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": paths, "ENSADV_DATA_HOME": str(tmp_path / "home")},
            capture_output=True,
            text=True,
            timeout=1000,
        )
        assert ran.returncode == 0, ran.stderr
        told += ran.stdout
        recipe = read_recipe(packaged_recipe(name), scale="tiny")
        (store,) = (stage for stage in recipe.stages if stage.kind == "precompute")
        manifest = read_manifest(tmp_path / "out" / store.output)
        networks = {stage.name: stage.spec.architecture for stage in recipe.stages if stage.kind == "train"}
        assert {source.name: source.architecture for source in manifest.sources} == {
            model: networks[model] for model in store.spec.models
        }
        assert manifest.data.n == 4 * len(SAMPLES) == 48
        assert manifest.plan["images"]["preprocess"]["size"] == 80
        (evaluate,) = (stage for stage in recipe.stages if stage.kind == "evaluate")
        result = json.loads((tmp_path / "out" / evaluate.output).read_text())
        assert set(result["targets"]) == set(evaluate.options["targets"])
        assert "together" in json.dumps(result["sources"])
        assert (tmp_path / "out/report.html").read_text().startswith("<!DOCTYPE html>")
    lines = told.splitlines()
    assert sum(line.startswith("train      inception_v3 ") and line.endswith("unchanged") for line in lines) == 2
