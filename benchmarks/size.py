"""How many bits a value takes in a store, mask included, beside float32, the images, and zstd on float32.

    python benchmarks/size.py [--architecture A,B,B*,C,D] [--limit 2000] [--json FILE]

Each architecture is trained for an epoch of mnist-mini; a store of each attack is made for its first images, and every
object of it counted. The format's arrays have fixed sizes for R+ directions; those of FGSM and Step-LL are compressed,
and so depend on the data.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch
from figures import arguments_of, report
from numcodecs.zstd import Zstd

from ensadv_data.data import open_dataset
from ensadv_data.inspection import describe_store
from ensadv_data.precompute import precompute_store
from ensadv_data.spec import DataSpec, PrecomputeSpec, TrainSpec, checked
from ensadv_data.store import open_store
from ensadv_data.training import train

ATTACKS = ("fgsm", "step-ll", "r-fgsm:alpha=0.1", "r-step-ll:alpha=0.1", "pgd:steps=5")


def main() -> None:
    """Measure, print, and write what was asked for."""
    arguments = arguments_of(
        __doc__, architecture={"default": "A,B,B*,C,D"}, limit={"type": int, "default": 2000, "help": "images"}
    )
    torch.set_num_threads(1)
    where, found = DataSpec(data="mnist-mini", limit=arguments.limit), {}
    dataset = open_dataset("mnist-mini", "train", limit=arguments.limit)
    for architecture in arguments.architecture.split(","):
        with tempfile.TemporaryDirectory() as name:
            model, store = Path(name) / "m.safetensors", Path(name) / "store"
            train(TrainSpec(architecture=architecture, epochs=1), dataset, model)
            asked = {"models": {"m": str(model)}, "attacks": ATTACKS}
            precompute_store(checked(PrecomputeSpec, asked, where="size"), where, store, workers=0)
            bits = {entry.attack: round(entry.bits_per_value, 4) for entry in describe_store(store).entries}
            opened = open_store(store)
            indices = np.arange(len(dataset))
            planes = opened.gather(opened.entries[0], np.zeros_like(indices), indices)
            signs = 2 * np.unpackbits(planes.direction, axis=1, bitorder="little").astype(np.float32) - 1
            images, _ = dataset.read(indices)
            zstd = Zstd(level=3)
            found[architecture] = {
                "bits_a_value": bits,
                "fgsm_as_float32_by_zstd": round(8 * len(zstd.encode(signs)) / images.size, 4),
                "images_by_zstd": round(8 * len(zstd.encode(images)) / images.size, 4),
            }
    report(arguments, {"n": len(dataset), "float32": 32, "images": 8, "architectures": found})


if __name__ == "__main__":
    main()
