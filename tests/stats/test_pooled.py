"""Means over steps, with pairs of neighbouring steps as units."""

import numpy as np
import pytest

from rlvar.stats.intervals import jackknife, skewed
from rlvar.stats.pooled import Pooled, infer_pooled


def pool(x, weights=None):
    x = np.asarray(x, float)
    return Pooled.of(x, np.ones(len(x)) if weights is None else np.asarray(weights, float))


def test_pairs_are_counted_from_the_newest_and_a_linear_drift_is_taken_out():
    x, w = np.random.default_rng(0).standard_normal(11), np.arange(1.0, 12.0)
    found = pool(x[:, None], w).moment(0)
    w = w / w.sum()
    newer, older = [2, 4, 6, 8, 10], [1, 3, 5, 7, 9]  # the oldest is in none
    d = x[newer] - x[older]
    share = (w[newer] + w[older]) / (w[newer] + w[older]).sum()
    e = np.sqrt((w[newer] ** 2 + w[older] ** 2) / 2) * (d - (share * d).sum())
    assert found.value == pytest.approx((w * x).sum(), rel=1e-14)
    np.testing.assert_allclose(found.left_out, found.value - e / (1 - share), rtol=1e-13)
    drifting = pool((x + 5.0 * np.arange(11))[:, None], np.ones(11)).moment(0)
    still = pool(x[:, None]).moment(0)
    np.testing.assert_allclose(drifting.left_out - drifting.value, still.left_out - still.value, atol=1e-12)


def test_the_standard_error_is_that_of_the_mean_of_all_steps():
    rng = np.random.default_rng(1)
    for weights in (np.ones(40), 0.9 ** np.arange(40)[::-1]):
        x = rng.standard_normal((40, 2000))
        pooled = pool(x, weights)
        squares = [jackknife(*pooled.moment(k), 0.95).stderr ** 2 for k in range(500)]
        assert np.mean(squares) == pytest.approx(pooled.values.var(), rel=0.15)


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_fewer_than_four_pairs_have_no_interval(steps):
    found = pool(np.arange(2.0 * steps).reshape(steps, 2))
    assert found.left_out.shape == (2, 0)
    assert np.isnan(jackknife(*found.moment(0), 0.95).low)
    assert len(pool(np.arange(8.0)[:, None]).moment(0).left_out) == 4


def matrices(rng, steps, factor=1.0, drift=0.0):
    """Covariances and signals of two estimators of one mean, or of one that is a number times the other."""
    covariances, signals = [], []
    for t in range(steps):
        mean = (1 + drift * t) * np.ones(5)
        a = mean + rng.standard_normal((6, 5))
        b = factor * a if factor != 1 else a + rng.standard_normal((6, 5))
        y = np.stack([a, b])
        m = y.mean(axis=1)
        y -= m[:, None]
        c = np.einsum("aud,bud->ab", y, y) / 5
        covariances.append(c)
        signals.append(m @ m.T - c / 6)
    return np.array(covariances), np.array(signals)


def infer(given, classes=("a", "a"), weights=None):
    n = len(given[0])
    return infer_pooled(*given, np.ones(n) if weights is None else weights, list(classes), 0, 0.95)


def test_ratios_are_those_of_sums_and_no_means_of_ratios():
    given = matrices(np.random.default_rng(2), 12)
    base, other = infer(given)
    v, s = given[0].sum(axis=0), given[1].sum(axis=0)
    assert base.noise_scale.value == pytest.approx(v[0, 0] / s[0, 0], rel=1e-13)
    assert other.ratio.value == pytest.approx(v[1, 1] / v[0, 0], rel=1e-13)
    assert other.signal.value == base.signal.value  # of the quieter one
    assert other.noise_scale_ratio.value == other.ratio.value
    assert (other.factor, other.alignment.value) == (1.0, 1.0)
    apart = infer(given, (None, None))[1]
    assert apart.signal.value == pytest.approx(s[1, 1] / 12, rel=1e-13)
    assert apart.alignment.value == pytest.approx(min(1, s[0, 1] / np.sqrt(s[0, 0] * s[1, 1])), rel=1e-13)


def test_what_is_a_number_times_the_other_at_all_steps_has_its_noise():
    other = infer(matrices(np.random.default_rng(3), 12, factor=-0.5), ("a", None))[1]
    assert other.factor == pytest.approx(-0.5, rel=1e-12)
    assert other.ratio.interval == pytest.approx((0.25, 0.25), rel=1e-12)
    assert other.noise_scale_ratio.interval == pytest.approx((1.0, 1.0), rel=1e-12)
    assert other.alignment.value == -1.0
    # Of a factor that changes nothing is known.
    halves = [matrices(np.random.default_rng(4), 6, factor=f) for f in (0.5, 0.6)]
    assert infer([np.concatenate(each) for each in zip(*halves, strict=True)], ("a", None))[1].factor is None


def test_data_can_deny_that_two_means_are_one():
    rng = np.random.default_rng(5)
    covariances, signals = matrices(rng, 30)
    assert not infer((covariances, signals))[1].differs
    apart = signals.copy()
    apart[:, 1, 1] += 2.0
    other = infer((covariances, apart))[1]
    assert other.differs
    assert other.factor is None


def test_a_drift_of_the_policy_does_not_widen_intervals():
    still, drifting = (
        infer(matrices(np.random.default_rng(6), 40, drift=drift))[0].signal for drift in (0.0, 0.2)
    )
    # 1 + 0.2 t: the signal grows from 5 to 390 over the steps, and its scatter would count as noise.
    scatter = np.std([5 * (1 + 0.2 * t) ** 2 for t in range(40)]) / np.sqrt(40)
    assert drifting.stderr < scatter / 5
    assert drifting.stderr / drifting.value < still.stderr / still.value


def test_the_upper_end_of_a_variance_leaves_room_for_skewness():
    variances = np.random.default_rng(7).chisquare(3, (20, 1))
    moment = pool(variances).moment(0)
    plain, longer = jackknife(*moment, 0.95, positive=True), skewed(moment, 0.95)
    assert longer.low == plain.low
    assert longer.high > plain.high
    equal = pool(np.ones((20, 1))).moment(0)
    assert skewed(equal, 0.95).interval == pytest.approx((1.0, 1.0))
    none = pool(np.zeros((20, 1))).moment(0)
    assert skewed(none, 0.95).interval == (0.0, 0.0)
