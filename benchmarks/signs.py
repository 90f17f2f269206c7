"""How many signs of a gradient float32 and bfloat16 get wrong, beside float64, on models trained to saturation.

    python benchmarks/signs.py [--architecture A,B,C,D] [--limit 2000] [--epochs 100] [--json FILE]

Each model learns 500 images of mnist-mini by heart (dropout off), so that the probability that it gives to their labels
rounds to 1, and is then asked for the gradients at --limit images, those 500 first: with the margin form of the loss,
which precompute uses, and with cross-entropy. Counted are values whose sign is not float64's: *opposite*, *lost* (zero,
where float64 has a sign) and *made* (a sign, where float64 has zero). *same branches*: beside a float64 in which every
ReLU is open and every max-pool points where it is in float32: two values that tie to the last bit of float32 send the
gradient along one of two ways, and neither is wrong. *exact* are the signs of a store of that precision, and the share
of images that it computes in float64. With --model NAME=FILE, repeatable, models of your own are asked in their place.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from figures import arguments_of, report
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, max_pool2d_with_indices

from ensadv_data.attacks.loss import margin_slope
from ensadv_data.codec import rows_near_zero, unpack_signs
from ensadv_data.data import open_dataset
from ensadv_data.doubtful import NEAR
from ensadv_data.entries import entries_of
from ensadv_data.models import Model, build_model, load_model
from ensadv_data.perturbation import perturb_block
from ensadv_data.spec import PrecomputeSpec

LEARNT, BATCH = 500, 50
FEW = 2  # batches for bfloat16, which many CPUs only imitate, twenty times as slowly


def learnt(architecture: str, x: Tensor, y: Tensor, epochs: int) -> nn.Module:
    """A model that has learnt some images by heart."""
    module = build_model(architecture, shape=tuple(x.shape[1:]), classes=10, seed=1).eval()
    optimizer = torch.optim.Adam(module.parameters(), 2e-3)
    order = torch.Generator().manual_seed(0)
    for _ in range(epochs):
        for rows in torch.randperm(len(x), generator=order).split(BATCH):
            optimizer.zero_grad()
            cross_entropy(module(x[rows]), y[rows]).backward()
            optimizer.step()
    return module


@contextlib.contextmanager
def branches(module: nn.Module, taken: list[Tensor], *, replay: bool) -> Iterator[None]:
    """Note which way the gradient goes at every ReLU and max-pool of a forward pass; or make one go the ways noted.

    A ReLU that works in place would leave nothing of what it was given; it does not meanwhile.
    """
    ways = iter(taken)

    def at_relu(layer: nn.Module, args: tuple[Tensor], output: Tensor) -> Tensor | None:
        if replay:
            return args[0] * next(ways)
        taken.append(output > 0)
        return None

    def at_pool(layer: nn.Module, args: tuple[Tensor], output: Tensor) -> Tensor | None:
        if replay:
            where = next(ways)
            return args[0].flatten(2).gather(2, where.flatten(2)).view(where.shape)
        how = (layer.kernel_size, layer.stride, layer.padding, layer.dilation, layer.ceil_mode)
        taken.append(max_pool2d_with_indices(args[0], *how)[1])
        return None

    kinds: dict[type[nn.Module], Callable[..., Tensor | None]] = {nn.ReLU: at_relu, nn.MaxPool2d: at_pool}
    hooks = [layer.register_forward_hook(kinds[type(layer)]) for layer in module.modules() if type(layer) in kinds]
    in_place = [layer for layer in module.modules() if isinstance(layer, nn.ReLU) and layer.inplace]
    for layer in in_place:
        layer.inplace = False
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for layer in in_place:
            layer.inplace = True


def gradient(module: nn.Module, x: Tensor, loss: str, dtype: torch.dtype, taken: list[Tensor] | None = None) -> Tensor:
    """Input gradients of the summed loss towards the predicted labels, in a precision; float64 along ``taken``."""
    here = copy.deepcopy(module).to(torch.float64) if dtype is torch.float64 else module
    x = x.to(torch.float64 if dtype is torch.float64 else torch.float32).requires_grad_()
    same = contextlib.nullcontext() if taken is None else branches(here, taken, replay=dtype is torch.float64)
    with same, torch.autocast("cpu", torch.bfloat16, enabled=dtype is torch.bfloat16):
        logits = here(x)
    logits = logits if dtype is torch.float64 else logits.float()
    label = logits.detach().argmax(1)
    if loss == "margin":  # as precompute does
        return torch.autograd.grad(logits, x, margin_slope(logits.detach(), label))[0]
    return torch.autograd.grad(cross_entropy(logits, label, reduction="sum"), x)[0]


def exactly(module: nn.Module, x: Tensor) -> Tensor:
    """Signs that a store of ``precision = exact`` has."""
    spec = PrecomputeSpec(models={"m": "m"}, attacks=("fgsm",), batch_size=BATCH, precision="exact")
    model, images = Model("m", module, "m", "m", ""), (255 * x).round().to(torch.uint8).numpy()
    made = perturb_block(model, images, spec, entries_of(spec, model), first=0, y_true_N=np.zeros(len(x), np.int64))
    (planes,) = made.values()
    mask = None if planes.nonzero is None else planes.nonzero[0]
    return torch.from_numpy(unpack_signs(planes.direction[0], mask, d=x[0].numel())).view(x.shape).double()


def compared(module: nn.Module, x: Tensor) -> dict[str, object]:
    """Wrong signs among all values, by loss and precision."""
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    wrong = {(loss, precision): np.zeros(3, int) for loss in ("margin", "ce") for precision in ("float32", "bfloat16")}
    saturated, opposed, wrong_of_exact, doubted = 0, 0, 0, 0
    for number, part in enumerate(x.split(BATCH)):
        logits = module(part)
        saturated += int((logits.softmax(1).max(1).values == 1).sum())
        taken: list[Tensor] = []
        rounded = gradient(module, part, "margin", torch.float32, taken).sign()
        opposed += int((gradient(module, part, "margin", torch.float64, taken).sign() != rounded).sum())
        exact = gradient(module, part, "margin", torch.float64).sign()  # of cross-entropy too: softplus is monotone
        wrong_of_exact += int((exactly(module, part) != exact).sum())
        near = gradient(module, part, "margin", torch.float32).flatten(1).numpy()
        doubted += int(rows_near_zero(near, share=NEAR).sum())
        for loss in ("margin", "ce"):
            for precision in ("float32", "bfloat16") if number < FEW else ("float32",):
                found = gradient(module, part, loss, getattr(torch, precision)).sign()
                kinds = (found * exact < 0, (found == 0) & (exact != 0), (found != 0) & (exact == 0))
                wrong[loss, precision] += [int(kind.sum()) for kind in kinds]
    return {
        "values": x.numel(),
        "values_bfloat16": x[: FEW * BATCH].numel(),
        "saturated_images": round(saturated / len(x), 4),
        "margin, float32, same branches": {"wrong": opposed},
        "margin, exact": {"wrong": wrong_of_exact, "images in float64": round(doubted / len(x), 4)},
        **{
            f"{loss}, {precision}": dict(zip(("opposite", "lost", "made"), map(int, counts), strict=True))
            for (loss, precision), counts in wrong.items()
        },
    }


def main() -> None:
    """Measure, print, and write what was asked for."""
    arguments = arguments_of(
        __doc__,
        architecture={"default": "A,B,C,D"},
        limit={"type": int, "default": 2000, "help": "images"},
        epochs={"type": int, "default": 100},
        model={"action": "append", "default": [], "help": "NAME=FILE"},
    )
    images, labels = open_dataset("mnist-mini", "train").read(np.arange(arguments.limit))
    x, y = torch.from_numpy(images).float() / 255, torch.from_numpy(labels)
    named = dict(pair.split("=", 1) for pair in arguments.model)
    modules = {name: load_model(str(Path(file))).module for name, file in named.items()} or {
        name: learnt(name, x[:LEARNT], y[:LEARNT], arguments.epochs) for name in arguments.architecture.split(",")
    }
    report(arguments, {"n": len(x), "models": {name: compared(module, x) for name, module in modules.items()}})


if __name__ == "__main__":
    main()
