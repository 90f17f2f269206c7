"""What a stored R+ direction is worth when it is followed from another random step than its own.

    python docs/results/steps.py mnist-paper --data mnist     → docs/results/data/steps.json

Images of the training set are perturbed as training does it, by the first draw of each source, with the step that the
direction was computed at and with a fresh one; then the source itself is asked what it makes of them.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Collection
from pathlib import Path

import numpy as np
import torch

from ensadv_data import load_model, open_store
from ensadv_data.attacks.loss import margin
from ensadv_data.codec import random_bits
from ensadv_data.data import open_data
from ensadv_data.keys import derive_key
from ensadv_data.spec import DataSpec
from ensadv_data.store.perturbed import perturb_images

HERE = Path(__file__).parent
STORES = ("three-ACD", "three-BCD")


def step_losses(
    run: Path, data: DataSpec, *, store_name: str = "three-BCD", n: int = 10_000, known: Collection[str] = ()
) -> dict[str, dict[str, dict[str, float]]]:
    """Mean margin loss and error of each source but the ``known`` on the first ``n`` images, by source and step."""
    store, rows = open_store(run / "shards" / store_name), np.arange(n)
    images, _ = open_data(data, "train").read(rows)
    fresh = random_bits(derive_key("steps"), np.zeros_like(rows), rows, d=store.header.d)
    found: dict[str, dict[str, dict[str, float]]] = {}
    for entry in (entry for entry in store.entries if entry.source not in known):
        model = load_model(str(run / "models" / f"{entry.source}.safetensors"), name=entry.source).module
        label = _logits(model, images.astype(np.float32) / 255).argmax(1)
        for name, step in (("own", None), ("another", fresh)):
            about = {"rows": rows, "draws": np.zeros_like(rows), "epsilon": np.full(n, 0.3, np.float32)}
            logits = _logits(model, perturb_images(store, entry, images, random_step=step, **about))
            found.setdefault(entry.source, {})[name] = {
                "loss": margin(logits, label).mean().item(),
                "error": (logits.argmax(1) != label).double().mean().item(),
            }
    return found


def _logits(model: torch.nn.Module, x: np.ndarray) -> torch.Tensor:
    with torch.inference_mode():
        return torch.cat([model(part) for part in torch.from_numpy(x).split(500)])


def main() -> None:
    """Measure, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="the output folder of a run of the recipes")
    parser.add_argument("--data", default="mnist")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--out", type=Path, default=HERE / "data" / "steps.json")
    arguments = parser.parse_args()
    data = DataSpec(data=arguments.data, data_dir=arguments.data_dir and str(arguments.data_dir))
    found: dict[str, dict[str, dict[str, float]]] = {}
    for name in STORES:
        if (arguments.run / "shards" / name / "manifest.json").exists():
            found |= step_losses(arguments.run, data, store_name=name, n=arguments.images, known=found)
    about = {"images": arguments.images, "sources": dict(sorted(found.items()))}
    arguments.out.write_text(json.dumps(about, indent=1) + "\n")


if __name__ == "__main__":
    main()
