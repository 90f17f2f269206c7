"""What it costs to give freed tensors back to the system: a training step with and without keep_freed_memory.

    python benchmarks/memory.py [--architecture C] [--rounds 9] [--json FILE]

The choice belongs to a process, so each alternative is one, and they take their turns.
"""

from __future__ import annotations

import multiprocessing
import resource
import tempfile
from itertools import count
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from figures import arguments_of, report, rounded

from ensadv_data.data import open_dataset
from ensadv_data.memory import keep_freed_memory
from ensadv_data.spec import TrainSpec
from ensadv_data.timing import measure, ratio
from ensadv_data.training import TrainingRun

LIMIT = 2000


def serve(line: Connection, architecture: str, keep: bool) -> None:
    """Do as many steps as asked for; the answer is the peak of the process's memory in MiB."""
    kept = keep_freed_memory() if keep else False
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        dataset = open_dataset("mnist-mini", "train", limit=LIMIT)
        spec = TrainSpec(architecture=architecture, online="step-ll")
        run = TrainingRun(spec, dataset, Path(folder) / "m.safetensors")
        numbers = count()
        line.send(kept)
        while steps := line.recv():
            for _ in range(steps):
                number = next(numbers)
                run.step(number, run.prepare(number))
            line.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def main() -> None:
    """Measure, print, and write what was asked for."""
    arguments = arguments_of(
        __doc__,
        architecture={"default": "C"},
        repeats={"type": int, "default": 4, "help": "steps that make one figure"},
    )
    context = multiprocessing.get_context("spawn")
    lines: dict[str, Connection] = {}
    for name, keep in (("given back", False), ("kept", True)):
        lines[name], theirs = context.Pipe()
        context.Process(target=serve, args=(theirs, arguments.architecture, keep), daemon=True).start()
        if lines[name].recv() is not keep:
            raise SystemExit("this C library has no such choice: nothing to compare")
    peak: dict[str, float] = {}

    def steps(name: str) -> None:
        lines[name].send(arguments.repeats)
        peak[name] = lines[name].recv()

    timings = measure({name: lambda name=name: steps(name) for name in lines}, rounds=arguments.rounds, repeats=1)
    for line in lines.values():
        line.send(0)
    report(
        arguments,
        {
            "architecture": arguments.architecture,
            "threads": 1,
            "milliseconds": {name: round(1000 * t.median / arguments.repeats, 3) for name, t in timings.items()},
            "kept_over_given_back": rounded(ratio(timings, "kept", "given back")),
            "peak_mib": {name: round(value) for name, value in peak.items()},
        },
    )


if __name__ == "__main__":
    main()
