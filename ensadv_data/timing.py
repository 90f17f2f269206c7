"""Alternatives timed in turn, A B C A B C …, so that what disturbs the machine disturbs all of them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

__all__ = ["Alternatives", "Timing", "measure", "ratio"]

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


def measure(
    alternatives: Alternatives,
    *,
    rounds: int = 9,
    repeats: int = 1,
    advance: Callable[[int], object] = lambda count: None,
) -> dict[str, Timing]:
    """Time each alternative once a round, after one round of warm-up that does not count.

    Parameters
    ----------
    rounds
        At least 7 for a median that means something.
    repeats
        Calls that make one figure; the figure is the time of one of them.
    advance
        Told of each figure, the warm-up's too: ``rounds + 1`` of each alternative.
    """
    seconds: dict[str, list[float]] = {name: [] for name in alternatives}
    for number in range(rounds + 1):
        for name, function in alternatives.items():
            began = time.perf_counter()
            for _ in range(repeats):
                function()
            if number:
                seconds[name].append((time.perf_counter() - began) / repeats)
            advance(1)
    return {name: Timing(tuple(values)) for name, values in seconds.items()}


def ratio(timings: Mapping[str, Timing], over: str, under: str) -> tuple[float, float, float]:
    """Median, lower and upper quartile of the rounds' own ratios: paired, so that slow rounds cancel."""
    found = [a / b for a, b in zip(timings[over].seconds, timings[under].seconds, strict=True)]
    quartiles = statistics.quantiles(found, n=4)
    return statistics.median(found), quartiles[0], quartiles[2]
