"""Processes that do the tasks of precompute: some of this machine, or those of a dask cluster."""

from __future__ import annotations

import logging
import math
import queue
import signal
import ssl
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

import dask
import distributed
from dask.utils import key_split

from ensadv_data.errors import EnsadvError, InputError, Interrupted, OutputError, QuantityError
from ensadv_data.memory import keep_freed_memory

__all__ = ["HERE", "Crew", "Tls", "connected", "streamed"]

T = TypeVar("T")
R = TypeVar("R")

HERE = "127.0.0.1"
_ROLES = ("client", "scheduler", "worker")
_GPU = "GPU"  # the resource of a worker that has one
_LOOK = 2.0  # seconds between two looks at who is there
_NAMES = 1000  # of tasks that are remembered
_ATTEMPTS = 3  # at a task that failed for a reason that may pass


@dataclass(frozen=True)
class Tls:
    """Files of the certificates that scheduler, workers and client know each other by (PEM)."""

    ca: Path
    cert: Path
    key: Path


@dataclass(frozen=True)
class Crew:
    """Who computes.

    Parameters
    ----------
    workers
        Processes of this machine; 0: none, this process computes.
    scheduler
        Address of a running cluster, ``tcp://…`` or ``tls://…``, in place of own workers.
    gpus
        Workers of this machine with a GPU of their own, in place of ``workers``; with a scheduler: tasks go only to
        workers that were started with ``--resources GPU=1``.
    listen
        Where the scheduler that is started here listens; on another address than this machine's own, workers of other
        machines may join.
    tls
        Certificates; connections are encrypted then, and nobody else gets in.
    patience
        Seconds to go on without any worker.
    """

    workers: int = 1
    scheduler: str | None = None
    gpus: int = 0
    listen: str = HERE
    tls: Tls | None = None
    patience: float = 120.0

    def __post_init__(self) -> None:
        """Refuse a patience that is none; raises QuantityError."""
        if math.isnan(self.patience) or self.patience < 0:
            raise QuantityError(f"expected a worker timeout of 0 seconds or more, got {self.patience:g}")

    @property
    def resources(self) -> dict[str, float]:
        """What a task needs of its worker."""
        return {_GPU: 1} if self.gpus else {}


@contextmanager
def connected(crew: Crew, *, say: Callable[[str], object] = lambda line: None) -> Iterator[distributed.Client]:
    """A client of the crew's cluster; what was started for it ends with the context.

    Parameters
    ----------
    say
        Told where the cluster can be watched and joined.

    Raises
    ------
    InputError
        No scheduler answers at the address, or it cannot listen where it should.
    """
    security = _security(crew.tls)
    if crew.scheduler is not None:
        scheme, _, rest = crew.scheduler.partition("://")
        if (
            scheme not in ("tcp", "tls")
            or not rest.rpartition(":")[2].isdecimal()
            or (scheme == "tls") != bool(crew.tls)
        ):
            raise InputError(
                f"expected a dask scheduler at tcp://HOST:PORT, or tls://HOST:PORT with --tls, got {crew.scheduler}"
                f"{' with' if crew.tls else ' without'} --tls"
            )
        try:
            client = distributed.Client(crew.scheduler, timeout="15s", set_as_default=False, security=security)
        except (OSError, ValueError, TypeError) as error:
            raise InputError(f"expected a dask scheduler at {crew.scheduler}, could not connect: {error}") from None
        with client:
            _tell(client, say)
            yield client
        return
    quiet = {
        "distributed.worker.daemon": True,
        "distributed.admin.log-format": "%(message)s",
        "distributed.admin.low-level-log-length": 100,  # nobody reads them, and 1,000 messages are some MiB
        "distributed.admin.system-monitor.log-length": 60,
    }
    with (
        dask.config.set(quiet),
        _started(crew, security) as cluster,
        distributed.Client(cluster, set_as_default=False, security=security) as client,
    ):
        if crew.listen != HERE:
            say(f"workers may join: {_joining(crew, cluster.scheduler_address)}")
            if crew.tls is None:
                say("warning: whoever reaches this address may run code on the workers; --tls lets nobody else in")
        client.register_plugin(_OurWorker())
        _tell(client, say)
        yield client


