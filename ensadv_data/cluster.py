"""Processes that do the tasks of precompute: some of this machine, or those of a dask cluster."""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import dask
import distributed

from ensadv_data.errors import EnsadvError, InputError
from ensadv_data.memory import keep_freed_memory

__all__ = ["connected", "streamed"]

T = TypeVar("T")
R = TypeVar("R")


@contextmanager
def connected(workers: int, scheduler: str | None) -> Iterator[distributed.Client]:
    """A client of the cluster at an address, or of so many processes that are started here and end with the context.

    Raises
    ------
    InputError
        No scheduler answers at the address.
    """
    if scheduler is not None:
        try:
            client = distributed.Client(scheduler, timeout="15s", set_as_default=False)
        except (OSError, ValueError) as error:
            raise InputError(f"expected a dask scheduler at {scheduler}, could not connect: {error}") from None
        with client:
            yield client
        return
    quiet = {"distributed.worker.daemon": True, "distributed.admin.log-format": "%(message)s"}
    with (
        dask.config.set(quiet),
        distributed.LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            processes=True,
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",
            silence_logs=logging.CRITICAL,
        ) as cluster,
        distributed.Client(cluster, set_as_default=False) as client,
    ):
        client.register_plugin(_OurWorker())
        yield client


class _OurWorker(distributed.WorkerPlugin):
    """For workers that were started here.

    A terminal sends Ctrl-C to workers too; the process that started them ends them, without their traces.
    """

    def setup(self, worker: distributed.Worker) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        keep_freed_memory()


def streamed(client: distributed.Client, work: Callable[[T], R], todo: Sequence[T]) -> Iterator[R]:
    """Results of a work on all that is to do, as they come; two tasks a thread are in flight.

    Raises
    ------
    EnsadvError
        Workers died again and again while they did a task. What the work itself raises arrives as it is.
    """
    threads = sum(worker["nthreads"] for worker in client.scheduler_info(n_workers=-1)["workers"].values())
    ahead = 2 * max(threads, 1)
    waiting = iter(todo[ahead:])

    def submit(task: T) -> distributed.Future[R]:
        return client.submit(work, task, pure=False, retries=0)

    completed = distributed.as_completed([submit(task) for task in todo[:ahead]], loop=client.loop)
    try:
        for future in completed:
            yield future.result()
            following = next(waiting, None)
            if following is not None:
                completed.add(submit(following))
    except distributed.scheduler.KilledWorker as error:
        raise EnsadvError(
            f"workers died while computing a block (out of memory?): {error}; run it again to resume"
        ) from None
