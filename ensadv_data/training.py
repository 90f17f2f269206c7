"""Training: plain, standard adversarial, or ensemble adversarial, over one mixing schedule.

    no online attack, no shards      plain
    online attack                    standard adversarial training (every step white-box)
    online attack and shards         ensemble adversarial training: online ∪ static sources, one drawn per step
    shards only                      static sources only

Static models may stand in place of shards, or beside them: their perturbations are computed at each step then.

A step's randomness is named by (seed, epoch, step), so a run that is stopped anywhere and resumed gives the
same weights as one that was not; on CPU, with the same number of threads, to the bit.

In a group of processes (torchrun) a batch is divided among the ranks, and gradients are averaged. Images, sources,
draws and ε of a step are those of one process; dropout has masks of its own on each rank. Rank 0 writes.
"""

from __future__ import annotations

import time
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ensadv_data.ahead import made_from_read
from ensadv_data.arithmetic import IMITATED, without_imitation
from ensadv_data.batches import Batch, Batches, Delivered, deliver
from ensadv_data.checkpoint import digest_of_finished, read_checkpoint, record_of, write_checkpoint
from ensadv_data.data import Dataset
from ensadv_data.dist import (
    agreed_to_stop,
    check_device,
    check_same,
    current_place,
    intra_op_threads,
    wait_for_all,
)
from ensadv_data.errors import InputError, Interrupted, OutputError
from ensadv_data.files import clear_leftovers, naming_trouble
from ensadv_data.interrupts import deferred_interrupt
from ensadv_data.journal import Journal
from ensadv_data.learner import Learner, learning_rate
from ensadv_data.meter import Meter
from ensadv_data.mixing import Part, Schedule, StepPlan, check_shares
from ensadv_data.models import build_auxiliary, build_model, save_model, weights_digest
from ensadv_data.online import Computed, computed_perturbation, static_models
from ensadv_data.progress import progress_bar
from ensadv_data.sources import ONLINE, Source, augmentation_of, check_draws, check_epsilon, check_room, static_sources
from ensadv_data.spec import TrainSpec
from ensadv_data.store import Cache

__all__ = ["Trained", "TrainingRun", "train"]


@dataclass(frozen=True)
class Trained:
    """What a training run made."""

    path: Path
    digest: str
    steps: int
    seconds: float
    was_complete: bool = False
    notes: tuple[str, ...] = ()


def train(
    spec: TrainSpec,
    dataset: Dataset,
    out: Path,
    *,
    checkpoint_every: int = 200,
    log_every: int = 10,
    prefetch: int = 2,
    cache: Cache | None = None,
    tensorboard: Path | None = None,
) -> Trained:
    """Train the model that ``spec`` describes and write its weights to ``out``.

    Beside ``out`` stand ``.jsonl`` (the log) and, until the end, ``.checkpoint``; a run that finds a checkpoint
    of the same spec goes on from it. With ``amp`` on a device that would only imitate bfloat16 it trains in float32,
    as the record beside the weights and a note say.

    Parameters
    ----------
    checkpoint_every, log_every
        Steps between checkpoints, and between lines of the log.
    prefetch
        Steps whose images and stored perturbations are read ahead, in threads; 0: none. The model does not depend
        on it.
    cache
        Where chunks of all stores are held, and copies of far ones kept; one of 1 GiB, and no copies, unless given.
    tensorboard
        Folder for TensorBoard, if wanted (extra ``tensorboard``).

    Raises
    ------
    OutputError
        ``out`` exists and is another model, or cannot be written.
    AlignmentError
        A store was made for other data.
    Interrupted
        Ctrl-C; a checkpoint is kept, and the same command resumes.
    """
    began = time.perf_counter()
    if out.suffix != ".safetensors":  # the log and the checkpoint end otherwise, and must never be the model
        raise OutputError(f"expected a file name that ends in .safetensors for the weights, got {out}")
    run = TrainingRun(spec, dataset, out, cache=cache)
    if run.writes:
        clear_leftovers(out, out.with_suffix(".jsonl"), run.checkpoint_path)
    total = spec.epochs * run.schedule.steps
    digest = digest_of_finished(out, run.record)
    check_same(int(digest is not None), what=f"the number of files at {out}", device=run.device)
    notes = () if run.spec.amp == spec.amp else (f"{IMITATED}: --amp is left out",)
    if digest is not None:
        return Trained(out, digest, total, time.perf_counter() - began, was_complete=True, notes=notes)
    start = run.resume()
    with ExitStack() as stack:
        log = Journal(out.with_suffix(".jsonl"), start, run.schedule.steps, tensorboard) if run.writes else None
        note = stack.enter_context(log).write if log else lambda line: None
        request = stack.enter_context(deferred_interrupt())
        stack.enter_context(intra_op_threads(spec.threads))
        bar = progress_bar(f"train {out.stem}", total=total, done=start, unit="images", per=spec.batch_size)
        advance = stack.enter_context(bar)
        numbers = range(start, total)
        made = made_from_read(run.batches.load, run.batches.prepare, numbers, depth=prefetch)
        batches = stack.enter_context(closing(made))
        for number, batch in zip(numbers, batches, strict=True):
            epoch, step = divmod(number, run.schedule.steps)
            line = run.step(number, batch)
            if number % log_every == 0:
                note(run.meter.averaged(line))
            if step + 1 == run.schedule.steps:
                note(run.epoch_summary(epoch, step))
            last = number + 1 == total
            stop = agreed_to_stop(request.requested, number, device=run.device)
            if not last and (stop or (number + 1) % checkpoint_every == 0):
                if log:
                    log.flush()
                run.checkpoint(number + 1)
            if stop and not last:
                raise Interrupted(f"{out}: stopped after step {number + 1} of {total}; the same command resumes")
            advance(1)
    finished = run.learner.finished()
    digest = weights_digest(finished)
    if run.writes:
        shape, classes = dataset.shape, dataset.classes
        save_model(out, finished, architecture=spec.architecture, shape=shape, classes=classes, record=run.record)
        with naming_trouble(run.checkpoint_path):
            run.checkpoint_path.unlink(missing_ok=True)
    wait_for_all()
    return Trained(out, digest, total, time.perf_counter() - began, notes=notes)


