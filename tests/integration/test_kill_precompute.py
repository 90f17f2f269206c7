"""Precompute as a process of its own that is killed, interrupted and resumed: the same bytes in the end."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from ensadv_data.manifest import Manifest, read_manifest
from ensadv_data.models import build_model, save_model
from ensadv_data.precompute import precompute_store
from ensadv_data.spec import DataSpec, PrecomputeSpec
from laws import started, wait_until

ATTACKS = ("r-fgsm", "i-fgsm:steps=8")
LIMIT, DRAWS, BLOCKS = 600, 4, 16


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("models") / "d.safetensors"
    save_model(
        path,
        build_model("D", shape=(1, 28, 28), classes=10),
        architecture="D",
        shape=(1, 28, 28),
        classes=10,
        record={},
    )
    return str(path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, source) -> Manifest:
    path = tmp_path_factory.mktemp("whole") / "s"
    finish(source, path)
    return read_manifest(path)


def finish(source: str, out: Path) -> int:
    spec = PrecomputeSpec(models={"d": source}, attacks=ATTACKS, draws=DRAWS)
    return precompute_store(spec, DataSpec(data="mnist-mini", limit=LIMIT), out, workers=0).computed


def start(source: str, out: Path, *, workers: int) -> subprocess.Popen[str]:
    words = ["precompute", "--limit", str(LIMIT), "--draws", str(DRAWS), "--model", f"d={source}", "--out", str(out)]
    return started(*words, "--workers", str(workers), *(word for name in ATTACKS for word in ("--attack", name)))


def done_blocks(out: Path) -> int:
    return len(list((out / "progress").glob("block-*.json")))


def test_killed_three_times_it_makes_the_same_store(tmp_path, source, whole):
    chance = random.Random(20)  # noqa: S311 - moments to kill at
    out = tmp_path / "s"
    kills_in_the_middle = 0
    for workers in (0, 1, 0):
        before = done_blocks(out)
        process = start(source, out, workers=workers)
        wanted = before + chance.randint(1, 3)
        wait_until(lambda wanted=wanted: done_blocks(out) >= wanted, process, may_end=True)
        time.sleep(chance.random() * 0.02)
        children = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        process.kill()
        process.communicate()
        _, alive = psutil.wait_procs(children, timeout=20)
        assert not alive, "workers outlived the process that started them"
        if done_blocks(out) < BLOCKS and not (out / "manifest.json").exists():
            kills_in_the_middle += 1
    assert kills_in_the_middle >= 1
    left = BLOCKS - done_blocks(out)
    assert left > 0
    assert finish(source, out) == left
    assert read_manifest(out) == whole
    assert not list(out.rglob("*.partial*"))
    assert not (out / "progress").exists()


def test_ctrl_c_ends_with_code_130_and_the_run_can_be_resumed(tmp_path, source, whole):
    out = tmp_path / "s"
    process = start(source, out, workers=1)
    wait_until(lambda: done_blocks(out) >= 2, process)
    children = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "the same command resumes" in errors
    assert "Traceback" not in errors
    _, alive = psutil.wait_procs(children, timeout=20)
    assert not alive
    kept = done_blocks(out)
    assert 2 <= kept < BLOCKS
    assert finish(source, out) == BLOCKS - kept
    assert read_manifest(out) == whole
