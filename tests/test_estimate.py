import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from rlvar.estimate import Estimate, jackknife, student_t_quantile


@given(probability=st.floats(0.5, 0.9999), dof=st.integers(1, 5000))
def test_student_t_quantile_matches_scipy(probability, dof):
    expected = stats.t.ppf(probability, dof)
    assert student_t_quantile(probability, dof) == pytest.approx(expected, rel=1e-8, abs=1e-12)


def test_jackknife_of_a_mean_is_the_textbook_interval():
    x = np.random.default_rng(0).standard_normal(12)
    left_out = (x.sum() - x) / 11
    estimate = jackknife(x.mean(), left_out, 0.9)
    low, high = stats.t.interval(0.9, 11, x.mean(), stats.sem(x))
    assert (estimate.stderr, estimate.low, estimate.high) == pytest.approx((stats.sem(x), low, high))


def test_positive_quantities_have_positive_intervals():
    estimate = jackknife(1.0, np.array([0.2, 1.0, 5.0]), 0.95, positive=True)
    assert 0 < estimate.low < 1 < estimate.high
    assert estimate.low * estimate.high == pytest.approx(1.0)


def test_equal_values_have_no_spread():
    estimate = jackknife(1.0, np.ones(9), 0.95, positive=True)
    assert (estimate.stderr, estimate.low, estimate.high) == (0.0, 1.0, 1.0)


def test_no_interval_from_fewer_than_two_values_or_undefined_ones():
    for left_out in (np.empty(0), np.ones(1), np.array([1.0, np.nan, 2.0])):
        estimate = jackknife(1.0, left_out, 0.95)
        assert math.isnan(estimate.stderr)
        assert math.isnan(estimate.low)


def test_text_and_json():
    assert str(Estimate(2.0, 0.5, 1.0, 3.0)) == "2 (1 to 3)"
    assert str(Estimate(2.0)) == "2"
    assert Estimate(2.0, confidence=0.9).to_dict() == {
        "value": 2.0,
        "stderr": None,
        "low": None,
        "high": None,
        "confidence": 0.9,
    }