@contextmanager
def _started(crew: Crew, security: distributed.Security | None) -> Iterator[distributed.SpecCluster]:
    options = {"nthreads": 1, "security": security, "silence_logs": logging.CRITICAL, "host": crew.listen}
    own: list[dict[str, Any]] = [{} for _ in range(crew.workers)]
    if crew.gpus:
        own = [{"env": {"CUDA_VISIBLE_DEVICES": str(k)}, "resources": crew.resources} for k in range(crew.gpus)]
    scheduler = {
        "host": crew.listen,
        "protocol": "tls" if crew.tls else "tcp",
        "security": security,
        "dashboard": find_spec("bokeh") is not None,
        "dashboard_address": f"{HERE}:0",
        "extensions": {**distributed.scheduler.DEFAULT_EXTENSIONS, "spans": _ShortSpans},
    }
    workers = {k: {"cls": distributed.Nanny, "options": options | rest} for k, rest in enumerate(own)}
    try:
        cluster = distributed.SpecCluster(
            scheduler={"cls": distributed.Scheduler, "options": scheduler},
            workers=workers,
            security=security,
            silence_logs=logging.CRITICAL,
        )
    except (OSError, RuntimeError) as error:
        raise InputError(f"expected an address of this machine to listen on, got {crew.listen}: {error}") from None
    with cluster:
        yield cluster


def _joining(crew: Crew, address: str) -> str:
    """The command by which a worker of another machine joins."""
    resource = " --resources GPU=1" if crew.gpus else ""
    tls = f" --tls-ca-file {crew.tls.ca} --tls-cert {crew.tls.cert} --tls-key {crew.tls.key}" if crew.tls else ""
    return f"dask worker {address} --nthreads 1{resource}{tls}"


def _security(tls: Tls | None) -> distributed.Security | None:
    if tls is None:
        return None
    for file in (tls.ca, tls.cert, tls.key):
        if not file.is_file():
            raise InputError(f"expected a certificate or key in PEM at {file}, found none")
    try:
        ssl.create_default_context(cafile=str(tls.ca)).load_cert_chain(tls.cert, tls.key)
    except (ssl.SSLError, OSError) as error:
        raise InputError(f"expected certificates in PEM at {tls.ca} and {tls.cert}, and the key: {error}") from None
    files = {f"tls_{role}_{kind}": str(getattr(tls, kind)) for role in _ROLES for kind in ("cert", "key")}
    return distributed.Security(tls_ca_file=str(tls.ca), require_encryption=True, **files)


def _tell(client: distributed.Client, say: Callable[[str], object]) -> None:
    if find_spec("bokeh") is not None and (link := client.dashboard_link):
        say(f"dashboard: {link}")


class _ShortSpans(distributed.spans.SpansSchedulerExtension):
    """Spans that do not remember what was submitted: else each task leaves half a kilobyte for ever.

    They also see to it that the names of tasks are forgotten, of which dask keeps 100,000.
    """

    def observe_tasks(self, tss: Any, code: Any, span_metadata: Any) -> Any:
        if key_split.cache_info().currsize > _NAMES:
            key_split.cache_clear()
        return super().observe_tasks(tss, code, {})  # type: ignore[typeddict-item]


class _OurWorker(distributed.WorkerPlugin):
    """For workers that were started here.

    A terminal sends Ctrl-C to workers too; the process that started them ends them, without their traces.
    """

    def setup(self, worker: distributed.Worker) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        keep_freed_memory()


