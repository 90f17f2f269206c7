"""Estimates as text, and what follows from their differences."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from scipy import stats

ALPHA = 0.05
Estimate = tuple[float, float]  # a value and its variance


def percent(value: float | None, digits: int = 1) -> str:
    """A share in percent; a dash where there is none."""
    return "–" if value is None else f"{100 * value:.{digits}f}"


def spread(values: Sequence[float]) -> str:
    """Mean over seeds, and the half-width of its 95% interval (Student's t) where there is more than one."""
    if not values:
        return "–"
    mean = math.fsum(values) / len(values)
    if len(values) == 1:
        return percent(mean)
    half = stats.t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return f"{percent(mean)} ± {percent(half)}"


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of Markdown."""
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def less(one: Estimate | None, other: Estimate | None) -> Estimate | None:
    """The difference of two estimates as if they were independent; on the same images that is too careful."""
    return one and other and (one[0] - other[0], one[1] + other[1])


def within(estimate: Estimate | None) -> str:
    """An estimate in percent with its 95% interval."""
    return "–" if estimate is None else f"{percent(estimate[0])} ± {percent(1.96 * math.sqrt(estimate[1]))}"


def tested(one: Sequence[float], other: Sequence[float], *, paired: bool) -> Any:
    """Student's t over seeds: paired where both are of the same models, else Welch; None where it can say nothing.

    One seed decides nothing: chance in training is larger than chance in the choice of images. Nor do seeds that are
    all equal, as they have no variance.
    """
    samples = [[a - b for a, b in zip(one, other, strict=True)]] if paired else [one, other]
    if min(map(len, samples)) < 2 or max(map(statistics.pstdev, samples)) < 1e-12:
        return None
    return stats.ttest_1samp(samples[0], 0) if paired else stats.ttest_ind(*samples, equal_var=False)


def gap(one: Sequence[float], other: Sequence[float]) -> str:
    """The difference of two means over seeds with its 95% interval (Welch), and what follows from it."""
    if not one or not other:
        return "–"
    difference = f"{100 * (math.fsum(one) / len(one) - math.fsum(other) / len(other)):+.1f}"
    test = tested(one, other, paired=False)
    if test is None:
        return f"{difference} (not enough seeds)"
    interval = test.confidence_interval(0.95)
    verdict = "**worse**" if interval.low > 0 else "**better**" if interval.high < 0 else "not resolved"
    return f"{difference} [{100 * interval.low:+.1f}, {100 * interval.high:+.1f}]: {verdict}"


def judged(greater: Sequence[float], smaller: Sequence[float], *, paired: bool = False) -> str:
    """Whether ``greater`` is greater, over seeds."""
    if not greater or not smaller:
        return "not measured"
    one, other = (math.fsum(values) / len(values) for values in (greater, smaller))
    values = f"{spread(greater)} against {spread(smaller)}"
    if min(len(greater), len(smaller)) == 1:
        return f"one seed: {'as claimed' if one > other else 'not as claimed'} ({values})"
    test = tested(greater, smaller, paired=paired)
    if test is None:
        return f"not resolved ({values})"
    verdict = "not resolved" if test.pvalue > ALPHA else "**holds**" if one > other else "**does not hold**"
    return f"{verdict} ({values}; p = {test.pvalue:.2g})"
