"""Intervals of differences of skewed parts."""

import numpy as np
import pytest

import decompose_coverage
import rlvar
from rlvar.stats.differences import difference
from rlvar.stats.estimate import Moment
from rlvar.stats.intervals import jackknife


def parts(z):
    """The mean of z, of its positive and of its negative part, with each value left out."""
    shares = (z, np.maximum(z, 0), np.maximum(-z, 0))
    return [Moment(float(x.mean()), (x.sum() - x) / (len(x) - 1)) for x in shares]


def test_of_many_symmetric_values_it_is_the_plain_interval(rng):
    whole, above, below = parts(rng.standard_normal(20_000) + 0.3)
    ours, plain = difference(whole, above, below, 0.95), jackknife(*whole, 0.95)
    assert ours.value == plain.value
    assert ours.stderr == plain.stderr
    assert ours.interval == pytest.approx(plain.interval, rel=1e-3)


@pytest.mark.parametrize("sign", [1, -1])
def test_of_one_sign_alone_it_is_the_interval_of_that_part(rng, sign):
    whole, above, below = parts(sign * rng.exponential(1.0, 30))
    ours, part = (
        difference(whole, above, below, 0.9),
        jackknife(*(above, below)[sign < 0], 0.9, positive=True),
    )
    assert sorted(np.abs(ours.interval)) == pytest.approx(part.interval, rel=1e-12)
    assert ours.resolved


def test_the_tail_is_on_the_side_that_it_comes_from(rng):
    z = rng.lognormal(0.0, 1.0, 40) - 0.4
    ours = difference(*parts(z), 0.95)
    assert ours.high - ours.value > 1.1 * (ours.value - ours.low)
    mirrored = difference(*parts(-z), 0.95)
    assert mirrored.interval == pytest.approx((-ours.high, -ours.low), rel=1e-12)


@pytest.mark.parametrize("exponent", [-1000, 1000])
def test_it_has_the_scale_of_its_values(rng, exponent):
    z = rng.standard_normal(20)
    ours, expected = (difference(*parts(x), 0.95) for x in (np.ldexp(z, exponent), z))
    assert np.ldexp(ours.interval, -exponent) == pytest.approx(expected.interval, rel=1e-12)


def test_without_values_left_out_there_is_no_interval():
    none = np.empty(0)
    assert np.isnan(difference(Moment(1.0, none), Moment(2.0, none), Moment(1.0, none), 0.95).low)


def test_covariance_terms_of_few_rollouts_miss_less_and_not_on_one_side_alone():
    # A tabular policy whose covariance terms are nearly 0: without its rare rollouts they look negative.
    whole, p = decompose_coverage.tabular(6, offset=1.0)
    _, _, truth, *_ = decompose_coverage.truth(whole, p, "multi")
    rng, missed, symmetric = np.random.default_rng(0), 0, 0
    for draw in rng.choice(len(whole), (300, 30), p=p):
        ours = rlvar.decompose(whole[draw], "multi").covariance_terms
        missed += not ours.low <= truth <= ours.high
        symmetric += abs(ours.value - truth) > 2.2 * ours.stderr
    assert missed <= 0.08 * 300
    assert missed <= 0.7 * symmetric
