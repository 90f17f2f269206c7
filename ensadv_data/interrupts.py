"""Ctrl-C at a place where the state is whole: the request is noted, and looked at between two steps."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["InterruptRequest", "deferred_interrupt"]


class InterruptRequest:
    """Whether somebody asked to stop; a second Ctrl-C stops at once."""

    requested = False

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        """Called by the operating system's signal."""
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True


@contextmanager
def deferred_interrupt() -> Iterator[InterruptRequest]:
    """Note SIGINT instead of raising it; outside the main thread there is nothing to note."""
    request = InterruptRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = signal.signal(signal.SIGINT, request)
    try:
        yield request
    finally:
        signal.signal(signal.SIGINT, before)
