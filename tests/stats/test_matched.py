"""Units of two sets, left out together where they are in both."""

import numpy as np
import pytest

from rlvar.stats.estimate import Moment
from rlvar.stats.matched import Matched


def moment(rng, units):
    return Moment(2.0, 2.0 + 0.1 * rng.standard_normal(units))


def variance(left_out):
    m = len(left_out)
    return (m - 1) / m * np.square(left_out - left_out.mean()).sum()


def test_units_in_both_sets_are_left_out_of_both_as_they_are():
    rng = np.random.default_rng(0)
    a, b = moment(rng, 5), moment(rng, 5)
    matched = Matched.of("abcde", "ecabd")
    first, second = matched.spread((a, b))
    assert matched.shared == matched.units == 5
    np.testing.assert_array_equal(first.left_out, a.left_out)
    np.testing.assert_array_equal(second.left_out, b.left_out[[2, 3, 1, 4, 0]])


@pytest.mark.parametrize("sizes", [(5, 5), (3, 40)])
def test_without_a_shared_unit_the_variance_of_a_difference_is_the_sum_of_both(sizes):
    rng = np.random.default_rng(1)
    a, b = (moment(rng, size) for size in sizes)
    matched = Matched.none(*sizes)
    first, second = matched.spread((a, b))
    assert matched.shared == 0
    assert variance(first.left_out) == pytest.approx(variance(a.left_out))
    assert variance(second.left_out - first.left_out) == pytest.approx(
        variance(a.left_out) + variance(b.left_out)
    )


def test_shared_units_take_their_covariance_off_and_the_others_stay():
    rng = np.random.default_rng(2)
    a, b = moment(rng, 6), moment(rng, 7)
    matched = Matched.of("abcdef", "xyzcdab")  # a, b, c and d in both
    first, second = matched.spread((a, b))
    assert (matched.shared, matched.units) == (4, 9)
    d, e = a.left_out - a.left_out.mean(), b.left_out - b.left_out.mean()
    covariance = np.sqrt(5 / 6 * 6 / 7) * (d[[2, 3, 0, 1]] * e[3:]).sum()
    # The means over all nine units differ from 0 by rounding alone.
    assert variance(second.left_out - first.left_out) == pytest.approx(
        variance(a.left_out) + variance(b.left_out) - 2 * covariance
    )


def test_a_set_without_intervals_leaves_none():
    nothing = Moment(2.0, np.empty(0))
    first, second = Matched.none(2, 5).spread((nothing, moment(np.random.default_rng(3), 5)))
    assert len(first.left_out) == len(second.left_out) == 0
