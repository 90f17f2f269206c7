"""What makes the gradient of the online batch cheaper: one forward pass for label and gradient, and bfloat16.

    python benchmarks/online.py [--architecture A,B,C,D] [--bfloat16 D] [--rounds 9] [--json FILE]

Training steps as in step.py, on 64 images and their 64 online Step-LL perturbations: *two passes*, as by default, where
dropout is active in the gradient but not in the choice of the label; *one pass* (--online-mode eval), where both see
the same network; and *bfloat16* (--amp), forward and backward passes of step and gradient, with float32 weights and
updates, which is left out where the processor only imitates it.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from figures import arguments_of, milliseconds, report, rounded
from step import LIMIT

from ensadv_data.arithmetic import has_bfloat16
from ensadv_data.bench import training_step
from ensadv_data.data import open_dataset
from ensadv_data.memory import keep_freed_memory
from ensadv_data.timing import measure, ratio

WAYS: dict[str, dict[str, Any]] = {
    "clean": {"batch_size": 128},
    "two passes": {"online": "step-ll"},
    "one pass": {"online": "step-ll", "online_mode": "eval"},
    "bfloat16": {"online": "step-ll", "amp": True},
}
REPEATS = {"A": 1, "B": 2, "B*": 2, "C": 1, "D": 20}  # steps that make one figure


def main() -> None:
    """Measure, print, and write what was asked for."""
    arguments = arguments_of(
        __doc__,
        architecture={"default": "A,B,C,D"},
        bfloat16={
            "default": "D",
            "help": "those also measured in bfloat16",
        },
    )
    keep_freed_memory()  # as the commands do
    torch.set_num_threads(1)
    dataset, found = open_dataset("mnist-mini", "train", limit=LIMIT), {}
    with tempfile.TemporaryDirectory() as folder:
        for architecture in arguments.architecture.split(","):
            ways = {
                name: training_step(dataset, Path(folder) / "m.safetensors", {"architecture": architecture} | fields)
                for name, fields in WAYS.items()
                if name != "bfloat16" or (has_bfloat16("cpu") and architecture in arguments.bfloat16.split(","))
            }
            timings = measure(ways, rounds=arguments.rounds, repeats=REPEATS[architecture])
            found[architecture] = {
                "milliseconds": milliseconds(timings),
                "over_clean": {name: rounded(ratio(timings, name, "clean")) for name in timings},
            }
    report(arguments, {"threads": 1, "batch_size": 64, "architectures": found})


if __name__ == "__main__":
    main()
