import numpy as np
import pytest

from rlvar import units


def brute_variance(g):
    return g.var(axis=0, ddof=1).sum()


def brute_cross(a, b):
    products = a @ b.T
    u = len(a)
    return (products.sum() - np.trace(products)) / (u * (u - 1))


STATISTICS = {
    "variance": (lambda a, b: units.variance(a), lambda a, b: brute_variance(a)),
    "signal": (lambda a, b: units.signal(a), lambda a, b: brute_cross(a, a)),
    "cross_signal": (units.cross_signal, brute_cross),
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


def test_two_units_have_values_and_nothing_left_out(rng):
    g = rng.standard_normal((2, 3))
    assert units.signal(g).value == pytest.approx(g[0] @ g[1])
    for moment in (units.variance(g), units.signal(g), units.cross_signal(g, -g)):
        assert len(moment.left_out) == 0


def test_equal_units_have_no_variance_at_all():
    g = np.full((9, 2), 0.1)
    value, left_out = units.variance(g)
    assert value == 0
    assert not left_out.any()
    assert units.largest_share(g) == 0
    assert len(set(units.signal(g).left_out)) == 1


def test_the_largest_share_is_that_of_the_unit_farthest_out():
    g = np.array([[0.0], [0.0], [0.0], [4.0]])
    assert units.largest_share(g) == pytest.approx(9 / 12)
    assert units.largest_share(g, 0.01) == units.largest_share(g)
    assert units.largest_share(g, 0.5) == pytest.approx(10 / 12)


def test_a_resample_is_the_moments_of_the_units_drawn(rng):
    g, h = rng.standard_normal((2, 12, 3)) + 1
    counts = units.resample_counts(12, 5, seed=3)
    ours, theirs = units.resample(g, counts), units.resample(h, counts)
    for i, count in enumerate(counts.astype(int)):
        drawn = np.repeat(g, count, axis=0)
        assert ours.variance[i] == pytest.approx(brute_variance(drawn))
        assert ours.signal[i] == pytest.approx(brute_cross(drawn, drawn) - brute_variance(g) / 12)
        x = np.square(drawn - drawn.mean(axis=0)).sum(axis=1)
        assert units.log_stderr(counts, ours.influence)[i] == pytest.approx(
            x.std(ddof=1) / 12**0.5 / x.mean()
        )
    assert not units.log_stderr(counts, ours.influence - ours.influence).any()
    assert theirs.influence.shape == counts.shape


def test_resamples_follow_their_seed_and_keep_the_number_of_units():
    one, other = (units.resample_counts(30, 8, seed=1) for _ in range(2))
    assert np.array_equal(one, other)
    assert (one.sum(axis=1) == 30).all()


def test_resampled_signals_have_the_mean_of_the_estimate(rng):
    g = rng.standard_normal((20, 3)) + 0.3
    signals = units.resample(g, units.resample_counts(20, 20_000, seed=0)).signal
    assert abs(signals.mean() - units.signal(g).value) < 4 * signals.std() / 20_000**0.5
