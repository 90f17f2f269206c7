"""What the end of a precompute, a resume and an open take for so many blocks: records of blocks that were never made.

The code is the package's; only the objects are made up, so that neither disk nor network is measured. Four sources
under one attack, of images of 3 × 224 × 224. Each figure is of a process of its own. Part of schedule.py.
"""

from __future__ import annotations

import json
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from ending import ended

from ensadv_data.manifest import read_manifest
from ensadv_data.objects import Objects
from ensadv_data.objects.base import Part
from ensadv_data.store import Entry, Header, StoreWriter, open_store

SHAPE, SOURCES = (3, 224, 224), 4
ROWS = 1784  # of a block of a large store of such images
DIGEST = "0123456789abcdef" * 4


def header_of(n: int) -> tuple[Header, tuple[Entry, ...]]:
    """Header and entries of a store of n images."""
    names = [f"source-{number}" for number in range(SOURCES)]
    entries = tuple(Entry(name, "r-fgsm", "rsign", None, 0.05, 2**62, DIGEST, "resnet", "margin") for name in names)
    about: dict[str, Any] = {"data": "made-up", "split": "train", "shape": SHAPE, "classes": 1000, "n": n}
    keys = tuple(entry.key for entry in entries)
    return Header(data_digest=DIGEST, draws=1, groups=keys, plan={}, **about), entries


def record_of(header: Header, block: int | str) -> dict[str, Any]:
    """A done record as the writer makes it, its objects of about their sizes."""
    raw = header.block * (header.d // 8) + 4
    objects = {f"example_digest/c/{block}": [8 * header.block + 4, DIGEST]}
    for key in header.groups:
        objects[f"{key}/label/c/{block}"] = [4 * header.block + 4, DIGEST]
        objects[f"{key}/direction/c/0/{block}/0"] = [raw, DIGEST]
        objects[f"{key}/nonzero/c/0/{block}/0"] = [1234, DIGEST]
    return {"block": block, "first": 0, "last": 0, "objects": objects, "zeros": dict.fromkeys(header.groups, 0)}


class MadeUp(Objects):
    """All records of a store that nobody computed; what is written is kept."""

    is_local, name = True, "made-up"

    def __init__(self, header: Header) -> None:
        self.blocks, self.kept = header.blocks, dict[str, bytes]()
        self._sizes = {key.rpartition("/c/")[0]: size for key, (size, _) in record_of(header, 0)["objects"].items()}
        self._record = json.dumps(record_of(header, "@")).replace('"block": "@"', '"block": @').encode()

    def __str__(self) -> str:
        return self.name

    def read(self, key: str) -> bytes:
        if key.startswith("progress/"):
            return self._record.replace(b"@", str(int(key[15:-5])).encode())
        if key not in self.kept:
            raise FileNotFoundError(key)
        return self.kept[key]

    def array(self, key: str) -> npt.NDArray[np.uint8]:
        return np.frombuffer(self.read(key), np.uint8)

    def part(self, key: str, begin: int, size: int) -> npt.NDArray[np.uint8]:
        return self.array(key)[begin : begin + size]

    def sizes(self, keys: Iterable[str]) -> dict[str, int]:
        there = {key: self._sizes.get(key.rpartition("/c/")[0], 0) for key in keys}
        return {key: size or len(self.kept[key]) for key, size in there.items() if size or key in self.kept}

    def listed(self, prefix: str = "") -> dict[str, int]:
        return self.sizes(key for key in self.kept if key.startswith(prefix))

    def keys(self, prefix: str) -> list[str]:
        return [f"progress/block-{block:06d}.json" for block in range(self.blocks)] if prefix == "progress/" else []

    def write(self, key: str, *parts: Part) -> None:
        self.kept[key] = b"".join(parts)

    def claim(self, key: str, data: bytes) -> bytes:
        return self.kept.setdefault(key, data)

    def delete(self, prefix: str) -> None:
        pass

    def is_free(self) -> bool:
        return not self.kept


def one(step: str, blocks: int, folder: str) -> dict[str, float]:
    """Seconds and memory of one step over so many blocks."""
    header, entries = header_of(blocks * ROWS)
    place, saved = MadeUp(header), Path(folder) / f"{blocks}.json"
    writer = StoreWriter(place, header, entries)
    writer.create()
    if step in ("open_store", "read_manifest"):
        place.kept["manifest.json"] = saved.read_bytes()
    steps: dict[str, Callable[[], object]] = {
        "resume": writer.done,
        "end": lambda: ended(writer).digest,  # which precompute tells in the end
        "read_manifest": lambda: read_manifest(place),
        "open_store": lambda: open_store(place),
    }
    before = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # the kernel's own watch: it misses no moment
    began = time.perf_counter()
    steps[step]()
    seconds = time.perf_counter() - began
    grown = max(0, 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    if step == "end":
        saved.write_bytes(place.kept["manifest.json"])
    return {"blocks": header.blocks, "seconds": round(seconds, 3), "mib": round(grown / 2**20, 1)}


def measured(sizes: list[int]) -> dict[str, Any]:
    """Every step at about so many blocks, and the manifest's bytes."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for blocks in sizes:
            about: dict[str, Any] = {}
            for step in ("resume", "end", "read_manifest", "open_store"):
                with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
                    about[step] = process.submit(one, step, blocks, folder).result()
                about["blocks"] = about[step].pop("blocks")
            about["manifest_bytes"] = (Path(folder) / f"{blocks}.json").stat().st_size
            found[str(blocks)] = about
            print(blocks, json.dumps(about), flush=True)
    return found