def streamed(
    client: distributed.Client,
    work: Callable[[T], R],
    todo: Sequence[T],
    *,
    resources: Mapping[str, float] | None = None,
    patience: float = 120.0,
) -> Iterator[R]:
    """Results of a work on all that is to do, as they come; two tasks a thread are in flight, whoever has joined.

    A task that fails for a reason that is not ours to know is tried again, :data:`_ATTEMPTS` times in all.

    Raises
    ------
    EnsadvError
        A task failed each time, or twelve workers died while they did it. What the work raises on purpose
        arrives as it is.
    Interrupted
        Nobody was there to compute for ``patience`` seconds, or the scheduler went away.
    """
    waiting = deque((task, 1) for task in todo)
    flying: dict[Any, tuple[distributed.Future[R], T, int]] = {}
    arrived: queue.SimpleQueue[distributed.Future[R]] = queue.SimpleQueue()
    watch = _Watch(client, patience, resources or {})
    while waiting or flying:
        threads = watch.threads()
        while waiting and len(flying) < 2 * max(threads, 1):
            task, attempt = waiting.popleft()
            future = client.submit(work, task, pure=False, retries=0, resources=dict(resources or {}))
            flying[future.key] = (future, task, attempt)
            future.add_done_callback(arrived.put)
        try:
            future = arrived.get(timeout=_LOOK / 2)
        except queue.Empty:
            continue
        _, task, attempt = flying.pop(future.key)
        try:
            yield future.result()
        except distributed.scheduler.KilledWorker as error:
            if attempt == _ATTEMPTS:  # each time on four workers: of lent ones, so many may be taken away by chance
                raise EnsadvError(
                    f"workers died while computing {task} (out of memory?): {error}; run it again to resume"
                ) from None
            waiting.append((task, attempt + 1))
        except (CancelledError, distributed.client.FutureCancelledError):
            raise Interrupted(_GONE) from None
        except Exception as error:
            meant = isinstance(error, EnsadvError)
            if meant and not isinstance(error, OutputError):  # a disk or a network may be back in a moment
                raise
            if attempt < _ATTEMPTS:
                waiting.append((task, attempt + 1))
            elif meant:
                raise
            else:
                raise EnsadvError(
                    f"{task} failed {attempt} times, at last with {type(error).__name__}: {error}; what is done is "
                    "kept, and the same command resumes"
                ) from error


_GONE = "the dask scheduler went away; what is done is kept, and the same command resumes when there is one"


class _Watch:
    """Who is there, looked at now and then."""

    def __init__(self, client: distributed.Client, patience: float, resources: Mapping[str, float]) -> None:
        self._client, self._patience, self._resources = client, patience, resources
        self._threads, self._looked, self._seen = 0, -_LOOK, time.monotonic()

    def threads(self) -> int:
        """Threads of all workers that have the resources; raises :class:`Interrupted` where none was for too long."""
        now = time.monotonic()
        if now - self._looked < _LOOK:
            return self._threads
        self._looked = now
        if self._client.status in ("closing", "closed"):
            raise Interrupted(_GONE)
        try:  # a client that is connecting again would wait for half a minute
            is_there = self._client.status == "running"
            workers = self._client.scheduler_info(n_workers=-1)["workers"].values() if is_there else ()
        except (OSError, TimeoutError, KeyError):
            workers = ()
        self._threads = sum(
            worker["nthreads"]
            for worker in workers
            if all(worker.get("resources", {}).get(name, 0) >= need for name, need in self._resources.items())
        )
        if self._threads:
            self._seen = now
        elif now - self._seen > self._patience:
            address = getattr(self._client.scheduler, "address", "the scheduler")
            needed = "".join(f" --resources {name}={need:g}" for name, need in self._resources.items())
            raise Interrupted(
                f"expected at least one worker at {address}, found none for {self._patience:g} s; start some with: "
                f"dask worker {address}{needed}; what is done is kept, and the same command resumes"
            )
        return self._threads
