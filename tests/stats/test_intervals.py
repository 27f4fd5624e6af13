import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

import rlvar
from rlvar.stats import moments as units
from rlvar.stats import resampling
from rlvar.stats.estimate import Estimate, Moment, bounded
from rlvar.stats.intervals import (
    alignment,
    bca,
    bootstrap_t,
    correlation,
    fieller,
    jackknife,
    noise_scale_ratio,
    null_limit,
    ratio_of_variances,
    satterthwaite_dof,
    signal_interval,
)
from rlvar.stats.quantiles import f_quantile, student_t_quantile


@given(probability=st.floats(0.5, 0.9999), dof=st.integers(1, 5000))
def test_student_t_quantile_matches_scipy(probability, dof):
    expected = stats.t.ppf(probability, dof)
    assert student_t_quantile(probability, dof) == pytest.approx(expected, rel=1e-8, abs=1e-12)


@given(
    probability=st.sampled_from([0.01, 0.5, 0.9, 0.975, 0.9995]),
    dof=st.floats(1, 1e6),
    error_dof=st.floats(1, 1e6),
)
def test_f_quantile_matches_scipy(probability, dof, error_dof):
    expected = stats.f.ppf(probability, dof, error_dof)
    assert f_quantile(probability, dof, error_dof) == pytest.approx(expected, rel=1e-7)


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
        "resolved": False,
    }


@pytest.mark.parametrize("dof", [2.0, 2.3, 3.7, 11.5, 299.25])
def test_fractional_degrees_of_freedom_match_scipy(dof):
    for probability in (0.75, 0.975, 0.9995):
        assert student_t_quantile(probability, dof) == pytest.approx(stats.t.ppf(probability, dof), rel=1e-7)


def test_heavy_tails_lower_the_degrees_of_freedom():
    rng = np.random.default_rng(0)
    assert satterthwaite_dof(rng.uniform(size=50)) == 49
    assert satterthwaite_dof(rng.standard_normal(100_000)) == pytest.approx(100_000, rel=0.05)
    one_far_out = np.r_[np.zeros(49), 1.0]
    assert 2 < satterthwaite_dof(one_far_out) < 2.2
    kurtosis = stats.kurtosis(x := rng.standard_exponential(50), fisher=False)
    assert satterthwaite_dof(x) == pytest.approx(2 * 50 / (kurtosis - 1 + 2 / 49))


def moments(g):
    ((own, _),) = units.products([units.Sample(g)])
    return units.signal(own), units.variance(own)


def interval_of(g, confidence=0.95):
    """The signal's interval, from its gradients."""
    ((own, _),) = units.products([units.Sample(g)])
    return signal_interval(units.signal(own), units.variance(own), units.dimension(own), confidence)


def cross_signal(a, b):
    _, (_, beside) = units.products([units.Sample(a), units.Sample(b)])
    return units.signal(beside)


def coverage(cases):
    return np.mean([low <= truth <= high for low, truth, high in cases])


@pytest.mark.parametrize("mean", [0.0, 0.3, 3.0])
@pytest.mark.parametrize("d", [1, 20])
def test_the_signals_interval_covers_weak_and_strong_signals(mean, d):
    rng = np.random.default_rng(1)
    g = rng.standard_normal((600, 25, d))
    g[..., 0] += mean
    ends = [interval_of(x) for x in g]
    assert 0.92 <= coverage((e.low, mean**2, e.high) for e in ends) <= 0.99


@pytest.mark.parametrize("mean", [0.0, 12.0])
def test_a_signals_interval_covers_where_few_of_many_coordinates_carry_the_variance(mean):
    # Half of the variance, and the signal, are in one of 400 coordinates.
    g = np.random.default_rng(1).standard_normal((400, 50, 400)) * np.r_[20.0, np.ones(399)]
    g[..., 0] += mean
    ends = [interval_of(x) for x in g]
    assert coverage((e.low, mean**2, e.high) for e in ends) >= 0.93
    assert all(e.high >= 0 for e in ends)


