"""The simulation of precompute's schedule beside dask itself: what is given out, in which order, what is done again.

Counts and orders only: how long anything takes is nobody's promise.
"""

from __future__ import annotations

import importlib
import os
import signal
import time
from pathlib import Path

import pytest

from ensadv_data.cluster import Crew, connected, streamed

FOLDER = Path(__file__).parent.parent.parent / "benchmarks"
pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="an installation without the repository around it")

BLOCKS, WORKERS = 12, 2


def block(task: tuple[str, int, int | None]) -> int:
    """Note that it was started; the worker dies in the deadly one, the first time."""
    folder, number, deadly = task
    with (Path(folder) / "started").open("a") as file:
        file.write(f"{number}\n")
    if number == deadly and not (died := Path(folder) / "died").exists():
        died.touch()
        time.sleep(0.5)  # what it did before has been told by then: else that would be done again too
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.1)
    return number


@pytest.fixture(scope="module")
def paper():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        yield importlib.import_module("simulation")


class Counting:
    """A client that counts the tasks it has given out and not seen the end of."""

    def __init__(self, client) -> None:
        self._client, self.flying, self.most = client, set(), 0

    def __getattr__(self, name: str):
        return getattr(self._client, name)

    def submit(self, work, task, **options):
        future = self._client.submit(work, task, **options)
        self.flying.add(task[1])
        self.most = max(self.most, len(self.flying))
        return future


@pytest.mark.parametrize(("workers", "deadly"), [(1, None), (WORKERS, 5)])
def test_dask_gives_out_what_the_simulation_gives_out(tmp_path, monkeypatch, paper, workers, deadly):
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    )
    done = []
    with connected(Crew(workers)) as client:
        client.wait_for_workers(workers)
        counting = Counting(client)
        for number in streamed(counting, block, [(str(tmp_path), k, deadly) for k in range(BLOCKS)]):
            counting.flying.discard(number)
            done.append(number)
    started = [int(line) for line in (tmp_path / "started").read_text().split()]
    deaths = () if deadly is None else ((0.1 * (deadly // workers) + 0.05, deadly % workers),)
    made = paper.simulated(BLOCKS, paper.Cluster(workers, 0.1, back=1.0, deaths=deaths), keep_order=True)
    assert made.twice == (() if deadly is None else (deadly,))
    assert sorted(done) == list(range(BLOCKS))
    assert (len(started), counting.most) == (made.started, made.in_flight)
    assert sorted(started) == sorted(made.order)
    if workers == 1:
        assert started == list(made.order)
