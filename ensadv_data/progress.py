"""The progress bar: share done, rate, time left; on the error stream, so that output stays clean."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

__all__ = ["progress_bar", "silence_bars"]

_QUIET = "ENSADV_QUIET"  # an environment variable, so that processes started from here are quiet too


def silence_bars() -> None:
    """Show no bars in this process and those that it starts."""
    os.environ[_QUIET] = "1"


class _Rate(ProgressColumn):
    def __init__(self, unit: str, per: float) -> None:
        super().__init__()
        self.unit, self.per = unit, per

    def render(self, task: Task) -> Text:
        return Text("" if not task.speed else f"{task.speed * self.per:,.0f} {self.unit}/s", style="cyan")


@contextmanager
def progress_bar(
    what: str, *, total: int, done: int = 0, unit: str, per: float = 1.0
) -> Iterator[Callable[[int], None]]:
    """Show a bar while the context lasts.

    Parameters
    ----------
    what
        What is being done.
    total, done
        Steps in all, and those done before.
    unit, per
        The rate is shown in ``unit``, of which each step has ``per``.

    Yields
    ------
    callable
        Advances the bar by a number of steps.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(unit, per),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    quiet = bool(os.environ.get(_QUIET)) or not console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=quiet) as bar:
        task = bar.add_task(what, total=total, completed=done)
        yield lambda steps: bar.advance(task, steps)
