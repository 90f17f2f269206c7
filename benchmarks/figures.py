"""The options that all measurements have, and their JSON."""

from __future__ import annotations

import argparse
import json
import os
import platform
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from ensadv_data.timing import Timing, ratio


def ratios(timings: Mapping[str, Timing], over: str) -> dict[str, list[float]]:
    """The time of one alternative over that of each, as the JSON has it: above 1 is faster than that one."""
    return {name: rounded(ratio(timings, over, name)) for name in timings}


def rounded(values: tuple[float, float, float]) -> list[float]:
    """A ratio and its quartiles, as the JSON has them."""
    return [round(value, 4) for value in values]


def milliseconds(timings: Mapping[str, Timing]) -> dict[str, list[float]]:
    """Median and quartiles of each alternative."""
    return {name: [round(1000 * value, 4) for value in (t.median, *t.spread)] for name, t in timings.items()}


def watched(work: Callable[[], object], look: Callable[[], int], *, every: float) -> tuple[float, list[int]]:
    """Seconds of a work, and what a look gave every so many seconds meanwhile."""
    seen: list[int] = []
    done = threading.Event()

    def watch() -> None:
        while not done.wait(every):
            seen.append(look())

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    began = time.perf_counter()
    work()
    seconds = time.perf_counter() - began
    done.set()
    watcher.join()
    return seconds, seen


def arguments_of(about: str | None, **options: Mapping[str, Any]) -> argparse.Namespace:
    """The options that all measurements have, and a script's own."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9, help="pairs, or more alternatives in turn; at least 7")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    for name, option in options.items():
        parser.add_argument(f"--{name.replace('_', '-')}", **option)
    return parser.parse_args()


def report(arguments: argparse.Namespace, found: Mapping[str, Any]) -> None:
    """Print the figures with what they were measured on, and write them where that was asked for."""
    about = {
        "rounds": arguments.rounds,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    text = json.dumps({**about, **found}, indent=1)
    print(text)
    if arguments.json:
        arguments.json.write_text(text + "\n", encoding="utf-8")
