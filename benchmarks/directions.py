"""How many signs of a timm network's input gradient float32 gets wrong, beside float64, on two photographs; and why.

    python benchmarks/directions.py [--networks inception_v3,resnetv2_50] [--size 96] [--images 2] [--json FILE]

The networks are those of the paper's Table 3, untrained unless --weights hub; the labels are not the predicted ones.
*wrong* are the values whose sign is not float64's. *branches* are the ReLUs and the cells of max-pools, *turned* those
that go another way in float32 than in float64: the gradient has a jump there. *same branches* are the wrong signs
beside a float64 that goes float32's ways. *error* is the largest error of a gradient over the median of all that are
not zero, without and with the same branches.
"""

from __future__ import annotations

import runpy
import tempfile
from pathlib import Path

import numpy as np
import torch
from figures import arguments_of, report
from signs import branches
from torch import Tensor, nn

from ensadv_data.attacks.loss import margin
from ensadv_data.data import open_dataset
from ensadv_data.models import load_model
from ensadv_data.spec import PreprocessSpec

PHOTOGRAPHS = runpy.run_path(str(Path(__file__).parent.parent / "tests" / "photographs.py"))
CLASSES = len(PHOTOGRAPHS["SAMPLES"])
NETWORKS = "inception_v3,inception_v4,inception_resnet_v2,resnet50,resnet101,resnetv2_50,resnetv2_101"


def photographs(size: int, count: int) -> Tensor:
    """The first crops of as many classes, in [0, 1]."""
    with tempfile.TemporaryDirectory() as name:
        folder = PHOTOGRAPHS["cut_photographs"](Path(name), side=size, train=1, test=0, classes=max(2, count))
        how = PreprocessSpec(size=size)
        images, _ = open_dataset(f"folder:{folder}", "train", data_dir=folder, preprocess=how).read(np.arange(count))
    return torch.from_numpy(images) / 255


def gradient(module: nn.Module, x: Tensor, y: Tensor, ways: list[Tensor], *, replay: bool) -> Tensor:
    """Input gradients of the summed loss, along the ways that were noted, or noting them."""
    x = x.clone().requires_grad_()
    with branches(module, ways, replay=replay):
        total = margin(module(x), y).sum()
    (found,) = torch.autograd.grad(total, x)
    return found


def compared(module: nn.Module, x: Tensor, y: Tensor) -> dict[str, float]:
    """A network in float32 beside itself in float64, which it is afterwards."""
    single: list[Tensor] = []
    double: list[Tensor] = []
    fast = gradient(module, x, y, single, replay=False).double()
    module = module.double()
    exact = gradient(module, x.double(), y, double, replay=False)
    same = gradient(module, x.double(), y, single, replay=True)
    scale = exact[exact != 0].abs().median()
    return {
        "values": x.numel(),
        "zeros": round(float((exact == 0).double().mean()), 4),
        "wrong": int((fast.sign() != exact.sign()).sum()),
        "same branches": int((fast.sign() != same.sign()).sum()),
        "branches": sum(way.numel() for way in single),
        "turned": sum(int((one != other).sum()) for one, other in zip(single, double, strict=True)),
        "error": float(f"{(fast - exact).abs().max() / scale:.1e}"),
        "error, same branches": float(f"{(fast - same).abs().max() / scale:.1e}"),
    }


def main() -> None:
    """Measure, print, and write what was asked for."""
    arguments = arguments_of(
        __doc__,
        networks={"default": NETWORKS},
        weights={"choices": ["hub"], "help": "trained networks, of 1,000 classes; names with their weights, then"},
        size={"type": int, "default": 96, "help": "side of the images"},
        images={"type": int, "default": 2},
    )
    x = photographs(arguments.size, arguments.images)
    y = torch.arange(len(x)) * 5 % CLASSES
    options = "weights=hub,resize=none" if arguments.weights else f"classes={CLASSES}"
    found = {}
    for name in arguments.networks.split(","):
        module = load_model(f"timm:{name},{options}").module.requires_grad_(False)
        found[name] = compared(module, x, y)
        print(name, found[name], flush=True)
    report(arguments, {"n": len(x), "size": arguments.size, "networks": found})


if __name__ == "__main__":
    main()
