"""Perturbations of static models over a whole split: blocks planned purely, run by dask.

One task loads one block of images once, and makes all sources, attacks and draws of it. A task is
deterministic and idempotent: on CPU it computes with one thread and a fixed batch size, its randomness is
named by (seed, source, draw, first example of the batch), and it may run twice without harm.
"""

from __future__ import annotations

import math
import platform
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import nn

from ensadv_data.calibration import best_batch_size
from ensadv_data.cluster import Crew, Tls, connected, streamed
from ensadv_data.data import Dataset, digest_examples, open_data
from ensadv_data.dist import available_cores, check_device, intra_op_threads
from ensadv_data.errors import InputError, IntegrityError, Interrupted, ModelError
from ensadv_data.manifest import DataRecord, Manifest, ObjectRecord, SourceRecord, read_manifest
from ensadv_data.models import Model, check_models, load_model, with_leaves
from ensadv_data.objects import Objects, objects_at
from ensadv_data.perturbation import BlockRows, entries_of, equal_draws
from ensadv_data.progress import progress_bar
from ensadv_data.spec import DataSpec, PrecomputeSpec
from ensadv_data.store import Entry, Header, StoreWriter, block_size, root_attributes

__all__ = ["Block", "Job", "Outcome", "compute_block", "plan_blocks", "precompute_store"]

_PART = 4096  # images of a block that are in memory at once, about
_COMPUTING = threading.Lock()  # a worker with several threads still computes one block at a time


@dataclass(frozen=True)
class Block:
    """Consecutive examples first … last, both included."""

    index: int
    first: int
    last: int

    def __str__(self) -> str:
        return f"block {self.index}"


@dataclass(frozen=True)
class Job:
    """All that a task needs; small, since it travels with every task. Models are loaded on the worker."""

    place: Path | str  # of the store
    data: DataSpec
    header: Header
    entries: tuple[Entry, ...]
    spec: PrecomputeSpec


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


def plan_blocks(header: Header, done: set[int] | frozenset[int] = frozenset()) -> list[Block]:
    """The blocks still to compute, in order: a function of the header and of what is done."""
    size = header.block
    return [
        Block(index, index * size, min((index + 1) * size, header.n) - 1)
        for index in range(header.blocks)
        if index not in done
    ]


