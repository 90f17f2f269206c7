"""What a user sees of a long run: the bar on the error stream, and Ctrl-C between two steps."""

from __future__ import annotations

import _thread
import signal
import sys
import threading
import time
from collections.abc import Iterator

import pytest
from rich.progress import Progress

from ensadv_data.interrupts import deferred_interrupt, insistent_interrupt
from ensadv_data.progress import _Rate, progress_bar


def test_the_bar_counts_steps_and_keeps_the_output_clean(capsys, monkeypatch):
    steps = []
    monkeypatch.setattr(Progress, "advance", lambda self, task, n: steps.append((task, n)))
    with progress_bar("training", total=10, done=4, unit="images", per=64) as advance:
        advance(1)
        advance(3)
    assert [n for _, n in steps] == [1, 3]
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(("speed", "text"), [(None, ""), (0, ""), (2.5, "160 images/s"), (100, "6,400 images/s")])
def test_the_rate_is_in_the_users_unit(speed, text):
    class Task:
        pass

    task = Task()
    task.speed = speed
    assert _Rate("images", 64).render(task).plain == text


def test_the_bar_starts_at_what_was_done_before():
    with Progress() as bar:
        assert bar.add_task("x", total=10, completed=4) == 0
    with progress_bar("training", total=10, done=10, unit="images"):
        pass


def test_ctrl_c_is_noted_and_the_second_one_stops_at_once():
    before = signal.getsignal(signal.SIGINT)
    with deferred_interrupt() as request:
        assert not request.requested
        signal.raise_signal(signal.SIGINT)
        assert request.requested
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_each_run_starts_without_a_request():
    before = signal.getsignal(signal.SIGINT)
    for _ in range(2):
        with deferred_interrupt() as request:
            assert not request.requested
            signal.raise_signal(signal.SIGINT)
            assert request.requested
    assert signal.getsignal(signal.SIGINT) is before


def test_a_thread_of_a_worker_has_nothing_to_note():
    seen = []

    def work() -> None:
        before = signal.getsignal(signal.SIGINT)
        with deferred_interrupt() as request:
            seen.append((request.requested, signal.getsignal(signal.SIGINT) is before))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(False, True)]


@pytest.fixture
def _hearing() -> Iterator[None]:
    """Ctrl-C raises here, even where a shell started the tests in its background, which makes them deaf to it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class Deaf:
    """Meets Ctrl-C where Python drops what it raises: in its finalizer."""

    def __init__(self, met: list[str], wait: float) -> None:
        self.met, self.wait = met, wait

    def __del__(self) -> None:
        try:
            time.sleep(self.wait)
        except KeyboardInterrupt:
            self.met.append("dropped")
            raise


@pytest.mark.usefixtures("_hearing")
def test_ctrl_c_in_finalizers_is_sent_until_something_can_be_stopped():
    met: list[str] = []

    def busy() -> None:
        Deaf(met, 5)
        Deaf(met, 5)
        met.append("working")
        time.sleep(5)
        met.append("nothing came")

    before = sys.unraisablehook
    threading.Timer(0.05, _thread.interrupt_main).start()
    with pytest.raises(KeyboardInterrupt), insistent_interrupt():
        busy()
    assert met == ["dropped", "dropped", "working"]
    assert sys.unraisablehook is before


def test_what_else_a_finalizer_raises_is_reported_as_ever(monkeypatch):
    class Broken:
        def __del__(self) -> None:
            raise ValueError("broken")

    reported = []
    monkeypatch.setattr(sys, "unraisablehook", lambda dropped: reported.append(str(dropped.exc_value)))
    with insistent_interrupt():
        Broken()
    assert reported == ["broken"]
