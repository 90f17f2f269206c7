"""Error rates with their uncertainty."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ensadv_data.errors import QuantityError

__all__ = ["Rate", "strongest", "tied", "wilson_interval"]

_Z95 = 1.959963984540054  # two-sided 95% quantile of the normal distribution


def wilson_interval(errors: int, n: int) -> tuple[float, float]:
    """The 95% score interval of a proportion (Wilson 1927, doi:10.1080/01621459.1927.10502953).

    Parameters
    ----------
    errors, n
        0 ≤ errors ≤ n, n ≥ 1.

    Returns
    -------
    low, high : float
        In [0, 1].

    Raises
    ------
    QuantityError
        The counts are not of a proportion.
    """
    if not (n >= 1 and 0 <= errors <= n):
        raise QuantityError(f"expected 0 ≤ errors ≤ n with n ≥ 1, got {errors} of {n}")
    share, z2 = errors / n, _Z95**2
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z95 / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    low = 0.0 if errors == 0 else centre - half
    high = 1.0 if errors == n else centre + half
    return low, high


@dataclass(frozen=True)
class Rate:
    """An error rate: how many of how many, with its 95% interval."""

    errors: int
    n: int

    @property
    def value(self) -> float:
        """Errors / n, in [0, 1]."""
        return self.errors / self.n

    @property
    def interval(self) -> tuple[float, float]:
        """See :func:`wilson_interval`."""
        return wilson_interval(self.errors, self.n)

    def to_json(self) -> dict[str, float | int]:
        """As JSON: rates in [0, 1]."""
        low, high = self.interval
        return {"errors": self.errors, "n": self.n, "error": self.value, "low": low, "high": high}

    def __str__(self) -> str:
        low, high = self.interval
        return f"{100 * self.value:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def tied(one: Rate, two: Rate) -> bool:
    """Whether two error rates cannot be told apart at 95% confidence.

    The two-sided score test of the difference of two proportions with a pooled variance. For rates on the same images
    it is conservative: it does not use that they are paired.
    """
    pooled = (one.errors + two.errors) / (one.n + two.n)
    deviation = math.sqrt(pooled * (1 - pooled) * (1 / one.n + 1 / two.n))
    return abs(one.value - two.value) <= _Z95 * deviation


def strongest(rates: Sequence[Rate | None]) -> list[bool]:
    """Which error rates are the largest, or cannot be told from it; of one that is not there, False."""
    most = max((rate for rate in rates if rate), key=lambda rate: rate.value, default=None)
    return [rate is not None and most is not None and tied(rate, most) for rate in rates]