def test_the_signals_interval_inverts_its_test():
    g = np.random.default_rng(2).standard_normal((40, 3)) * [2.0, 1.0, 0.5] + [1.6, 0.1, 0.0]
    signal, variance = moments(g)
    dimension = 1.8
    result = signal_interval(signal, variance, dimension, 0.9)
    v, c = variance.value, math.sqrt(2 / dimension) * variance.value / 40
    b = (result.stderr**2 - 2 * c**2 + 4 * v * c / (dimension * 40)) / (signal.value + c)
    t = stats.t.ppf(0.95, satterthwaite_dof(signal.left_out))
    assert result.stderr**2 > 2 * c**2
    assert result.high - signal.value == pytest.approx(t * math.sqrt(c**2 + b * result.high))
    limit = null_limit(variance, dimension, 0.9)
    assert signal.value - result.low == pytest.approx(math.sqrt(limit**2 + t**2 * b * result.low))


def test_a_signal_is_resolved_exactly_where_its_estimate_passes_the_limit_of_none():
    for g in np.random.default_rng(1).standard_normal((300, 20, 3)) + 0.2:
        ((own, _),) = units.products([units.Sample(g)])
        limit = null_limit(units.variance(own), units.dimension(own), 0.95)
        result = interval_of(g)
        assert result.resolved == (result.low > 0) == (result.value > limit)


@pytest.mark.parametrize("d", [1, 3, 20])
def test_a_signal_of_zero_is_resolved_as_often_as_it_says(d):
    g = np.random.default_rng(1).standard_normal((2000, 20, d)) * np.geomspace(1, 0.1, d)
    above = [interval_of(x, 0.9).low > 0 for x in g]
    assert 0.03 < np.mean(above) < 0.05 + 3 * math.sqrt(0.05 * 0.95 / 2000)


def test_a_signal_of_one_coordinate_is_resolved_exactly_where_a_t_test_rejects():
    g = np.random.default_rng(1).standard_exponential((300, 20, 1)) - 0.8
    for x in g:
        _, variance = moments(x)
        jackknifed = jackknife(*variance, 0.9).stderr
        dof = max(1.0, min(19, 2 * (variance.value / jackknifed) ** 2))
        t = x.mean() / stats.sem(x[:, 0])
        assert interval_of(x, 0.9).resolved == (abs(t) > stats.t.ppf(0.975, dof))


def variances(g):
    return moments(g)[1]


def test_a_ratio_reaches_farther_to_the_side_of_a_tail_that_one_has_alone(rng):
    base, tail = rng.standard_normal((60, 4)), rng.standard_normal((60, 4))
    tail[:3] *= 8
    up = ratio_of_variances(variances(tail), variances(base), 0.95)
    down = ratio_of_variances(variances(base), variances(tail), 0.95)
    assert up.high / up.value > 1.2 * up.value / up.low
    # The ratio the other way round has the interval the other way round.
    assert (down.low, down.high) == pytest.approx((1 / up.high, 1 / up.low))
    plain = jackknife(up.value, variances(tail).left_out / variances(base).left_out, 0.95, positive=True)
    assert up.low == pytest.approx(plain.low)
    assert up.high > plain.high


def test_a_ratio_of_light_tails_is_that_of_the_jackknife_but_for_few_units(rng):
    a, b = rng.standard_normal((2, 300, 6))
    found = ratio_of_variances(variances(a), variances(b), 0.95)
    plain = jackknife(found.value, variances(a).left_out / variances(b).left_out, 0.95, positive=True)
    assert found.low <= plain.low * (1 + 1e-12)
    assert found.high >= plain.high * (1 - 1e-12)
    assert math.log(found.high / found.low) < 1.02 * math.log(plain.high / plain.low)


