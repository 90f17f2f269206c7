"""Perturbations of static models over a whole split: blocks planned purely, run by dask.

One task (blocks.py) loads one block of images once, and makes all sources, attacks and draws of it.
"""

from __future__ import annotations

import math
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from ensadv_data.arithmetic import IMITATED, as_recorded, has_bfloat16
from ensadv_data.blocks import Job, Rows, compute_block, dataset_of, digest_rows, plan_blocks
from ensadv_data.calibration import best_batch_size
from ensadv_data.cluster import HERE, Crew, Tls, connected, streamed
from ensadv_data.data import Dataset, Opened, absolute_data, open_data
from ensadv_data.data.checking import Piece
from ensadv_data.dist import available_cores, check_device
from ensadv_data.doubtful import in_float64
from ensadv_data.entries import entries_of, plan_of, remarks_on_draws
from ensadv_data.errors import InputError, IntegrityError, Interrupted, OutputError
from ensadv_data.manifest import DataRecord, Manifest, ObjectRecord, SourceRecord, read_manifest
from ensadv_data.models import Model, check_models, load_model, with_absolute_file, with_leaves
from ensadv_data.objects import Objects, is_url, objects_at
from ensadv_data.progress import progress_bar
from ensadv_data.spec import DataSpec, PrecomputeSpec
from ensadv_data.store import (
    PART,
    Header,
    StoreWriter,
    block_of,
    block_size,
    damaged_blocks,
    format_version,
    root_attributes,
    shortened,
)

T = TypeVar("T")
R = TypeVar("R")

__all__ = ["Outcome", "header_of", "manifest_of", "precompute_store"]


@dataclass(frozen=True)
class Outcome:
    """What a call of :func:`precompute_store` did."""

    path: Path | str
    digest: str
    blocks: int
    computed: int
    seconds: float
    notes: tuple[str, ...]
    was_complete: bool = False  # the store was finished before, and was left alone


def precompute_store(
    spec: PrecomputeSpec,
    data: DataSpec,
    out: Path | str,
    *,
    workers: int | None = None,
    scheduler: str | None = None,
    gpus: int = 0,
    listen: str = HERE,
    tls: Tls | None = None,
    patience: float = 120.0,
    repair: bool = False,
    say: Callable[[str], object] = lambda line: None,
) -> Outcome:
    """Make, or finish, the store at ``out``: a folder, or a URL of an object store.

    Parameters
    ----------
    workers
        Processes on this machine; None: one a core; 0: compute in this process.
    scheduler, gpus, listen, tls, patience
        See :class:`~ensadv_data.cluster.Crew`. A running cluster must see the same paths; a URL is one everywhere.
    repair
        Whether every chunk of a finished store is compared with its manifest. Those that are missing or of another
        size are found anyway. Their blocks are computed again, and must come out as the manifest has them.
    say
        Told where a cluster can be watched and joined.

    Raises
    ------
    OutputError
        ``out`` holds something else, or cannot be written.
    IntegrityError
        A damaged chunk of a finished store came out otherwise than the manifest has it; it was left as it is.
    ModelError
        A model cannot be loaded or gives output that is not finite.
    Interrupted
        Ctrl-C, or a cluster that went away; every finished block is kept, and the same command resumes.
    """
    if scheduler is not None and (workers is not None or listen != HERE):
        raise InputError("scheduler: expected no workers and no listen beside it: they are of one that is started here")
    if gpus and torch.device(spec.device).type != "cuda":
        raise InputError(f"gpus: expected device = cuda beside it, got {spec.device}")
    began = time.perf_counter()
    check_device(spec.device)
    with ExitStack() as stack:
        team = None
        if workers != 0 or scheduler is not None or gpus or listen != HERE:  # 0: this process, or workers that join
            own = available_cores() if workers is None else workers
            team = _Team(stack, Crew(own, scheduler, gpus, listen, tls, patience), say)
        outcome = _precomputed(spec, data, out, team, repair=repair)
        return replace(outcome, seconds=time.perf_counter() - began)


