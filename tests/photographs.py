"""Labelled photographs: JPEG crops of the sample images that ship inside scikit-learn and scikit-image.

    python tests/photographs.py FOLDER --side 299 --train 20 --test 5

writes FOLDER/train and FOLDER/test with a class folder for each photograph. Crops of one photograph overlap, those of
train and test too: they are for trying out, not for measuring how well a model generalises. The same arguments and the
same Pillow give the same bytes.
"""

from __future__ import annotations

import argparse
from importlib.util import find_spec
from pathlib import Path

from PIL import Image

from ensadv_data.keys import numpy_generator

# class → the package, and the file in it; all are at least 300 pixels high and wide
SAMPLES = {
    "astronaut": ("skimage", "data/astronaut.png"),
    "brick": ("skimage", "data/brick.png"),
    "cat": ("skimage", "data/chelsea.png"),
    "coffee": ("skimage", "data/coffee.png"),
    "flower": ("sklearn", "datasets/images/flower.jpg"),
    "galaxies": ("skimage", "data/hubble_deep_field.jpg"),
    "grass": ("skimage", "data/grass.png"),
    "motorcycle": ("skimage", "data/motorcycle_left.png"),
    "retina": ("skimage", "data/retina.jpg"),
    "rocket": ("skimage", "data/rocket.jpg"),
    "temple": ("sklearn", "datasets/images/china.jpg"),
    "tissue": ("skimage", "data/ihc.png"),
}


def sample(name: str) -> Image.Image:
    """A whole photograph; the package that it is in is not imported."""
    package, file = SAMPLES[name]
    found = find_spec(package)
    assert found is not None, f"pip install scikit-learn scikit-image: {package} is missing"
    assert found.submodule_search_locations
    with Image.open(Path(found.submodule_search_locations[0]) / file) as image:
        return image.convert("L" if image.mode == "L" else "RGB")


def cut_photographs(
    folder: Path, *, side: int = 40, train: int = 6, test: int = 2, classes: int = len(SAMPLES), seed: int = 0
) -> Path:
    """Write crops of each class: ``side`` to ``3/2·side`` pixels a side, where the photograph has them."""
    for name in list(SAMPLES)[:classes]:
        image = sample(name)
        for split, count in (("train", train), ("test", test)):
            (folder / split / name).mkdir(parents=True, exist_ok=True)
            for number in range(count):
                draw = numpy_generator("crop", seed, name, split, number)
                width, height = (int(draw.integers(side, min(3 * side // 2, whole) + 1)) for whole in image.size)
                left = int(draw.integers(0, image.width - width + 1))
                upper = int(draw.integers(0, image.height - height + 1))
                crop = image.crop((left, upper, left + width, upper + height))
                crop.save(folder / split / name / f"{number:05d}.jpg", quality=90)
    return folder


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    for option, default in (("side", 40), ("train", 20), ("test", 5), ("seed", 0)):
        parser.add_argument(f"--{option}", type=int, default=default)
    print(cut_photographs(**vars(parser.parse_args())))
