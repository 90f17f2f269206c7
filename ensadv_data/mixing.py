"""The mixing schedule, a pure function of (seed, epoch, step).

Nothing here holds state. A resumed run needs only (epoch, step), and the plan of a step is the same for every
number of ranks, workers and prefetch depth: each rank takes its slice of one global batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from ensadv_data.dist import Place
from ensadv_data.errors import QuantityError
from ensadv_data.keys import numpy_generator
from ensadv_data.sources import Source
from ensadv_data.spec import EpsilonSpec

__all__ = [
    "Part",
    "Schedule",
    "StepPlan",
    "check_shares",
    "epoch_order",
    "plan_batch",
    "plan_step",
]

I64 = npt.NDArray[np.int64]
Order = npt.NDArray[np.int32 | np.int64]
F32 = npt.NDArray[np.float32]


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


def _epsilons(generator: np.random.Generator, law: EpsilonSpec, size: int) -> F32:
    """ε of each example: fixed, or |N(0, σ)| truncated to [0, ε_max] by drawing again."""
    if law.sigma is None:
        return np.full(size, law.epsilon, np.float32)
    values = np.abs(generator.normal(0, law.sigma, size))
    while (outside := values > law.epsilon).any():
        values[outside] = np.abs(generator.normal(0, law.sigma, int(outside.sum())))
    return values.astype(np.float32)
