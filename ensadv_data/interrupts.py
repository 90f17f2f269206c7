"""Ctrl-C and SIGTERM: noted and looked at between two steps, where the state must be whole; and never lost."""

from __future__ import annotations

import _thread
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["InterruptRequest", "deferred_interrupt", "insistent_interrupt"]

_AGAIN_AFTER = 0.05  # seconds


class InterruptRequest:
    """Whether somebody asked to stop; a second Ctrl-C stops at once."""

    requested = False

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        """Called by the operating system's signal."""
        if self.requested and signum == signal.SIGINT:  # a supervisor may send SIGTERM twice, and waits
            raise KeyboardInterrupt
        self.requested = True


@contextmanager
def deferred_interrupt() -> Iterator[InterruptRequest]:
    """Note SIGINT, and SIGTERM, which ends preempted jobs; outside the main thread there is nothing to note."""
    request = InterruptRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.signal(number, request) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def insistent_interrupt() -> Iterator[None]:
    """Ctrl-C stops the program also where Python drops the exception: in a finalizer or in a callback.

    Python prints such an exception as ignored and goes on, and a run that somebody stopped would end as if nobody had.
    Here SIGINT is sent again a moment later, until it is met by code that it can stop. SIGTERM, by which a job is
    preempted, does what Ctrl-C does.
    """
    before = sys.unraisablehook
    is_main = threading.current_thread() is threading.main_thread()
    at_term = signal.signal(signal.SIGTERM, signal.default_int_handler) if is_main else None

    def hook(dropped: sys.UnraisableHookArgs) -> None:
        if isinstance(dropped.exc_value, KeyboardInterrupt):
            _thread.start_new_thread(_interrupt_again, ())  # not threading's, whose locks a finalizer may find taken
        else:
            before(dropped)

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = before
        if is_main:
            signal.signal(signal.SIGTERM, at_term)


def _interrupt_again() -> None:
    time.sleep(_AGAIN_AFTER)
    _thread.interrupt_main()
