"""Rows from the disk into a batch: our store against raw memory maps and the engines that others read data with.

    python benchmarks/store.py [--rows 60000] [--width 98] [--batches 200] [--rounds 7] [--json FILE]

The same bytes in every format; batches of 64 rows in three orders: *random* over everything, *block*: blocks in random
order, shuffled inside a window of four, *sequential*. One process, one thread, files in the page cache; an engine whose
own reader shuffles does it its own way. Engines that are not installed are left out, and named
(pip install --no-deps -r benchmarks/peers.txt).
"""

from __future__ import annotations

import importlib.util
import itertools
import logging
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ending import ended
from figures import arguments_of, report, rounded

from ensadv_data.gather import gather_rows
from ensadv_data.mixing import epoch_order
from ensadv_data.store import Entry, Header, Planes, StoreWriter, open_store
from ensadv_data.timing import Timing, measure, ratio

BATCH = 64
SECONDS = 0.3  # of a figure at most, where one batch takes less
OURS, BARE = "ensadv-data", "memmap, same gather"
ORDERS = ("random", "block", "sequential")
Reader = Callable[[np.ndarray], Any]  # row indices → rows


def our_store(rows: np.ndarray, folder: Path) -> Reader:
    """A store of format 1 whose directions are raw chunks. As all engines here: written only if it is not there yet."""
    n, width = rows.shape
    entry = Entry("m", "r-fgsm", "rsign", None, 0.1, 0, "0" * 64, "none", "margin")
    header = Header("rows", "train", "0" * 64, (1, 1, 8 * width), 2, n, 1, (entry.key,), {})
    writer = StoreWriter(folder, header, (entry,))
    if not any(folder.iterdir()):
        writer.create()
        for block in range(header.blocks):
            mine = rows[block * header.block : (block + 1) * header.block]
            planes = Planes(direction=mine[None], label=np.zeros(len(mine), np.int32))
            writer.write_block(block, {entry.key: planes}, np.zeros(len(mine), np.uint64))
        ended(writer)
    store, draws = open_store(folder), np.zeros(BATCH, np.int64)
    return lambda indices: store.gather(entry, draws[: len(indices)], indices).direction


def raw_map(rows: np.ndarray, folder: Path) -> Reader:
    """One file, mapped; gathered by the native code that our store uses."""
    if not any(folder.iterdir()):
        rows.tofile(folder / "rows")
    mapped = np.memmap(folder / "rows", np.uint8, mode="r", shape=rows.shape)
    (n, width), table, draws = rows.shape, np.array([[mapped.ctypes.data]], np.uint64), np.zeros(BATCH, np.int64)
    used = np.zeros((1, 1), np.int64)

    def read(indices: np.ndarray, kept: np.memmap = mapped) -> np.ndarray:  # the addresses are those of ``kept``
        out = np.empty((len(indices), width), np.uint8)
        gather_rows(table, used, draws[: len(indices)], indices, n, n, 0, out)
        return out

    return read


def numpy_map(rows: np.ndarray, folder: Path) -> Reader:
    """One file, mapped; gathered by numpy."""
    if not any(folder.iterdir()):
        rows.tofile(folder / "rows")
    mapped = np.memmap(folder / "rows", np.uint8, mode="r", shape=rows.shape)
    return lambda indices: np.asarray(mapped[indices])


def zarr_python(rows: np.ndarray, folder: Path, pipeline: str | None = None) -> Reader:
    """zarr-python, with chunks as ours."""
    import zarr
    from zarr.codecs import BytesCodec, Crc32cCodec

    if not any(folder.iterdir()):
        array = zarr.create_array(
            folder, shape=rows.shape, chunks=(chunk_of(rows), rows.shape[1]), dtype="uint8", zarr_format=3,
            serializer=BytesCodec(), compressors=[Crc32cCodec()],
        )  # fmt: skip
        array[:] = rows
    with zarr.config.set({"codec_pipeline.path": pipeline} if pipeline else {}):
        array = zarr.open_array(folder, mode="r")
    return lambda indices: array.oindex[indices]


def zarrs_pipeline(rows: np.ndarray, folder: Path) -> Reader:
    """zarr-python over the Rust implementation."""
    return zarr_python(rows, folder, "zarrs.ZarrsCodecPipeline")


