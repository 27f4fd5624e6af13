import math

import numpy as np
import pytest

import rlvar
from rlvar.stats.unpaired import unpaired_ratio


def of(value, low, high, **options):
    return rlvar.Estimate(value, math.nan, low, high, **options)


def test_a_number_known_exactly_leaves_the_interval_of_the_other():
    found = unpaired_ratio(of(6.0, 3.0, 24.0), of(2.0, 2.0, 2.0))
    assert (found.value, *found.interval) == pytest.approx((3.0, 1.5, 12.0))


def test_ends_are_recovered_from_the_side_of_each_interval_that_matters():
    found = unpaired_ratio(of(8.0, 4.0, 8.0), of(2.0, 2.0, 4.0))
    assert found.low == pytest.approx(4 / 2 ** math.sqrt(2))
    assert found.high == pytest.approx(4)


def test_what_has_no_upper_end_leaves_the_ratio_without_one_end():
    open_ended = of(5.0, 2.0, math.inf, resolved=False)
    assert unpaired_ratio(open_ended, of(1.0, 0.5, 2.0)).high == math.inf
    assert unpaired_ratio(of(1.0, 0.5, 2.0), open_ended).low == 0.0
    assert not unpaired_ratio(of(1.0, 0.5, 2.0), open_ended).resolved


@pytest.mark.parametrize("value", [0.0, -3.0, math.inf, math.nan])
def test_what_is_not_positive_has_no_ratio(value):
    found = unpaired_ratio(of(value, -9.0, 9.0), of(1.0, 0.5, 2.0))
    assert math.isnan(found.value)
    assert math.isnan(found.low)
    assert not found.resolved


def test_intervals_cover_the_ratio_of_two_variances():
    rng, n, covered = np.random.default_rng(0), 30, 0
    # Chi-squared intervals of both variances, as skewed as those of noise scales.
    low, high = 45.722, 16.047  # quantiles 0.975 and 0.025 with 29 degrees of freedom
    for _ in range(2000):
        a, b = 3.0 * rng.standard_normal(n), rng.standard_normal(n)
        each = [x.var(ddof=1) for x in (a, b)]
        found = unpaired_ratio(*(of(v, (n - 1) * v / low, (n - 1) * v / high) for v in each))
        covered += found.low <= 9.0 <= found.high
    assert covered / 2000 == pytest.approx(0.95, abs=0.015)


def test_a_correlation_of_the_two_takes_its_part_of_the_width_off():
    a, b = of(6.0, 3.0, 12.0), of(2.0, 1.0, 4.0)
    found = unpaired_ratio(a, b, 0.5)
    width = math.sqrt(math.log(2) ** 2 * (2 - 2 * 0.5))
    assert math.log(found.high / found.value) == pytest.approx(width)
    assert math.log(found.value / found.low) == pytest.approx(width)
    assert unpaired_ratio(a, b, 1.0).interval == pytest.approx((3.0, 3.0))
    assert unpaired_ratio(a, of(2.0, 0.0, 4.0), 0.9).high == math.inf
