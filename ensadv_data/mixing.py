"""The mixing schedule, a pure function of (seed, epoch, step).

Nothing here holds state. A resumed run needs only (epoch, step), and the plan of a step is the same for every
number of ranks, workers and prefetch depth: each rank takes its slice of one global batch.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ensadv_data.data import Dataset
from ensadv_data.dist import Place
from ensadv_data.errors import InputError, QuantityError
from ensadv_data.keys import numpy_generator
from ensadv_data.spec import AugmentSpec, EpsilonSpec
from ensadv_data.store import Cache, Entry, Store, open_store
from ensadv_data.views import Views

__all__ = [
    "ONLINE",
    "Part",
    "Schedule",
    "Source",
    "StepPlan",
    "augmentation_of",
    "check_draws",
    "check_epsilon",
    "check_room",
    "check_shares",
    "epoch_order",
    "plan_batch",
    "plan_step",
    "static_sources",
]

ONLINE = "online"

I64 = npt.NDArray[np.int64]
Order = npt.NDArray[np.int32 | np.int64]
F32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Source:
    """Where a step's perturbations come from: one source of a store, or a model that computes them at that step."""

    name: str
    entries: tuple[tuple[Store, Entry], ...] = ()  # its attacks in stores, one drawn per step; none: it computes


@dataclass(frozen=True)
class Schedule:
    """Everything that a plan depends on, besides (epoch, step)."""

    seed: int
    n: int  # examples
    batch_size: int  # of all ranks together
    sources: tuple[Source, ...]  # empty: plain training
    epsilon: EpsilonSpec = EpsilonSpec()
    window: int = 0  # 0: a global permutation; W: shuffled inside windows of W blocks
    block: int = 1024  # examples of a block, for the window
    draws: int | None = None  # the first so many of each store; None: all
    per_example: bool = False  # whether each example has a source of its own, instead of the whole step one

    @property
    def steps(self) -> int:
        """Steps of an epoch: whole batches only, so that every rank has equal ones."""
        return self.n // self.batch_size


@dataclass(frozen=True)
class Part:
    """Examples of a step that one source perturbs."""

    rows: I64  # (P,) where they are in the batch
    source: int  # into the schedule's sources
    attack: int  # into the source's entries
    indices: I64  # (P,) examples
    draws: I64  # (P,) stored draw of each example
    epsilon: F32  # (P,) L∞ radius, pixels in [0, 1]


@dataclass(frozen=True)
class StepPlan:
    """One global step as one rank sees it."""

    indices: I64  # (B,) examples
    sources: I64  # (B,) the source of each, into the schedule's: all the same unless it draws them per example
    attacks: tuple[int, ...]  # of each source of the schedule, into its entries; none: a clean step
    draws: I64  # (B,) stored draw of each example
    epsilon: F32  # (B,) L∞ radius, pixels in [0, 1]

    def parts(self, first: int = 0) -> list[Part]:
        """The examples from ``first`` on, by their source; of a clean step none."""
        if not self.attacks:
            return []
        places = np.arange(first, len(self.indices))
        drawn = [(int(source), places[self.sources[first:] == source]) for source in np.unique(self.sources[first:])]
        return [
            Part(rows, source, self.attacks[source], self.indices[rows], self.draws[rows], self.epsilon[rows])
            for source, rows in drawn
        ]