class _Team:
    """The workers, who are called when there is work for them, and then stay."""

    def __init__(self, stack: ExitStack, crew: Crew, say: Callable[[str], object]) -> None:
        self._stack, self._crew, self._say = stack, crew, say
        self._client: Any = None

    @property
    def is_elsewhere(self) -> bool:
        """Whether others than this machine may be among them."""
        return self._crew.scheduler is not None or self._crew.listen != HERE

    def __call__(self, work: Callable[[T], R], todo: Sequence[T]) -> Iterator[R]:
        """Results of a work on all that is to do, as they come; the number of tasks in flight is bounded."""
        if not todo:
            return iter(())
        if self._client is None:
            crew = self._crew
            if not self.is_elsewhere:  # nobody is started who would have nothing to do
                crew = replace(crew, workers=min(crew.workers, len(todo)), gpus=min(crew.gpus, len(todo)))
            self._client = self._stack.enter_context(connected(crew, say=self._say))
        return streamed(self._client, work, todo, resources=self._crew.resources, patience=self._crew.patience)

    def dismiss(self) -> None:
        """End those who were started here; the memory is needed for the manifest."""
        self._stack.close()


def _precomputed(spec: PrecomputeSpec, data: DataSpec, out: Path | str, team: _Team | None, *, repair: bool) -> Outcome:
    dataset = _opened(spec, data, team)
    models = [load_model(reference, name=name, device=spec.device) for name, reference in spec.models.items()]
    check_models(models, dataset, device=spec.device, gradient=True)
    if spec.precision == "exact":
        one = torch.from_numpy(dataset.read(np.arange(1))[0]).to(spec.device).float() / 255
        for model in models:
            in_float64(model, one)
    place = objects_at(out)
    if place.is_local and place.has(PART):
        raise OutputError(f"{out} holds a part of a store that was pulled; it was not touched: choose another --out")
    spec, notes = _sized(spec, dataset, models, place)
    header = header_of(spec, dataset, models)
    entries = tuple(entry for model in models for entry in entries_of(spec, model).values())
    writer = StoreWriter(place, header, entries)
    writer.create()
    notes += remarks_on_draws(spec, models)
    if spec.precision == "bfloat16" and not has_bfloat16(spec.device):
        notes.append(f"{IMITATED}; --precision float32 would have made another store, sooner")

    def outcome(manifest: Manifest, computed: int, *, was_complete: bool = False) -> Outcome:
        return Outcome(out, manifest.digest, header.blocks, computed, 0.0, tuple(notes), was_complete)

    finished, expected = None, {}
    if writer.is_complete():
        finished = read_manifest(place)
        writer.restore(finished.zeros)
        expected = {key: (record.bytes, record.sha256) for key, record in finished.objects.items()}
        hurt = damaged_blocks(place, expected, thoroughly=repair)
        done = frozenset(range(header.blocks)) - hurt
        if not hurt:
            return outcome(finished, 0, was_complete=True)
        notes.append(f"blocks {shortened(sorted(hurt))} have damaged or missing chunks: they are computed again")
        expected = {key: what for key, what in expected.items() if block_of(key) in hurt}
    else:
        done = frozenset(writer.done())
    todo = plan_blocks(header, done)
    job = Job(
        str(place) if is_url(out) else Path(out).absolute(),
        absolute_data(data),
        header,
        entries,
        _absolute(spec),
        expected,
    )
    rows = header.n / header.blocks
    results = (compute_block(job, block) for block in todo) if team is None else team(partial(compute_block, job), todo)
    title = f"precompute {place.name}"
    try:
        with progress_bar(title, total=header.blocks, done=len(done), unit="images", per=rows) as advance:
            for _ in results:
                advance(1)
        if team is not None:
            team.dismiss()
    except KeyboardInterrupt:
        raise Interrupted(f"{out}: stopped; every finished block is kept, and the same command resumes") from None
    if finished is not None:
        return outcome(finished, len(todo))
    try:
        objects, zeros, smaller = writer.collect()
    except IntegrityError:
        if not writer.is_complete():
            raise
        finished = read_manifest(place)  # another precompute of the same plan has finished it meanwhile
        writer.restore(finished.zeros)
        return outcome(finished, len(todo))
    if smaller:
        told = "; ".join(f"{size} at once in blocks {', '.join(map(str, blocks))}" for size, blocks in smaller.items())
        notes.append(f"{spec.batch_size} images at once did not fit in memory: {told}; the manifest says so")
        header = replace(header, plan={**header.plan, "smaller_batches": smaller})
    manifest = manifest_of(header, models, objects, zeros)
    writer.close(manifest.to_bytes())
    return outcome(manifest, len(todo))


