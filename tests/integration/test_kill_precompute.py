"""Precompute as a process of its own that is killed, interrupted and resumed: the same bytes in the end."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

import kills
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


def test_ten_random_kills_leave_the_store_of_a_run_that_nobody_disturbed(tmp_path):
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")  # of a failure
    found = kills.run(kills=10, seed=seed, folder=tmp_path)
    assert sum(found["killed"].values()) == 10
    assert found["seconds_to_resume"] <= 2


CLOCK = """
import time
began, true, true_ns = time.monotonic(), time.time, time.time_ns
late = lambda: time.monotonic() - began > 1.5  # while blocks are computed
time.time = lambda: true() + {hours} * 3600 * late()
time.time_ns = lambda: true_ns() + {hours} * 3600 * 10**9 * late()
"""


@pytest.mark.parametrize("hours", [-1, 1])
def test_a_clock_that_is_set_changes_nothing(tmp_path, source, whole, monkeypatch, hours):
    """In the client and in each worker, a moment after it began; what one process reads is set, not the machine's."""
    (tmp_path / "sitecustomize.py").write_text(CLOCK.format(hours=hours))
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    probe = "import time; time.sleep(1.6); print(time.time())"
    told = float(subprocess.run([sys.executable, "-c", probe], check=True, capture_output=True, text=True).stdout)
    assert abs(told - time.time() - hours * 3600) < 60
    process = start(source, tmp_path / "s", workers=2)
    _, errors = process.communicate(timeout=180)
    assert process.returncode == 0, errors
    assert read_manifest(tmp_path / "s") == whole
    for key, found in read_manifest(tmp_path / "s").objects.items():
        assert hashlib.sha256((tmp_path / "s" / key).read_bytes()).hexdigest() == found.sha256


def test_two_at_once_on_one_store_are_no_danger_to_each_other(tmp_path, source, whole):
    """Both compute, and the second finds what the first has finished."""
    out = tmp_path / "s"
    both = [start(source, out, workers=1) for _ in range(2)]
    for process in both:
        said, errors = process.communicate(timeout=180)
        assert process.returncode == 0, errors
        assert whole.digest[:16] in said
    assert read_manifest(out) == whole
    assert not (out / "progress").exists()
    assert not list(out.rglob("*.partial*"))


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