def tensorstore_array(rows: np.ndarray, folder: Path) -> Reader:
    """TensorStore over the same array."""
    import tensorstore

    zarr_python(rows, folder)
    store = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(folder)}}
    context = tensorstore.Context({"cache_pool": {"total_bytes_limit": 2**30}, "data_copy_concurrency": {"limit": 1}})
    array = tensorstore.open(store, context=context).result()
    return lambda indices: array[indices].read().result()


def hdf5(rows: np.ndarray, folder: Path) -> Reader:
    """h5py, contiguous; it wants sorted indices."""
    import h5py

    if not any(folder.iterdir()):
        with h5py.File(folder / "rows.h5", "w") as file:
            file["rows"] = rows
    array = h5py.File(folder / "rows.h5", "r")["rows"]

    def read(indices: np.ndarray) -> np.ndarray:
        order = np.argsort(indices)
        out = np.empty((len(indices), rows.shape[1]), np.uint8)
        out[order] = array[indices[order]]
        return out

    return read


def litdata_rows(rows: np.ndarray, folder: Path) -> Any:
    """LitData's binary chunks."""
    import litdata

    if not any(folder.iterdir()):
        numbers = list(range(len(rows)))
        litdata.optimize(_Row(rows), numbers, str(folder), chunk_bytes="32MB", num_workers=1, verbose=False)
    random = litdata.StreamingDataset(str(folder))
    return Own(
        random=lambda indices: np.stack([random[int(index)] for index in indices]),
        block=lambda: iter(litdata.StreamingDataset(str(folder), shuffle=True)),
        sequential=lambda: iter(litdata.StreamingDataset(str(folder))),
    )


def mosaic_rows(rows: np.ndarray, folder: Path) -> Any:
    """MosaicML Streaming's MDS shards."""
    library = torch.library.Library(
        "torchvision", "FRAGMENT"
    )  # which it loads, and which wants these of a CPU-only torch
    for schema in ("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor", "qnms(Tensor a) -> Tensor"):
        library.define(schema)
    from streaming import MDSWriter, StreamingDataset

    logging.getLogger("concurrent.futures").setLevel(logging.CRITICAL)  # its threads complain when the files go
    if not any(folder.iterdir()):
        with MDSWriter(out=str(folder), columns={"row": "bytes"}, size_limit="32mb") as writer:
            for row in rows:
                writer.write({"row": row.tobytes()})

    def opened(shuffle: bool) -> Any:
        return StreamingDataset(local=str(folder), shuffle=shuffle, batch_size=BATCH)

    random = opened(False)

    def rows_of(dataset: Any) -> Iterator[np.ndarray]:
        return (np.frombuffer(sample["row"], np.uint8) for sample in dataset)

    return Own(
        random=lambda indices: np.stack([np.frombuffer(random[int(index)]["row"], np.uint8) for index in indices]),
        block=lambda: rows_of(opened(True)),
        sequential=lambda: rows_of(random),
    )


def tar_rows(rows: np.ndarray, folder: Path) -> Any:
    """webdataset's tar files; they have no random access."""
    import webdataset

    if not any(folder.iterdir()):
        with webdataset.ShardWriter(str(folder / "%05d.tar"), maxsize=32 * 2**20, verbose=0) as writer:
            for index, row in enumerate(rows):
                writer.write({"__key__": f"{index:08d}", "bin": row.tobytes()})
    shards = sorted(map(str, folder.glob("*.tar")))

    def rows_of(shuffle: bool) -> Iterator[np.ndarray]:
        dataset = webdataset.WebDataset(shards, shardshuffle=len(shards) if shuffle else False)
        return (np.frombuffer(sample["bin"], np.uint8) for sample in (dataset.shuffle(4096) if shuffle else dataset))

    return Own(block=lambda: rows_of(True), sequential=lambda: rows_of(False))


ENGINES: dict[str, tuple[Callable[[np.ndarray, Path], Any], str]] = {  # and the module that it needs
    OURS: (our_store, "numpy"),
    BARE: (raw_map, "numpy"),
    "memmap, numpy": (numpy_map, "numpy"),
    "zarr-python": (zarr_python, "zarr"),
    "zarrs": (zarrs_pipeline, "zarrs"),
    "tensorstore": (tensorstore_array, "tensorstore"),
    "h5py": (hdf5, "h5py"),
    "litdata": (litdata_rows, "litdata"),
    "mosaicml-streaming": (mosaic_rows, "streaming"),
    "webdataset": (tar_rows, "webdataset"),
}


class Own(dict):
    """Ways of an engine that reads in orders of its own: random rows by index, the others as iterators of rows."""

    def __init__(self, **ways: Any) -> None:
        super().__init__(ways)


