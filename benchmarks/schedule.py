"""Precompute on paper: its schedule simulated, for clusters that nobody had at hand.

    python benchmarks/schedule.py [--examples 1280000,1000000000] [--workers 8,64,1000] [--failures 0,0.01,0.1]

The schedule is that of simulation.py. What client and scheduler take for a task, a look and a heartbeat is measured
here, in processor time, with workers that do nothing; a cluster's slower one of the two is what holds it up. What the
end of a precompute, a resume and an open take is measured as well (records.py); from the first and the last of these
figures the store's is extrapolated by a line. How fast a worker computes and writes, how long it is gone, and how long
a bucket takes to answer are assumptions: options, which the JSON tells.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import psutil
import records
from distributed.scheduler import heartbeat_interval
from figures import arguments_of, report
from simulation import Cluster, simulated

from ensadv_data.blocks import Block
from ensadv_data.cluster import Crew, connected, streamed
from ensadv_data.data import checking, digest_examples
from ensadv_data.data.checking import Piece
from ensadv_data.objects import AT_ONCE
from ensadv_data.sizing import store_requests

DIGEST = "0" * 64


# Measured

# Workers of one process that do nothing: its time is not looked at
WORKERS = """
import asyncio, sys
from distributed import Worker

async def work(address, count):
    workers = [Worker(address, nthreads=1, dashboard=False, resources={"GPU": 1}) for _ in range(count)]
    await asyncio.gather(*workers)
    print("there", flush=True)
    await asyncio.gather(*(worker.finished() for worker in workers))