def compute_block(job: Job, block: Block) -> dict[str, Any]:
    """Compute one block of everything and write it; nothing is written if any of it fails.

    Raises
    ------
    ModelError
        A model's output is wrong; the message names source, block and example.
    OutputError
        The store cannot be written.
    """
    data, spec, rows = _dataset(job.data, job.spec.split), job.spec, dict[str, BlockRows]()
    n, part = block.last + 1 - block.first, max(1, _PART // int(spec.batch_size)) * int(spec.batch_size)
    digests = []
    bfloat16 = torch.autocast(torch.device(spec.device).type, torch.bfloat16, spec.precision == "bfloat16")
    with _COMPUTING, intra_op_threads(1 if spec.device == "cpu" else None), bfloat16:
        for at in range(0, n, part):  # the images of a part are read once, for all sources
            images, labels = data.read(np.arange(block.first + at, block.first + min(at + part, n)))
            digests.append(digest_examples(images))
            for name in spec.models:
                try:
                    if name not in rows:
                        rows[name] = _rows_of(job, block, name)
                    rows[name].fill(images, labels, at=at)
                except ModelError as error:
                    raise ModelError(f"block {block.index}: {error}; nothing was written for this block") from None
                except RuntimeError as error:
                    if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
                        raise
                    cause = str(error).strip().splitlines()[0]
                    raise ModelError(f"source {name}: torch.compile failed: {cause}; leave out --compile") from None
    planes = {key: plane for source in rows.values() for key, plane in source.planes().items()}
    return StoreWriter(job.place, job.header, job.entries).write_block(block.index, planes, np.concatenate(digests))


def _rows_of(job: Job, block: Block, name: str) -> BlockRows:
    entries = {entry.attack: entry for entry in job.entries if entry.source == name}
    expected = next(iter(entries.values())).source_digest
    model = _model(job.spec.models[name], name, job.spec.device, expected, job.spec.compile)
    count = block.last + 1 - block.first
    return BlockRows(model, job.spec, entries, n=count, d=job.header.d, first=block.first)


def precompute_store(
    spec: PrecomputeSpec,
    data: DataSpec,
    out: Path | str,
    *,
    workers: int | None = None,
    scheduler: str | None = None,
    gpus: int = 0,
    listen: str = "127.0.0.1",
    tls: Tls | None = None,
    patience: float = 120.0,
    say: Callable[[str], object] = lambda line: None,
) -> Outcome:
    """Make, or finish, the store at ``out``: a folder, or a URL of an object store.

    Parameters
    ----------
    workers
        Processes on this machine; None: one a core; 0: compute in this process.
    scheduler, gpus, listen, tls, patience
        See :class:`~ensadv_data.cluster.Crew`. A running cluster must see the same paths; a URL is one everywhere.
    say
        Told where a cluster can be watched and joined.

    Raises
    ------
    OutputError
        ``out`` holds something else, or cannot be written.
    ModelError
        A model cannot be loaded or gives output that is not finite.
    Interrupted
        Ctrl-C, or a cluster that went away; every finished block is kept, and the same command resumes.
    """
    if gpus and torch.device(spec.device).type != "cuda":
        raise InputError(f"gpus: expected device = cuda beside it, got {spec.device}")
    began = time.perf_counter()
    check_device(spec.device)
    dataset = _dataset(data, spec.split)
    models = [load_model(reference, name=name, device=spec.device) for name, reference in spec.models.items()]
    check_models(models, dataset, device=spec.device)
    place = objects_at(out)
    spec, notes = _sized(spec, dataset, models, place)
    header = _header(spec, dataset, models)
    entries = tuple(entry for model in models for entry in entries_of(spec, model).values())
    writer = StoreWriter(place, header, entries)
    writer.create()
    notes += [note for model in models for note in equal_draws(spec, model)]
    if writer.is_complete():
        writer.tidy()
        return Outcome(
            out, read_manifest(place).digest, header.blocks, 0, time.perf_counter() - began, tuple(notes), True
        )
    done = frozenset(writer.done())
    todo = plan_blocks(header, done)
    job = Job(out.absolute() if isinstance(out, Path) else out, data, header, entries, _absolute(spec))
    own = max(1, min(workers or available_cores(), len(todo)))
    crew = None
    if workers != 0 or scheduler is not None or gpus:
        crew = Crew(own, scheduler, min(gpus, len(todo)) if scheduler is None else gpus, listen, tls, patience)
    rows = header.n / header.blocks
    try:
        with ExitStack() as stack:
            results = _results(stack, job, todo, crew, say)
            advance = stack.enter_context(
                progress_bar(f"precompute {place.name}", total=header.blocks, done=len(done), unit="images", per=rows)
            )
            for _ in results:
                advance(1)
    except KeyboardInterrupt:
        raise Interrupted(f"{out}: stopped; every finished block is kept, and the same command resumes") from None
    objects, zeros = writer.collect()
    manifest = _manifest(header, models, objects, zeros)
    writer.close(manifest.to_bytes())
    return Outcome(out, manifest.digest, header.blocks, len(todo), time.perf_counter() - began, tuple(notes))


def _results(
    stack: ExitStack, job: Job, todo: list[Block], crew: Crew | None, say: Callable[[str], object]
) -> Iterator[dict[str, Any]]:
    """Done records as they come; the number of tasks in flight is bounded."""
    if not todo:
        return iter(())
    if crew is None:
        return (compute_block(job, block) for block in todo)
    client = stack.enter_context(connected(crew, say=say))
    return streamed(client, partial(compute_block, job), todo, resources=crew.resources, patience=crew.patience)


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
        with intra_op_threads(1 if spec.device == "cpu" else None):
            size = best_batch_size(models, dataset, device=spec.device, most=most)
    return spec.model_copy(update={"batch_size": size}), [f"{size} images at once"]


def _header(spec: PrecomputeSpec, dataset: Dataset, models: list[Model]) -> Header:
    how = spec.model_dump(mode="json", exclude={"models", "draws", "device"})
    how["device"] = torch.device(spec.device).type
    how["threads"] = 1 if spec.device == "cpu" else None
    how["precision"] = spec.precision
    how["sources"] = {model.name: model.digest for model in models}
    return Header(
        data=dataset.name,
        split=dataset.split,
        data_digest=dataset.digest,
        shape=dataset.shape,
        classes=dataset.classes,
        n=len(dataset),
        draws=spec.draws,
        groups=tuple(f"{model.name}/{attack.name}" for model in models for attack in spec.attacks),
        plan=how,
    )


def _manifest(
    header: Header, models: list[Model], objects: Mapping[str, tuple[int, str]], zeros: Mapping[str, int]
) -> Manifest:
    packages = ("ensadv-data", "torch", "numpy", "zarr")
    return Manifest(
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

    def absolute(reference: str) -> str:
        return reference if reference.partition(":")[0] in ("python", "timm") else str(Path(reference).absolute())

    models = {name: with_leaves(reference, absolute) for name, reference in spec.models.items()}
    return spec.model_copy(update={"models": models})


@lru_cache(maxsize=2)
def _dataset(spec: DataSpec, split: Literal["train", "test"]) -> Dataset:
    return open_data(spec, split)


@lru_cache(maxsize=16)
def _model(reference: str, name: str, device: str, digest: str, compiled: bool = False) -> Model:
    model = load_model(reference, name=name, device=device)
    if model.digest != digest:
        remedy = (
            "does the factory return the same weights at each call? (seed it, or let it load them)"
            if reference.startswith("python:")
            else f"does {reference} hold the same file on every machine?"
        )
        raise IntegrityError(
            f"source {name}: expected weights with digest {digest[:12]}…, this worker loaded "
            f"{model.digest[:12]}…; {remedy}"
        )
    model.module.requires_grad_(False)
    return replace(model, module=cast(nn.Module, torch.compile(model.module))) if compiled else model
