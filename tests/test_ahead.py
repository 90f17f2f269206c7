"""Work that is done ahead of its use: the same results in the same order, and no thread that is left."""

from __future__ import annotations

import threading
import time
from contextlib import closing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ensadv_data.ahead import made_ahead


def threads() -> set[str]:
    return {thread.name for thread in threading.enumerate() if thread.name.startswith("ahead")}


@given(st.lists(st.integers()), st.integers(0, 7))
def test_results_are_those_of_map(numbers, depth):
    seen = []
    assert list(made_ahead(lambda n: seen.append(n) or 2 * n, numbers, depth=depth)) == [2 * n for n in numbers]
    assert seen == numbers
    assert not threads()


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_so_many_are_made_before_they_are_asked_for_and_no_more(depth):
    made = []
    with closing(made_ahead(made.append, range(100), depth=depth)) as results:
        next(results)
        deadline = time.monotonic() + 10
        while len(made) < depth + 1 and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(0.02)
        assert made == list(range(depth + 1))
    assert not threads()


def test_nothing_is_made_ahead_where_that_is_not_wanted():
    made = []
    results = made_ahead(lambda n: made.append(n) or threading.current_thread(), range(3), depth=0)
    assert made == []
    assert next(results) is threading.main_thread()
    assert made == [0]


def test_what_is_raised_comes_in_its_turn():
    def make(number: int) -> float:
        return 1 / (number - 2)

    results = made_ahead(make, range(5), depth=4)
    assert [next(results), next(results)] == [-0.5, -1]
    with pytest.raises(ZeroDivisionError):
        next(results)
    assert not threads()
