"""Training as a process of its own, killed in the middle of an epoch and resumed: the same bytes in the end."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from ensadv_data.data import open_dataset
from ensadv_data.models import build_model, save_model
from ensadv_data.precompute import precompute_store
from ensadv_data.spec import DataSpec, PrecomputeSpec, TrainSpec
from ensadv_data.training import train
from laws import started, wait_until

LIMIT, BATCH, EPOCHS = 1200, 32, 3
STEPS = LIMIT // BATCH


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("store")
    weights = build_model("D", shape=(1, 28, 28), classes=10, seed=1)
    save_model(folder / "d.safetensors", weights, architecture="D", shape=(1, 28, 28), classes=10, record={})
    spec = PrecomputeSpec(models={"d": str(folder / "d.safetensors")}, attacks=("r-fgsm",))
    precompute_store(spec, DataSpec(data="mnist-mini", limit=LIMIT), folder / "shards", workers=0)
    return folder / "shards"


@pytest.fixture(scope="module")
def whole(tmp_path_factory, store) -> Path:
    out = tmp_path_factory.mktemp("whole") / "m.safetensors"
    finish(store, out)
    return out


def finish(store: Path, out: Path) -> None:
    spec = TrainSpec(
        architecture="D", epochs=EPOCHS, batch_size=BATCH, online="step-ll", shards=(str(store),), threads=1
    )
    train(spec, open_dataset("mnist-mini", "train", limit=LIMIT), out, log_every=1)


def start(store: Path, out: Path) -> subprocess.Popen[str]:
    words = ["train", "--limit", str(LIMIT), "--architecture", "D", "--epochs", str(EPOCHS), "--batch-size", str(BATCH)]
    words += ["--online", "step-ll", "--shards", str(store), "--threads", "1", "--out", str(out)]
    words += ["--checkpoint-every", "5", "--log-every", "1"]
    return started(*words)


def step_of(out: Path) -> int:
    """The step that the checkpoint goes on from."""
    try:
        with safe_open(str(out.with_suffix(".checkpoint")), framework="pt") as file:
            return int(json.loads(file.metadata()["ensadv_data"])["number"])
    except FileNotFoundError:
        return 0


def timeless(out: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in out.with_suffix(".jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


def test_killed_in_the_middle_of_an_epoch_it_makes_the_same_weights(tmp_path, store, whole):
    chance = random.Random(3)  # noqa: S311 - moments to kill at
    out = tmp_path / "m.safetensors"
    for _ in range(2):
        before = step_of(out)
        process = start(store, out)
        wanted = before + chance.randint(0, 10)
        wait_until(lambda wanted=wanted: step_of(out) > wanted, process)
        time.sleep(chance.random() * 0.05)
        process.kill()
        process.communicate()
        assert not out.exists()
        assert before < step_of(out) < EPOCHS * STEPS
    finish(store, out)
    assert out.read_bytes() == whole.read_bytes()
    assert timeless(out) == timeless(whole)
    steps = [divmod(number, STEPS) for number in range(EPOCHS * STEPS)]
    assert [(line["epoch"], line["step"]) for line in timeless(out) if "source" in line] == steps
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.jsonl", "m.safetensors"]


def test_ctrl_c_ends_with_code_130_and_the_run_can_be_resumed(tmp_path, store, whole):
    out = tmp_path / "m.safetensors"
    process = start(store, out)
    wait_until(lambda: step_of(out) > 0, process)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "the same command resumes" in errors
    finish(store, out)
    assert out.read_bytes() == whole.read_bytes()
    assert timeless(out) == timeless(whole)
