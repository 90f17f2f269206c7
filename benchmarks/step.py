"""What the store does for a training step: clean, from the store, and with gradients computed online.

    python benchmarks/step.py [--architecture C] [--rounds 9] [--figure docs/step.svg] [--json FILE]

Every alternative trains on 128 images a step: 128 clean ones, or 64 clean ones and their 64 perturbations. Data
and store are read from the disk as in training.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
from itertools import count
from pathlib import Path

import torch
from matplotlib.figure import Figure
from paired import Timing, measure, ratio

from ensadv_data.data import open_dataset
from ensadv_data.memory import keep_freed_memory
from ensadv_data.models import build_model, save_model
from ensadv_data.precompute import precompute_store
from ensadv_data.spec import DataSpec, PrecomputeSpec, TrainSpec, parse_attack
from ensadv_data.training import TrainingRun

LIMIT = 2000
TITLES = {
    "clean": "clean: no perturbation",
    "store": "half adversarial, directions from the store",
    "online": "half adversarial, gradient of the model itself",
    "static": "half adversarial, gradient of a static model, online",
}


def alternatives(architecture: str, folder: Path) -> dict[str, TrainingRun]:
    """Runs that differ only in where their perturbations come from."""
    dataset = open_dataset("mnist-mini", "train", limit=LIMIT)
    static = build_model(architecture, shape=dataset.shape, classes=dataset.classes, seed=1)
    weights = folder / "static.safetensors"
    save_model(weights, static, architecture=architecture, shape=dataset.shape, classes=dataset.classes, record={})
    attack = parse_attack("r-fgsm:alpha=0.1")
    store = folder / "store"
    spec = PrecomputeSpec(models={"static": str(weights)}, attacks=(attack,), draws=2)
    precompute_store(spec, DataSpec(data="mnist-mini", limit=LIMIT), store, workers=0)

    def run(name: str, **fields: object) -> TrainingRun:
        return TrainingRun(TrainSpec(architecture=architecture, **fields), dataset, folder / f"{name}.safetensors")

    return {
        "clean": run("clean", batch_size=128),
        "store": run("store", shards=(str(store),)),
        "online": run("online", online="step-ll"),
        "static": run("static-online", static={"static": str(weights)}, static_attack=attack),
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architecture", default="C")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--repeats", type=int, default=4, help="steps that make one figure")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--figure", type=Path)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    keep_freed_memory()  # as the commands do
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        runs = alternatives(arguments.architecture, Path(folder))
        numbers = {name: count() for name in runs}

        def step(name: str) -> None:
            run = runs[name]
            number = next(numbers[name])
            run.step(number, run.prepare(number))  # read in its turn: nothing is hidden by reading ahead

        timings = measure(
            {name: lambda name=name: step(name) for name in runs}, rounds=arguments.rounds, repeats=arguments.repeats
        )
    result = {
        "architecture": arguments.architecture,
        "threads": arguments.threads,
        "rounds": arguments.rounds,
        "machine": platform.machine(),
        "torch": torch.__version__,
        "milliseconds": {name: round(1000 * timing.median, 3) for name, timing in timings.items()},
        "ratio_to_clean": {name: [round(r, 4) for r in ratio(timings, name, "clean")] for name in timings},
        "online_over_store": {
            name: [round(r, 4) for r in ratio(timings, name, "store")] for name in ("online", "static")
        },
    }
    print(json.dumps(result, indent=1))
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if arguments.figure:
        draw(arguments.figure, timings, arguments.architecture)


if __name__ == "__main__":
    main()
