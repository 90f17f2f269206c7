"""Work done ahead of its use, in threads, so that reading and computing take place at the same time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from itertools import islice
from typing import TypeVar

__all__ = ["made_ahead", "made_from_read"]

_READING = 2  # at once: while one is at its last images, the next one is read

T = TypeVar("T")
R = TypeVar("R")
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
    with ThreadPoolExecutor(1, thread_name_prefix="ahead") as thread:
        yield from _in_turn(lambda number: thread.submit(make, number), numbers, depth, [thread])


def made_from_read(
    read: Callable[[N], R], make: Callable[[N, R], T], numbers: Iterable[N], *, depth: int
) -> Generator[T]:
    """``make`` of each number and of what ``read`` gives for it; as :func:`made_ahead`.

    While one result is made, those after it are being read, two at once: ``read`` must have no state. No more than
    ``depth`` of them are in memory, read or made, beside the one that was asked for.
    """
    if not depth:
        yield from (make(number, read(number)) for number in numbers)
        return
    with ExitStack() as stack:
        readers = stack.enter_context(ThreadPoolExecutor(_READING, thread_name_prefix="ahead-read"))
        maker = stack.enter_context(ThreadPoolExecutor(1, thread_name_prefix="ahead"))

        def submit(number: N) -> Future[T]:
            found = readers.submit(read, number)
            return maker.submit(lambda: make(number, found.result()))

        yield from _in_turn(submit, numbers, depth, [readers, maker])


def _in_turn(
    submit: Callable[[N], Future[T]], numbers: Iterable[N], depth: int, threads: list[ThreadPoolExecutor]
) -> Generator[T]:
    """Results in the order of their numbers; ``depth`` of them are under way."""
    left = iter(numbers)
    made: deque[Future[T]] = deque(submit(number) for number in islice(left, depth))
    try:
        while made:
            result = made.popleft().result()
            made.extend(submit(number) for number in islice(left, 1))
            yield result
    finally:
        for future in made:
            future.cancel()
        for thread in threads:  # readers first: nobody waits for what was cancelled
            thread.shutdown(wait=True, cancel_futures=True)
