"""Training and evaluation by several processes of torchrun: what one process does, and no more than once.

Gradients are summed in another order, so losses agree to the last digits of float32 and not to the bit. Dropout has its
own masks on each rank, so the models compared here have none.
"""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

import rank
from ensadv_data.__main__ import main
from ensadv_data.bench import random_store
from ensadv_data.data import open_dataset
from ensadv_data.models import build_model, save_model
from ensadv_data.spec import TrainSpec, checked
from ensadv_data.training import train
from laws import wait_until

RANK = Path(rank.__file__)
WORLDS = (1, 2, 4)


def torchrun(ranks: int, *words: object, **options: Any) -> subprocess.Popen[str]:
    """A group of processes on this machine, each with one thread."""
    group = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)] if ranks > 1 else []
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "ENSADV_QUIET": "1"}
    return subprocess.Popen(
        [sys.executable, *group, *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
        **options,
    )


def ended(process: subprocess.Popen[str]) -> str:
    """What a group that ends well has said."""
    said, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return said


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> dict[int, list[dict[str, Any]]]:
    """By world size, what each rank found."""
    folder = tmp_path_factory.mktemp("ranks")
    data = open_dataset("mnist-mini", "train", limit=rank.LIMIT)
    random_store(data, folder / "store", sources=["a", "b", "c"])
    results = {}
    for ranks in WORLDS:
        ended(torchrun(ranks, RANK, folder))
        files = [folder / f"{ranks}-{number}.json" for number in range(ranks)]
        results[ranks] = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    return results


@pytest.mark.parametrize("run", ["pair", "replace"])
def test_every_world_size_trains_on_the_same_batches(found, run):
    """Indices, sources, draws and ε are those of one process, and so are the losses of 200 steps."""
    alone = found[1][0][run]
    for ranks in WORLDS[1:]:
        of_rank = [result[run] for result in found[ranks]]
        for number, expected in enumerate(alone):
            lines = [lines[number] for lines in of_rank]
            for name in ("indices", "epsilon", "draws", "sources"):
                dealt = np.stack([line[name] for line in lines], axis=1).ravel().tolist()
                assert dealt == expected[name], (ranks, number, name)
            assert all(line["source"] == expected["source"] for line in lines)
            for name in ("loss_clean", "loss_adversarial", "mean_epsilon"):
                assert len({line[name] for line in lines}) == 1
                assert lines[0][name] == pytest.approx(expected[name], rel=1e-5)


def test_the_source_is_drawn_once_for_all_ranks(found):
    """Else 1 − (3/4)⁴ of the steps would hold an online gradient, instead of 1/4."""
    for result in found[4]:
        online = np.mean([line["source"] == "online" for line in result["pair"]])
        assert abs(online - 1 / 4) < 4 * math.sqrt(1 / 4 * 3 / 4 / rank.STEPS) < 1 - (3 / 4) ** 4 - 1 / 4


def test_what_ranks_say_to_each_other(found):
    assert [result["agreed"] for result in found[1]] == [{"sum": [1, 0], "most": [0, 0], "any": [False, False]}]
    for result in found[4]:
        told = result["agreed"]
        assert (told["sum"], told["most"], told["any"]) == ([4, 6], [3, 0], [True, False])
        assert told["refused"].startswith("expected the rank to be the same on all ranks, got 0 … 3")


# Architecture C has no dropout. 10 steps an epoch.
FIELDS = {"architecture": "C", "epochs": 3, "batch_size": 16, "online": "step-ll", "seed": 3, "threads": 1}
LIMITED = 160
STEPS = 30


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("c") / "store"
    random_store(open_dataset("mnist-mini", "train", limit=LIMITED), folder, sources=["a", "b", "c"])
    return folder


def trained_here(store: Path, out: Path) -> None:
    spec = checked(TrainSpec, {**FIELDS, "shards": (str(store),)}, where="ranks")
    train(spec, open_dataset("mnist-mini", "train", limit=LIMITED), out, log_every=1)


@pytest.fixture(scope="module")
def straight(tmp_path_factory, store) -> list[dict[str, Any]]:
    """The log of one process that nobody stopped."""
    out = tmp_path_factory.mktemp("straight") / "m.safetensors"
    trained_here(store, out)
    return lines_of(out)


def lines_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.with_suffix(".jsonl").read_text(encoding="utf-8").splitlines()]


def group_of(ranks: int, store: Path, out: Path) -> subprocess.Popen[str]:
    words = [f"--{name.replace('_', '-')}={value}" for name, value in FIELDS.items()]
    words += ["--limit", str(LIMITED), "--log-every", "1", "--checkpoint-every", "3"]
    return torchrun(ranks, "-m", "ensadv_data", "train", *words, "--shards", store, "--out", out)


def stopped(group: subprocess.Popen[str], out: Path, *, sent: signal.Signals) -> str:
    """Stop a group after its first checkpoint; what it said."""
    wait_until(out.with_suffix(".checkpoint").exists, group)
    if sent == signal.SIGKILL:  # everything at once, as when a machine goes down
        for process in [*psutil.Process(group.pid).children(recursive=True), psutil.Process(group.pid)]:
            process.kill()
    else:
        group.send_signal(sent)  # torchrun hands it on to the ranks
    _, errors = group.communicate(timeout=120)
    assert group.returncode != 0
    assert not out.exists()
    assert 3 <= len(lines_of(out)) < STEPS
    return errors


def is_as_straight(out: Path, straight: list[dict[str, Any]]) -> None:
    assert not out.with_suffix(".checkpoint").exists()
    for mine, its in zip(lines_of(out), straight, strict=True):
        assert (mine["epoch"], mine["step"]) == (its["epoch"], its["step"])
        if "sources" in its:
            for name, row in its["sources"].items():
                assert mine["sources"][name] == pytest.approx(row, rel=1e-3), name
        else:
            assert mine["source"] == its["source"]
            assert mine["loss_clean"] == pytest.approx(its["loss_clean"], rel=1e-3)


def test_four_that_were_killed_go_on_as_two(tmp_path, store, straight):
    out = tmp_path / "m.safetensors"
    stopped(group_of(4, store, out), out, sent=signal.SIGKILL)
    said = ended(group_of(2, store, out))
    assert said.count(str(out)) == 1  # rank 0 alone speaks
    is_as_straight(out, straight)


def test_two_that_were_preempted_go_on_as_one(tmp_path, store, straight):
    out = tmp_path / "m.safetensors"
    errors = stopped(group_of(2, store, out), out, sent=signal.SIGTERM)
    assert "the same command resumes" in errors
    trained_here(store, out)
    is_as_straight(out, straight)


def test_ranks_evaluate_what_one_process_does(tmp_path):
    for name, seed in (("d", 1), ("e", 2)):
        module = build_model("D", shape=(1, 28, 28), classes=10, seed=seed)
        path = tmp_path / f"{name}.safetensors"
        save_model(path, module, architecture="D", shape=(1, 28, 28), classes=10, record={})
    words = ["evaluate", "--target", tmp_path / "d.safetensors", "--source", tmp_path / "e.safetensors"]
    words += ["--suite", "single-step", "--limit", "230", "--batch-size", "120"]  # two batches: two ranks share one
    alone, together = tmp_path / "alone.json", tmp_path / "together.json"
    main([*map(str, words), "--out", str(alone)])
    ended(torchrun(3, "-m", "ensadv_data", *words, "--out", together))
    assert together.read_bytes() == alone.read_bytes()
