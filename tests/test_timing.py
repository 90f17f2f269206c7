"""Timing: alternatives in turn, and ratios of pairs."""

from __future__ import annotations

import statistics

from ensadv_data.timing import Timing, measure, ratio


def test_alternatives_take_their_turns_and_the_first_round_does_not_count():
    calls, told = [], []
    ways = {name: lambda name=name: calls.append(name) for name in "ab"}
    timings = measure(ways, rounds=3, repeats=2, advance=told.append)
    assert calls == ["a", "a", "b", "b"] * 4
    assert [len(timing.seconds) for timing in timings.values()] == [3, 3]
    assert sum(told) == 8


def test_time_of_one_call_is_a_share_of_its_figure(monkeypatch):
    now = 0.0

    def work() -> None:
        nonlocal now
        now += 0.5

    monkeypatch.setattr("time.perf_counter", lambda: now)
    assert measure({"a": work}, rounds=7, repeats=4)["a"].seconds == (0.5,) * 7


def test_ratio_is_of_pairs():
    timings = {"a": Timing((2.0, 20.0, 200.0)), "b": Timing((1.0, 10.0, 50.0))}
    assert ratio(timings, "a", "b")[0] == 2.0  # the ratio of the medians is 2 too; of the means it is 3.6
    timings = {"a": Timing((1.0, 30.0, 2.0)), "b": Timing((1.0, 10.0, 4.0))}
    assert ratio(timings, "a", "b") == (1.0, *statistics.quantiles([1.0, 3.0, 0.5], n=4)[::2])
    assert timings["a"].median == 2.0
    assert timings["a"].spread == tuple(statistics.quantiles([1.0, 30.0, 2.0], n=4)[::2])
