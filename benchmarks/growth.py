"""Whether memory and speed stay what they are as the data grows: precompute and training over N made-up examples.

    python benchmarks/growth.py [--examples 10000,100000,1000000] [--images grey] [--steps 300] [--json FILE]

Images are functions of their index, so that they take no memory, and the model is linear: what grows is ours. They have
784 bytes, or with --images photographs 3×299×299. Each N in processes of its own: precompute over all of it, then
--steps training steps with rows in random order, of photographs within windows of 8 blocks. Memory is anonymous memory
(RssAnon) at its most, and in each quarter of precompute's time, less what the process had before its work: the pages of
memory-mapped chunks are the system's to take back, and are not counted.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import cached_property, partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from figures import arguments_of, report, watched
from torch import nn

import ensadv_data.blocks
import ensadv_data.precompute
from ensadv_data.codec import random_bits, row_bytes
from ensadv_data.data import digest_examples, digest_of
from ensadv_data.memory import keep_freed_memory
from ensadv_data.spec import DataSpec, PrecomputeSpec, TrainSpec
from ensadv_data.training import TrainingRun

SHAPES = {"grey": (1, 28, 28), "photographs": (3, 299, 299)}
WARM = {"grey": 10_000, "photographs": 2000}  # of a store that shows what any work takes, whatever its size


WINDOW = 8  # blocks of photographs


class MadeUp:
    """Random images that are a function of their index; nothing of them is kept."""

    name, split, classes = "made-up", "train", 10

    def __init__(self, n: int, kind: str) -> None:
        self.n, self.shape = n, SHAPES[kind]

    def __len__(self) -> int:
        return self.n

    def read(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Images and labels."""
        bits = random_bits(1, np.zeros_like(indices), indices, d=8 * math.prod(self.shape))
        return bits.reshape(-1, *self.shape), indices % self.classes

    def preparation(self) -> dict[str, Any]:
        """None."""
        return {}

    @cached_property
    def digest(self) -> str:
        """Digest of them all, a part at a time."""
        part = max(1, 2**22 // math.prod(self.shape))
        starts = range(0, self.n, part)
        return digest_of(digest_examples(self.read(np.arange(s, min(s + part, self.n)))[0]) for s in starts)


def linear(kind: str) -> nn.Module:
    """A model of one layer."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(SHAPES[kind]), 10))


def grey() -> nn.Module:
    """The static model of such images, as ``python:growth:grey``."""
    return linear("grey")


def photographs() -> nn.Module:
    """The static model of such images, as ``python:growth:photographs``."""
    return linear("photographs")


def anonymous() -> int:
    """Bytes of anonymous memory of this process."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return 1024 * int(next(line.split()[1] for line in status.splitlines() if line.startswith("RssAnon")))


def grown(work: Callable[[], object]) -> tuple[float, int, list[int]]:
    """Seconds of a work, and the most anonymous bytes while it ran and in each quarter of it, less those before."""
    before = anonymous()
    seconds, seen = watched(work, anonymous, every=0.02)
    ends = [len(seen) * quarter // 4 for quarter in range(5)]
    quarters = [max([before, *seen[a:b]]) - before for a, b in pairwise(ends)]
    return seconds, max([before, *seen]) - before, quarters


def precomputed(kind: str, n: int, folder: Path) -> dict[str, Any]:
    """Precompute over n examples, in this process."""
    os.environ["ENSADV_QUIET"] = "1"
    torch.set_num_threads(1)
    keep_freed_memory()
    ensadv_data.blocks.open_data = lambda spec, split, **_: MadeUp(spec.limit, kind)  # type: ignore[assignment, return-value]
    batch = 512 if kind == "grey" else 32
    about = {"attacks": ("r-fgsm:alpha=0.1",), "draws": 1, "batch_size": batch}
    spec = PrecomputeSpec(models={"m": f"python:growth:{kind}"}, **about)
    where = DataSpec(data="made-up", limit=n)
    small = DataSpec(data="made-up", limit=WARM[kind])
    ensadv_data.precompute.precompute_store(spec, small, folder / "warm", workers=0)
    make = partial(ensadv_data.precompute.precompute_store, spec, where, folder / "store", workers=0)
    seconds, more, quarters = grown(make)
    return {"images_a_second": round(n / seconds), "bytes": more, "bytes_by_quarter": quarters}


def trained(kind: str, n: int, folder: Path, steps: int) -> dict[str, float]:
    """Some training steps over n examples, from the store."""
    torch.set_num_threads(1)
    keep_freed_memory()

    def run(store: str, count: int, examples: int) -> TrainingRun:
        window = 0 if kind == "grey" else WINDOW  # the masks of all photographs do not fit in memory
        spec = TrainSpec(architecture="D", shards=(str(folder / store),), epsilon=0.3, window=window)
        small = None if kind == "grey" else linear(kind)
        run = TrainingRun(spec, MadeUp(examples, kind), folder / "m.safetensors", module=small)  # type: ignore[arg-type]
        for number in range(count):
            run.step(number, run.prepare(number))
        return run

    run("warm", 10, WARM[kind])
    started, first, _ = grown(lambda: kept.append(run("store", 1, n)))
    seconds, more, _ = grown(lambda: [kept[0].step(k, kept[0].prepare(k)) for k in range(1, steps)])
    return {
        "steps_a_second": round((steps - 1) / seconds, 1),
        "seconds_to_start": round(started, 2),
        "bytes": first + max(0, more),
    }


kept: list[TrainingRun] = []


def main() -> None:
    """Measure, print, and write what was asked for."""
    arguments = arguments_of(
        __doc__,
        examples={"default": "10000,100000,1000000"},
        images={"choices": sorted(SHAPES), "default": "grey"},
        steps={"type": int, "default": 300, "help": "training steps"},
    )
    found: dict[str, Any] = {}
    sizes = [int(text) for text in arguments.examples.split(",")]
    for n in sizes:
        with tempfile.TemporaryDirectory() as name:
            parts = {}
            for what, work, rest in (("precompute", precomputed, ()), ("train", trained, (arguments.steps,))):
                with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
                    parts[what] = process.submit(work, arguments.images, n, Path(name), *rest).result()
            found[str(n)] = parts
            print(n, json.dumps(parts), flush=True)
    first, last = sizes[0], sizes[-1]
    slopes = {
        what: round((found[str(last)][what]["bytes"] - found[str(first)][what]["bytes"]) / max(1, last - first), 2)
        for what in ("precompute", "train")
    }
    width = row_bytes(math.prod(SHAPES[arguments.images]))
    report(arguments, {"threads": 1, "row_bytes": width, "n": found, "bytes_an_example": slopes})


if __name__ == "__main__":
    main()