def test_a_ratio_that_is_the_same_without_any_unit_has_no_doubt(rng):
    a = variances(rng.standard_normal((30, 3)))
    found = ratio_of_variances(Moment(2 * a.value, 2 * a.left_out), a, 0.95)
    assert (found.value, found.low, found.high) == (2.0, 2.0, 2.0)


def test_the_margins_of_a_ratio_invert_halls_cubic():
    longer = 0
    for a, b in np.random.default_rng(0).standard_normal((20, 2, 12, 2)):
        above, below = variances(a), variances(b)
        found = ratio_of_variances(above, below, 0.95)
        logs = np.log(above.left_out / below.left_out)
        alpha, beta = (-11 * (m.left_out / m.value - np.mean(m.left_out / m.value)) for m in (above, below))
        psi, size = -11 * (logs - logs.mean()), math.sqrt(11 * np.var(logs))
        assert abs(stats.skew(psi)) < 3
        q = stats.skew(psi) / (6 * math.sqrt(12))
        p = 2 * q - (psi * (alpha + beta)).mean() / (2 * psi.std() * math.sqrt(12))
        least = stats.t.ppf(0.975, satterthwaite_dof(logs))
        for sign, ends in ((1, found.value / found.low), (-1, found.high / found.value)):
            roots = np.roots([p**2 / 3, p, 1, q - sign * stats.t.ppf(0.975, 11)])
            (root,) = roots[np.abs(roots.imag) < 1e-9].real
            assert math.log(ends) / size == pytest.approx(max(sign * root, least), rel=1e-6)
            longer += sign * root > least
    assert 10 < longer < 30


def test_a_mean_of_exactly_zero_still_has_an_uncertain_signal():
    # Leaving out any of the +-1 moves the mean alike: the jackknife alone would say stderr 0.
    g = np.repeat([[1.0], [-1.0]], 15, axis=0)
    result = interval_of(g)
    assert result.stderr == pytest.approx(0, abs=1e-12)
    assert result.low < 0 < result.high


def test_equal_units_have_a_certain_signal():
    result = interval_of(np.full((9, 2), 0.5))
    assert (result.value, result.stderr, result.low, result.high) == (0.5, 0.0, 0.5, 0.5)


def test_fieller_of_symmetric_margins_solves_fiellers_equation():
    n, d, r = Estimate(2.0, 0.2, 1.6, 2.4), Estimate(1.0, 0.1, 0.8, 1.2), 0.3
    result = fieller(n, d, r)
    for x in (result.low, result.high):
        assert (2.0 - x) ** 2 == pytest.approx(0.16 - 2 * r * x * 0.08 + x**2 * 0.04)
    assert result.low < result.value == 2.0 < result.high


def test_fieller_is_unbounded_exactly_where_the_denominator_is_unresolved():
    n = Estimate(2.0, 0.1, 1.8, 2.2)
    assert math.isfinite(fieller(n, Estimate(1.0, 0.3, 0.4, 1.6), 0.0).high)
    for d in (Estimate(1.0, 0.6, -0.2, 2.2), Estimate(-0.1, 0.6, -1.3, 1.1)):
        result = fieller(n, d, 0.0)
        assert result.high == math.inf
        assert 1.8 / d.high * 0.9 < result.low < 2.2 / d.high
        assert result.value == 2.0 / d.value
    nothing = fieller(n, Estimate(-1.0, 0.1, -1.2, -0.8), 0.0)
    assert (nothing.low, nothing.high) == (0.0, math.inf)


def test_fieller_of_what_may_be_none_over_what_may_be_none_is_anything():
    unresolved = Estimate(1e-17, 0.1, -0.2, 0.2)
    for n in (Estimate(1.0, 1.0, 0.0, 3.0), Estimate(0.0, 0.0, 0.0, 0.0)):
        result = fieller(n, unresolved, 0.0)
        assert (result.low, result.high) == (0.0, math.inf)
        assert bounded(result) == "not resolved"
    resolved = fieller(Estimate(1.0, 1.0, 0.0, 3.0), Estimate(2.0, 0.2, 1.5, 2.5), 0.0)
    assert resolved.low == 0.0
    assert 0.5 < resolved.high < math.inf


