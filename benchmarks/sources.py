"""What a step costs with n sources, of which one is online and n - 1 are stored, beside 1 + (r - 1) / n.

    python benchmarks/sources.py [--architecture D] [--rounds 7] [--steps 60] [--json FILE]

The paper's claim (Section 4.1): only every n-th batch needs a gradient. A source is drawn for each step, as in
training; the share of steps that computed a gradient is counted, and the model is of that share s: 1 + (r - 1)·s,
where r is the time of an online step over that of a stored one.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from figures import arguments_of, milliseconds, report, rounded

from ensadv_data.bench import random_store
from ensadv_data.data import Dataset, open_dataset
from ensadv_data.memory import keep_freed_memory
from ensadv_data.spec import TrainSpec, checked
from ensadv_data.timing import measure, ratio
from ensadv_data.training import TrainingRun

MOST = 4


class Steps:
    """Training steps over some sources; counts those that computed a gradient."""

    def __init__(self, dataset: Dataset, folder: Path, *, architecture: str, stored: int, online: bool) -> None:
        names = [f"static{number}" for number in range(stored)]
        store = [random_store(dataset, folder / f"store{stored}{online}", sources=names)] if names else []
        fields = {"architecture": architecture, "shards": store} | ({"online": "step-ll"} if online else {})
        spec = checked(TrainSpec, fields, where="sources")
        self.run = TrainingRun(spec, dataset, folder / f"n{stored}{online}.safetensors")
        self.numbers, self.computed, self.made = itertools.count(), 0, 0

    def step(self) -> None:
        """One step."""
        number = next(self.numbers)
        batch = self.run.prepare(number)
        self.computed += batch.static[0][1] is None
        self.made += 1
        self.run.step(number, batch)


def main() -> None:
    """Measure, print, and write what was asked for."""
    arguments = arguments_of(__doc__, architecture={"default": "D"}, steps={"type": int, "default": 60})
    keep_freed_memory()
    torch.set_num_threads(1)
    dataset = open_dataset("mnist-mini", "train", limit=2000)
    with tempfile.TemporaryDirectory() as name:
        folder, architecture = Path(name), arguments.architecture
        runs = {"store": Steps(dataset, folder, architecture=architecture, stored=1, online=False)} | {
            f"n = {n}": Steps(dataset, folder, architecture=architecture, stored=n - 1, online=True)
            for n in range(1, MOST + 1)
        }
        ways: dict[str, Callable[[], object]] = {name: run.step for name, run in runs.items()}
        timings = measure(ways, rounds=arguments.rounds, repeats=arguments.steps)
    cost = {name: rounded(ratio(timings, name, "store")) for name in runs}
    share = {name: run.computed / run.made for name, run in runs.items()}
    found = {
        name: {"over_store": cost[name], "share": round(s, 4), "model": round(1 + (cost["n = 1"][0] - 1) * s, 4)}
        for name, s in share.items()
    }
    about = {"architecture": arguments.architecture, "threads": 1, "steps": arguments.steps}
    report(arguments, {**about, "milliseconds": milliseconds(timings), "sources": found})


if __name__ == "__main__":
    main()
