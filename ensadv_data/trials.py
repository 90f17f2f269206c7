"""What this machine takes for the kinds of work that a recipe is made of: a few batches of each, measured once.

The images are real. Weights do not matter for the time, so that a model which is yet to be trained is measured with
weights by chance.
"""

from __future__ import annotations

import resource
import statistics
import sys
import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import torch
from torch import nn

from ensadv_data.arithmetic import as_recorded
from ensadv_data.attacks.catalogue import perturb
from ensadv_data.attacks.gradient import logits_of
from ensadv_data.compression import zstd_encode
from ensadv_data.data import Dataset, Opened, digest_examples
from ensadv_data.dist import intra_op_threads
from ensadv_data.entries import entries_of
from ensadv_data.evaluation.diagnosis import measured_on
from ensadv_data.mixing import Part
from ensadv_data.models import Model
from ensadv_data.online import Computed, computed_perturbation
from ensadv_data.perturbation import perturb_block
from ensadv_data.spec import AttackSpec, DiagnoseSpec, EvaluateSpec, PrecomputeSpec, TrainSpec
from ensadv_data.store import Header
from ensadv_data.store.layout import row_arrays, zstd_level
from ensadv_data.training import TrainingRun

__all__ = ["Trials", "peak_bytes"]

T = TypeVar("T")

_SECONDS, _MOST = 0.5, 50  # what is short is measured again, for so long and so often
_WARM = 4  # images of the first, which is not measured
_IMAGES = 128  # of an evaluation's batch, at most
_SAMPLE = 512  # images whose planes are compressed, at most
_READ = 256  # images that are read, at most