def test_fieller_of_a_certain_numerator_turns_the_interval_around():
    result = fieller(Estimate(2.0, 0.0, 2.0, 2.0), Estimate(1.0, 0.2, 0.5, 1.6), 0.0)
    assert (result.low, result.high) == pytest.approx((2 / 1.6, 2 / 0.5))


def test_comparing_an_estimator_with_itself_leaves_no_doubt():
    g = np.random.default_rng(3).standard_normal((30, 4)) + 1
    signal, variance = moments(g)
    options = {"resolved": True, "confidence": 0.95}
    for result in (
        noise_scale_ratio(variance, signal, variance, signal, **options),
        alignment(signal, signal, signal, **options),
    ):
        assert (result.value, result.stderr, result.low, result.high) == pytest.approx(
            (1, 0, 1, 1), abs=1e-12
        )


def test_what_is_not_resolved_is_not_bounded():
    g = np.random.default_rng(3).standard_normal((30, 4)) + 1
    signal, variance = moments(g)
    options = {"resolved": False, "confidence": 0.95}
    result = noise_scale_ratio(variance, signal, variance, signal, **options)
    assert (result.value, result.low, result.high) == (1.0, 0.0, math.inf)
    result = alignment(signal, signal, signal, **options)
    assert (result.low, result.high) == (-1.0, 1.0)
    negative = signal._replace(value=-1.0)
    assert math.isnan(alignment(signal, negative, signal, **options).value)
    assert math.isnan(noise_scale_ratio(variance, negative, variance, signal, **options).value)


def test_alignment_is_the_cosine_of_the_means_within_minus_one_and_one():
    rng = np.random.default_rng(4)
    a, b = rng.standard_normal((2, 5000, 2)) + np.array([[[1.0, 0.0]], [[1.0, 1.0]]])
    cross = cross_signal(a, b)
    result = alignment(cross, moments(a)[0], moments(b)[0], resolved=True, confidence=0.95)
    assert result.low < math.sqrt(0.5) < result.high < 1
    near = a + 0.5 * b[:, ::-1] - np.array([0.5, 0.5])
    cross = cross_signal(a, near)
    result = alignment(cross, moments(a)[0], moments(near)[0], resolved=True, confidence=0.95)
    assert result.high == 1


def test_correlation_is_that_of_the_left_out_values():
    x, y = np.random.default_rng(7).standard_normal((2, 20)) + 1e6
    assert correlation(x, y) == pytest.approx(np.corrcoef(x, y)[0, 1])
    assert correlation(x, np.ones(20)) == 0


def test_two_units_have_no_intervals_of_any_kind():
    g = np.random.default_rng(5).standard_normal((2, 3))
    signal, variance = moments(g)
    results = (
        signal_interval(signal, variance, 3, 0.95),
        fieller(Estimate(variance.value), Estimate(signal.value), 0.0),
        noise_scale_ratio(variance, signal, variance, signal, resolved=False, confidence=0.95),
        alignment(signal, signal, signal, resolved=False, confidence=0.95),
        bca(signal, np.ones(9), 0.95),
        bootstrap_t(variance, 1.0, np.ones(9), np.ones(9), 0.95),
    )
    assert all(math.isnan(result.low) and math.isnan(result.high) for result in results)


def test_bootstrap_intervals_cover():
    rng = np.random.default_rng(6)
    variances, signals = [], []
    counts = resampling.resample_counts(30, 499, seed=0)
    for g in rng.standard_normal((300, 30, 3)) * np.exp(0.4 * rng.standard_normal((300, 30, 1))) + 0.5:
        signal, variance = moments(g)
        ((own, _),) = units.products([units.Sample(g)], gram=True)
        drawn = resampling.Resampled(own, counts)
        errors = resampling.log_stderr(counts, drawn.influence)
        v = bootstrap_t(variance, variance.value * 29 / 30, drawn.variance, errors, 0.95)
        variances.append((v.low, 3 * math.exp(0.32), v.high))
        s = bca(signal, drawn.signal, 0.95)
        signals.append((s.low, 0.75, s.high))
    assert coverage(variances) > 0.91
    assert coverage(signals) > 0.91


