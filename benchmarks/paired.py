"""Alternatives measured in turn, A B C A B C …, so that what disturbs the machine disturbs all of them alike."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

Alternatives = Mapping[str, Callable[[], object]]


@dataclass(frozen=True)
class Timing:
    """Seconds of one alternative, a figure a round."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """Median over the rounds."""
        return statistics.median(self.seconds)

    @property
    def spread(self) -> tuple[float, float]:
        """Lower and upper quartile."""
        quartiles = statistics.quantiles(self.seconds, n=4)
        return quartiles[0], quartiles[2]


def measure(alternatives: Alternatives, *, rounds: int = 9, repeats: int = 1) -> dict[str, Timing]:
    """Time each alternative once a round, after one round of warm-up that does not count.

    Parameters
    ----------
    rounds
        At least 7 for a median that means something.
    repeats
        Calls that make one figure; the figure is the time of one of them.
    """
    seconds: dict[str, list[float]] = {name: [] for name in alternatives}
    for number in range(rounds + 1):
        for name, function in alternatives.items():
            began = time.perf_counter()
            for _ in range(repeats):
                function()
            if number:
                seconds[name].append((time.perf_counter() - began) / repeats)
    return {name: Timing(tuple(values)) for name, values in seconds.items()}


def ratio(timings: Mapping[str, Timing], over: str, under: str) -> tuple[float, float, float]:
    """Median, lower and upper quartile of the rounds' own ratios: paired, so that slow rounds cancel."""
    found = [a / b for a, b in zip(timings[over].seconds, timings[under].seconds, strict=True)]
    quartiles = statistics.quantiles(found, n=4)
    return statistics.median(found), quartiles[0], quartiles[2]


def ratios(timings: Mapping[str, Timing], over: str) -> dict[str, list[float]]:
    """The time of one alternative over that of each, as the JSON has it: above 1 is faster than that one."""
    return {name: [round(value, 4) for value in ratio(timings, over, name)] for name in timings}


def arguments_of(about: str | None, **options: Mapping[str, Any]) -> argparse.Namespace:
    """The options that all measurements have, and a script's own."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9, help="pairs, or more alternatives in turn; at least 7")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    for name, option in options.items():
        parser.add_argument(f"--{name}", **option)
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