@dataclass
class Trials:
    """Seconds of each kind of work, measured when it is first asked for.

    Parameters
    ----------
    data
        Where images are from.
    """

    data: Dataset
    _found: dict[Hashable, Any] = field(default_factory=dict)

    def rows(self, spec: PrecomputeSpec, model: Model) -> float:
        """Seconds that a worker takes for all rows of one source for one image, packed."""
        attacks = tuple(attack.model_dump_json() for attack in spec.attacks)
        key = ("rows", model.architecture, attacks, spec.mode, spec.loss, spec.precision, spec.compile, spec.batch_size)

        def seconds(draws: int) -> float:
            return self._once((*key, spec.device, draws), lambda: self._rows(spec, model, draws))

        first = seconds(1)
        return first if spec.draws == 1 else first + (spec.draws - 1) * max(0.0, seconds(2) - first)

    def reading(self) -> float:
        """Seconds for which an image that is read keeps a core busy: decoding, mostly. Waiting is not among them."""
        return self._once("reading", self._reading)

    def sample(self, spec: PrecomputeSpec, model: Model, header: Header) -> tuple[dict[str, float], float]:
        """Compressed bytes over raw ones of each array of a source that is compressed; and its seconds an image.

        A mask that no image of the sample needs is not among them.
        """
        images, labels = self.data.read(np.arange(min(_SAMPLE, header.block, len(self.data))))
        ratios, seconds = {}, 0.0
        small = spec.model_copy(update={"draws": 1})
        with intra_op_threads(1 if spec.device == "cpu" else None):
            entries = entries_of(small, model)
            model.module.to(spec.device)
            rows = perturb_block(model, images, small, entries, first=0, y_true_N=labels)
        for entry in entries.values():
            for name in row_arrays(entry.kind, masked=rows[entry.key].nonzero is not None):
                level, plane = zstd_level(name, entry.kind, header), getattr(rows[entry.key], name)
                if level is not None:
                    began = time.perf_counter()
                    packed = len(zstd_encode(plane.reshape(-1).view(np.uint8), level=level))
                    seconds += header.draws * (time.perf_counter() - began) / len(images)
                    ratios[f"{entry.key}/{name}"] = packed / plane.nbytes
        return ratios, seconds

    def step(self, spec: TrainSpec, *, adversarial: bool) -> float:
        """Seconds of a training step whose perturbations are there already, or that has none."""
        key = ("step", spec.architecture, spec.batch_size, spec.batches, spec.optimizer, spec.amp, _threads(spec))
        return self._once((*key, spec.device, adversarial), lambda: self._step(spec, adversarial=adversarial))

    def perturbation(self, spec: TrainSpec, model: Model, attack: AttackSpec, *, dropout: bool) -> float:
        """Seconds by which a training step is longer that computes perturbations of that model."""
        key = ("perturbation", model.architecture, attack.model_dump_json(), dropout, spec.amp, spec.batch_size)
        return self._once(
            (*key, spec.batches, _threads(spec), spec.device), lambda: self._perturbation(spec, model, attack, dropout)
        )

    def passes(self, model: Model, spec: EvaluateSpec | DiagnoseSpec) -> tuple[float, float]:
        """Seconds of a forward pass for one image, and of a forward and backward pass, in batches of a spec."""
        key = ("passes", model.architecture, spec.batch_size, spec.device)
        return self._once(key, lambda: self._passes(model, spec.batch_size, spec.device))

    def diagnosis(self, spec: DiagnoseSpec, model: Model, whole: Opened) -> tuple[float, dict[str, Any]]:
        """Seconds of all measures of a diagnosis on one model, and what a smaller one found."""
        about = spec.model_dump_json(exclude={"images", "points", "seed"})
        key = ("diagnosis", model.architecture, about)
        found = self._once(key, lambda: self._diagnosis(spec, model, whole))
        images = len(whole) if spec.images is None else min(spec.images, len(whole))
        times = {
            "masking": images,
            "rounding": images,
            "cone": spec.points,
            "surface": len(spec.examples),
            "flips": images,
        }
        return sum(seconds * times[name] for name, (seconds, _) in found.items()), {
            name: about for name, (_, about) in found.items()
        }

    def _once(self, key: Hashable, measure: Callable[[], T]) -> T:
        if key not in self._found:
            self._found[key] = measure()
        return cast(T, self._found[key])

    def _reading(self) -> float:
        examples = np.linspace(0, len(self.data) - 1, min(_READ, len(self.data))).astype(np.int64)
        self.data.read(examples[:_WARM])
        began = time.process_time()
        self.data.read(examples)
        return (time.process_time() - began) / len(examples)

    def _rows(self, spec: PrecomputeSpec, model: Model, draws: int) -> float:
        spec, device = spec.model_copy(update={"draws": draws}), torch.device(spec.device)
        model = replace(model, module=model.module.to(device).requires_grad_(False))
        if spec.compile:
            model = replace(model, module=cast(nn.Module, torch.compile(model.module)))
        images, labels = self.data.read(np.arange(min(int(spec.batch_size), len(self.data))))
        entries = entries_of(spec, model)

        def block(count: int) -> None:
            perturb_block(model, images[:count], spec, entries, first=0, y_true_N=labels[:count])

        with as_recorded(spec.device, spec.precision):
            warm = len(images) if spec.compile else _WARM
            seconds = _timed(lambda: block(len(images)), device, warm=lambda: block(warm))
        began = time.perf_counter()
        digest_examples(images)
        return (seconds + time.perf_counter() - began) / len(images)

    def _step(self, spec: TrainSpec, *, adversarial: bool) -> float:
        names = ("shards", "static", "static_attack", "static_mode", "online", "draws", "source_per")
        plain = {name: TrainSpec.model_fields[name].get_default(call_default_factory=True) for name in names}
        run = TrainingRun(spec.model_copy(update=plain), self.data, Path("untrained.safetensors"))
        batch = run.prepare(0)
        if adversarial:
            count = len(batch.images) // (2 if spec.batches == "replace" else 1)
            rows = np.arange(len(batch.images) - count, len(batch.images))
            plan = batch.plan
            part = Part(rows, 0, 0, plan.indices[rows], plan.draws[rows], plan.epsilon[rows])
            made = (batch.images[rows] / 255).astype(np.float32)
            batch = replace(batch, adversarial=count, static=((part, made),))
        with intra_op_threads(_threads(spec)):
            return _timed(lambda: run.step(0, batch), torch.device(spec.device))

    def _perturbation(self, spec: TrainSpec, model: Model, attack: AttackSpec, dropout: bool) -> float:
        device = torch.device(spec.device)
        examples = np.arange(min(spec.batch_size // (2 if spec.batches == "replace" else 1), len(self.data)))
        x = torch.from_numpy(self.data.read(examples)[0]).to(device).float() / 255
        source = Computed(model.module.to(device), attack, dropout=dropout)

        def perturbed(count: int) -> object:
            about: Mapping[str, Any] = {"seed": 0, "epoch": 0, "step": 0, "amp": spec.amp}
            return computed_perturbation(source, x[:count], examples=examples[:count], **about)

        with intra_op_threads(_threads(spec)):
            return _timed(lambda: perturbed(len(x)), device, warm=lambda: perturbed(_WARM))

    def _passes(self, model: Model, batch_size: int, name: str) -> tuple[float, float]:
        device = torch.device(name)
        images, labels = self.data.read(np.arange(min(batch_size, _IMAGES, len(self.data))))
        x, y = torch.from_numpy(images).to(device).float() / 255, torch.from_numpy(labels).to(device)
        single, module = AttackSpec(name="fgsm"), model.module.to(device)
        forward = _timed(lambda: logits_of(module, x), device)
        return forward / len(x), _timed(lambda: perturb(module, x, y, single), device) / len(x)

    def _diagnosis(self, spec: DiagnoseSpec, model: Model, whole: Opened) -> dict[str, tuple[float, Any]]:
        """For each measure that is one model's, the seconds of one image, point or example, and its result."""
        images, points, examples = min(32, len(whole)), 2, spec.examples[:1]
        small = spec.model_copy(
            update={"images": images, "points": points, "examples": examples, "batch_size": min(spec.batch_size, 32)}
        )
        found: dict[str, tuple[float, Any]] = {}
        model.module.to(spec.device)
        times = {"masking": images, "rounding": images, "cone": points, "surface": 1, "flips": images}
        for name in (name for name in spec.measures if name in times):
            one = small.model_copy(update={"measures": (name,)})
            began = time.perf_counter()
            result = measured_on(one, model, replace(whole, limit=images), whole, None, lambda steps: None)
            found[name] = ((time.perf_counter() - began) / times[name], result[name])
        return found


def peak_bytes() -> int:
    """Resident memory of this process at its most, libraries included."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _threads(spec: TrainSpec) -> int | None:
    """Of a training stage, as ``run`` has it."""
    return spec.threads or (1 if spec.device == "cpu" else None)


def _timed(work: Callable[[], object], device: torch.device, *, warm: Callable[[], object] | None = None) -> float:
    """Median seconds of a work that was done before."""
    (warm or work)()
    seconds: list[float] = []
    while not seconds or (sum(seconds) < _SECONDS and len(seconds) < _MOST):
        began = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)
