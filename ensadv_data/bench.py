"""What the store costs and spares, on this machine: the alternatives that ``bench`` and benchmarks/ time.

A training step costs what it costs whichever bits it reads, so that the stores here hold random directions.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from ensadv_data.arithmetic import in_precision
from ensadv_data.attacks.loss import margin
from ensadv_data.codec import apply_signs, full_mask, pack_signs, row_bytes
from ensadv_data.data import Dataset
from ensadv_data.dist import check_device, intra_op_threads
from ensadv_data.entries import entries_of
from ensadv_data.gather import gather_rows
from ensadv_data.keys import numpy_generator
from ensadv_data.manifest import DataRecord, Manifest
from ensadv_data.models import Model, build_model, load_model, save_model
from ensadv_data.perturbation import perturb_block
from ensadv_data.progress import progress_bar
from ensadv_data.spec import PrecomputeSpec, TrainSpec, checked
from ensadv_data.store import Entry, Header, Planes, Store, StoreWriter, open_store
from ensadv_data.timing import Alternatives, Timing, measure, ratio
from ensadv_data.training import TrainingRun

__all__ = [
    "apply_alternatives",
    "gather_alternatives",
    "gradient_alternatives",
    "random_store",
    "run_bench",
    "save_untrained",
    "step_alternatives",
    "training_step",
]

U8 = npt.NDArray[np.uint8]

_ATTACK = "r-fgsm:alpha=0.1"
_FIGURE = 0.2  # seconds that the work of one figure takes, at least


def save_untrained(architecture: str, dataset: Dataset, path: Path, *, seed: int = 1) -> str:
    """Write an untrained model of Table 5 for the images of a data set; returns a reference to it.

    Raises
    ------
    UnknownNameError, ModelError
        No such architecture, or one that does not fit the images.
    """
    module = build_model(architecture, shape=dataset.shape, classes=dataset.classes, seed=seed)
    save_model(path, module, architecture=architecture, shape=dataset.shape, classes=dataset.classes, record={})
    return str(path)


def random_store(dataset: Dataset, folder: Path, *, sources: Sequence[str] = ("static",), draws: int = 2) -> str:
    """Write a store for the images of a data set, of R+FGSM with α = 0.1, whose directions are random bits.

    Raises
    ------
    OutputError
        The folder cannot be written.
    """
    entries = tuple(Entry(name, "r-fgsm", "rsign", None, 0.1, 0, "0" * 64, "none", "margin") for name in sources)
    about: dict[str, Any] = {"split": dataset.split, "shape": dataset.shape, "classes": dataset.classes}
    about["n"] = len(dataset)
    keys = tuple(entry.key for entry in entries)
    header = Header(data=dataset.name, data_digest=dataset.digest, draws=draws, groups=keys, plan={}, **about)
    writer = StoreWriter(folder, header, entries)
    writer.create()
    generator = numpy_generator("bench", "store")
    for block in range(header.blocks):
        indices = np.arange(block * header.block, min((block + 1) * header.block, header.n))
        planes = {}
        for key in keys:
            bits = generator.integers(0, 256, (draws, len(indices), row_bytes(header.d)), dtype=np.uint8)
            planes[key] = Planes(direction=bits & full_mask(header.d), label=np.zeros(len(indices), np.int32))
        writer.write_block(block, planes, dataset.example_digests()[indices])
    record = DataRecord(name=dataset.name, digest=dataset.digest, **about)
    zeros = writer.collect().zeros  # nobody verifies its objects
    manifest = Manifest(data=record, sources=(), draws=draws, plan={}, zeros=dict(zeros), software={}, objects={})
    writer.close(manifest.to_bytes())
    return str(folder)


def step_alternatives(
    dataset: Dataset,
    folder: Path,
    *,
    architecture: str,
    batch_size: int = 64,
    static: str | None = None,
    module: Callable[[], nn.Module] | None = None,
    device: str = "cpu",
    amp: bool = False,
) -> Alternatives:
    """Training steps that differ only in where their perturbations come from.

    *clean* trains on 2·B images; the others on B and their perturbations: *store* reads them, *online* computes those
    of the model itself (Step-LL), *static* those of a static model (R+FGSM). Images and store are read in each step's
    turn, so that nothing is hidden by reading ahead.

    Parameters
    ----------
    folder
        Where a store, and the static model's weights, are written.
    architecture
        Of Table 5, of the trained model and of the static one.
    batch_size
        B.
    static, module
        Reference of another static model, and what builds another model to train.
    """
    reference = static or save_untrained(architecture, dataset, folder / "static.safetensors")
    store = random_store(dataset, folder / "store")
    common = {"architecture": architecture, "batch_size": batch_size, "device": device, "amp": amp}
    fields: dict[str, dict[str, Any]] = {
        "clean": {"batch_size": 2 * batch_size},
        "store": {"shards": (store,)},
        "online": {"online": "step-ll"},
        "static": {"static": {"static": reference}, "static_attack": _ATTACK},
    }

    return {
        name: training_step(dataset, folder / f"{name}.safetensors", common | of_it, module=module)
        for name, of_it in fields.items()
    }


def training_step(
    dataset: Dataset, out: Path, fields: Mapping[str, Any], *, module: Callable[[], nn.Module] | None = None
) -> Callable[[], object]:
    """What does the next step of a training at each call, and waits for its end; nothing is written to ``out``."""
    spec = checked(TrainSpec, dict(fields), where="bench")
    run, device = TrainingRun(spec, dataset, out, module=module and module()), torch.device(spec.device)
    numbers = itertools.count()

    def step() -> None:
        number = next(numbers)
        run.step(number, run.prepare(number))
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return step


def apply_alternatives(d: int, n: int) -> Alternatives:
    """For n images of D values: memory that is filled, and copied, as float32; bits applied to images, and made."""
    generator = numpy_generator("bench", "apply")
    x = generator.integers(0, 256, (n, d), dtype=np.uint8)
    values = generator.normal(size=(n, d)).astype(np.float32)
    direction, _ = pack_signs(values)
    epsilon = np.full(n, 0.06, np.float32)
    out, other = np.empty((n, d), np.float32), np.ones((n, d), np.float32)
    return {
        "fill": lambda: out.fill(0.5),
        "copy": lambda: np.copyto(out, other),
        "apply": lambda: apply_signs(x, direction, epsilon=epsilon, out=out),
        "pack": lambda: pack_signs(values),
    }


def gather_alternatives(store: Store, folder: Path, *, batch_size: int = 64) -> Alternatives:
    """Random rows of a store's first source, and of the same bytes in one memory-mapped file, by the same code."""
    entry, header = store.entries[0], store.header
    zeros = np.zeros(batch_size, np.int64)
    path, width = folder / "rows", row_bytes(header.d)
    with path.open("wb") as file:
        for start in range(0, header.n, header.block):
            rows = np.arange(start, min(start + header.block, header.n))
            planes = store.gather(entry, np.zeros(len(rows), np.int64), rows)
            file.write(planes.direction.tobytes() if planes.direction is not None else b"")
    mapped = np.memmap(path, np.uint8, mode="r", shape=(header.n, width))
    table, used = np.array([[mapped.ctypes.data]], np.uint64), np.zeros((1, 1), np.int64)
    batches = numpy_generator("bench", "rows").integers(header.n, size=(4096, batch_size))
    ours, its = itertools.cycle(batches), itertools.cycle(batches)

    def bare(kept: npt.NDArray[np.uint8] = mapped) -> U8:  # the address is that of ``kept``
        out = np.empty((batch_size, width), np.uint8)
        gather_rows(table, used, zeros, next(its), header.n, header.n, 0, out)
        return out

    return {"memory map": bare, "store": lambda: store.gather(entry, zeros, next(ours))}


