"""What precompute costs beyond the gradients: blocks of the store against a bare loop of input gradients over them.

    python benchmarks/precompute.py [--architecture C] [--rounds 7] [--json FILE]

*bare* computes the gradient of the loss at each image of a block of MNIST's size and drops it; *block* reads, computes,
packs, digests and writes, as a worker of precompute does. *one pass* makes FGSM and Step-LL of four models together,
*one by one* each of the eight by itself. Batches of 64, one thread.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from paired import arguments_of, measure, ratio, report

from ensadv_data.attacks.loss import margin
from ensadv_data.data import open_dataset
from ensadv_data.dist import intra_op_threads
from ensadv_data.memory import keep_freed_memory
from ensadv_data.models import build_model, load_model, save_model
from ensadv_data.perturbation import entries_of
from ensadv_data.precompute import Block, Job, compute_block
from ensadv_data.spec import DataSpec, PrecomputeSpec
from ensadv_data.store import Header, StoreWriter, block_size

BATCH = 64


def weights(architecture: str, seed: int, folder: Path) -> str:
    """An untrained model of that architecture."""
    dataset = open_dataset("mnist-mini", "train")
    path = folder / f"{architecture}{seed}.safetensors"
    model = build_model(architecture, shape=dataset.shape, classes=dataset.classes, seed=seed)
    save_model(path, model, architecture=architecture, shape=dataset.shape, classes=dataset.classes, record={})
    return str(path)


def first_block(models: dict[str, str], attacks: tuple[str, ...], n: int, path: Path) -> Callable[[], object]:
    """What a worker does with the first block of a store for n images."""
    spec = PrecomputeSpec(models=models, attacks=attacks)
    loaded = [load_model(reference, name=name) for name, reference in models.items()]
    entries = tuple(entry for model in loaded for entry in entries_of(spec, model).values())
    dataset = open_dataset("mnist-mini", "train")
    groups = tuple(entry.key for entry in entries)
    about = {"data": dataset.name, "split": "train", "data_digest": dataset.digest, "plan": {}, "draws": 1}
    header = Header(**about, shape=dataset.shape, classes=dataset.classes, n=n, groups=groups)
    StoreWriter(path, header, entries).create()
    job = Job(path, DataSpec(data="mnist-mini"), header, entries, spec)
    return lambda: compute_block(job, Block(0, 0, header.block - 1))


def bare_loop(reference: str, images: np.ndarray) -> Callable[[], object]:
    """Input gradients of the images, as short as one can write it."""
    module = load_model(reference).module

    def loop() -> None:
        for start in range(0, len(images), BATCH):
            x = (torch.from_numpy(images[start : start + BATCH]).float() / 255).requires_grad_()
            logits = module(x)
            torch.autograd.grad(margin(logits, logits.detach().argmax(1)).sum(), x)

    return loop


def main() -> None:
    """Measure, print, and write what was asked for."""
    arguments = arguments_of(__doc__, architecture={"default": "C"})
    keep_freed_memory()  # as workers do
    with tempfile.TemporaryDirectory() as name, intra_op_threads(1):
        folder = Path(name)
        models = {f"m{seed}": weights(arguments.architecture, seed, folder) for seed in range(4)}
        large, small = block_size(60_000, 784), block_size(10_000, 784)
        images, _ = open_dataset("mnist-mini", "train").read(np.arange(large))
        one = {"m0": models["m0"]}
        timings = measure(
            {
                "bare": bare_loop(models["m0"], images),
                "block": first_block(one, ("fgsm",), 60_000, folder / "one"),
            },
            rounds=arguments.rounds,
        )
        apart = [
            first_block({model: models[model]}, (attack,), 10_000, folder / f"{model}-{attack}")
            for model in models
            for attack in ("fgsm", "step-ll")
        ]
        passes = measure(
            {
                "one pass": first_block(models, ("fgsm", "step-ll"), 10_000, folder / "all"),
                "one by one": lambda: [compute() for compute in apart],
            },
            rounds=arguments.rounds,
        )
    report(
        arguments,
        {
            "architecture": arguments.architecture,
            "threads": 1,
            "images": {"bare": large, "block": large, "one pass": small, "one by one": small},
            "images_a_second": {
                **{n: round(large / t.median) for n, t in timings.items()},
                **{n: round(small / t.median) for n, t in passes.items()},
            },
            "bare_over_block": [round(v, 4) for v in ratio(timings, "bare", "block")],
            "one_by_one_over_one_pass": [round(v, 4) for v in ratio(passes, "one by one", "one pass")],
        },
    )


if __name__ == "__main__":
    main()