class TrainingRun:
    """The state that a checkpoint holds: the learner and the meters.

    Parameters
    ----------
    spec, dataset, out, cache
        See :func:`train`.
    module
        What to train in place of a new model of the spec's architecture.
    """

    def __init__(
        self,
        spec: TrainSpec,
        dataset: Dataset,
        out: Path,
        *,
        cache: Cache | None = None,
        module: nn.Module | None = None,
    ) -> None:
        if len(dataset) < spec.batch_size:
            raise InputError(f"batch_size: expected at most the {len(dataset)} training images, got {spec.batch_size}")
        check_device(spec.device)
        self.spec, self.device = (spec := without_imitation(spec)), torch.device(spec.device)
        self.checkpoint_path = out.with_suffix(".checkpoint")
        self.place = current_place()
        self.writes = self.place.rank == 0  # what the run makes
        check_shares(spec.batch_size, self.place, halves=spec.batches == "replace", parts=spec.accumulate)
        online = (Source(ONLINE),) if spec.online else ()
        static = static_sources(spec.shards, dataset, cache=(cache := cache or Cache()))
        check_epsilon(static, spec.epsilon)
        check_draws(static, spec.draws)
        check_room(static, window=spec.window, draws=spec.draws, room=cache.limit)
        references = dict(sorted(spec.static.items()))
        models = static_models(references, dataset, device=spec.device) if references else []
        computed = tuple(Source(f"{model.name} (online)") for model in models)
        self.schedule = Schedule(
            seed=spec.seed,
            n=len(dataset),
            batch_size=spec.batch_size,
            sources=(*online, *computed, *static),
            epsilon=spec.epsilon,
            window=spec.window,
            block=static[0].entries[0][0].header.block if static else 1024,
            draws=spec.draws,
            per_example=spec.source_per == "example",
        )
        if self.schedule.per_example and len(self.schedule.sources) < 2:
            raise InputError(
                f"source_per: expected two sources or more to draw from, got {len(self.schedule.sources)}; leave it out"
            )
        self.batches = Batches(
            dataset,
            self.schedule,
            fresh=spec.random_step == "fresh",
            replace=spec.batches == "replace",
            packed=self.device.type != "cpu",
            place=self.place,
            augment=augmentation_of(static, spec.augment),
        )
        if module is None:
            module = build_model(spec.architecture, shape=dataset.shape, classes=dataset.classes, seed=spec.seed)
        self.model = module.to(self.device)
        if spec.auxiliary_weight:
            about: dict[str, Any] = {"shape": dataset.shape, "classes": dataset.classes, "seed": spec.seed}
            module = build_auxiliary(spec.architecture, self.model, **about)
        self.learner = Learner(spec, module, place=self.place)
        self.computed: dict[str, Computed] = {}  # by source
        if spec.online:
            self.computed[ONLINE] = Computed(self.model, spec.online, dropout=spec.online_mode == "train")
        for source, model in zip(computed, models, strict=True):
            self.computed[source.name] = Computed(
                model.module, spec.static_perturbation, dropout=spec.static_mode == "train"
            )
        names = [source.name for source in self.schedule.sources]
        self.meter = Meter(names, device=self.device, per_example=self.schedule.per_example)
        self.record = record_of(spec, dataset, models)
        self.clock = time.perf_counter()

    def prepare(self, number: int) -> Batch:
        """What step ``number`` needs and no model makes; see :meth:`~ensadv_data.batches.Batches.prepare`."""
        return self.batches.prepare(number)

    def step(self, number: int, batch: Batch) -> dict[str, Any]:
        """One optimizer step; returns a line of the log, with tensors that nobody waited for."""
        epoch, step = divmod(number, self.schedule.steps)
        here = deliver(batch, self.device)
        x, y, adversarial = here.x, here.y, batch.adversarial
        clean = len(x) - (adversarial if self.spec.batches == "replace" else 0)
        x_adv = self._adversarial(here, adversarial, epoch=epoch, step=step) if adversarial else x[:0]
        both = (x[:clean], y[:clean]), (x_adv, y[len(y) - adversarial :])
        losses = self.learner.learn(*both, number=number, epoch=epoch, step=step)
        return self._measured(batch.plan, losses, clean, epoch, step)

    def epoch_summary(self, epoch: int, step: int) -> dict[str, Any]:
        """Share and mean losses of each source over the epoch; the meter starts again."""
        return {
            "epoch": epoch,
            "step": step,
            "learning_rate": learning_rate(self.spec, epoch),
            "sources": self.meter.summary(),
        }

    def checkpoint(self, number: int) -> None:
        """Write everything that step ``number`` needs."""
        sums = self.meter.merged()
        if self.writes:
            tensors = self.learner.state() | {"meter": sums}
            write_checkpoint(self.checkpoint_path, tensors, number=number, record=self.record)

    def resume(self) -> int:
        """Load the checkpoint if there is one; returns the step to go on from."""
        found = read_checkpoint(self.checkpoint_path, record=self.record)
        number, tensors = found or (0, {})
        check_same(number, what=f"the step to go on from in {self.checkpoint_path}", device=self.device)
        if tensors:
            self.learner.load(tensors)
            self.meter.load(tensors["meter"])
        return number

    def _adversarial(self, here: Delivered, count: int, *, epoch: int, step: int) -> Tensor:
        """The last ``count`` images of the batch, each perturbed by the source that the plan has for it."""
        first = len(here.x) - count
        if len(here.static) == 1:
            part, _, made = here.static[0]
            return self._computed(here.x[first:], part, epoch=epoch, step=step) if made is None else made
        x_adv = torch.empty_like(here.x[first:])
        for part, rows, made in here.static:
            x_adv[rows - first] = self._computed(here.x[rows], part, epoch=epoch, step=step) if made is None else made
        return x_adv

    def _computed(self, x: Tensor, part: Part, *, epoch: int, step: int) -> Tensor:
        """The images of a part, perturbed by the model that is its source."""
        source = self.schedule.sources[part.source]
        return computed_perturbation(
            self.computed[source.name],
            x,
            examples=part.indices,
            epsilon=None if self.spec.epsilon.sigma is None else part.epsilon,
            seed=self.spec.seed,
            epoch=epoch,
            step=step,
            rank=self.place.rank,
            among=source.name if self.schedule.per_example else None,
            amp=self.spec.amp,
            parts=self.spec.accumulate,
        )

    def _measured(self, plan: StepPlan, losses: Tensor, clean: int, epoch: int, step: int) -> dict[str, Any]:
        sources = plan.sources[len(plan.sources) - (len(losses) - clean) :]
        loss_clean, loss_adversarial = self.meter.add(losses[:clean], losses[clean:], sources)
        now = time.perf_counter()
        seconds, self.clock = now - self.clock, now
        return {
            "epoch": epoch,
            "step": step,
            "source": None if self.schedule.per_example else self.meter.names[plan.sources[0]],
            "epsilon": float(plan.epsilon.mean()),
            "loss_clean": loss_clean,
            "loss_adversarial": loss_adversarial if plan.attacks else None,
            "seconds": round(seconds, 6),
        }