def gradient_alternatives(
    model: Model, images_NCHW: U8, *, batch_size: int = 64, device: str = "cpu", precision: str = "float32"
) -> Alternatives:
    """The gradients of precompute, packed, and a bare loop that computes and drops them: FGSM on some images."""
    about = {"models": {model.name: model.reference}, "attacks": ["fgsm"], "batch_size": batch_size}
    about |= {"device": device, "precision": precision}
    spec = checked(PrecomputeSpec, about, where="bench")
    entries, labels = entries_of(spec, model), np.zeros(len(images_NCHW), np.int64)

    def bare() -> None:
        with in_precision(device, precision):
            for start in range(0, len(images_NCHW), batch_size):
                x = torch.from_numpy(images_NCHW[start : start + batch_size]).to(device).float() / 255
                logits = model.module(x.requires_grad_())
                torch.autograd.grad(margin(logits, logits.detach().argmax(1)).sum(), x)
            if torch.device(device).type == "cuda":
                torch.cuda.synchronize(device)

    def precompute() -> dict[str, Planes]:
        with in_precision(device, precision):
            return perturb_block(model, images_NCHW, spec, entries, first=0, y_true_N=labels)

    return {"bare": bare, "precompute": precompute}


def run_bench(
    dataset: Dataset,
    *,
    architecture: str = "D",
    batch_size: int = 64,
    rounds: int = 9,
    threads: int = 1,
    device: str = "cpu",
) -> dict[str, Any]:
    """Time everything on this machine, in pairs; returns JSON: for each question medians and their quartiles.

    Parameters
    ----------
    dataset
        Images of training; some thousand are enough.
    rounds
        Pairs, at least 7.
    threads
        Of PyTorch.
    """
    check_device(device)
    found: dict[str, Any] = {"data": dataset.name, "n": len(dataset), "architecture": architecture}
    found |= {"batch_size": batch_size, "rounds": rounds, "threads": threads, "device": device}
    with TemporaryDirectory() as name, intra_op_threads(threads):
        folder = Path(name)
        steps = step_alternatives(dataset, folder, architecture=architecture, batch_size=batch_size, device=device)
        store = open_store(folder / "store")
        model = load_model(str(folder / "static.safetensors"), name="static", device=device)
        images, _ = dataset.read(np.arange(min(len(dataset), 16 * batch_size)))
        d = store.header.d
        questions: list[tuple[str, Alternatives]] = [
            ("step", steps),
            ("apply", apply_alternatives(d, max(1, 2**24 // d))),
            ("rows", gather_alternatives(store, folder, batch_size=batch_size)),
            ("precompute", gradient_alternatives(model, images, batch_size=batch_size, device=device)),
        ]
        total = sum((rounds + 1) * len(ways) for _, ways in questions)
        with progress_bar("bench", total=total, unit="figures") as advance:
            for question, ways in questions:
                timings = measure(ways, rounds=rounds, repeats=_repeats(ways), advance=advance)
                found[question] = {"milliseconds": {way: _milliseconds(timing) for way, timing in timings.items()}}
                found[question]["ratios"] = {
                    f"{over} / {under}": [round(value, 4) for value in ratio(timings, over, under)]
                    for over, under in _RATIOS[question]
                }
        found["precompute"]["images"] = len(images)
    return found


_RATIOS = {
    "step": (("store", "clean"), ("online", "clean"), ("static", "clean"), ("online", "store"), ("static", "store")),
    "apply": (("fill", "apply"), ("fill", "pack")),
    "rows": (("memory map", "store"),),
    "precompute": (("bare", "precompute"),),
}


def _repeats(ways: Alternatives) -> int:
    """Calls that make a figure long enough for the clock, by the fastest after a first one."""
    shortest = float("inf")
    for way in ways.values():
        way()
        began = time.perf_counter()
        way()
        shortest = min(shortest, time.perf_counter() - began)
    return max(1, round(_FIGURE / shortest))


def _milliseconds(timing: Timing) -> list[float]:
    return [round(1000 * value, 6) for value in (timing.median, *timing.spread)]
