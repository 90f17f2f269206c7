"""The schedule of precompute as a discrete simulation: events in the order of their times, and nothing else.

The client gives out two tasks for each worker that it saw at its last look, and takes results, one thing at a time. A
worker computes a block, dies now and then, and comes back; a block that was lost is the next one to be given out. So
does ensadv_data/cluster.py with dask; tests hold one against the other.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from dataclasses import dataclass, field

import numpy as np

LOOK = 2.0  # seconds between two looks at who is there, as in cluster.py


@dataclass(frozen=True)
class Cluster:
    """What a schedule depends on; seconds."""

    workers: int
    block: float  # to compute and write one
    spread: float = 0.0  # standard deviation of a block's time, as a share of it
    submit: float = 0.0  # client and scheduler: to give out a task,
    result: float = 0.0  # and to take its result
    look: float = 0.0  # to see who is there
    start: float = 0.0  # of a worker: to load what it needs
    failures: float = 0.0  # an hour and worker
    back: float = 300.0  # until a worker that died is there again
    deaths: tuple[tuple[float, int], ...] = ()  # (when, which worker): in place of failures by chance
    seed: int = 0


@dataclass(frozen=True)
class Made:
    """How a schedule went."""

    seconds: float
    started: int  # blocks, again ones too
    lost: int  # of these, by a worker's death
    deaths: int
    in_flight: int  # at most
    busy: float  # seconds that client and scheduler worked
    most_lost: int  # how often the same block was lost
    order: tuple[int, ...] = field(default=(), repr=False)  # in which blocks were started, where that was asked for
    twice: tuple[int, ...] = ()  # blocks that were started again


def simulated(blocks: int, cluster: Cluster, *, keep_order: bool = False) -> Made:
    """Give out so many blocks, and wait for all: a function of its arguments.

    Workers take the next block at once where one is submitted: each has one waiting beside the one that it computes.
    """
    return _Run(blocks, cluster, keep_order).made()


class _Run:
    """The events of one schedule, in the order of their times."""

    def __init__(self, blocks: int, cluster: Cluster, keep_order: bool) -> None:
        self.blocks, self.cluster, self.keep_order = blocks, cluster, keep_order
        self.generator, self.chances = np.random.default_rng(cluster.seed), list[float]()
        self.events: list[tuple[float, int, str, int, int]] = []  # when, a number, what, which worker, its life
        self.count = self.turn = 0  # events so far, and which of them is the client's next turn
        self.life = [0] * cluster.workers  # a worker that comes back begins another one
        self.begun = [-1] * cluster.workers  # the life in which it loaded what it needs
        self.running: list[int | None] = [None] * cluster.workers
        self.free = deque(range(cluster.workers))
        self.there, self.seen, self.looked = cluster.workers, 0, -math.inf  # workers that live; at the last look; when
        self.submitted: deque[int] = deque()
        self.next = self.flying = self.arrived = self.done = 0
        self.most = self.started = self.lost = self.dead = 0
        self.losses: dict[int, int] = {}
        self.order: list[int] = []
        self.busy = self.end = 0.0
        self.idle = False  # whether the client waits for a result

    def made(self) -> Made:
        """Go through all events."""
        self._client(0.0)
        for when, worker in self.cluster.deaths:
            self._at(when, "death", worker)
        for worker in range(self.cluster.workers if self.cluster.failures and not self.cluster.deaths else 0):
            self._at(self._lifetime(), "death", worker)
        while self.done < self.blocks:
            now, number, what, worker, life = heapq.heappop(self.events)
            if what == "client":
                if number == self.turn:
                    self._client(now)
            elif what == "done":
                if life == self.life[worker]:
                    self._finished(now, worker)
            elif what == "death":
                self._died(now, worker)
            else:
                self.there += 1
                self.free.append(worker)
                self._give(now)
        return Made(
            seconds=self.end,
            started=self.started,
            lost=self.lost,
            deaths=self.dead,
            in_flight=self.most,
            busy=self.busy,
            most_lost=max(self.losses.values(), default=0),
            order=tuple(self.order),
            twice=tuple(sorted(self.losses)),
        )

    def _at(self, when: float, what: str, worker: int = -1) -> None:
        self.count += 1
        heapq.heappush(self.events, (when, self.count, what, worker, self.life[worker] if worker >= 0 else 0))

    def _client(self, now: float) -> None:
        """The client's next act: a look at who is there, a task given out, a result taken."""
        cost = 0.0
        if now >= self.looked + LOOK:  # the sum that its turn was set to
            self.looked, self.seen, cost = now, self.there, self.cluster.look
        if self.next < self.blocks and self.flying < 2 * max(self.seen, 1):
            cost += self.cluster.submit
            self.submitted.append(self.next)
            self.next += 1
            self.flying += 1
            self.most = max(self.most, self.flying)
            self._give(now + cost)
        elif self.arrived:
            cost += self.cluster.result
            self.arrived -= 1
            self.flying -= 1
            self.done += 1
            self.end = now + cost
        else:
            self.idle = True
            if self.next == self.blocks:
                return  # a result wakes it
            cost = max(cost, self.looked + LOOK - now)
            self._turn(now + cost)
            return
        self.busy += cost
        self._turn(now + cost)

    def _turn(self, when: float) -> None:
        self._at(when, "client")
        self.turn = self.count

    def _give(self, now: float) -> None:
        """Have free workers compute what is submitted."""
        while self.submitted and self.free:
            worker, block = self.free.popleft(), self.submitted.popleft()
            self.running[worker] = block
            self.started += 1
            if self.keep_order:
                self.order.append(block)
            seconds = self._seconds()
            if self.begun[worker] != self.life[worker]:
                self.begun[worker] = self.life[worker]
                seconds += self.cluster.start
            self._at(now + seconds, "done", worker)

    def _finished(self, now: float, worker: int) -> None:
        self.running[worker] = None
        self.free.append(worker)
        self._give(now)
        self.arrived += 1
        if self.idle:
            self.idle = False
            self._turn(now)

    def _died(self, now: float, worker: int) -> None:
        self.dead += 1
        self.there -= 1
        self.life[worker] += 1
        block, self.running[worker] = self.running[worker], None
        if block is None:
            self.free.remove(worker)
        else:
            self.lost += 1
            self.losses[block] = self.losses.get(block, 0) + 1
            self.submitted.appendleft(block)
        self._at(now + self.cluster.back, "back", worker)
        if self.cluster.failures and not self.cluster.deaths:
            self._at(now + self.cluster.back + self._lifetime(), "death", worker)
        self._give(now)

    def _lifetime(self) -> float:
        return float(self.generator.exponential(3600 / self.cluster.failures))

    def _seconds(self) -> float:
        """Of the next block; many at once, since a number at a time is slow."""
        if not self.cluster.spread:
            return self.cluster.block
        if not self.chances:
            self.chances = self.generator.normal(1, self.cluster.spread, 4096).clip(0.1).tolist()
        return self.cluster.block * self.chances.pop()
