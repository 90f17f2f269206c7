"""Precompute under random kills of clients and workers: how often, what was found, and what it cost.

    python tests/kills.py --kills 200 --seed 1

A store is made by a client with two workers. At random moments one of the three is killed (SIGKILL); a client that was
killed is started again, by the same command. When the store is finished it must equal one that nobody disturbed, byte
for byte of every object, and no chunk of a block that was done before may have been written again. Then the next store.
The summary is JSON; docs/reliability.md has that of the run above.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import signal
import subprocess
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
import pytest

from ensadv_data import precompute
from ensadv_data.blocks import Block, Job
from ensadv_data.errors import Interrupted
from ensadv_data.manifest import read_manifest
from ensadv_data.models import build_model, save_model
from ensadv_data.precompute import precompute_store
from ensadv_data.spec import DataSpec, PrecomputeSpec
from laws import started

LIMIT, DRAWS, WORKERS = 1200, 2, 2
ATTACKS = ("r-fgsm", "pgd:steps=10,step_size=0.05")
Written = dict[str, tuple[int, int]]  # chunk → inode and time of its file


def _written(out: Path) -> Written:
    """The files of all blocks that are done."""
    found = {}
    for file in (out / "progress").glob("block-*.json"):
        try:
            names = json.loads(file.read_bytes())["objects"]
            found |= {name: ((out / name).stat().st_ino, (out / name).stat().st_mtime_ns) for name in names}
        except (OSError, ValueError):
            continue  # the client finished it meanwhile
    return found


def _start(model: Path, out: Path) -> subprocess.Popen[str]:
    words = ["precompute", "--limit", str(LIMIT), "--draws", str(DRAWS), "--model", f"d={model}", "--out", str(out)]
    return started(*words, "--workers", str(WORKERS), *(word for name in ATTACKS for word in ("--attack", name)))


def _workers_of(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """Processes that compute: children of the nannies, which are threads of the client."""
    try:
        family = psutil.Process(process.pid).children(recursive=True)
        return [child for child in family if "spawn_main" in " ".join(child.cmdline())]
    except psutil.Error:
        return []


def disturbed(model: Path, out: Path, chance: random.Random, killed: Counter[str], kills: int) -> None:
    """Make one store, with kills until there were as many as wanted; each after at least one block more."""
    kept: Written = {}
    while True:
        process = _start(model, out)
        while process.poll() is None and not (out / "manifest.json").exists():
            before = len(kept)
            while process.poll() is None and len(_written(out)) <= before and not (out / "manifest.json").exists():
                time.sleep(0.02)
            time.sleep(chance.random() * 0.5)
            workers = _workers_of(process)
            if killed.total() >= kills or process.poll() is not None:
                break
            kept |= _written(out)
            if workers and chance.random() < 0.6:
                killed["worker"] += _killed(chance.choice(workers))
                continue
            process.kill()
            killed["client"] += 1
            process.wait(timeout=60)
            psutil.wait_procs(workers, timeout=60)  # they end when they miss the client
            kept |= _written(out)
        said, errors = process.communicate(timeout=600)
        if process.returncode == 0:
            break
        assert process.returncode == -signal.SIGKILL, f"exit code {process.returncode}: {said}{errors}"
    for name, written in kept.items():
        file = out / name
        if file.exists():  # masks without zeros are gone
            assert (file.stat().st_ino, file.stat().st_mtime_ns) == written, f"{name} was written again"


def _killed(process: psutil.Process) -> bool:
    try:
        process.kill()
    except psutil.Error:  # it had ended
        return False
    return True


def run(*, kills: int, seed: int, folder: Path) -> dict[str, Any]:
    """Kill so many processes; what was seen."""
    chance = random.Random(seed)  # noqa: S311 - moments and victims
    model = folder / "d.safetensors"
    module = build_model("D", shape=(1, 28, 28), classes=10, seed=1)
    save_model(model, module, architecture="D", shape=(1, 28, 28), classes=10, record={})
    spec = PrecomputeSpec(models={"d": str(model)}, attacks=ATTACKS, draws=DRAWS)
    data = DataSpec(data="mnist-mini", limit=LIMIT)
    precompute_store(spec, data, folder / "straight", workers=0)
    expected = read_manifest(folder / "straight").to_bytes()
    killed: Counter[str] = Counter()
    stores = 0
    while killed.total() < kills:
        out = folder / f"store{stores}"
        disturbed(model, out, chance, killed, kills)
        assert read_manifest(out).to_bytes() == expected, f"seed {seed}: store {stores} is another one"
        assert not (out / "progress").exists()
        assert not list(out.rglob("*.partial*"))
        for name, record in read_manifest(out).objects.items():
            assert (out / name).stat().st_size == record.bytes, name
        stores += 1
    overheads = sorted(_resumed(spec, data, folder / f"resumed{number}") for number in range(5))
    return {
        "seed": seed,
        "killed": dict(killed),
        "stores": stores,
        "equal": stores,
        "seconds_to_resume": round(overheads[2], 3),
    }


def _resumed(spec: PrecomputeSpec, data: DataSpec, out: Path) -> float:
    """Seconds from the call to its first block, where half of the blocks are there."""
    compute, done, first = precompute.compute_block, itertools.count(1), 0.0

    def some(job: Job, block: Block) -> dict[str, Any]:
        if next(done) > 8:
            raise KeyboardInterrupt
        return compute(job, block)

    def timed(job: Job, block: Block) -> dict[str, Any]:
        nonlocal first
        first = first or time.perf_counter()
        return compute(job, block)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(precompute, "compute_block", some)
        with pytest.raises(Interrupted):
            precompute_store(spec, data, out, workers=0)
        patch.setattr(precompute, "compute_block", timed)
        began = time.perf_counter()
        precompute_store(spec, data, out, workers=0)
    return first - began


def main() -> None:
    """As the module says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        found = run(kills=arguments.kills, seed=arguments.seed, folder=Path(folder))
    print(json.dumps({**found, "minutes": round((time.perf_counter() - began) / 60, 1)}, indent=1))


if __name__ == "__main__":
    main()
