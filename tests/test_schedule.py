"""The simulation of precompute's schedule: cases that a formula solves, and laws that hold for any of them."""

from __future__ import annotations

import importlib
import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

FOLDER = Path(__file__).parent.parent / "benchmarks"
pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="an installation without the repository around it")


@pytest.fixture(scope="module")
def paper():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        yield importlib.import_module("simulation")


@settings(max_examples=60, deadline=None)
@given(blocks=st.integers(1, 200), workers=st.integers(1, 40))
def test_equal_blocks_without_any_cost_take_as_many_turns_as_there_are(paper, blocks, workers):
    made = paper.simulated(blocks, paper.Cluster(workers, 3.0))
    assert made.seconds == pytest.approx(math.ceil(blocks / workers) * 3)
    assert (made.started, made.lost, made.in_flight) == (blocks, 0, min(blocks, 2 * workers))


@settings(max_examples=40, deadline=None)
@given(blocks=st.integers(1, 100), submit=st.floats(0, 0.5), result=st.floats(0, 0.5))
def test_one_worker_computes_one_after_the_other(paper, blocks, submit, result):
    """Beside the first task given out and the last result taken, the client's work hides behind the worker's."""
    made = paper.simulated(blocks, paper.Cluster(1, 2.0, submit=submit, result=result))
    assert made.seconds == pytest.approx(submit + 2 * blocks + result)


def test_where_the_client_is_slower_than_all_workers_it_is_the_limit(paper):
    cluster = paper.Cluster(100, 1.0, submit=0.03, result=0.05)
    made = paper.simulated(2000, cluster)
    assert made.seconds == pytest.approx(2000 * 0.08, abs=2 * 1.0)
    assert made.busy == pytest.approx(2000 * 0.08)
    with_looks = paper.simulated(2000, paper.Cluster(100, 1.0, submit=0.03, result=0.05, look=0.5))
    assert with_looks.seconds == pytest.approx(2000 * 0.08 / (1 - 0.5 / 2), rel=0.02)  # half a second in every two


def test_a_worker_loads_what_it_needs_once_in_a_life(paper):
    assert paper.simulated(10, paper.Cluster(2, 1.0, start=7.0)).seconds == pytest.approx(12)
    died = paper.simulated(10, paper.Cluster(1, 1.0, start=7.0, back=5.0, deaths=((9.5, 0),)))
    assert died.seconds == pytest.approx(9.5 + 5 + 7 + 8)  # two blocks were done, the third was lost


def test_a_block_that_was_lost_is_the_next_one(paper):
    made = paper.simulated(10, paper.Cluster(2, 2.0, deaths=((3.0, 1),)), keep_order=True)
    assert made.order == (0, 1, 2, 3, 3, 4, 5, 6, 7, 8, 9)
    assert (made.started, made.lost, made.deaths, made.twice) == (11, 1, 1, (3,))
    assert made.seconds == pytest.approx(2 * 9)  # one of them was done by the other worker


@settings(max_examples=40, deadline=None)
@given(
    blocks=st.integers(1, 300),
    workers=st.integers(1, 20),
    failures=st.floats(0.1, 200),
    spread=st.floats(0, 0.4),
    seed=st.integers(0, 2**31),
)
def test_every_block_is_done_whatever_dies(paper, blocks, workers, failures, spread, seed):
    cluster = paper.Cluster(
        workers, 5.0, spread=spread, submit=0.01, result=0.01, failures=failures, back=20.0, seed=seed
    )
    made = paper.simulated(blocks, cluster, keep_order=True)
    assert set(made.order) == set(range(blocks))
    assert made.started == len(made.order) == blocks + made.lost
    assert made.lost <= made.deaths
    assert set(made.twice) == {block for block in made.order if made.order.count(block) > 1}
    assert made.in_flight <= 2 * workers
    assert made.busy == pytest.approx(blocks * 0.02)
    assert made == paper.simulated(blocks, cluster, keep_order=True)


def test_failures_come_as_often_as_was_asked_for(paper):
    made = paper.simulated(60_000, paper.Cluster(100, 10.0, failures=0.5, back=60.0, seed=3))
    expected = 100 * 0.5 * made.seconds / 3600 / (1 + 0.5 * 60 / 3600)  # of a worker's life and absence the life
    assert made.deaths == pytest.approx(expected, abs=4 * math.sqrt(expected))
    assert made.lost == pytest.approx(made.deaths, rel=0.05)  # nobody is idle