def test_bootstrap_of_equal_values_has_no_width():
    result = bootstrap_t(Moment(2.0, np.full(5, 2.0)), 1.6, np.ones(9), np.zeros(9), 0.95)
    assert (result.low, result.high) == (2.0, 2.0)


@pytest.mark.parametrize("exponent", [-996, -500, 300, 500, 996])
def test_intervals_are_the_same_at_any_scale(rng, exponent):
    # Squares of variances and signals are out of float64's range at most of these.
    g, base = rng.standard_normal((2, 14, 3)) + 1.0
    factor = 2.0**exponent  # of variances and signals

    def intervals(scale):
        (v, s), (v0, s0) = (
            [Moment(m.value * scale, m.left_out * scale) for m in moments(x)[::-1]] for x in (g, base)
        )
        cross = cross_signal(g, base)
        cross = Moment(cross.value * scale, cross.left_out * scale)
        signal, options = signal_interval(s, v, 3, 0.95), {"resolved": True, "confidence": 0.95}
        free = (
            fieller(jackknife(*v, 0.95, positive=True), signal, 0.3),
            noise_scale_ratio(v, s, v0, s0, **options),
            alignment(cross, s, s0, **options),
        )
        return [
            *((x.value, x.stderr, x.low, x.high) for x in free),
            (signal.low / scale, signal.high / scale),
        ]

    for scaled, plain in zip(intervals(factor), intervals(1.0), strict=True):
        assert scaled == pytest.approx(plain, rel=1e-11)


def test_an_interval_of_a_positive_quantity_ends_at_zero_if_a_left_out_value_is_zero():
    left_out = np.array([0.0, 2.0, 2.0, 2.0])
    plain, positive = (jackknife(1.0, left_out, 0.95, positive=positive) for positive in (False, True))
    assert plain.low < 0
    assert (positive.low, positive.high) == (0.0, plain.high)
    # What is an estimate of a positive quantity, such as a component of variance, can be negative.
    assert jackknife(-1.0, left_out, 0.95, positive=True).low < -1


def test_a_bootstrap_has_no_end_where_resamples_without_variance_reach_the_tail():
    moment = Moment(2.0, np.array([1.0, 2.0, 3.0]))
    ratios = np.where(np.arange(100) < 10, np.nan, np.linspace(1.0, 3.0, 100))
    estimate = bootstrap_t(moment, 2.0, ratios, np.ones(100), 0.95)
    assert (estimate.low, estimate.high) == (0.0, math.inf)
    # A variance of 0 does say something: it was too low.
    estimate = bootstrap_t(moment, 2.0, np.nan_to_num(ratios), np.full(100, np.nan), 0.95)
    assert estimate.high == math.inf


def test_the_ratio_of_a_variance_to_a_number_times_it_is_that_number():
    for seed in range(200):
        draw = np.random.default_rng(seed)
        scores, rewards = draw.standard_normal((30, 5, 3)), draw.standard_normal(30)
        row = rlvar.compare(rlvar.Rollouts(scores, rewards), ["single", ("mine", 0.1 * rewards)])["mine"]
        assert row.ratio.interval == pytest.approx((0.01, 0.01))


def test_changes_of_a_ratio_that_its_logarithm_cannot_hold_are_none():
    left_out = np.r_[np.full(9, 10.0), np.nextafter(10.0, 11.0)]
    assert len(set(np.log(left_out))) == 1
    ratio = ratio_of_variances(Moment(10.0, left_out), Moment(1.0, np.ones(10)), 0.95)
    assert ratio.low == ratio.high == ratio.value == 10.0
