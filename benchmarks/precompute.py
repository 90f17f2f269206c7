"""What precompute costs beyond the gradients: blocks of the store against a bare loop of input gradients over them.

    python benchmarks/precompute.py [--architecture B,C,D] [--rounds 9] [--json FILE]

*bare* computes the gradient of the loss at each image of a block of a store, and drops it; *block* reads, computes,
packs, digests and writes, as a worker of precompute does; *exact* does so with --precision exact. *one pass* makes FGSM
and Step-LL of two models together, *one by one* each of the four by itself. Batches of 64, one thread.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from figures import arguments_of, report, rounded

from ensadv_data.bench import gradient_alternatives, save_untrained
from ensadv_data.blocks import Block, Job, make_block
from ensadv_data.data import open_dataset
from ensadv_data.dist import intra_op_threads
from ensadv_data.entries import entries_of
from ensadv_data.memory import keep_freed_memory
from ensadv_data.models import load_model
from ensadv_data.spec import DataSpec, PrecomputeSpec
from ensadv_data.store import Header, StoreWriter, block_size
from ensadv_data.timing import measure, ratio

SIZES = {"A": 10_000, "D": 60_000}  # images of the store


def first_block(
    models: dict[str, str], attacks: tuple[str, ...], n: int, path: Path, **options: bool | str
) -> Callable[[], object]:
    """What a worker does with the first block of a store for n images."""
    spec = PrecomputeSpec(models=models, attacks=attacks, **options)
    loaded = [load_model(reference, name=name) for name, reference in models.items()]
    entries = tuple(entry for model in loaded for entry in entries_of(spec, model).values())
    dataset = open_dataset("mnist-mini", "train")
    groups = tuple(entry.key for entry in entries)
    about = {"data": dataset.name, "split": "train", "data_digest": dataset.digest, "plan": {}, "draws": 1}
    header = Header(**about, shape=dataset.shape, classes=dataset.classes, n=n, groups=groups)
    StoreWriter(path, header, entries).create()
    job = Job(path, DataSpec(data="mnist-mini"), header, entries, spec)
    return lambda: make_block(job, Block(0, 0, header.block - 1))


def main() -> None:
    """Measure, print, and write what was asked for."""
    arguments = arguments_of(__doc__, architecture={"default": "B,C,D"})
    keep_freed_memory()  # as workers do
    found = {}
    for architecture in arguments.architecture.split(","):
        with tempfile.TemporaryDirectory() as folder, intra_op_threads(1):
            found[architecture] = compared(architecture, Path(folder), arguments.rounds)
    report(arguments, {"threads": 1, "batch_size": 64, "architectures": found})


def compared(architecture: str, folder: Path, rounds: int) -> dict[str, Any]:
    """The figures of an architecture; a slow one has a block of a smaller store."""
    dataset = open_dataset("mnist-mini", "train")
    models = {f"m{s}": save_untrained(architecture, dataset, folder / f"{s}.safetensors", seed=s) for s in range(2)}
    n = SIZES.get(architecture, 30_000)
    large, small = block_size(n, 784), block_size(5000, 784)
    images, _ = dataset.read(np.arange(large))
    timings = measure(
        {
            "bare": gradient_alternatives(load_model(models["m0"], name="m0"), images)["bare"],
            "block": first_block({"m0": models["m0"]}, ("fgsm",), n, folder / "one"),
            "exact": first_block({"m0": models["m0"]}, ("fgsm",), n, folder / "exact", precision="exact"),
        },
        rounds=rounds,
    )
    apart = [
        first_block({model: models[model]}, (attack,), 5000, folder / f"{model}-{attack}")
        for model in models
        for attack in ("fgsm", "step-ll")
    ]
    passes = measure(
        {
            "one pass": first_block(models, ("fgsm", "step-ll"), 5000, folder / "all"),
            "one by one": lambda: [compute() for compute in apart],
        },
        rounds=rounds,
    )
    return {
        "images": {"bare": large, "block": large, "exact": large, "one pass": small, "one by one": small},
        "images_a_second": {
            **{name: round(large / timing.median) for name, timing in timings.items()},
            **{name: round(small / timing.median) for name, timing in passes.items()},
        },
        "bare_over_block": rounded(ratio(timings, "bare", "block")),
        "exact_over_block": rounded(ratio(timings, "exact", "block")),
        "one_by_one_over_one_pass": rounded(ratio(passes, "one by one", "one pass")),
    }


if __name__ == "__main__":
    main()
