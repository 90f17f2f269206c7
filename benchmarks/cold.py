"""One epoch of rows from a disk whose pages are not in memory: our store, a memory map and the engines of store.py.

    python benchmarks/cold.py [--rows 20000] [--width 33500] [--rounds 7] [--json FILE]

Blocks in random order, shuffled in a window of four, batches of 64, every row once; engines in turn, each figure in a
process of its own. Before it, the pages of the engine's files are dropped, and a figure counts only if none of them is
left. Timed are opening and reading; imports and compiled code are warmed on a store of 256 rows. What the disk below
the file system keeps in a memory of its own is not ours to drop. Engines that decode whole chunks for every batch are
left out: store.py measures them.
"""

from __future__ import annotations

import ctypes
import importlib.util
import mmap
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
from figures import arguments_of, report, rounded
from store import BATCH, ENGINES, OURS, chunk_of, passes

from ensadv_data.timing import Timing, ratio

WHOLE = ("zarr-python", "zarrs")  # take minutes for an epoch
KEPT = 0.01  # of a file's pages may be in memory


def drop(path: Path) -> None:
    """Have the system forget the pages of a file."""
    handle = os.open(path, os.O_RDWR)
    try:
        os.fsync(handle)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(handle)


def share_in_memory(path: Path) -> float:
    """The share of a file's pages that the system holds."""
    size = path.stat().st_size
    with path.open("r+b") as file, mmap.mmap(file.fileno(), size) if size else nullcontext() as mapped:
        pages = np.zeros(-(-size // mmap.PAGESIZE), np.uint8)
        if mapped is None:
            return 0.0
        start = ctypes.addressof(ctypes.c_char.from_buffer(mapped))
        to = pages.ctypes.data_as(ctypes.c_void_p)
        failed = ctypes.CDLL(None).mincore(ctypes.c_void_p(start), ctypes.c_size_t(size), to)
        return 1.0 if failed else float((pages & 1).mean())


def made(name: str, rows: np.ndarray, folder: Path) -> None:
    """The rows in an engine's format, if they are not there."""
    ENGINES[name][0](rows, folder)


def epoch(name: str, folder: Path, n: int, width: int) -> float:
    """Seconds of one epoch of an engine, from cold pages, in this process."""
    torch.set_num_threads(1)
    few = np.zeros((256, width), np.uint8)
    with tempfile.TemporaryDirectory() as warm:
        _read(ENGINES[name][0](few, Path(warm)), few)()
    shape = np.lib.stride_tricks.as_strided(few[:1], (n, width), (0, 1))  # what it was made from is not needed again
    files = [path for path in folder.rglob("*") if path.is_file()]
    for path in files:
        drop(path)
    left = max(map(share_in_memory, files))
    if left > KEPT:
        raise SystemExit(f"{folder}: expected no page in memory, {100 * left:.0f}% are; this system keeps them")
    began = time.perf_counter()
    _read(ENGINES[name][0](shape, folder), shape)()
    return time.perf_counter() - began


def _read(reader: object, rows: np.ndarray) -> Callable[[], object]:
    read = passes(reader, "block", len(rows), len(rows) // BATCH, chunk_of(rows))
    if read is None:
        raise SystemExit("expected an engine that shuffles blocks")
    return read


def main() -> None:
    """Measure, print, and write what was asked for."""
    arguments = arguments_of(
        __doc__,
        rows={"type": int, "default": 20_000},
        width={"type": int, "default": 33_500, "help": "bytes of a row"},
    )
    n, width = arguments.rows, arguments.width
    wanted = [name for name in ENGINES if name not in WHOLE]
    names = [name for name in wanted if importlib.util.find_spec(ENGINES[name][1])]
    seconds: dict[str, list[float]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as common:
        rows = np.random.default_rng(0).integers(0, 256, (n, width), dtype=np.uint8)

        def alone(function: Callable[..., float | None], *rest: object) -> float | None:
            with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
                return process.submit(function, *rest).result()

        folders = {name: Path(common) / str(number) for number, name in enumerate(names)}
        for name, folder in folders.items():
            folder.mkdir()
            alone(made, name, rows, folder)
        for _ in range(arguments.rounds):
            for name, folder in folders.items():
                seconds[name].append(alone(epoch, name, folder, n, width) or 0.0)
    timings = {name: Timing(tuple(values)) for name, values in seconds.items()}
    engines = {
        name: {
            "rows_a_second": round(n / timing.median),
            "its_time_over_ours": rounded(ratio(timings, name, OURS)),
        }
        for name, timing in timings.items()
    }
    missing = [name for name in wanted if name not in names]
    report(arguments, {"rows": n, "width": width, "threads": 1, "not_installed": missing, "engines": engines})


if __name__ == "__main__":
    main()