def epoch_order(seed: int, epoch: int, *, n: int, block: int = 1024, window: int = 0) -> Order:
    """The order of an epoch's examples, int32 (n,), or int64 where an index needs it: a permutation.

    With ``window`` W, blocks are permuted and examples are shuffled inside windows of W blocks, so that each
    block of a large store is read once and whole.
    """
    generator = numpy_generator("order", seed, epoch)
    order: Order = np.arange(n, dtype=np.int32 if n <= 2**31 else np.int64)  # shuffled in place
    if not window:
        generator.shuffle(order)
        return order
    blocks = generator.permutation(-(-n // block))
    filled = 0
    for start in range(0, len(blocks), window):
        members = [np.arange(b * block, min((b + 1) * block, n)) for b in blocks[start : start + window]]
        shuffled = generator.permutation(np.concatenate(members))
        order[filled : filled + len(shuffled)] = shuffled
        filled += len(shuffled)
    return order


@lru_cache(maxsize=2)
def _order(seed: int, epoch: int, n: int, block: int, window: int) -> Order:
    order = epoch_order(seed, epoch, n=n, block=block, window=window)
    order.flags.writeable = False
    return order


def plan_step(schedule: Schedule, *, epoch: int, step: int, place: Place = Place()) -> StepPlan:
    """The plan of one global step, for one rank: every world-size-th of its examples, from the rank on.

    The source is drawn once per global step, the same on all ranks: drawn per rank, an online batch would
    hold up 1 − (1 − 1/n)^R of all steps instead of 1/n. Draw and ε are drawn per example, and so is the source where
    the schedule says so: then every step has examples of all sources, and computes the online gradient of some.

    Raises
    ------
    QuantityError
        The batch cannot be divided among the ranks, or the step is past the end of the epoch.
    """
    size, ranks = schedule.batch_size, place.world_size
    if size % ranks:
        raise QuantityError(f"batch_size: expected a multiple of the world size {ranks}, got {size}")
    if not 0 <= step < schedule.steps:
        raise QuantityError(f"step: expected 0 … {schedule.steps - 1}, got {step}")
    order = _order(schedule.seed, epoch, schedule.n, schedule.block, schedule.window)
    indices = order[step * size : (step + 1) * size].astype(np.int64)
    return _drawn(schedule, numpy_generator("step", schedule.seed, epoch, step), indices, place)


def plan_batch(schedule: Schedule, indices: I64, *, step: int, place: Place = Place()) -> StepPlan:
    """The plan of a batch that somebody else put together; ``step`` counts such batches from 0, over all epochs.

    Parameters
    ----------
    indices
        int64 (B,): the examples of this rank. The source is the same on all ranks.
    """
    size = len(indices) * place.world_size
    everywhere = np.zeros(size, np.int64)
    everywhere[place.rank :: place.world_size] = indices
    return _drawn(schedule, numpy_generator("batch", schedule.seed, step), everywhere, place)


def _drawn(schedule: Schedule, generator: np.random.Generator, indices: I64, place: Place) -> StepPlan:
    """Sources, draws and epsilons of a global batch, of which a rank has its share."""
    count, size = len(schedule.sources), len(indices)
    if schedule.per_example and count:
        sources = generator.integers(count, size=size)
    else:
        sources = np.full(size, generator.integers(count) if count else 0)
    attacks, stored = [0] * count, np.ones(max(1, count), np.int64)  # who computes has one draw
    for source in np.unique(sources) if count else ():
        if entries := schedule.sources[source].entries:
            attacks[source] = int(generator.integers(len(entries)))
            stored[source] = entries[attacks[source]][0].header.draws
    draws = generator.integers((stored if schedule.draws is None else np.minimum(schedule.draws, stored))[sources])
    epsilon = _epsilons(generator, schedule.epsilon, size)
    mine = slice(place.rank, None, place.world_size)  # of the first half of the batch as many as of the second
    return StepPlan(
        indices=indices[mine],
        sources=sources[mine],
        attacks=tuple(attacks),
        draws=draws[mine],
        epsilon=epsilon[mine],
    )


def static_sources(paths: Sequence[Path | str], dataset: Dataset, *, cache: Cache | None = None) -> tuple[Source, ...]:
    """The static sources of some stores; a source's attacks are gathered under its name.

    Parameters
    ----------
    cache
        Where all of them hold decompressed chunks; None: each store has its own.

    Raises
    ------
    InputError
        A store is missing or unfinished, or is for other images: their size or number differs.
    """
    sources: list[Source] = []
    for path in paths:
        store = open_store(path, cache=cache)
        header = store.header
        store.check_shape(dataset.shape, dataset.name)
        if header.n != len(dataset):
            raise InputError(
                f"{path}: expected directions for {len(dataset)} images of {dataset.name}, found {header.n} "
                f"of {header.data}; use the same data and the same --limit for both"
            )
        for name in sorted({entry.source for entry in store.entries}):
            entries = tuple((store, entry) for entry in store.entries if entry.source == name)
            label = name if len(paths) == 1 else f"{store.place.name}/{name}"
            sources.append(Source(_unused(label, {ONLINE, *(source.name for source in sources)}), entries))
    return tuple(sources)


def check_shares(batch_size: int, place: Place, *, halves: bool, parts: int = 1) -> None:
    """Refuse a batch of which the ranks cannot have equal shares of ``parts`` images or more.

    With ``halves``, of each half of it.

    Raises
    ------
    QuantityError
        The message names the number that it must be a multiple of.
    """
    share = place.world_size * (2 if halves else 1)
    if batch_size % share:
        raise QuantityError(
            f"batch_size: expected a multiple of {share} for {place.world_size} processes"
            f"{' that replace half of it' if halves else ''}, got {batch_size}"
        )
    if batch_size // share < parts:
        raise QuantityError(
            f"accumulate: expected at most {batch_size // share} parts of {batch_size} images for {place.world_size} "
            f"processes{' that replace half of them' if halves else ''}, got {parts}"
        )


def augmentation_of(sources: Sequence[Source], asked: AugmentSpec | None) -> AugmentSpec | None:
    """What the images of a training undergo: what was asked, or what its stores are views of.

    Raises
    ------
    InputError
        Stores are of other views than asked, or than one another; or what was asked resizes, and a store has no views.
    """
    stores = {id(store): store for source in sources for store, _ in source.entries}
    views = [(store, Views.of_plan(store.header.plan)) for store in stores.values()]
    told = [(store, None if each is None else each.augment) for store, each in views]
    for store, found in told:
        if found != told[0][1]:
            raise InputError(
                f"{store.place}: expected directions of {_views(told[0][1])}, as {told[0][0].place} has them, found "
                f"{_views(found)}; train with stores of one kind"
            )
        if found is not None and asked not in (None, found):
            raise InputError(
                f"augment: expected {found.label}, of which {store.place} has the views, got {_views(asked)}; "
                "leave it out, and the views are replayed"
            )
        if found is None and asked is not None and not asked.is_exact:
            raise InputError(
                f"augment: expected crop or flip for {store.place}, whose directions are of whole images, got "
                f"{asked.label}; make a store of views: precompute --augment {asked.label}"
            )
    return told[0][1] or asked if told else asked


def _views(augment: AugmentSpec | None) -> str:
    return "whole images" if augment is None else f"views by {augment.label}"


def check_draws(sources: Sequence[Source], draws: int | None) -> None:
    """Refuse a training that wants more draws than a store has.

    Raises
    ------
    InputError
        The message names the store, and how many it has.
    """
    for store in (store for source in sources for store, _ in source.entries):
        if draws is not None and draws > store.header.draws:
            raise InputError(
                f"{store.place}: expected a store of at least {draws} draws, found {store.header.draws}; "
                f"make one with: precompute --draws {draws}"
            )


def check_epsilon(sources: Sequence[Source], law: EpsilonSpec) -> None:
    """Refuse stored perturbations that cannot serve the epsilon of a training.

    Raises
    ------
    InputError
        An R+ entry's α is not below ε, so that only its random step would be left; or a delta was made for
        another ε. The message names the entry.
    """
    for store, entry in (pair for source in sources for pair in source.entries):
        if entry.kind == "rsign" and (entry.alpha or 0) >= law.epsilon:
            raise InputError(
                f"{store.place}: {entry.key}: expected epsilon above the store's alpha = {entry.alpha:g}, got "
                f"{law.epsilon:g}: no gradient step would be left; make a store with a smaller alpha"
            )
        if entry.kind == "delta" and (law.sigma is not None or not math.isclose(law.epsilon, entry.epsilon or 0)):
            raise InputError(
                f"{store.place}: {entry.key}: expected a fixed epsilon = {entry.epsilon:g}, for which the store was "
                f"made, got {'a drawn one up to ' if law.sigma else ''}{law.epsilon:g}"
            )


def check_room(sources: Sequence[Source], *, window: int, draws: int | None, room: int) -> None:
    """Refuse a training that would fetch the same chunks from another machine again and again.

    Raises
    ------
    InputError
        What it reads at a time does not fit in the cache; the message says how much it is.
    """
    far = [(store, entry) for source in sources for store, entry in source.entries if not store.place.is_mapped]
    needed = sum(
        store.held_bytes(entry, window or store.header.blocks, draws or store.header.draws) for store, entry in far
    )
    if needed > room:
        what = f"windows of {window} blocks" if window else "a global shuffle"
        raise InputError(
            f"window: expected {what} of {far[0][0].place} to fit in --cache-bytes, {room:,} bytes, found {needed:,}; "
            "use a smaller --window (blocks are read once and whole then), more --cache-bytes, or a disk that holds "
            "the store: --cache DIR, with a --cache-limit that it fits in"
        )


def _unused(label: str, names: set[str]) -> str:
    """The label, with a number if a source has it already: the log counts steps by name."""
    labels = itertools.chain([label], (f"{label}#{number}" for number in itertools.count(2)))
    return next(free for free in labels if free not in names)


def _epsilons(generator: np.random.Generator, law: EpsilonSpec, size: int) -> F32:
    """ε of each example: fixed, or |N(0, σ)| truncated to [0, ε_max] by drawing again."""
    if law.sigma is None:
        return np.full(size, law.epsilon, np.float32)
    values = np.abs(generator.normal(0, law.sigma, size))
    while (outside := values > law.epsilon).any():
        values[outside] = np.abs(generator.normal(0, law.sigma, int(outside.sum())))
    return values.astype(np.float32)
