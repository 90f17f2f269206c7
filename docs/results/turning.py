"""What a binarised net withstands (Appendix C.1), by how the images were turned before I-FGSM.

    python docs/results/turning.py mnist-paper --data mnist     → docs/results/data/turning.json

Pillow turns the images: with interpolation, which makes grey pixels at the edges of strokes, or by taking the nearest
pixel, which makes none.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from measured import Json
from PIL import Image

from ensadv_data.data import ArrayDataset, Dataset, open_data
from ensadv_data.evaluation.transfer import measure_transfer
from ensadv_data.models import load_models
from ensadv_data.spec import AttackSpec, DataSpec

HERE = Path(__file__).parent
RESAMPLING = {name: Image.Resampling[name.upper()] for name in ("nearest", "bilinear", "bicubic")}


def turned(dataset: Dataset, degrees: float, interpolation: str) -> ArrayDataset:
    """Grey images, each turned counter-clockwise."""
    images, labels = dataset.read(np.arange(len(dataset)))
    pillow = (Image.fromarray(image[0]).rotate(degrees, resample=RESAMPLING[interpolation]) for image in images)
    pixels = np.stack([np.asarray(image)[None] for image in pillow])
    name = f"{dataset.name}+{degrees:g}"
    return ArrayDataset(pixels, labels, name=name, split=dataset.split, classes=dataset.classes)


def measure_turned(reference: str, dataset: Dataset) -> list[Json]:
    """Errors of a model without an attack and under I-FGSM, for each way to turn the images."""
    (models,) = load_models([{"binarised": reference}], device="cpu")
    ways = [(0, "nearest"), *((degrees, name) for name in RESAMPLING for degrees in (20, -20))]
    rows: list[Json] = []
    for degrees, interpolation in ways:
        moved = turned(dataset, degrees, interpolation)
        x, _ = moved.read(np.arange(len(moved)))
        attacks = [AttackSpec(name="i-fgsm", epsilon=0.3)]
        (row,) = measure_transfer(models, [], moved, white_box=attacks, black_box=[], epsilon=0.3).targets
        rows.append(
            {
                "degrees": degrees,
                "interpolation": interpolation,
                "grey": float(((x >= 0.2 * 255) & (x <= 0.8 * 255)).mean()),
                "clean": row.clean.to_json(),
                "i-fgsm": row.white_box["i-fgsm"].to_json(),
            }
        )
        print(json.dumps(rows[-1]), flush=True)
    return rows


def main() -> None:
    """Measure, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="the output folder of a run of the recipes")
    parser.add_argument("--data", default="mnist")
    parser.add_argument("--data-dir")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--out", type=Path, default=HERE / "data" / "turning.json")
    arguments = parser.parse_args()
    data = DataSpec(data=arguments.data, data_dir=arguments.data_dir, limit=arguments.images)
    rows = measure_turned(f"binarised:{arguments.run}/models/static-A.safetensors", open_data(data, "test"))
    arguments.out.write_text(json.dumps({"images": arguments.images, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
