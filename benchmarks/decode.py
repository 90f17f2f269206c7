"""Whether decoding is the work: precompute and training over many JPEGs with a small net, beside a bare decode loop.

    python benchmarks/decode.py [--images 50000] [--folder FOLDER] [--rounds 9] [--json FILE]

The photographs are cut by tests/photographs.py: into FOLDER if they are not there yet, else into a folder that is
deleted. First the whole flow, each part in a process of its own: the check of all images, precompute with a worker a
core, one epoch of training; memory is anonymous memory of all its processes. Then in turn, over the same files: *bare*
decodes them in one thread, *precompute* makes a block of a store, *train* does some steps, both with one thread that
decodes. On *one core* the net has no other place; with *a core more* it has its own, as beside an accelerator.
Wants Linux.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import runpy
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from figures import arguments_of, ratios, report, rounded, watched
from torch import Tensor, nn

from ensadv_data.ahead import made_from_read
from ensadv_data.blocks import Job, make_block, plan_blocks
from ensadv_data.data import open_data
from ensadv_data.data.decoding import decode_image
from ensadv_data.data.photographs import mapped
from ensadv_data.entries import entries_of
from ensadv_data.memory import keep_freed_memory
from ensadv_data.models import load_model
from ensadv_data.precompute import header_of, precompute_store
from ensadv_data.spec import DataSpec, PrecomputeSpec, PreprocessSpec, TrainSpec
from ensadv_data.store import StoreWriter
from ensadv_data.timing import Timing, measure, ratio
from ensadv_data.training import TrainingRun

PHOTOGRAPHS = runpy.run_path(str(Path(__file__).parent.parent / "tests" / "photographs.py"))
CLASSES = len(PHOTOGRAPHS["SAMPLES"])
STRIPE = 13  # rows
BATCH = 64


class Stripes(nn.Module):
    """Logits of the sums of stripes: next to no work, and no zero in its gradient."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.linear = nn.Linear(3 * size // STRIPE, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of images whose height is a multiple of a stripe's."""
        n, channels, height, width = x.shape
        return self.linear(x.reshape(n, channels, height // STRIPE, STRIPE * width).sum(3).flatten(1))


def small() -> nn.Module:
    """The static model, as ``python:decode:small``."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return Stripes(int(os.environ["DECODE_SIZE"]))


def images_of(folder: Path, size: int) -> DataSpec:
    """The photographs of a folder, their index beside them."""
    how = PreprocessSpec(size=size)
    return DataSpec(data=f"folder:{folder / 'photographs'}", data_dir=str(folder / "index"), preprocess=how)


def specs(folder: Path, size: int) -> tuple[PrecomputeSpec, TrainSpec]:
    """Of the store at ``folder/store``, and of a training on it; the small net takes the architecture's place."""
    made = PrecomputeSpec(models={"small": "python:decode:small"}, attacks=("step-ll",), batch_size=BATCH)
    store = str(folder / "store")
    return made, TrainSpec(architecture="D", shards=(store,), batches="replace", batch_size=BATCH, epsilon=16 / 255)


def anonymous() -> int:
    """Bytes of anonymous memory of this process and its children."""
    total = 0
    for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
        try:
            status = Path(f"/proc/{process.pid}/status").read_text(encoding="ascii")
        except OSError:
            continue
        total += sum(1024 * int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon"))
    return total


def flow(work: Callable[[], object], n: int) -> dict[str, float]:
    """Images a second, and the most memory in the second and in the last quarter of the time."""
    seconds, seen = watched(work, anonymous, every=0.2)
    seen = seen or [anonymous()]
    quarter = -(-len(seen) // 4)
    return {
        "images_a_second": round(n / seconds),
        "mib_second_quarter": round(max(seen[quarter : 2 * quarter] or seen) / 2**20),
        "mib_last_quarter": round(max(seen[-quarter:]) / 2**20),
    }


def seconds_of_decoding() -> float:
    """Seconds in which the threads that decode were running, or wanted to: they had work."""
    total = 0
    for thread in threading.enumerate():
        if thread.name.startswith("decode"):
            running, waiting, _ = Path(f"/proc/self/task/{thread.native_id}/schedstat").read_text().split()
            total += int(running) + int(waiting)
    return total / 1e9


def begun(size: int, cores: int | None = None) -> None:
    """Make this process one of the commands' kind, on so many cores."""
    os.environ |= {"ENSADV_QUIET": "1", "DECODE_SIZE": str(size)}
    if cores:
        os.sched_setaffinity(0, set(itertools.islice(sorted(os.sched_getaffinity(0)), cores)))
    torch.set_num_threads(1)
    keep_freed_memory()


def checked(folder: Path, size: int) -> dict[str, float]:
    """The digest of all images: each is decoded once."""
    begun(size)
    data = open_data(images_of(folder, size), "train")
    return flow(lambda: data.digest, len(data))


def precomputed(folder: Path, size: int, workers: int) -> dict[str, float]:
    """The whole store."""
    begun(size)
    spec, _ = specs(folder, size)
    where = images_of(folder, size)
    n = len(open_data(where, "train"))
    return flow(lambda: precompute_store(spec, where, folder / "store", workers=workers), n)


def trained(folder: Path, size: int) -> dict[str, float]:
    """One epoch."""
    begun(size)
    data = open_data(images_of(folder, size), "train")
    run = TrainingRun(specs(folder, size)[1], data, folder / "m.safetensors", module=Stripes(size))
    steps = range(run.schedule.steps)
    return flow(lambda: stepped(run, steps), len(steps) * BATCH)


def stepped(run: TrainingRun, numbers: range) -> None:
    """Training steps, as a training does them."""
    with closing(made_from_read(run.batches.load, run.batches.prepare, numbers, depth=2)) as batches:
        for number, batch in zip(numbers, batches, strict=True):
            run.step(number, batch)


def compared(folder: Path, size: int, cores: int, rounds: int) -> dict[str, Any]:
    """Time of the bare loop over that of precompute and of training: one thread that decodes, on so many cores.

    And two shares that other processes of the machine hardly touch: that of the bare loop in their processor time, and
    that of the time in which the thread that decodes had work, over the bare loop's.
    """
    begun(size, cores)
    where, (spec, training) = images_of(folder, size), specs(folder, size)
    data = open_data(where, "train", threads=1)
    models = [load_model(reference, name=name) for name, reference in spec.models.items()]
    header = header_of(spec, data, models)
    entries = tuple(entry for model in models for entry in entries_of(spec, model).values())
    StoreWriter(folder / f"blocks-{cores}", header, entries).create()
    job = Job(folder / f"blocks-{cores}", where, header, entries, spec)
    blocks = itertools.cycle(plan_blocks(header))
    block = [next(blocks)]
    root = folder / "photographs" / "train"

    def decoded(row: int) -> None:
        decode_image((root / data.listing.name(row)).read_bytes(), data.how)

    def bare() -> None:
        block[0] = next(blocks)
        rows = np.arange(block[0].first, block[0].last + 1)
        deque(mapped(decoded, rows.tolist(), threads=1), maxlen=0)

    count = max(1, header.block // BATCH)
    run = TrainingRun(training, data, folder / "m.safetensors", module=Stripes(size))
    starts = itertools.count(0, count)

    def steps() -> None:
        first = next(starts) % (run.schedule.steps - count)
        stepped(run, range(first, first + count))

    def later() -> None:
        run.batches._proved[:] = True  # as after an epoch
        steps()

    def first() -> None:
        run.batches._proved[:] = False
        steps()

    alternatives = {
        "bare": bare,
        "precompute": lambda: make_block(job, block[0]),
        "train, first epoch": first,
        "train, later": later,
    }
    spent: dict[str, list[float]] = {name: [] for name in alternatives}
    busy: dict[str, list[float]] = {name: [] for name in alternatives}

    def clocked(name: str) -> Callable[[], object]:
        def work() -> None:
            began, processor, decoding = time.perf_counter(), time.process_time(), seconds_of_decoding()
            alternatives[name]()
            spent[name].append(time.process_time() - processor)
            busy[name].append((seconds_of_decoding() - decoding) / (time.perf_counter() - began))

        return work

    loads = [os.getloadavg()[0]]
    timings = measure({name: clocked(name) for name in alternatives}, rounds=rounds)
    processor = {name: Timing(tuple(seconds[1:])) for name, seconds in spent.items()}  # the first is the warm-up
    decoding = {name: Timing(tuple(shares[1:])) for name, shares in busy.items()}
    images = {name: count * BATCH if name.startswith("train") else header.block for name in alternatives}

    def shares(found: dict[str, Timing]) -> dict[str, list[float]]:
        pace = {name: images[name] / header.block for name in found}  # training does whole batches
        over = ratios(found, "bare")
        return {name: [round(value * pace[name], 4) for value in over[name]] for name in list(found)[1:]}

    loads.append(os.getloadavg()[0])
    return {
        "load": [round(load, 1) for load in loads],
        "images_a_second": {name: round(images[name] / timing.median) for name, timing in timings.items()},
        "bare_over_it": shares(timings),
        "share_of_processor_time": shares(processor),
        "share_of_time_decoding": {name: rounded(ratio(decoding, name, "bare")) for name in list(decoding)[1:]},
    }


def main() -> None:
    """Measure, print, and write what was asked for."""
    arguments = arguments_of(
        __doc__,
        images={"type": int, "default": 50_000},
        size={"type": int, "default": 299, "help": "side of the images, a multiple of 13"},
        workers={"type": int, "default": os.cpu_count(), "help": "of precompute; 0: none but this process"},
        folder={"type": Path},
    )
    if arguments.size % STRIPE:
        raise SystemExit(f"expected a size that is a multiple of {STRIPE}, got {arguments.size}")
    with tempfile.TemporaryDirectory() as name:
        folder = arguments.folder or Path(name)
        each = -(-arguments.images // CLASSES)
        if not (folder / "photographs").is_dir():
            PHOTOGRAPHS["cut_photographs"](folder / "photographs", side=arguments.size, train=each, test=1)
        sizes = [path.stat().st_size for path in (folder / "photographs" / "train").rglob("*.jpg")]
        found: dict[str, Any] = {"images": len(sizes), "megabytes": round(sum(sizes) / 1e6), "size": arguments.size}

        def alone(work: Callable[..., dict[str, Any]], *rest: int) -> dict[str, Any]:
            with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
                told = process.submit(work, folder, arguments.size, *rest).result()
            print(work.__name__, *rest, told, flush=True)
            return told

        found["check"] = alone(checked)
        found["precompute"] = alone(precomputed, arguments.workers)
        found["train"] = alone(trained)
        found["one core"] = alone(compared, 1, arguments.rounds)
        found["a core more"] = alone(compared, 2, arguments.rounds)
        report(arguments, {"workers": arguments.workers, "batch_size": BATCH, **found})


if __name__ == "__main__":
    main()
