"""Work that is done ahead of its use: the same results in the same order, and no thread that is left."""

from __future__ import annotations

import threading
import time
from contextlib import closing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ensadv_data.ahead import made_ahead, made_from_read


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


@given(st.lists(st.integers()), st.integers(0, 7))
def test_what_is_made_from_what_was_read_is_in_order(numbers, depth):
    made = []
    results = made_from_read(lambda n: 2 * n, lambda n, r: made.append(n) or (n, r), numbers, depth=depth)
    assert list(results) == [(n, 2 * n) for n in numbers]
    assert made == numbers
    assert not threads()


def test_reading_goes_on_while_something_is_made():
    """Two are read at once, more than depth are never under way, and one that waits holds up no reading."""
    started, go = [], threading.Event()

    def read(number: int) -> int:
        started.append(number)
        return number

    def make(number: int, found: int) -> int:
        assert go.wait(30)
        return found

    results = made_from_read(read, make, range(9), depth=3)
    helper = threading.Thread(target=lambda: (_until(lambda: len(started) == 3), go.set()))
    helper.start()
    with closing(results):
        assert next(results) == 0
        helper.join()
        _until(lambda: len(started) == 4)
        time.sleep(0.02)
        assert sorted(started) == [0, 1, 2, 3]
    assert not threads()


def test_two_are_read_at_once():
    both = threading.Barrier(2, timeout=30)
    assert list(made_from_read(lambda n: both.wait() and n, lambda n, _: n, range(4), depth=2)) == [0, 1, 2, 3]


@pytest.mark.parametrize("where", ["read", "make"])
def test_what_is_raised_while_reading_comes_in_its_turn(where):
    def fail(number: int) -> int:
        return number if number != 2 else 1 // 0

    read, make = (fail, lambda n, _: n) if where == "read" else (lambda n: n, lambda n, _: fail(n))
    results = made_from_read(read, make, range(6), depth=4)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(ZeroDivisionError):
        next(results)
    assert not threads()


def _until(met) -> None:
    deadline = time.monotonic() + 30
    while not met() and time.monotonic() < deadline:
        time.sleep(0.001)
    assert met()
