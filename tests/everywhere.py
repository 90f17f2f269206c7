"""One store, made in every way that there is; all must be the same.

    python tests/everywhere.py

By 1, 2 and 4 workers, by a LocalCluster, and by a scheduler and workers that were started by hand, on a disk and in a
bucket of a real S3 server of this machine. docs/reliability.md has what it prints.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import distributed

from ensadv_data.manifest import read_manifest
from ensadv_data.models import build_model, save_model
from ensadv_data.objects import objects_at
from ensadv_data.precompute import precompute_store
from ensadv_data.spec import DataSpec, PrecomputeSpec
from laws import wait_until
from s3 import BUCKET, s3_server

DATA = DataSpec(data="mnist-mini", limit=1000)


def spec_in(folder: Path) -> PrecomputeSpec:
    """An attack of one step and one of many, with two draws."""
    path = folder / "d.safetensors"
    module = build_model("D", shape=(1, 28, 28), classes=10, seed=1)
    save_model(path, module, architecture="D", shape=(1, 28, 28), classes=10, record={})
    return PrecomputeSpec(models={"d": str(path)}, attacks=("r-fgsm", "pgd:steps=40,step_size=0.01"), draws=2)


@contextmanager
def by_hand(folder: Path, *, workers: int) -> Iterator[tuple[str, list[subprocess.Popen[bytes]]]]:
    """A scheduler and workers as somebody starts them in terminals; its address, and the processes."""
    file = folder / "scheduler.json"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def start(*words: str) -> subprocess.Popen[bytes]:
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        return subprocess.Popen([sys.executable, "-m", "dask", *words], env=environment, cwd=folder, **quiet)

    with ExitStack() as stack:
        alone = ("--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file", str(file))
        started = [start("scheduler", *alone)]
        wait_until(file.exists, started[0])
        for _ in range(workers):
            started.append(start("worker", "--scheduler-file", str(file), "--nthreads", "1", "--no-dashboard"))
        for process in started:
            stack.callback(process.wait)
            stack.callback(process.kill)
        with distributed.Client(scheduler_file=str(file), set_as_default=False) as client:
            client.wait_for_workers(workers, timeout=60) if workers else None
            address = client.scheduler.address
        yield address, started


def same(store: Path | str, other: Path | str) -> bool:
    """Whether two stores have the same manifest, and the objects that it names."""
    manifest, here, there = read_manifest(store), objects_at(store), objects_at(other)
    return manifest.to_bytes() == read_manifest(other).to_bytes() and all(
        here.read(key) == there.read(key) for key in manifest.objects
    )


def main() -> None:
    """As the module says."""
    os.environ["ENSADV_QUIET"] = "1"
    with tempfile.TemporaryDirectory() as name, s3_server(), ExitStack() as stack:
        folder = Path(name)
        spec, first = spec_in(folder), folder / "first"
        expected = precompute_store(spec, DATA, first, workers=0).digest
        print(f"{'in this process, on a disk':<40} {expected}")
        local = stack.enter_context(distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None))
        address, _ = stack.enter_context(by_hand(folder, workers=2))
        ways: dict[str, dict[str, object]] = {f"{n} worker{'s' * (n > 1)}": {"workers": n} for n in (1, 2, 4)}
        ways["a LocalCluster of 2"] = {"scheduler": local.scheduler_address}
        ways["2 workers started by hand"] = {"scheduler": address}
        for where in ("on a disk", "in a bucket"):
            for number, (way, how) in enumerate(ways.items()):
                out = folder / f"s{number}" if where == "on a disk" else f"s3://{BUCKET}/s{number}"
                digest = precompute_store(spec, DATA, out, **how).digest
                print(f"{f'{way}, {where}':<40} {digest}", flush=True)
                if digest != expected or not same(out, first):
                    sys.exit("another store")


if __name__ == "__main__":
    main()
