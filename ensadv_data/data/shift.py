"""Images that moved a little before they are attacked: rotation and flipped pixels (Appendix C.1 of the paper)."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch

from ensadv_data.data.dataset import ArrayDataset, Dataset
from ensadv_data.errors import InputError
from ensadv_data.keys import numpy_generator
from ensadv_data.spec import ShiftSpec

__all__ = ["flip_pixels", "rotate", "shifted"]

U8 = npt.NDArray[np.uint8]


def rotate(images_NCHW: U8, degrees: float) -> U8:
    """Rotate about the centre, counter-clockwise as seen, with bilinear interpolation; what comes from outside is 0.

    Parameters
    ----------
    images_NCHW
        uint8 (N, C, H, W).

    Returns
    -------
    uint8 (N, C, H, W)
    """
    n, _, height, width = images_NCHW.shape
    angle = math.radians(degrees)
    turn = torch.tensor(  # from where each pixel comes, in coordinates that go from −1 to 1 along each side
        [
            [math.cos(angle), -math.sin(angle) * height / width, 0.0],
            [math.sin(angle) * width / height, math.cos(angle), 0.0],
        ],
        dtype=torch.float64,
    )
    grid = torch.nn.functional.affine_grid(turn.expand(n, 2, 3), list(images_NCHW.shape), align_corners=False)
    source = torch.from_numpy(images_NCHW).double()
    turned = torch.nn.functional.grid_sample(source, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    rotated: U8 = turned.round().clamp(0, 255).to(torch.uint8).numpy()
    return rotated


def flip_pixels(images_NCHW: U8, count: int, *, seed: int, examples: npt.NDArray[np.int64]) -> U8:
    """Replace x by 1 − x at ``count`` different pixels of each image, in all channels.

    The pixels are a function of (seed, example).
    """
    flipped = images_NCHW.copy()
    flat = flipped.reshape(*flipped.shape[:2], -1)
    for row, example in enumerate(examples):
        where = numpy_generator("flip", seed, int(example)).choice(flat.shape[2], size=count, replace=False)
        flat[row][:, where] = 255 - flat[row][:, where]
    return flipped


def shifted(dataset: Dataset, shift: ShiftSpec, *, seed: int = 0) -> ArrayDataset:
    """The data set with its images rotated, then with flipped pixels; named and digested as what it has become.

    Raises
    ------
    InputError
        More pixels to flip than an image has.
    """
    pixels = dataset.shape[1] * dataset.shape[2]
    if shift.flip > pixels:
        raise InputError(f"flip: expected at most the {pixels} pixels of an image, got {shift.flip}")
    examples = np.arange(len(dataset))
    images, labels = dataset.read(examples)
    if shift.rotate:
        images = rotate(images, shift.rotate)
    if shift.flip:
        images = flip_pixels(images, shift.flip, seed=seed, examples=examples)
    return ArrayDataset(
        images,
        labels,
        name=f"{dataset.name}+{shift.label}",
        split=dataset.split,
        classes=dataset.classes,
    )
