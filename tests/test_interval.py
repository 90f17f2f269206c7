"""Error rates and their intervals, against scipy."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ensadv_data.errors import QuantityError
from ensadv_data.evaluation.interval import Rate, wilson_interval

counts = st.integers(1, 100_000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


@settings(deadline=None)
@given(counts)
def test_the_interval_is_that_of_scipy(count):
    stats = pytest.importorskip("scipy.stats")
    errors, n = count
    low, high = wilson_interval(errors, n)
    expected = stats.binomtest(errors, n).proportion_ci(confidence_level=0.95, method="wilson")
    assert (low, high) == pytest.approx((expected.low, expected.high), rel=1e-9, abs=1e-12)
    assert 0 <= low <= errors / n <= high <= 1


@given(counts)
def test_successes_mirror_errors(count):
    errors, n = count
    low, high = wilson_interval(errors, n)
    assert wilson_interval(n - errors, n) == pytest.approx((1 - high, 1 - low), abs=1e-12)


@pytest.mark.parametrize(("errors", "n"), [(0, 0), (-1, 5), (6, 5), (0, -1), (float("nan"), 5)])
def test_counts_that_are_no_proportion_are_refused(errors, n):
    with pytest.raises(QuantityError, match=rf"expected 0 ≤ errors ≤ n with n ≥ 1, got {errors} of {n}"):
        wilson_interval(errors, n)


def test_a_rate_is_written_with_its_interval():
    rate = Rate(25, 100)
    low, high = wilson_interval(25, 100)
    assert rate.interval == (low, high)
    assert rate.to_json() == {"errors": 25, "n": 100, "error": 0.25, "low": low, "high": high}
    assert str(rate) == "25.0 [17.5, 34.3]"
