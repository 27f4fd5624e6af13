import numpy as np
import pytest

import closed_forms
from rlvar.stats import intervals, resampling
from rlvar.stats import moments as units


def moments_of(g, sizes=None):
    """Variance and signal of unit gradients."""
    ((own, _),) = units.products([units.Sample(g, sizes)])
    return units.variance(own), units.signal(own)


def cross_signal(a, b, sizes=None):
    _, (_, beside) = units.products([units.Sample(x, sizes) for x in (a, b)])
    return units.signal(beside)


def brute_variance(g):
    return g.var(axis=0, ddof=1).sum()


def brute_cross(a, b):
    products = a @ b.T
    u = len(a)
    return (products.sum() - np.trace(products)) / (u * (u - 1))


STATISTICS = {
    "variance": (lambda a, b: moments_of(a)[0], lambda a, b: brute_variance(a)),
    "signal": (lambda a, b: moments_of(a)[1], lambda a, b: brute_cross(a, a)),
    "cross_signal": (cross_signal, brute_cross),
}


@pytest.mark.parametrize("name", STATISTICS)
@pytest.mark.parametrize(("u", "d"), [(3, 1), (10, 1), (7, 20), (40, 4)])
def test_values_and_left_out_ones_equal_recomputation(rng, name, u, d):
    a, b = rng.standard_normal((2, u, d)) + 0.5
    ours, definition = STATISTICS[name]
    value, left_out = ours(a, b)
    assert value == pytest.approx(definition(a, b), rel=1e-12, abs=1e-12)
    kept = [np.arange(u) != i for i in range(u)]
    expected = [definition(a[k], b[k]) for k in kept]
    np.testing.assert_allclose(left_out, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("mean", [0.0, 0.5])
def test_over_all_data_sets_the_signal_is_unbiased_and_the_plug_in_is_not(mean):
    outcomes, p = np.array([[1.0, 0.0], [-1.0, 2.0], [0.0, -1.0]]), np.array([0.25, 0.25, 0.5])
    outcomes += mean - p @ outcomes
    truth, variance = 2 * mean**2, p @ np.square(outcomes - mean).sum(axis=1)
    draws, probabilities = closed_forms.product_measure(outcomes, p, 4)
    signals, variances, plug_in = (
        probabilities @ [statistic(g) for g in draws]
        for statistic in (
            lambda g: moments_of(g)[1].value,
            lambda g: moments_of(g)[0].value,
            lambda g: np.square(g.mean(axis=0)).sum(),
        )
    )
    assert signals == pytest.approx(truth, abs=1e-13)
    assert variances == pytest.approx(variance)
    assert plug_in == pytest.approx(truth + variance / 4)


def test_a_mean_far_above_the_spread_costs_no_digits(rng):
    # Multiples of 1/256: adding 1e8 rounds nothing.
    near = np.round(256 * rng.standard_normal((50, 3))) / 256
    ((value, left_out), _), ((far, far_left_out), _) = map(moments_of, (near, near + 1e8))
    assert far == pytest.approx(value, rel=1e-12)
    np.testing.assert_allclose(far_left_out, left_out, rtol=1e-12)


def test_two_units_have_values_and_nothing_left_out(rng):
    g = rng.standard_normal((2, 3))
    assert moments_of(g)[1].value == pytest.approx(g[0] @ g[1])
    for moment in (*moments_of(g), cross_signal(g, -g)):
        assert len(moment.left_out) == 0


def test_equal_units_have_no_variance_at_all():
    g = np.full((9, 2), 0.1)
    (value, left_out), signal = moments_of(g)
    assert value == 0
    assert not left_out.any()
    assert np.isnan(intervals.effective_units(units.products([units.Sample(g)])[0][0].diagonal))
    assert len(set(signal.left_out)) == 1


def test_without_the_only_unit_that_deviates_there_is_no_variance():
    for seed in range(10):
        rng = np.random.default_rng(seed)
        gradients = np.tile(rng.standard_normal(3), (15, 1))
        gradients[seed] += rng.standard_normal(3)
        sizes = None if seed % 2 else np.ones(15)
        assert moments_of(gradients, sizes)[0].left_out[seed] == 0.0


def test_effective_units_are_all_of_equal_shares_and_one_of_one_share():
    assert intervals.effective_units(np.full(9, 1e-200)) == pytest.approx(9)
    assert intervals.effective_units(np.r_[np.zeros(8), 3.0]) == 1
    assert intervals.effective_units(np.array([3.0, 1.0])) == pytest.approx(16 / 10)
    assert np.isnan(intervals.deciding_units(np.ones(5)))


def test_over_all_data_sets_the_trace_of_the_squared_covariance_is_unbiased():
    outcomes, p = np.array([[1.0, 0.0], [-1.0, 2.0], [0.5, -1.0]]), np.array([0.25, 0.25, 0.5])
    centred = outcomes - p @ outcomes
    sigma = centred.T @ (p[:, None] * centred)
    draws, probabilities = closed_forms.product_measure(outcomes, p, 5)
    found = []
    for g in draws:
        blocks = units.Blocks(5)
        blocks.add(g + 7.0, None)  # no shift changes it
        found.append(blocks.trace_of_square(2.0))
    assert probabilities @ found == pytest.approx(np.trace(sigma @ sigma) / 4, rel=1e-11)


def test_many_units_make_blocks_each_of_which_counts_by_its_units(rng):
    g = rng.standard_normal((135, 6)) * [3, 1, 1, 1, 1, 1]
    blocks = units.Blocks(135)
    blocks.add(g, None)
    sizes = np.diff(blocks.edges)
    assert (sizes.min(), sizes.max(), sizes.sum()) == (27, 27, 135)
    each = []
    for part in np.split(g, blocks.edges[1:-1]):
        one = units.Blocks(len(part))
        one.add(part, None)
        each.append(one.trace_of_square(1.0))
    assert blocks.trace_of_square(1.0) == pytest.approx(sizes @ each / 135)


@pytest.mark.parametrize("u", [4, 64, 65, 1000, 100_000, 1_000_000])
def test_blocks_never_hold_more_than_a_few_numbers_a_unit(u):
    blocks = units.Blocks(u)
    sizes = np.diff(blocks.edges)
    assert sizes.sum() == u
    assert sizes.min() >= 4
    assert sizes.max() - sizes.min() <= 1
    assert blocks.products.size <= max(8 * u, 1.1 * 2**21)


@pytest.mark.parametrize("sizes", [None, "unequal"])
def test_the_dimension_is_that_of_as_many_equal_coordinates(rng, sizes):
    u = 4000
    sizes = None if sizes is None else rng.integers(1, 9, u).astype(float)

    def dimension(scales, u=u):
        g = rng.standard_normal((u, len(scales))) * scales
        if sizes is not None:  # of a mean far from 0, which unequal sizes must not take for variance
            g = (g + 5.0) * np.sqrt(sizes[:u, None])
            g += 5.0 * (sizes[:u, None] - np.sqrt(sizes[:u, None]))
        ((own, _),) = units.products([units.Sample(g, None if sizes is None else sizes[:u])])
        return units.dimension(own)

    assert dimension(np.ones(1)) == 1.0
    assert dimension(np.ones(50)) == pytest.approx(50, rel=0.05)
    spiked = np.r_[np.sqrt(50), np.ones(50)]  # V = 100, tr Sigma^2 = 2550
    assert dimension(spiked) == pytest.approx(100**2 / 2550, rel=0.15)
    assert dimension(np.ones(5), u=3) == 1.0  # not known


def test_proportional_samples_are_found_with_their_factor(rng):
    g = rng.standard_normal((40, 30))
    g[:, :10] = 0.0  # columns that say nothing come first
    near = g * (1 + 1e-4 * rng.standard_normal((40, 1)))
    samples = [near, g, -0.75 * g, 0.1 * g.astype(np.float32), np.zeros_like(g), g.copy()]
    found = units.products([units.Sample(np.asarray(x, float)) for x in samples])
    roots = [own.like for own, _ in found]
    assert [root for root, _ in roots] == [0, 1, 1, 1, 4, 1]
    assert [factor for _, factor in roots] == pytest.approx([1, 1, -0.75, 0.1, 1, 1], rel=1e-6)


def brute_sample(g, sizes):
    """Mean, variance and cross products of a ratio of sums by their definitions."""
    mean = g.sum(axis=0) / sizes.sum()
    return mean, (g - sizes[:, None] * mean) / sizes.mean()


def brute_ratio_cross(a, b, sizes):
    (mean_a, y_a), (mean_b, y_b) = brute_sample(a, sizes), brute_sample(b, sizes)
    return mean_a @ mean_b - (y_a * y_b).sum() / (len(a) * (len(a) - 1))


SIZES = np.array([3.0, 1, 0, 7, 2, 2, 5, 1, 1, 4, 3, 6])


def test_with_sizes_values_and_left_out_ones_equal_recomputation(rng):
    a, b = rng.standard_normal((2, 12, 3)) + 0.5
    kept = [np.arange(12) != i for i in range(12)]

    def variance(a, sizes):
        return np.square(brute_sample(a, sizes)[1]).sum() / (len(a) - 1)

    for moment, statistic in (
        (moments_of(a, SIZES)[0], lambda k: variance(a[k], SIZES[k])),
        (cross_signal(a, b, SIZES), lambda k: brute_ratio_cross(a[k], b[k], SIZES[k])),
    ):
        assert moment.value == pytest.approx(statistic(slice(None)))
        np.testing.assert_allclose(moment.left_out, [statistic(k) for k in kept])


def test_equal_sizes_are_a_plain_mean(rng):
    g = rng.standard_normal((9, 3)) + 1
    for one, other in zip(moments_of(g / 5), moments_of(g, np.full(9, 5.0)), strict=True):
        assert one.value == pytest.approx(other.value)
        np.testing.assert_allclose(one.left_out, other.left_out)


def test_the_variance_of_a_ratio_of_sums_is_that_of_the_batch(rng):
    # The delta method against the truth: the variance of the ratio over many batches.
    def draw(batches):
        sizes = rng.integers(1, 9, (batches, 200)).astype(float)
        return rng.standard_normal((batches, 200, 2)) + sizes[..., None] ** 1.5, sizes

    g, sizes = draw(4000)
    ratios = g.sum(axis=1) / sizes.sum(axis=1)[..., None]
    truth = 200 * ratios.var(axis=0).sum()
    ours = np.mean([moments_of(*batch)[0].value for batch in zip(g[:400], sizes, strict=False)])
    assert ours == pytest.approx(truth, rel=0.08)  # four standard errors


def resampled(counts, *gradients, sizes=None):
    """Resamples of the last of the gradients, with itself and beside the first."""
    pairs = units.products([units.Sample(g, sizes) for g in gradients], gram=True)
    return [resampling.Resampled(each, counts) for each in pairs[-1]]


@pytest.mark.parametrize("d", [3, 30])
@pytest.mark.parametrize("sizes", [np.ones(12), SIZES])
def test_a_resample_is_the_moments_of_the_units_drawn(rng, sizes, d):
    g, h = rng.standard_normal((2, 12, d)) + 1
    counts = resampling.resample_counts(12, 5, seed=3)
    ours, beside = resampled(counts, h, g, sizes=sizes)
    drawn_from = (brute_sample(g, sizes)[1] * brute_sample(h, sizes)[1]).sum() / (12 * 11)
    for i, count in enumerate(counts.astype(int)):
        drawn, other, size = (np.repeat(a, count, axis=0) for a in (g, h, sizes))
        assert ours.variance[i] == pytest.approx(np.square(brute_sample(drawn, size)[1]).sum() / 11)
        assert beside.signal[i] == pytest.approx(brute_ratio_cross(drawn, other, size) - drawn_from)


@pytest.mark.parametrize("d", [3, 30])
@pytest.mark.parametrize("sizes", [np.ones(12), SIZES])
def test_influence_is_the_derivative_of_the_log_variance(rng, sizes, d):
    g = rng.standard_normal((12, d)) + 1
    counts = resampling.resample_counts(12, 1, seed=3)

    def log_variance(extra):  # shares of weight that still add up to 12
        return np.log(resampled(counts * (1 - extra.sum() / 12) + extra, g, sizes=sizes)[0].variance[0])

    h = 1e-5
    numeric = [(log_variance(12 * h * e) - log_variance(-12 * h * e)) / (2 * h) for e in np.eye(12)]
    ours = resampled(counts, g, sizes=sizes)[0].influence[0]
    np.testing.assert_allclose(ours, numeric, rtol=1e-6, atol=1e-6)


def test_standard_errors_of_logarithms_follow_from_influences(rng):
    g = rng.standard_normal((12, 3))
    counts = resampling.resample_counts(12, 5, seed=3)
    influence = resampled(counts, g)[0].influence
    for i, count in enumerate(counts.astype(int)):
        drawn = np.repeat(g, count, axis=0)
        x = np.square(drawn - drawn.mean(axis=0)).sum(axis=1)
        expected = x.std(ddof=1) / 12**0.5 / x.mean()
        assert resampling.log_stderr(counts, influence)[i] == pytest.approx(expected)
    assert not resampling.log_stderr(counts, influence - influence).any()


def test_resamples_follow_their_seed_and_keep_the_number_of_units():
    one, other = (resampling.resample_counts(30, 8, seed=1) for _ in range(2))
    assert np.array_equal(one, other)
    assert (one.sum(axis=1) == 30).all()


def test_resampled_signals_have_the_mean_of_the_estimate(rng):
    g = rng.standard_normal((20, 3)) + 0.3
    signals = resampled(resampling.resample_counts(20, 20_000, seed=0), g)[0].signal
    assert abs(signals.mean() - moments_of(g)[1].value) < 4 * signals.std() / 20_000**0.5


@pytest.mark.parametrize("sizes", [np.ones(12), SIZES])
def test_many_coordinates_give_what_a_few_at_a_time_do(rng, sizes, monkeypatch):
    samples = [units.Sample(g, sizes) for g in rng.standard_normal((2, 12, 100)) + 1e3]
    whole = units.products(samples, gram=True)
    monkeypatch.setattr(units, "_CHUNK", 12 * 16)
    for one, other in zip(whole, units.products(samples, gram=True), strict=True):
        for a, b in zip(one, other, strict=True):
            assert a.identical == b.identical
            np.testing.assert_allclose(a.gram[0], b.gram[0], rtol=1e-12, atol=1e-10)
            for name in ("means", "linear", "diagonal", "crossed"):
                np.testing.assert_allclose(getattr(a, name), getattr(b, name), rtol=1e-12, atol=1e-8)


def test_where_units_outnumber_coordinates_no_matrix_of_units_is_made(rng):
    ((own, _),) = units.products([units.Sample(rng.standard_normal((300, 2)))], gram=True)
    assert sum(factor.size for factor in own.gram) == 2 * 300 * 2
    ((own, _),) = units.products([units.Sample(rng.standard_normal((30, 50)))], gram=True)
    assert [factor.shape for factor in own.gram] == [(30, 30)]


def test_the_sum_of_the_others_does_not_cancel():
    x = np.array([1e20, 3.0, 1e-3, 7.0])
    np.testing.assert_allclose(units.without_each(x)[0], 10.001, rtol=1e-15)
    assert units.without_each(np.array([5.0])).tolist() == [0.0]
    one_dominates = units.Sizes(np.array([1e12, 1.0, 2.0]))
    assert one_dominates.room[0] * one_dominates.mean == pytest.approx(3.0, rel=1e-15)
    assert one_dominates.squares[1] * one_dominates.mean**2 == pytest.approx(1e24 + 4, rel=1e-15)


@pytest.mark.parametrize("shape", [(40, 7), (7, 40)])
def test_the_layout_of_gradients_changes_no_number(rng, shape):
    g = rng.standard_normal(shape)
    one, other = (units.products([units.Sample(x)], gram=True)[0][0] for x in (g, np.asfortranarray(g)))
    assert units.dimension(one) == pytest.approx(units.dimension(other), rel=1e-12)
    for a, b in zip(one.gram, other.gram, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)
