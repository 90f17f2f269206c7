"""Work done ahead of its use, in a thread, so that reading and computing take place at the same time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

__all__ = ["made_ahead"]

T = TypeVar("T")
N = TypeVar("N")


def made_ahead(make: Callable[[N], T], numbers: Iterable[N], *, depth: int) -> Generator[T]:
    """``make`` of each number, in their order; up to ``depth`` of them are made before they are asked for.

    One thread makes all of them, one after the other, so that ``make`` may have a state. What it raises is raised
    when its result is asked for. Close the iterator to have the thread end.

    Parameters
    ----------
    depth
        0 makes each when it is asked for, without a thread.
    """
    if not depth:
        yield from map(make, numbers)
        return
    left = iter(numbers)
    with ThreadPoolExecutor(1, thread_name_prefix="ahead") as thread:
        made: deque[Future[T]] = deque(thread.submit(make, number) for number in islice(left, depth))
        try:
            while made:
                result = made.popleft().result()
                made.extend(thread.submit(make, number) for number in islice(left, 1))
                yield result
        finally:
            thread.shutdown(wait=True, cancel_futures=True)
