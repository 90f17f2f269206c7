"""What the store does for a training step: clean, from the store, and with gradients computed online.

    python benchmarks/step.py [--architecture A,B,C,D] [--rounds 9] [--figure docs/step.svg] [--json FILE]

Every alternative trains on 128 images a step: 128 clean ones, or 64 clean ones and their 64 perturbations. Data and
store are read from the disk in each step's turn. The figure is of architecture C.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from figures import arguments_of, milliseconds, report, rounded
from matplotlib.figure import Figure

from ensadv_data.bench import step_alternatives
from ensadv_data.data import open_dataset
from ensadv_data.memory import keep_freed_memory
from ensadv_data.timing import Timing, measure, ratio

LIMIT = 2000
REPEATS = {"A": 1, "B": 4, "B*": 4, "C": 2, "D": 40}  # steps that make one figure
TITLES = {
    "clean": "clean: no perturbation",
    "store": "half adversarial, directions from the store",
    "online": "half adversarial, gradient of the model itself",
    "static": "half adversarial, gradient of a static model, online",
}


def draw(path: Path, timings: dict[str, Timing], architecture: str) -> None:
    """One bar an alternative, its quartiles, and its ratio to the clean step."""
    figure = Figure(figsize=(8, 2.6), layout="constrained")
    axes = figure.subplots()
    colours = {"clean": "#8a8f98", "store": "#2a7f62", "online": "#c05a2b", "static": "#d99a6c"}
    for row, (name, timing) in enumerate(timings.items()):
        low, high = timing.spread
        middle = 1000 * timing.median
        axes.barh(row, middle, color=colours[name])
        axes.errorbar(middle, row, xerr=[[middle - 1000 * low], [1000 * high - middle]], color="black", capsize=3)
        label = f"{middle:.1f} ms" if name == "clean" else f"{middle:.1f} ms, ×{ratio(timings, name, 'clean')[0]:.2f}"
        axes.text(1000 * high, row, f"  {label}", va="center")
    axes.set_yticks(range(len(timings)), [TITLES[name] for name in timings])
    axes.invert_yaxis()
    axes.margins(x=0.2)
    axes.set_xlabel(f"one training step of architecture {architecture}, 128 images (median and quartiles)")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    """Measure, print, and write what was asked for."""
    arguments = arguments_of(
        __doc__,
        architecture={"default": "A,B,C,D"},
        threads={"type": int, "default": 1},
        figure={"type": Path},
    )
    keep_freed_memory()  # as the commands do
    torch.set_num_threads(arguments.threads)
    dataset, found = open_dataset("mnist-mini", "train", limit=LIMIT), {}
    for architecture in arguments.architecture.split(","):
        with tempfile.TemporaryDirectory() as folder:
            steps = step_alternatives(dataset, Path(folder), architecture=architecture)
            timings = measure(steps, rounds=arguments.rounds, repeats=REPEATS[architecture])
        found[architecture] = {
            "milliseconds": milliseconds(timings),
            "over_clean": {name: rounded(ratio(timings, name, "clean")) for name in timings},
            "over_store": {name: rounded(ratio(timings, name, "store")) for name in timings},
        }
        if arguments.figure and architecture == "C":
            draw(arguments.figure, timings, architecture)
    report(arguments, {"threads": arguments.threads, "batch_size": 64, "architectures": found})


if __name__ == "__main__":
    main()