def _opened(spec: PrecomputeSpec, data: DataSpec, team: _Team | None) -> Opened:
    """The images; where other machines help, they digest those of one's own, each of which is read once, ever."""
    if team is None or not team.is_elsewhere:
        return dataset_of(data, spec.split)
    on_cpu = torch.device(spec.device).type == "cpu"  # where there is a worker for each core

    def elsewhere(listing: str, parts: Iterable[tuple[int, Sequence[int]]]) -> Iterator[Piece]:
        work = partial(digest_rows, absolute_data(data), spec.split, listing, 1 if on_cpu else None)
        return team(work, [Rows(number, rows) for number, rows in parts])

    try:
        images = open_data(data, spec.split, elsewhere=elsewhere)
        _ = images.digest  # now, so that this is what was stopped
    except KeyboardInterrupt:
        raise Interrupted(f"{data.data}: stopped; what was digested is kept, and the same command resumes") from None
    return images


def _sized(
    spec: PrecomputeSpec, dataset: Dataset, models: list[Model], out: Objects
) -> tuple[PrecomputeSpec, list[str]]:
    """The spec with its batch size as a number, found by trial where it is to be; as before, if the store was begun."""
    if spec.batch_size != "auto":
        return spec, []
    begun = (root_attributes(out) or {}).get("plan", {})
    size = begun.get("batch_size")
    if not isinstance(size, int):
        most = block_size(len(dataset), math.prod(dataset.shape))
        with as_recorded(spec.device, spec.precision):
            size = best_batch_size(models, dataset, device=spec.device, most=most)
    return spec.model_copy(update={"batch_size": size}), [f"{size} images at once"]


def header_of(spec: PrecomputeSpec, dataset: Dataset, models: list[Model]) -> Header:
    """The header of the store that a spec with a number as its batch size makes."""
    prepared = dict(dataset.preparation())
    return Header(
        data=dataset.name,
        split=dataset.split,
        data_digest=dataset.digest,
        shape=dataset.shape,
        classes=dataset.classes,
        n=len(dataset),
        draws=spec.draws,
        groups=tuple(f"{model.name}/{attack.name}" for model in models for attack in spec.attacks),
        plan=plan_of(spec, models) | ({"images": prepared} if prepared else {}),
    )


def manifest_of(
    header: Header, models: list[Model], objects: Mapping[str, tuple[int, str]], zeros: Mapping[str, int]
) -> Manifest:
    """The manifest of a store, with size and SHA-256 of each object, and how many values of each entry are zero."""
    packages = ("ensadv-data", "torch", "numpy", "zarr")
    return Manifest(
        version=format_version(header.plan),
        data=DataRecord(
            name=header.data,
            split=header.split,
            n=header.n,
            shape=header.shape,
            classes=header.classes,
            digest=header.data_digest,
        ),
        sources=tuple(
            SourceRecord(
                name=model.name,
                architecture=model.architecture,
                digest=model.digest,
                record=dict(model.record),
            )
            for model in models
        ),
        draws=header.draws,
        plan=dict(header.plan),
        zeros=dict(zeros),
        software={"python": platform.python_version(), **{name: version(name) for name in packages}},
        objects={key: ObjectRecord(bytes=size, sha256=digest) for key, (size, digest) in objects.items()},
    )


def _absolute(spec: PrecomputeSpec) -> PrecomputeSpec:
    """A worker may have another working folder."""
    models = {name: with_leaves(reference, with_absolute_file) for name, reference in spec.models.items()}
    return spec.model_copy(update={"models": models})
