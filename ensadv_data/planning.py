"""What a recipe will take, before it runs: bytes, objects, requests, hours, memory and money of each of its stages.

Bytes and requests follow from the specs (sizing.py); seconds from a few batches on this machine (trials.py). Where a
training reads a store, the plan also tells after how many epochs that has cost less than gradients computed online.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ensadv_data.arithmetic import without_imitation
from ensadv_data.checkpoint import record_of
from ensadv_data.data import Dataset, Opened, open_data
from ensadv_data.dist import available_cores, check_device
from ensadv_data.entries import entries_of
from ensadv_data.errors import InputError
from ensadv_data.evaluating import evaluation_bytes, evaluation_seconds, uncounted
from ensadv_data.forecast import BreakEven, Plan, StagePlan
from ensadv_data.models import Model, build_model, check_models, leaves, load_model, model_bytes
from ensadv_data.outputs import Outputs, finished_stages
from ensadv_data.precompute import header_of
from ensadv_data.progress import progress_bar
from ensadv_data.recipe import Recipe, Stage, on_device, selected
from ensadv_data.sizing import (
    Span,
    StoreSize,
    client_bytes,
    store_reading,
    store_requests,
    store_size,
    worker_bytes,
)
from ensadv_data.spec import AttackSpec, DiagnoseSpec, EvaluateSpec, PrecomputeSpec, TrainSpec
from ensadv_data.store import HELD_BYTES, Entry, Header
from ensadv_data.trials import Trials, peak_bytes

__all__ = ["plan_recipe"]

_TRIED = (16, 1024)  # the smallest and the largest batch that a trial of batch sizes finds
_UNKNOWN = "0" * 64  # a digest, of which the length is known


def plan_recipe(
    recipe: Recipe,
    out: Path,
    *,
    until: str | None = None,
    workers: int | None = None,
    device: str | None = None,
    price: float | None = None,
    calibrate: bool = True,
) -> Plan:
    """Tell what a run of a recipe will take; nothing is written.

    Parameters
    ----------
    out
        Where it would run: what is done there is told, and weights that are there are used.
    until
        Only this stage and those that it needs.
    workers
        Size of the cluster that makes the stores; None: one a core, as ``run`` does.
    device
        In place of that of the stages.
    price
        Of an hour of one worker.
    calibrate
        Whether to measure a few batches of each kind of work; else nothing is told of time, and neither a device is
        needed nor the hub.

    Raises
    ------
    InputError
        A device, a data set or a model is missing.
    OutputError
        ``out`` holds something else than outputs of this recipe.
    """
    stages = [stage for stage in selected(on_device(recipe, device), until) if stage.spec is not None]
    if calibrate:
        _check_devices({getattr(stage.spec, "device", "cpu") for stage in stages})
    planner = _Planner(recipe, out, workers or available_cores(), price, calibrate, finished_stages(recipe, out))
    with progress_bar(f"plan {recipe.name}", total=len(stages), unit="stages") as advance:
        for stage in stages:
            planner.add(stage)
            advance(1)
    return Plan(
        recipe.name,
        tuple(planner.planned),
        tuple(planner.break_even()),
        peak_bytes() if calibrate else None,
        price,
        tuple(dict.fromkeys(planner.notes)),
    )


def _check_devices(names: Iterable[str]) -> None:
    for name in names:
        try:
            check_device(name)
        except InputError as error:
            raise InputError(
                f"{error}; plan where it will run, or with --device cpu, or with --no-calibrate for bytes alone"
            ) from None


@dataclass(frozen=True)
class _StoreToBe:
    """A store of the recipe, as far as it is known."""

    stage: Stage
    spec: PrecomputeSpec
    header: Header
    entries: tuple[Entry, ...]
    models: list[Model]
    seconds: float | None  # of all workers
    elapsed: float | None


class _Planner:
    """Plans stages one after the other, those first that others read."""

    def __init__(
        self, recipe: Recipe, out: Path, workers: int, price: float | None, calibrate: bool, done: set[str]
    ) -> None:
        self.recipe, self.outputs, self.done = recipe, Outputs(recipe, out), done
        self.workers, self.price, self.calibrate = workers, price, calibrate
        self.train = open_data(recipe.data, "train")
        self._test: Opened | None = None
        self.trials = Trials(self.train)
        self.known: dict[str, Model] = {}  # by name of the stage that trains it
        self.untrained: set[str] = set()
        self.stores: dict[str, _StoreToBe] = {}
        self.savings: list[tuple[Stage, TrainSpec, int, float]] = []  # sources, and seconds an epoch
        self.planned: list[StagePlan] = []
        self.notes: list[str] = []

    @property
    def test(self) -> Opened:
        """All test images."""
        if self._test is None:
            self._test = open_data(self.recipe.data.model_copy(update={"limit": None}), "test")
        return self._test

    def add(self, stage: Stage) -> None:
        """Plan one stage."""
        spec = stage.spec
        if isinstance(spec, TrainSpec):
            planned = self._trained(stage, spec)
        elif isinstance(spec, PrecomputeSpec):
            planned = self._precomputed(stage, spec)
        elif isinstance(spec, EvaluateSpec):
            planned = self._evaluated(stage, spec)
        elif isinstance(spec, DiagnoseSpec):
            planned = self._diagnosed(stage, spec)
        else:
            raise TypeError(stage.name)
        self.planned.append(planned)

    def break_even(self) -> Iterator[BreakEven]:
        """For every training that reads stores."""
        for stage, spec, sources, saved in self.savings:
            stores = [self.stores[name] for name in spec.shards]
            readers = [each for _, each, _, _ in self.savings if set(each.shards) & set(spec.shards)]
            yield BreakEven(
                stage.name,
                tuple(spec.shards),
                sources=sources,
                draws=max(store.header.draws for store in stores),
                made=sum(store.seconds or 0 for store in stores),
                elapsed=sum(store.elapsed or 0 for store in stores),
                saved=saved,
                epochs=spec.epochs,
                all_epochs=sum(each.epochs for each in readers),
            )

    def _models(self, named: Mapping[str, str], data: Dataset, device: str) -> list[Model]:
        measured = self.calibrate  # else neither the device is needed, nor weights of the hub: their size is known
        models = [load_model(reference, name=name, known=self.known, hub=measured) for name, reference in named.items()]
        device = device if measured else "cpu"
        for model in models:
            model.module.to(device)
        check_models(models, data, device=device)
        return models

    def _row(self, stage: Stage, *, seconds: float | None, workers: int = 1, **fields: Any) -> StagePlan:
        cost = None if seconds is None or self.price is None else self.price * workers * seconds / 3600
        return StagePlan(
            stage.name, stage.kind, stage.name in self.done, seconds=seconds, workers=workers, cost=cost, **fields
        )

    def _precomputed(self, stage: Stage, spec: PrecomputeSpec) -> StagePlan:
        data = self.train if spec.split == "train" else self.test
        models = self._models(spec.models, data, spec.device)
        entries = tuple(entry for model in models for entry in entries_of(spec, model).values())
        tried = spec.batch_size == "auto"
        specs = [spec.model_copy(update={"batch_size": size}) for size in (_TRIED if tried else (spec.batch_size,))]
        header = header_of(specs[0], data, models)
        seconds, sample = self._block_seconds(specs[0], models, header, data)
        sizes = [store_size(header_of(each, data, models), entries, models, sample=sample) for each in specs]
        elapsed = None
        if seconds is not None:
            elapsed = -(-header.blocks // self.workers) * header.block * seconds
            if self.workers > header.blocks:
                self.notes.append(f"{stage.name}: {header.blocks} blocks, so no more workers than that have work")
        if tried and self.calibrate:
            self.notes.append(f"{stage.name}: the time is that of batches of {specs[0].batch_size}, not the best ones")
        total = None if seconds is None else seconds * header.n
        self.stores[stage.name] = _StoreToBe(stage, spec, header, entries, models, total, elapsed)
        size = StoreSize(sizes[0].objects, sizes[0].bytes, sizes[0].about)
        for other in sizes[1:]:
            size |= other
        return self._row(
            stage,
            seconds=elapsed,
            workers=self.workers,
            objects=size.objects,
            bytes=size.bytes,
            about_bytes=size.about,
            requests=store_requests(header, entries, trial=tried),
            block_bytes=worker_bytes(header, entries, batch_size=max(int(each.batch_size) for each in specs)),
            record_bytes=client_bytes(header, entries, models),
        )

    def _block_seconds(
        self, spec: PrecomputeSpec, models: Sequence[Model], header: Header, data: Dataset
    ) -> tuple[float | None, dict[str, float] | None]:
        """Seconds of an image of a store; and how its planes compress, if all its sources are there already."""
        if not self.calibrate:
            return None, None
        seconds, reading = sum(self.trials.rows(spec, model) for model in models), self.trials.reading()
        on_cpu = spec.device == "cpu"  # a core decodes and computes; beside a device all cores decode
        seconds = seconds + reading if on_cpu else max(seconds, reading / available_cores())
        if any(leaf in self.untrained for reference in spec.models.values() for leaf in leaves(reference)):
            return seconds, None
        sample: dict[str, float] = {}
        for model in models:
            ratios, more = Trials(data).sample(spec, model, header)
            sample, seconds = sample | ratios, seconds + more
        return seconds, sample

    def _trained(self, stage: Stage, spec: TrainSpec) -> StagePlan:
        spec = without_imitation(spec)
        static = self._models(dict(sorted(spec.static.items())), self.train, spec.device)
        model, size = self._to_be(stage, spec, static)
        self.known[stage.name] = model
        stores = [self.stores[name] for name in spec.shards]
        fixed = [(store, source) for store in stores for source in store.models]
        sources = bool(spec.online) + len(static) + len(fixed)
        seconds = None
        if self.calibrate:
            step = self.trials.step(spec, adversarial=bool(sources))
            computed = [(source, spec.static_perturbation, spec.static_mode) for source in static]
            computed += [(model, spec.online, spec.online_mode)] if spec.online else []
            step += sum(self._perturbation(spec, *one) for one in computed) / max(1, sources)
            step = self._beside_reading(spec, step)
            steps = len(self.train) // spec.batch_size
            seconds = spec.epochs * steps * step
            if fixed:
                saved = [
                    sum(self._perturbation(spec, source, attack, store.spec.mode) for attack in store.spec.attacks)
                    / len(store.spec.attacks)
                    for store, source in fixed
                ]
                self.savings.append((stage, spec, sources, steps * sum(saved) / sources))
        reading = {name: store_reading(self.stores[name].header, self.stores[name].entries) for name in spec.shards}
        for name, read in reading.items():
            if read.held.most > HELD_BYTES and not spec.window:
                self.notes.append(
                    f"{stage.name}: from a bucket, rows of {name} do not fit in --cache-bytes 1GiB, up to "
                    f"{read.held.most:,} bytes: give it a window, or more room"
                )
            masks = read.held.most - read.held.least
            if masks > HELD_BYTES and not spec.window:
                self.notes.append(
                    f"{stage.name}: from a disk, masks of {name} may not fit in --cache-bytes 1GiB, up to {masks:,} "
                    "bytes: make the store with zeros = fill, or give the training a window, or more room"
                )
        return self._row(stage, seconds=seconds, objects=Span.exactly(1), bytes=Span.exactly(size), reading=reading)

    def _beside_reading(self, spec: TrainSpec, step: float) -> float:
        """Seconds of a step while the next ones are read, in threads, by the cores that it leaves."""
        computing = step * (spec.threads or 1) if spec.device == "cpu" else 0
        return max(step, (computing + spec.batch_size * self.trials.reading()) / available_cores())

    def _perturbation(self, spec: TrainSpec, model: Model, attack: AttackSpec, mode: str) -> float:
        return self.trials.perturbation(spec, model, attack, dropout=mode == "train")

    def _to_be(self, stage: Stage, spec: TrainSpec, static: Sequence[Model]) -> tuple[Model, int]:
        """The model of a training stage and the bytes of its file: as it is there, or with weights by chance."""
        path, data = self.outputs.path(stage), self.train
        if stage.name in self.done:
            return load_model(str(path), name=stage.name), path.stat().st_size
        self.untrained.add(stage.name)
        threads = spec.threads or (1 if spec.device == "cpu" else None)
        made = [(_UNKNOWN, [model.name for model in self.stores[name].models]) for name in spec.shards]
        record = record_of(spec.model_copy(update={"threads": threads}), data, static, stores=made)
        module = build_model(spec.architecture, shape=data.shape, classes=data.classes)
        about: dict[str, Any] = {"architecture": spec.architecture, "record": record}
        size = len(model_bytes(module, shape=data.shape, classes=data.classes, **about)[0])
        return Model(stage.name, module.eval(), stage.name, digest=_UNKNOWN, **about), size

    def _evaluated(self, stage: Stage, spec: EvaluateSpec) -> StagePlan:
        targets, sources = (
            self._models(stage.options[role], self.test, spec.device) for role in ("targets", "sources")
        )
        stored = [model.name for name in spec.shards for model in self.stores[name].models]
        stored = list(dict.fromkeys(stored))
        if unknown := uncounted(spec):
            self.notes.append(f"{stage.name}: without the time of {', '.join(unknown)}")
        seconds = None
        if self.calibrate:
            seconds = evaluation_seconds(spec, targets, sources, len(stored), self.test, self.trials)
        size = evaluation_bytes(spec, targets, [*(source.name for source in sources), *stored], self.test)
        return self._row(stage, seconds=seconds, objects=Span.exactly(1), about_bytes=size)

    def _diagnosed(self, stage: Stage, spec: DiagnoseSpec) -> StagePlan:
        models, _, static, holdouts = (
            self._models(stage.options[role], self.test, spec.device)
            for role in ("models", "others", "static", "holdouts")
        )
        if not self.calibrate:
            return self._row(stage, seconds=None, objects=Span.exactly(1))
        seconds, size = 0.0, 0
        for model in models:
            taken, found = self.trials.diagnosis(spec, model, self.test)
            seconds += taken
            size += len(json.dumps({model.name: found}, indent=1))
        if "discrepancy" in spec.measures:
            n = len(self.test) if spec.images is None else min(spec.images, len(self.test))
            forward = sum(self.trials.passes(model, spec)[0] for model in models)
            seconds += n * sum(self.trials.passes(model, spec)[1] + forward for model in (*static, *holdouts))
        return self._row(stage, seconds=seconds, objects=Span.exactly(1), about_bytes=size)
