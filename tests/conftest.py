"""Fixtures of several files, what torchvision needs to be imported here, and each test worker's share of the cores."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

# Before anything imports torch, which reads it once, as the processes that tests start do: threads of two workers that
# compete for one core take several times as long.
if workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores // int(workers))))

import pytest
from hypothesis import settings

from ensadv_data.dist import intra_op_threads

sys.path.insert(0, str(Path(__file__).with_name("every_process")))
import missing_operators

missing_operators.declare()

# An example that is the first to compile native code takes as long as the machine is busy: no test is a clock.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


@pytest.fixture(scope="module")
def without_fsync() -> Iterator[None]:
    """Nobody pulls the plug in these tests; waiting for the disk would take most of their time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)
        yield


@pytest.fixture
def two_threads() -> Iterator[None]:
    """More than the one thread that something under test chooses, on every machine."""
    with intra_op_threads(2):
        yield


@pytest.fixture
def one_thread() -> Iterator[None]:
    """What a block is computed by."""
    with intra_op_threads(1):
        yield