asyncio.run(work(sys.argv[1], int(sys.argv[2])))
"""


def nothing(block: Block) -> dict[str, Any]:
    """What a task gives back, as large as a done record of four sources."""
    objects = {f"source-{k}/r-fgsm/direction/c/0/{block.index}/0": [33_554_436, DIGEST] for k in range(13)}
    return {"block": block.index, "first": block.first, "last": block.last, "objects": objects, "zeros": {}}


@contextlib.contextmanager
def idle_cluster(workers: int) -> Iterator[tuple[str, psutil.Process]]:
    """Address and process of a scheduler to which so many workers have come."""
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        file = Path(folder) / "scheduler.json"
        words = ["--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file", str(file)]
        quiet = {"stderr": subprocess.DEVNULL, "stdout": subprocess.PIPE, "text": True}
        started = [subprocess.Popen([sys.executable, "-m", "dask", "scheduler", *words], **quiet)]
        stack.callback(lambda: [process.communicate() for process in started])
        stack.callback(lambda: [process.kill() for process in started])
        while not file.exists():
            time.sleep(0.1)
        address = json.loads(file.read_text(encoding="utf-8"))["address"]
        started.append(subprocess.Popen([sys.executable, "-c", WORKERS, address, str(workers)], **quiet))
        started[1].stdout.readline()
        yield address, psutil.Process(started[0].pid)


def processor_time(workers: int, *, tasks: int, seconds: float) -> dict[str, Any]:
    """Milliseconds of processor time, of scheduler and client: while nothing happens, a task, a look."""
    found: dict[str, Any] = {}
    with idle_cluster(workers) as (address, scheduler), connected(Crew(0, scheduler=address)) as client:

        def both() -> tuple[float, float]:
            times = scheduler.cpu_times()
            return times.user + times.system, time.process_time()

        @contextlib.contextmanager
        def taken(name: str, count: float) -> Iterator[None]:
            before = both()
            yield
            spent = zip(("scheduler", "client"), before, both(), strict=True)
            found[name] = {who: round(1000 * (after - start) / count, 3) for who, start, after in spent}

        time.sleep(min(2, seconds))
        with taken("idle, a second", seconds):
            time.sleep(seconds)
        for name, resources in (("task", {}), ("task with a resource", {"GPU": 1})):
            if tasks:
                list(streamed(client, nothing, [Block(k, 0, 0) for k in range(tasks // 5)], resources=resources))
                with taken(name, tasks):
                    list(streamed(client, nothing, [Block(k, 0, 0) for k in range(tasks)], resources=resources))
        with taken("look", 30):
            for _ in range(30):
                client.scheduler_info(n_workers=-1)
    return found


def beats(workers: int) -> float:
    """Heartbeats a second of so many workers (distributed.scheduler.heartbeat_interval)."""
    return workers / float(heartbeat_interval(workers))


def line(found: dict[int, float], at: float) -> float:
    """The value at a place, on the line through the first and the last measured, which does not fall."""
    first, last = min(found), max(found)
    slope = max(0.0, (found[last] - found[first]) / max(1, last - first))
    return max(0.0, found[first] + slope * (at - first))


def costs(measured: dict[str, Any], workers: int) -> tuple[float, float]:
    """Seconds that a task and a look take of the slower of client and scheduler, which are processes of their own."""
    by = {int(count): about for count, about in measured.items()}
    busy = {
        who: line({round(beats(n)): about["idle, a second"][who] / 1000 for n, about in by.items()}, beats(workers))
        for who in ("scheduler", "client")
    }
    task = max(
        max(about["task"][who] for about in by.values() if "task" in about) / 1000 / max(0.01, 1 - busy[who])
        for who in busy
    )
    look = max(line({n: about["look"][who] / 1000 for n, about in by.items()}, workers) for who in busy)
    return task, look


def kept(pieces: int = 16, rows: int = 65_536) -> float:
    """Processor time of the client for a piece of that many digests that a worker sends, and which is kept."""

    def elsewhere(listing: str, parts: Iterable[tuple[int, Sequence[int]]]) -> Iterator[Piece]:
        return ((number, np.ones(len(piece), np.uint64), []) for number, piece in parts)

    with tempfile.TemporaryDirectory() as name, mock.patch.object(checking, "PIECE", rows):
        began, path = time.process_time(), Path(name) / "checked"
        checking.check_images(path, pieces * rows, list, listing="", title="pieces", elsewhere=elsewhere)
        return (time.process_time() - began) / pieces


def digest_hours(n: int, d: int, rate: float, workers: int, piece: float) -> float:
    """Until all images are digested: by so many threads, and kept piece by piece by the client."""
    pieces = -(-n // max(checking.PIECE, -(-n // checking.PIECES)))
    return round(max(n * d / rate / workers, pieces * piece) / 3600, 3)


def digested(images: int = 64) -> float:
    """Bytes a second of which the digests of a data set are made, by one thread."""
    some = np.random.default_rng(0).integers(0, 256, (images, *records.SHAPE), dtype=np.uint8)
    seconds = []
    for _ in range(5):
        began = time.thread_time()
        digest_examples(some)
        seconds.append(time.thread_time() - began)
    return some.nbytes / min(seconds)


# The clusters


def ends(
    n: int, ended: dict[str, Any], assumed: dict[str, float], rate: float, pieces: Mapping[int, float]
) -> dict[str, Any]:
    """Before the first block and after the last one, for n examples."""
    header, entries = records.header_of(n)
    record = records.record_of(header, 0)["objects"]
    sizes = {about["blocks"]: about for about in ended.values()}

    def at(step: str, what: str) -> float:
        return line({blocks: about[step][what] for blocks, about in sizes.items()}, header.blocks)

    asked = store_requests(header, entries)
    lists = asked.lists.most + asked.deletes.most  # one after the other; records are fetched some at once
    return {
        "blocks": header.blocks,
        "block": header.block,
        "bytes": header.blocks * sum(size for size, _ in record.values()),
        "objects": header.blocks * sum("nonzero" not in key for key in record),
        "digest_hours": {
            count: digest_hours(n, header.d, rate, count, piece) for count, piece in {1: 0.0, **pieces}.items()
        },
        "end_seconds": round(at("end", "seconds")),
        "end_requests": header.blocks + lists,
        "end_hours_of_a_bucket": round((header.blocks / AT_ONCE + lists) * assumed["latency"] / 3600, 2),
        "manifest_bytes": round(
            line({blocks: about["manifest_bytes"] for blocks, about in sizes.items()}, header.blocks)
        ),
        "gib": {step: round(at(step, "mib") / 1024, 2) for step in ("resume", "end", "read_manifest", "open_store")},
        "seconds_to_open": round(at("open_store", "seconds"), 1),
        "seconds_to_resume": round(at("resume", "seconds")),
    }


def run_of(
    n: int, pace: float, workers: int, failures: float, measured: dict[str, Any], assumed: dict[str, float]
) -> Any:
    """One schedule: n examples at so many images a second, worker and model."""
    header, _ = records.header_of(n)
    record = records.record_of(header, 0)["objects"]
    compute = header.block * records.SOURCES / pace
    written = sum(size for size, _ in record.values())
    block = compute + written / assumed["bandwidth"] + (1 + len(record)) * assumed["latency"]
    task, look = costs(measured, workers)
    cluster = Cluster(
        workers,
        block,
        spread=assumed["spread"],
        submit=task / 2,
        result=task / 2,
        look=look,
        start=assumed["start"],
        failures=failures,
        back=assumed["back"],
        seed=workers,
    )
    made = simulated(header.blocks, cluster)
    return {
        "examples": n,
        "images_a_second": pace,
        "workers": workers,
        "failures": failures,
        "hours": round(made.seconds / 3600, 3),
        "efficiency": round(header.blocks * compute / workers / made.seconds, 3),
        "client_busy": round(made.busy / made.seconds, 3),
        "deaths": made.deaths,
        "lost": made.lost,
        "most_lost": made.most_lost,
        "gigabytes_a_second": round(header.blocks * written / made.seconds / 1e9, 2),
        "puts_a_second": round(header.blocks * (1 + len(record)) / made.seconds),
    }


def main() -> None:
    """Measure, simulate, print, and write what was asked for."""
    arguments = arguments_of(
        __doc__,
        examples={"default": "1280000,1000000000"},
        workers={"default": "8,64,1000"},
        failures={"default": "0,0.01,0.1", "help": "deaths an hour and worker"},
        pace={"default": "1000,100", "help": "images a second, of one worker through one model"},
        bandwidth={"type": float, "default": 200e6, "help": "bytes a second that a worker writes"},
        latency={"type": float, "default": 0.02, "help": "seconds until a bucket answers"},
        spread={"type": float, "default": 0.05, "help": "standard deviation of a block's time, as a share"},
        start={"type": float, "default": 30.0, "help": "seconds in which a worker loads what it needs"},
        back={"type": float, "default": 300.0, "help": "seconds until a dead worker is there again"},
        crews={"default": "8:1500,64:1500,192:0", "help": "workers to measure client and scheduler with, and tasks"},
        idle={"type": float, "default": 10.0, "help": "seconds to look at an idle cluster"},
        records={"default": "1000,10000,100000", "help": "blocks to measure the end of a precompute with"},
    )
    assumed = {name: getattr(arguments, name) for name in ("bandwidth", "latency", "spread", "start", "back")}
    crews = [tuple(map(int, text.split(":"))) for text in arguments.crews.split(",")]
    measured = {str(count): processor_time(count, tasks=tasks, seconds=arguments.idle) for count, tasks in crews}
    print(json.dumps(measured), flush=True)
    ended, rate = records.measured([int(text) for text in arguments.records.split(",")]), digested()
    piece = kept()
    pieces = {count: piece + costs(measured, count)[0] for count in map(int, arguments.workers.split(","))}
    sizes = [int(text) for text in arguments.examples.split(",")]
    runs = [
        run_of(n, float(pace), int(workers), float(failures), measured, assumed)
        for n in sizes
        for pace in arguments.pace.split(",")
        for workers in arguments.workers.split(",")
        for failures in arguments.failures.split(",")
    ]
    report(
        arguments,
        {
            "assumed": {**assumed, "sources": records.SOURCES, "requests_at_once": AT_ONCE},
            "processor_milliseconds": measured,
            "records": ended,
            "digest_bytes_a_second": round(rate),
            "piece_milliseconds": round(1000 * piece, 2),
            "ends": {str(n): ends(n, ended, assumed, rate, pieces) for n in sizes},
            "runs": runs,
        },
    )


if __name__ == "__main__":
    main()