class _Row:
    """One row, as LitData wants a function that other processes can call."""

    def __init__(self, rows: np.ndarray) -> None:
        self.rows = rows

    def __call__(self, index: int) -> np.ndarray:
        return self.rows[index]


def chunk_of(rows: np.ndarray) -> int:
    """Rows of a chunk, as in our store."""
    return Header("", "train", "", (1, 1, 8 * rows.shape[1]), 2, len(rows), 1, (), {}).block


def passes(reader: Any, order: str, n: int, batches: int, chunk: int) -> Callable[[], object] | None:
    """A function that reads so many batches in an order; None where the engine cannot."""
    if isinstance(reader, Own):
        if order not in reader:
            return None
        if order == "random":
            reader = reader["random"]
        else:
            started = reader[order]
            state = {"rows": started()}

            def own() -> None:
                for _ in range(batches):
                    rows = list(itertools.islice(state["rows"], BATCH))
                    if len(rows) < BATCH:
                        state["rows"] = started()
                        rows = list(itertools.islice(state["rows"], BATCH))
                    np.stack(rows)

            return own
    window = 4 if order == "block" else 0
    indices = np.arange(n) if order == "sequential" else epoch_order(0, 0, n=n, block=chunk, window=window)
    numbers = itertools.count()
    steps = n // BATCH

    def read() -> None:
        for _ in range(batches):
            step = next(numbers) % steps
            reader(indices[step * BATCH : (step + 1) * BATCH].astype(np.int64))

    return read


def compared(name: str, common: Path, n: int, width: int, batches: int, rounds: int) -> dict[str, Any]:
    """An engine, our store and the bare map in turn; in a process of its own, as some engines leave threads at work.

    Ours and the map are written once, to ``common``; everything else is removed in the end.
    """
    torch.set_num_threads(1)
    rows = np.random.default_rng(0).integers(0, 256, (n, width), dtype=np.uint8)
    some = np.random.default_rng(1).integers(n, size=BATCH)
    with tempfile.TemporaryDirectory() as own:
        readers = {}
        for each in dict.fromkeys([OURS, BARE, name]):
            path = (common if each in (OURS, BARE) else Path(own)) / each.replace(" ", "")
            path.mkdir(exist_ok=True)
            readers[each] = ENGINES[each][0](rows, path)
            by_index = readers[each].get("random") if isinstance(readers[each], Own) else readers[each]
            for start in range(0, n if each in (OURS, BARE) else 0, BATCH):  # the system maps every page once
                by_index(np.arange(start, min(start + BATCH, n)))
            if by_index and not np.array_equal(by_index(some), rows[some]):
                raise SystemExit(f"{each}: other rows than were written")
        found = {}
        for order in ORDERS:
            ways, counts = {}, {}
            for each, reader in readers.items():
                if one := passes(reader, order, n, 1, chunk_of(rows)):
                    began = time.perf_counter()
                    one()
                    counts[each] = max(1, min(batches, round(SECONDS / (time.perf_counter() - began))))
                    ways[each] = passes(reader, order, n, counts[each], chunk_of(rows))
            if name in ways:
                timings = {
                    each: Timing(tuple(seconds / counts[each] for seconds in timing.seconds))
                    for each, timing in measure(ways, rounds=rounds).items()
                }
                found[order] = {
                    "rows_a_second": {each: round(BATCH / timing.median) for each, timing in timings.items()},
                    "its_time_over_ours": rounded(ratio(timings, name, OURS)),
                }
        return found


def main() -> None:
    """Measure, print, and write what was asked for."""
    arguments = arguments_of(
        __doc__,
        rows={"type": int, "default": 60_000},
        width={"type": int, "default": 98, "help": "bytes of a row"},
        batches={"type": int, "default": 50, "help": "batches of 64 that make one figure, at most"},
    )
    missing, found = [], {}
    sizes = arguments.rows, arguments.width, arguments.batches, arguments.rounds
    with tempfile.TemporaryDirectory() as common:
        for name, (_, module) in ENGINES.items():
            if importlib.util.find_spec(module) is None:
                missing.append(name)
            elif name != OURS:
                with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
                    found[name] = process.submit(compared, name, Path(common), *sizes).result()
    about = {"rows": arguments.rows, "width": arguments.width, "threads": 1, "not_installed": missing}
    report(arguments, {**about, "engines": found})


if __name__ == "__main__":
    main()
