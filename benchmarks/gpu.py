"""Everything that a GPU is for, checked and timed in one run of some minutes.

    python benchmarks/gpu.py [--device cuda] [--models timm:resnet50=224,timm:inception_v3=299] [--batches 128,256]
                             [--images 1024] [--rounds 7] [--json FILE]

*equal*: what is packed and applied on the device is, bit for bit, what the CPU packs and applies; a batch that travels
packed arrives as the one that was made here. *steps*: a training step on so many images, half of them perturbed, under
bfloat16 autocast: without perturbations, from the store, and with gradients computed online; the share of a step that
the store costs. *precompute*: images a second beside a bare loop of gradients, in each precision, and the share of
signs that are not float64's. The images are random, and so are the stores. It runs on a CPU too, with small sizes: that
is how it is tested. tests/on_gpu.py has the checks that need no clock.
"""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from figures import arguments_of, milliseconds, report, rounded
from torch import Tensor

from ensadv_data import codec, device_codec
from ensadv_data.arithmetic import in_precision
from ensadv_data.attacks.loss import margin
from ensadv_data.batches import Batches, deliver
from ensadv_data.bench import gradient_alternatives, random_store, step_alternatives
from ensadv_data.data import ArrayDataset
from ensadv_data.dist import check_device, device_name
from ensadv_data.keys import numpy_generator
from ensadv_data.mixing import Schedule, plan_step
from ensadv_data.models import Model, load_model
from ensadv_data.sources import static_sources
from ensadv_data.timing import measure, ratio

CLASSES = 1000
_FEW = 64  # images whose gradients are computed in float64 too


def made_up(size: int, n: int) -> ArrayDataset:
    """Random colour images."""
    generator = numpy_generator("gpu", size)
    images = generator.integers(0, 256, (n, 3, size, size), dtype=np.uint8)
    return ArrayDataset(images, generator.integers(CLASSES, size=n), name="made-up", split="train", classes=CLASSES)


def equal(dataset: ArrayDataset, folder: Path, device: torch.device) -> dict[str, bool]:
    """Whether the device's codec, and a packed batch that it unpacks, give what the CPU gives."""
    images = dataset.images_NCHW[:8].reshape(8, -1)
    generator = numpy_generator("gpu", "values")
    values = generator.normal(size=images.shape).astype(np.float32) * generator.integers(0, 2, images.shape)
    epsilon = np.linspace(0.01, 0.3, 8, dtype=np.float32)
    direction, nonzero = codec.pack_signs(values)
    packed = device_codec.pack_signs(torch.from_numpy(values).to(device))
    there = [torch.from_numpy(array).to(device) for array in (images, direction, nonzero, epsilon)]
    applied = device_codec.apply_signs(device_codec.pixels(there[0]), there[1], there[2], epsilon=there[3])
    store = random_store(dataset, folder)
    (source,) = static_sources([store], dataset)
    schedule = Schedule(seed=1, n=len(dataset), batch_size=8, sources=(source,))
    plan, made = plan_step(schedule, epoch=0, step=0), []
    for packs, place in ((False, torch.device("cpu")), (True, device)):
        here = deliver(Batches(dataset, schedule, packed=packs).make(plan, epoch=0), place)
        made.append((here.x.cpu(), here.static[0][2].cpu()))
    return {
        "pack": all(np.array_equal(a, b.cpu().numpy()) for a, b in zip((direction, nonzero), packed, strict=True)),
        "apply": np.array_equal(codec.apply_signs(images, direction, nonzero, epsilon=epsilon), applied.cpu().numpy()),
        "batch": all(torch.equal(a, b) for a, b in zip(*made, strict=True)),
    }


def steps(reference: str, dataset: ArrayDataset, folder: Path, batch: int, device: str, rounds: int) -> dict[str, Any]:
    """Steps of a model on so many images."""

    def module() -> torch.nn.Module:
        return load_model(reference).module

    ways = step_alternatives(
        dataset,
        folder,
        architecture="C",
        batch_size=batch // 2,
        static=reference,
        module=module,
        device=device,
        amp=True,
    )
    timings = measure(ways, rounds=rounds)
    share = rounded(ratio(timings, "clean", "store"))
    return {
        "milliseconds": milliseconds(timings),
        "over_clean": {name: rounded(ratio(timings, name, "clean")) for name in timings},
        "over_store": {name: rounded(ratio(timings, name, "store")) for name in timings},
        "share_of_the_store": [round(1 - value, 4) for value in (share[0], share[2], share[1])],
    }


def precomputed(model: Model, dataset: ArrayDataset, batch: int, device: str, rounds: int) -> dict[str, Any]:
    """Gradients in each precision that the device has: how fast, and how many signs are not those of float64."""
    images, found = dataset.images_NCHW, dict[str, Any]()
    few = device_codec.pixels(torch.from_numpy(images[:_FEW]).to(device))

    def signs(module: torch.nn.Module, x: Tensor) -> Tensor:
        logits = module(x.requires_grad_())
        return torch.autograd.grad(margin(logits.double(), y).sum(), x)[0].sign()

    y = model.module(few).argmax(1)
    exact = signs(copy.deepcopy(model.module).double(), few.double())
    for precision in ("float32", *(["tf32"] if device != "cpu" else []), "bfloat16"):
        ways = gradient_alternatives(model, images, batch_size=batch, device=device, precision=precision)
        timings = measure(ways, rounds=rounds)
        with in_precision(device, precision):
            differing = (signs(model.module, few.clone()) != exact).float().mean().item()
        found[precision] = {
            "images_a_second": {name: round(len(images) / t.median, 1) for name, t in timings.items()},
            "bare_over_precompute": rounded(ratio(timings, "bare", "precompute")),
            "signs_not_float64": round(differing, 6),
        }
    return found


def main() -> None:
    """Check, measure, print, and write what was asked for."""
    arguments = arguments_of(
        __doc__,
        device={"default": "cuda"},
        models={"default": "timm:resnet50=224,timm:inception_v3=299", "help": "REF=SIZE,…"},
        batches={"default": "128,256", "help": "images of a step"},
        images={"type": int, "default": 1024},
    )
    check_device(arguments.device)
    device = torch.device(arguments.device)
    found: dict[str, Any] = {"device": device_name(arguments.device)}
    for pair in arguments.models.split(","):
        reference, _, size = pair.rpartition("=")
        dataset, about = made_up(int(size), arguments.images), {}
        with tempfile.TemporaryDirectory() as name:
            about["equal"] = equal(dataset, Path(name), device)
        if not all(about["equal"].values()):
            raise SystemExit(f"{reference}: the device and the CPU differ: {about['equal']}")
        for batch in map(int, arguments.batches.split(",")):
            with tempfile.TemporaryDirectory() as name:
                about[f"steps of {batch}"] = steps(
                    reference, dataset, Path(name), batch, arguments.device, arguments.rounds
                )
            model = load_model(reference, name="static", device=arguments.device)
            about[f"precompute by {batch}"] = precomputed(model, dataset, batch, arguments.device, arguments.rounds)
        found[reference] = {"size": int(size), **about}
    report(arguments, found)


if __name__ == "__main__":
    main()
