"""What a training step asks of the interpreter, counted and not timed: a step of more images makes no more calls."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pytest

from ensadv_data.batches import Batches
from ensadv_data.data import ArrayDataset
from ensadv_data.mixing import Schedule, plan_step
from ensadv_data.sources import Source, static_sources
from ensadv_data.store import decoding, open_store
from test_store import make_images, make_store

pytestmark = pytest.mark.usefixtures("without_fsync")

N, DRAWS = 2048, 3
KINDS = ("fgsm", "r-fgsm", "pgd")


@pytest.fixture(scope="module")
def data() -> ArrayDataset:
    return make_images(N)


@pytest.fixture(scope="module")
def path(tmp_path_factory, data) -> Path:
    path = tmp_path_factory.mktemp("hot") / "s"
    make_store(path, data, tuple(f"m/{kind}" for kind in KINDS), draws=DRAWS, zeros=True)
    return path


def batches_of(path: Path, data: ArrayDataset, attack: str, size: int, **fields: Any) -> Batches:
    (source,) = static_sources([path], data)
    entries = tuple(pair for pair in source.entries if pair[1].attack == attack)
    return Batches(data, Schedule(seed=1, n=N, batch_size=size, sources=(Source("m", entries),), **fields))


def calls_of(function: Callable[[], object]) -> Counter[str]:
    """How often each function was called, those of Python and those in C."""
    counts: Counter[str] = Counter()

    def count(frame: Any, event: str, argument: Any) -> None:
        if event == "call":
            counts[frame.f_code.co_qualname] += 1
        elif event == "c_call":
            counts[getattr(argument, "__qualname__", str(argument))] += 1

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        function()
    finally:
        sys.setprofile(before)
    return counts


@pytest.mark.parametrize("window", [0, 4])
@pytest.mark.parametrize("attack", KINDS)
def test_a_step_of_more_images_makes_no_more_calls(path, data, attack, window):
    counts = {}
    for size in (16, 512):
        batches = batches_of(path, data, attack, size, window=window, block=N // 16)
        for epoch in (0, 1, 2, 3):  # everything is opened, checked and compiled
            for step in range(batches.schedule.steps):
                batches.make(plan_step(batches.schedule, epoch=epoch, step=step), epoch=epoch)
        plan = plan_step(batches.schedule, epoch=3, step=1)
        counts[size] = calls_of(lambda plan=plan, batches=batches: batches.make(plan, epoch=3))
    assert counts[512] == counts[16]
    assert 10 < counts[16].total() < 250


def test_the_count_sees_a_loop_over_examples():
    def loop(size: int) -> list[str]:
        return [hex(number) for number in range(size)]

    assert calls_of(lambda: loop(512))["hex"] == 512


@pytest.mark.parametrize("attack", KINDS)
def test_each_plane_of_a_batch_is_gathered_and_applied_once(path, data, attack):
    batches = batches_of(path, data, attack, 256)
    for step in range(batches.schedule.steps):  # every image is compared once
        batches.make(plan_step(batches.schedule, epoch=0, step=step), epoch=0)
    plan = plan_step(batches.schedule, epoch=1, step=0)
    counts = calls_of(lambda: batches.make(plan, epoch=1))
    assert counts["ArrayDataset.read"] == 1
    assert counts["gather_rows"] == (1 if attack == "pgd" else 2)  # with its mask
    assert counts["apply_deltas" if attack == "pgd" else "apply_signs"] == (2 if attack == "r-fgsm" else 1)


def test_each_chunk_is_checked_once(path, data, monkeypatch):
    checked: list[int] = []

    class Counting:
        @staticmethod
        def value(data: np.ndarray) -> int:
            checked.append(len(data))
            return int(google_crc32c.value(data))

    monkeypatch.setattr(decoding, "google_crc32c", Counting)
    store = open_store(path)
    blocks, entry = store.header.blocks, store.entry("m/pgd")
    for _ in range(3):
        for draw in range(DRAWS):
            store.gather(entry, np.full(N, draw), np.random.default_rng(draw).permutation(N))
        store.prove(data.example_digests(), np.arange(N))
    assert len(checked) == DRAWS * blocks + blocks
