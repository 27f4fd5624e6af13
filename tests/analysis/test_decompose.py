import itertools
import json
import pickle

import numpy as np
import pytest
from hypothesis import given

import closed_forms
import reference
import rlvar
import strategies
from rlvar.analysis.growth import strata_of

ARRAYS = ("mean", "lag_profile", "lag_correlation", "covariance")

# Most cases are small; `test_intervals_from_fewer_than_ten_units_come_with_a_warning` is about it.
NAMES = ("variance", "variance_terms", "covariance_terms")

LENGTHS = np.random.default_rng(0).integers(0, 13, 30)
LOGS = np.random.default_rng(0).exponential(1.0, (30, 12))


@given(case=strategies.terms())
def test_every_part_matches_the_definition(case):
    scores, weights, options = case
    result = rlvar.decompose(scores, weights, **options)
    matrix = reference.covariance(scores, weights, **options)
    x = reference.terms(scores, weights, options.get("mask"), options.get("lengths"))
    atol = 1e-12 * matrix.diagonal().sum() + 1e-27 * float((x**2).sum())
    close = {"rtol": 1e-11, "atol": atol * len(matrix)}
    np.testing.assert_allclose(result.step_variance, matrix.diagonal(), **close)
    np.testing.assert_allclose(result.growth, reference.growth(scores, weights, **options), **close)
    np.testing.assert_allclose(result.lag_profile, reference.lag_profile(matrix), **close)
    if result.growth[-1]:
        np.testing.assert_allclose(result.step_share * result.growth[-1], matrix.sum(axis=1), **close)
    np.testing.assert_allclose(result.variance.value, matrix.sum(), **close)
    np.testing.assert_allclose(result.variance_terms.value, matrix.trace(), **close)
    np.testing.assert_allclose(result.covariance_terms.value, matrix.sum() - matrix.trace(), **close)
    p = reference.weights_of_samples(len(x), options.get("sample_weight"))
    size = reference.effective_size(len(x), options.get("sample_weight"))
    assert result.effective_size == pytest.approx(size, rel=1e-12)
    np.testing.assert_allclose(result.mean, np.tensordot(p, x, 1) / p.sum(), rtol=1e-12, atol=1e-12)


@given(case=strategies.terms())
def test_the_parts_add_up_to_the_variance_of_the_summed_gradients(case):
    scores, weights, options = case
    result = rlvar.decompose(scores, weights, **options)
    total, variance, covariance = (getattr(result, name).value for name in NAMES)
    ddof = options.pop("ddof")
    p = {name: options.pop(name) for name in ("sample_weight",) if name in options}
    g = reference.gradients(scores, weights, **options)
    w = reference.weights_of_samples(len(g), **p)
    summed = w @ np.square(reference.centred(g, w)).sum(axis=1) / reference.normaliser(len(g), ddof=ddof, **p)
    steps = len(result.growth)
    close = {"rel": 1e-11, "abs": 1e-12 * steps * variance + 1e-26 * steps * float((g**2).sum()) + 1e-300}
    assert total == result.growth[-1]
    assert total == pytest.approx(variance + covariance, **close)
    assert total == pytest.approx(summed, **close)
    if scores.dtype == np.float64:  # products of float32 have fewer digits
        assert total == pytest.approx(result.covariance.sum(), **close)
    assert total == pytest.approx(result.lag_profile[0] + 2 * result.lag_profile[1:].sum(), **close)
    assert variance == pytest.approx(result.step_variance.sum(), rel=1e-12)
    if total:
        assert result.step_share.sum() * total == pytest.approx(total, **close)


def test_variances_within_and_between_groups_add_up_to_the_total(isa, rng):
    scores, weights = rng.standard_normal((40, 7, 3)), rng.standard_normal((40, 7))
    mask = rng.random((40, 7)) < 0.8
    groups = rng.permutation(np.repeat(np.arange(6), [2, 4, 5, 7, 9, 13]))
    parts = [
        rlvar.decompose(scores[rows], weights[rows], mask=mask[rows], ddof=0)
        for rows in (groups == label for label in range(6))
    ]
    sizes = np.bincount(groups)
    between = rlvar.decompose(np.stack([part.mean for part in parts]), sample_weight=sizes, ddof=0)
    whole = rlvar.decompose(scores, weights, mask=mask, ddof=0)
    for curve in ("growth", "step_variance", "lag_profile"):
        within = sizes @ [getattr(part, curve) for part in parts] / 40
        np.testing.assert_allclose(within + getattr(between, curve), getattr(whole, curve), rtol=1e-11)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(2, 1, 1), (7, 5, 3), (200, 9, 70), (3, 4, 200), (65, 30, 2)])
def test_every_isa_and_cut_of_the_work_matches_numpy(isa, rng, shape, dtype):
    n, t, _ = shape
    scores = rng.standard_normal(shape, dtype)
    weights = rng.standard_normal((n, t))
    p = rng.random(n)
    for options in ({"lengths": rng.integers(0, t + 1, n)}, {"mask": rng.random((n, t)) < 0.7}):
        live = reference.live_steps((n, t), **options)
        x = scores * np.where(live, weights, 0.0)[:, :, None]
        h = np.cumsum(x, axis=1)
        fact = p.sum() - (p**2).sum() / p.sum()
        result = rlvar.decompose(scores, weights, sample_weight=p, **options)
        for series, squares in ((x, result.step_variance), (h, result.growth)):
            centred = series - np.tensordot(p, series, 1) / p.sum()
            expected = np.einsum("n,ntd->t", p, centred**2) / fact
            np.testing.assert_allclose(squares, expected, rtol=1e-12, atol=1e-12 * expected.max())


def test_lag_correlations_are_those_of_the_matrix(rng):
    scores, weights = rng.standard_normal((40, 9, 2)), rng.standard_normal((40, 9))
    lengths = rng.integers(1, 8, 40)  # nobody reaches the last two steps
    result = rlvar.decompose(scores, weights, lengths=lengths)
    matrix = reference.covariance(scores, weights, lengths=lengths)
    deviation = np.sqrt(matrix.diagonal())
    bound = reference.lag_profile(np.outer(deviation, deviation))
    np.testing.assert_allclose(
        result.lag_correlation[:7], reference.lag_profile(matrix)[:7] / bound[:7], rtol=1e-9
    )
    assert np.isnan(result.lag_correlation[7:]).all()
    assert result.lag_correlation[0] == pytest.approx(1)
    assert result.alive.tolist() == [(lengths > t).sum() for t in range(9)]


def test_step_shares_sum_to_one_and_are_negative_where_a_step_reduces_the_variance(rng):
    scores, weights = rng.standard_normal((50, 8, 3)), rng.standard_normal((50, 8))
    scores[:, 5], weights[:, 5] = -0.5 * scores[:, 2], weights[:, 2]
    mask = rng.random((50, 8)) < 0.8
    mask[:, [2, 5]] = True
    mask[:, 7] = False
    scores[~mask], weights[~mask] = np.nan, np.nan
    share = rlvar.decompose(scores, weights, mask=mask).step_share
    assert share.sum() == pytest.approx(1, rel=1e-13)
    assert share[5] < 0 < share[2]
    assert share[7] == 0


def test_a_rollout_is_alive_until_its_last_live_step():
    mask = np.array([[1, 0, 1, 0], [0, 0, 0, 0], [0, 1, 0, 0]])
    assert rlvar.decompose(np.ones((3, 4, 1)), mask=mask).alive.tolist() == [2, 2, 1, 0]
    assert rlvar.decompose(np.ones((3, 4, 1))).alive.tolist() == [3, 3, 3, 3]


def test_growth_ends_at_the_total(rng):
    result = rlvar.decompose(rng.standard_normal((30, 6, 2)), rng.standard_normal((30, 6)))
    assert result.growth[-1] == result.variance.value
    assert result.growth[0] == result.step_variance[0]


def test_a_mean_far_above_the_spread_costs_no_digits(isa, rng):
    scores = 1e6 + rng.standard_normal((100, 9, 5))
    result = rlvar.decompose(scores)
    expected = reference.covariance(scores - 1e6)
    np.testing.assert_allclose(result.step_variance, expected.diagonal(), rtol=1e-9)
    np.testing.assert_allclose(result.growth, reference.growth(scores - 1e6), rtol=1e-8)
    np.testing.assert_allclose(result.step_share, expected.sum(axis=1) / expected.sum(), rtol=0, atol=1e-9)
    np.testing.assert_allclose(result.covariance, expected, rtol=0, atol=1e-12 * expected.max())


@pytest.mark.parametrize("shape", [(500, 20, 3), (70, 30, 200)])
def test_bits_do_not_depend_on_the_number_of_threads(isa, rng, shape):
    scores, weights = rng.standard_normal(shape), rng.standard_normal(shape[:2])
    one = rlvar.decompose(scores, weights, num_threads=1)
    for threads in (2, 3, 8):
        other = rlvar.decompose(scores, weights, num_threads=threads)
        assert [getattr(one, name) for name in NAMES] == [getattr(other, name) for name in NAMES]
        for name in ("step_variance", "step_share", "growth", "mean", "lag_profile", "covariance"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


@pytest.mark.parametrize("groups", [None, list("abcabcaabbccaddd")])
def test_standard_errors_are_those_of_the_jackknife(isa, rng, groups):
    scores, weights = rng.standard_normal((16, 5, 3)) + 1, rng.standard_normal((16, 5))
    mask = rng.random((16, 5)) < 0.8
    mask[:, 4] = True
    result = rlvar.decompose(scores, weights, mask=mask, groups=groups)

    def statistic(name):
        def of_kept(kept):
            part = rlvar.decompose(scores[kept], weights[kept], mask=mask[kept])
            return getattr(part, name).value

        return of_kept

    labels = groups or np.arange(16)
    for name in (*NAMES, "growth_exponent"):
        expected = reference.jackknife_stderr(statistic(name), labels)
        np.testing.assert_allclose(getattr(result, name).stderr, expected, rtol=1e-9)


@pytest.mark.parametrize("ddof", [0, 1, 2])
def test_the_signal_is_the_plug_in_less_its_bias_and_its_jackknife_leaves_out_rollouts(isa, rng, ddof):
    scores, lengths = rng.standard_normal((16, 5, 3)) + 1, rng.integers(0, 6, 16)
    g = reference.gradients(scores, lengths=lengths)

    def signal(kept):
        mean = g[kept].mean(axis=0)
        return mean @ mean - ddof * g[kept].var(axis=0, ddof=ddof).sum() / len(kept)

    result = rlvar.decompose(scores, lengths=lengths, ddof=ddof)
    assert result.signal.value == pytest.approx(signal(np.arange(16)), rel=1e-12)
    stderr = reference.jackknife_stderr(signal, np.arange(16))
    assert result.signal.stderr == pytest.approx(stderr, rel=1e-9)
    assert result.noise_scale.value == pytest.approx(result.variance.value / result.signal.value)
    p = rng.random(16)
    weighted = rlvar.decompose(scores, lengths=lengths, ddof=ddof, sample_weight=p)
    mean = p @ g / p.sum()
    bias = ddof * weighted.variance.value / reference.effective_size(16, p)
    assert weighted.signal.value == pytest.approx(mean @ mean - bias, rel=1e-12)
    assert np.isnan([weighted.signal.low, weighted.noise_scale.low]).all()


@pytest.mark.parametrize("groups", [None, np.repeat(np.arange(15), 4)])
def test_signal_and_noise_scale_are_those_of_compare(isa, rng, groups):
    rewards = rng.standard_normal((60, 5)) + 1
    scores = rng.standard_normal((60, 5, 3)) + 0.3
    row = rlvar.compare(rlvar.Rollouts(scores, rewards, groups=groups))["multi"]
    ours = rlvar.decompose(scores, rlvar.reward_to_go(rewards), groups=groups)
    assert ours.signal.to_dict() == pytest.approx(row.signal.to_dict(), rel=1e-9)
    # Compare counts groups, whose rollouts are dependent, and this rollouts: four times as many.
    theirs, each = row.noise_scale, 1 if groups is None else 4
    for name in ("value", "low", "high", "stderr"):
        expected = pytest.approx(each * getattr(theirs, name), rel=1e-9)
        assert getattr(ours.noise_scale, name) == expected
    assert ("in groups of 4" in str(ours)) == (groups is not None)


def test_groups_of_unequal_sizes_weigh_as_many_rollouts_in_the_signal(rng):
    scores, groups = rng.standard_normal((30, 4, 3)) + 0.5, rng.integers(0, 12, 30)
    result = rlvar.decompose(scores, groups=groups)
    g = reference.gradients(scores)
    labels, sizes = np.unique(groups, return_counts=True)
    u, size, mean = len(labels), sizes.mean(), g.mean(axis=0)
    y = np.array([g[groups == label].sum(axis=0) for label in labels]) / size - np.outer(sizes / size, mean)
    assert result.signal.value == pytest.approx(mean @ mean - np.square(y).sum() / (u * (u - 1)), rel=1e-12)


QUANTITIES = (*NAMES, "growth_exponent", "signal", "noise_scale")


@pytest.mark.parametrize("groups", [None, np.arange(40) // 3])
def test_intervals_have_the_scale_of_the_scores(rng, groups):
    scores = rng.standard_normal((40, 6, 3)) + 0.5
    options = {"groups": groups}
    expected = rlvar.decompose(scores, **options)
    for exponent in (-490, -270, 270, 490):
        result = rlvar.decompose(np.ldexp(scores, exponent), **options)
        for name in QUANTITIES:
            square = name in NAMES or name == "signal"
            for field in ("value", "stderr", "low", "high"):
                value = getattr(getattr(result, name), field)
                value = np.ldexp(value, -2 * exponent) if square else value
                assert value == pytest.approx(getattr(getattr(expected, name), field), rel=1e-9)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("copies", [1, 3])
def test_what_one_rollout_carries_alone_is_not_known_from_rounding(seed, copies):
    rng = np.random.default_rng(seed)
    scores, weights = rng.standard_normal((25, 6, 3)), np.zeros(25)
    weights[seed] = rng.standard_normal()
    groups = np.arange(25) // copies if copies > 1 else None
    result = rlvar.decompose(scores, weights, groups=groups)
    for estimate in (result.variance, result.variance_terms):
        assert estimate.low == 0.0
        assert estimate.value < estimate.high < 10 * estimate.value
    assert np.isnan(result.growth_exponent.low)


def test_a_noise_scale_whose_signal_may_be_none_has_no_upper_end(rng):
    scores = rng.standard_normal((30, 4, 3))
    result = rlvar.decompose(scores)
    assert result.signal.low <= 0
    assert result.noise_scale.high == np.inf
    assert result.noise_scale.low > 0


def assert_same_results(ours, theirs):
    """Equal to rounding in every field, and in what is computed on demand."""
    for name, value in theirs.to_dict(arrays=ARRAYS).items():
        mine = ours.to_dict(arrays=ARRAYS)[name]
        if isinstance(value, dict):
            value, mine = (np.array(list(d.values()), float) for d in (value, mine))
        np.testing.assert_allclose(
            np.array(mine, float), np.array(value, float), rtol=1e-9, atol=1e-11, err_msg=name
        )


def test_growth_exponent_of_a_power_law_is_its_power():
    # Increments along one direction that make the running sum k^a z: V(k) is k^(2a) exactly.
    z = np.array([-1.0, 0.5, 2.0, -3.0])
    k = np.arange(1, 41)
    for a in (0.5, 1.0, 1.5):
        increments = np.diff(k**a, prepend=0.0)
        result = rlvar.decompose((z[:, None] * increments)[:, :, None])
        assert result.growth_range == (20, 40)
        np.testing.assert_allclose(result.growth_exponent.value, 2 * a, rtol=1e-10)
        np.testing.assert_allclose(result.growth_exponent.stderr, 0, atol=1e-8)


def test_growth_range_is_the_upper_half_of_what_half_the_rollouts_reach(rng):
    scores = rng.standard_normal((6, 20, 2))
    assert rlvar.decompose(scores).growth_range == (10, 20)
    assert rlvar.decompose(scores, lengths=[2, 3, 4, 8, 12, 20]).growth_range == (4, 8)
    assert rlvar.decompose(scores, lengths=[0] * 6).growth_range == (1, 1)


CUTS = {
    "all": {},
    "lengths": {"lengths": LENGTHS},
    "mask": {"mask": np.random.default_rng(1).random((30, 12)) < 0.8},
    "ratios": {"lengths": LENGTHS, "logp": -LOGS, "behavior_logp": -1.1 * LOGS},
    "episodes": {
        "lengths": LENGTHS,
        "terminated": LOGS < 0.05,
        "truncated": LOGS > 3,
        "next_values": LOGS,
        "bootstrap_value": LOGS[:, 0],
    },
}


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *itertools.product(["single", "multi", "multi(gamma=0.9)", "multi-mean"], CUTS),
        *itertools.product(["single-mean", "rloo"], ["all", "lengths", "mask", "ratios"]),
    ],
)
def test_the_horizon_is_that_of_rollouts_which_are_cut(isa, rng, name, kind):
    def cut(k):
        given = {key: array if array.ndim == 1 else array[:, :k] for key, array in CUTS[kind].items()}
        if "lengths" in given:
            given["lengths"] = np.minimum(LENGTHS, k)
        if "bootstrap_value" in given:
            given["bootstrap_value"] = np.where(k < LENGTHS, 0, LOGS[:, 0])
        return rlvar.Rollouts(scores[:, :k], rewards[:, :k], groups=np.arange(30) // 2, **given)

    scores, rewards = rng.standard_normal((30, 12, 3), np.float32) + 0.3, rng.standard_normal((30, 12))
    estimator = rlvar.estimator("multi", gamma=0.9) if "gamma" in name else rlvar.estimator(name)
    options = {"importance": "sequence", "truncate": 2.0} if kind == "ratios" else {}
    result = rlvar.decompose(cut(12), estimator, **options)
    steps, variance = result.horizon_growth.steps, result.horizon_growth.variance
    assert tuple(steps[[0, -1]]) == result.growth_range
    expected = [rlvar.decompose(cut(k), estimator, **options).variance.value for k in steps]
    np.testing.assert_allclose(variance, expected, rtol=1e-11)
    slope = np.polyfit(np.log(steps), np.log(expected), 1)[0]
    assert result.horizon_exponent.value == pytest.approx(slope, rel=1e-9)


@pytest.mark.parametrize("groups", [None, list("aabbcccdddefghijklmn")])
def test_the_interval_of_the_horizon_leaves_out_units(rng, groups):
    scores, rewards = rng.standard_normal((20, 8, 2)), rng.standard_normal((20, 8)) + 1

    def of(kept):
        part = rlvar.Rollouts(scores[kept], rewards[kept])
        return rlvar.decompose(part, "multi").horizon_exponent.value

    result = rlvar.decompose(rlvar.Rollouts(scores, rewards, groups=groups), "multi")
    stderr = reference.jackknife_stderr(of, groups or np.arange(20))
    assert result.horizon_exponent.stderr == pytest.approx(stderr, rel=1e-9)


def test_the_horizon_reproduces_the_closed_form_of_bernoulli_tokens():
    tokens, p = closed_forms.product_measure((0, 1), (0.7, 0.3), 8)
    rollouts = rlvar.Rollouts(*closed_forms.bernoulli_rollouts(tokens, 0.3))
    for number, name in enumerate(("single", "multi")):
        found = rlvar.decompose(rollouts, name, sample_weight=p, ddof=0).horizon_growth
        assert found.steps.tolist() == [4, 5, 6, 7, 8]
        exact = [closed_forms.bernoulli_variances(k, 0.3)[number] for k in range(4, 9)]
        np.testing.assert_allclose(found.variance, exact, rtol=1e-12)


def test_variances_that_grow_as_cubes_with_the_horizon_hardly_do_along_the_sequence():
    tokens = np.random.default_rng(0).random((500, 200)) < 0.5
    rollouts = rlvar.Rollouts(*closed_forms.bernoulli_rollouts(tokens, 0.5))
    for number, name in enumerate(("single", "multi")):
        result = rlvar.decompose(rollouts, name)
        ends = np.log([closed_forms.bernoulli_variances(k, 0.5)[number] for k in (100, 200)])
        slope = (ends[1] - ends[0]) / np.log(2)
        assert slope > 2.95
        assert 2.5 < result.horizon_exponent.low < slope < result.horizon_exponent.high
        assert result.growth_exponent.high < 1.2
    assert result.growth_exponent.high < 0.3  # of multi-step


def test_a_horizon_needs_rewards_on_the_way_and_weights_that_are_theirs_alone(rng):
    scores, rewards = rng.standard_normal((20, 6, 2)), rng.standard_normal((20, 6))
    at_the_end = np.where(np.arange(6) == 5, 10.0, 0.1)
    for earned, estimator in (
        (rewards[:, 0], "multi"),
        (np.broadcast_to(at_the_end, (20, 6)), "multi"),
        (rewards, "otb"),
        (rewards, "gae"),
        (rewards, ("mine", rewards)),
    ):
        result = rlvar.decompose(rlvar.Rollouts(scores, earned, values=rewards), estimator)
        assert np.isnan(result.horizon_exponent.value), estimator
        assert "horizon" not in str(result)
    assert np.isnan(rlvar.decompose(scores, rewards).horizon_exponent.value)


def test_a_ratio_that_only_a_part_puts_out_of_range_stops_no_decomposition(rng):
    old, new = np.zeros((20, 8)), np.zeros((20, 8))
    new[:, 3], new[:, 7] = 800.0, -800.0
    rollouts = rlvar.Rollouts(
        rng.standard_normal((20, 8, 2)), rng.standard_normal((20, 8)), logp=new, behavior_logp=old
    )
    result = rlvar.decompose(rollouts, "multi", importance="sequence")
    assert result.variance.low > 0
    assert np.isnan(result.horizon_exponent.value)
    assert "horizon" not in str(result)


def test_wide_scores_are_cut_a_few_coordinates_at_a_time(rng, monkeypatch):
    rollouts = rlvar.Rollouts(rng.standard_normal((20, 6, 40)), rng.standard_normal((20, 6)))
    whole = rlvar.decompose(rollouts, "multi").horizon_growth
    monkeypatch.setattr("rlvar.analysis.growth._CHUNK", 1)
    parts = rlvar.decompose(rollouts, "multi").horizon_growth
    np.testing.assert_allclose(parts.variance, whole.variance, rtol=1e-13)
    np.testing.assert_allclose(parts.exponent.left_out, whole.exponent.left_out, rtol=1e-13)


@pytest.mark.filterwarnings("error")
def test_intervals_from_fewer_than_ten_units_come_with_a_warning(rng):
    scores = rng.standard_normal((12, 4, 2))
    with pytest.warns(UserWarning, match="only 7 rollouts: intervals may be far too narrow") as record:
        rlvar.decompose(scores[:7])
    assert record[0].filename == __file__
    with pytest.warns(UserWarning, match="only 4 groups"):
        rlvar.decompose(scores, groups=[0, 1, 2, 3] * 3)
    rlvar.decompose(scores[:7], sample_weight=np.ones(7))  # no intervals
    rlvar.decompose(scores)


@pytest.mark.parametrize("groups", [None, list("abcdefghij") * 4])
def test_the_length_exponent_is_its_definition_and_its_jackknife(isa, rng, groups):
    scores, weights = rng.standard_normal((40, 12, 3)) + 0.3, rng.standard_normal((40, 12))
    lengths = rng.integers(0, 13, 40)
    g, labels = reference.gradients(scores, weights, lengths=lengths), reference.strata_of(lengths, 4)

    def slope(kept):
        return reference.length_exponent(g[kept], labels[kept], lengths[kept])

    result = rlvar.decompose(scores, weights, lengths=lengths, groups=groups)
    assert result.length_exponent.value == pytest.approx(slope(np.arange(40)), rel=1e-10)
    stderr = reference.jackknife_stderr(slope, groups or np.arange(40))
    assert result.length_exponent.stderr == pytest.approx(stderr, rel=1e-8)


def test_strata_are_quantiles_that_keep_equal_lengths_together():
    lengths = np.array([5, 9, 9, 9, 9, 1, 20, 21, 30, 2])
    labels = strata_of(lengths)
    assert labels.tolist() == [1, 2, 2, 2, 2, 0, 3, 3, 3, 0]
    np.testing.assert_array_equal(np.unique(reference.strata_of(lengths, 4), return_inverse=True)[1], labels)
    assert not strata_of(np.full(6, 3)).any()


def test_the_length_exponent_is_that_of_the_closed_form_where_steps_are_independent():
    # Each token is its own reward: single-step's variance grows as T^3, multi-step's too, by a third of it.
    rng = np.random.default_rng(0)
    lengths = rng.choice([50, 100, 200, 400], 4000)
    tokens = rng.random((4000, 400)) < 0.5
    rollouts = rlvar.Rollouts((tokens - 0.5)[:, :, None], tokens.astype(float), lengths=lengths)
    for name in ("single", "multi"):
        exponent = rlvar.decompose(rollouts, name).length_exponent
        assert exponent.low < 3 < exponent.high
        assert exponent.high - exponent.low < 0.2


def test_without_lengths_or_variance_there_is_no_length_exponent(rng):
    scores, lengths = rng.standard_normal((36, 40, 1)), np.repeat([10, 20, 40], 12)
    assert np.isnan(rlvar.decompose(scores).length_exponent.value)
    assert "length exponent" not in str(rlvar.decompose(scores))
    alone = np.where(lengths == 40, rng.standard_normal(36), 0.0)  # a single stratum has any variance
    assert np.isnan(rlvar.decompose(scores, alone, lengths=lengths).length_exponent.value)
    both = rlvar.decompose(scores, np.where(lengths > 10, alone + lengths, 0.0), lengths=lengths)
    assert tuple(both.length_growth.lengths[[0, -1]]) == (20, 40)
    assert "over mean lengths 20 to 40" in str(both)


def test_no_interval_with_sample_weight_or_two_rollouts(rng):
    scores = rng.standard_normal((5, 4, 2))
    for result in (
        rlvar.decompose(scores, sample_weight=np.full(5, 0.2), ddof=0),
        rlvar.decompose(scores[:2]),
    ):
        assert np.isfinite(result.variance.value)
        assert np.isnan([result.variance.low, result.variance.stderr]).all()


def test_the_effective_size_is_shown_with_sample_weight_alone(rng):
    scores = rng.standard_normal((4, 3, 2))
    assert "effective size" not in str(rlvar.decompose(scores))
    result = rlvar.decompose(scores, sample_weight=[3, 1, 0, 0])
    assert result.effective_size == pytest.approx(1.6)
    assert "effective size    1.6 of 4 rollouts" in str(result)


def test_one_step_and_no_variance():
    result = rlvar.decompose(np.ones((5, 1, 1)))
    assert result.variance.value == 0
    assert np.isnan(result.growth_exponent.value)
    assert np.isnan(result.covariance_share)
    assert np.isnan(result.step_share).all()
    assert "variance " in str(result)


@pytest.mark.parametrize(
    "options", [{}, {"groups": np.arange(23) // 2}, {"sample_weight": np.arange(23) + 0.1}]
)
def test_equal_rollouts_have_no_variance_at_all(rng, options):
    scores = np.repeat(0.1 * rng.standard_normal((1, 6, 3)), 23, axis=0)
    result = rlvar.decompose(scores, np.full(23, 1 / 3), **options)
    assert result.variance.value == result.variance_terms.value == 0.0
    assert not result.step_variance.any()
    assert not result.growth.any()
    assert np.isnan(result.step_share).all()
    assert np.isnan(result.growth_exponent.value)
    assert result.noise_scale.value == 0.0
    # Steps that are equal in all rollouts have none, and no growth is fitted over them.
    scores[:, 4:] = rng.standard_normal((23, 2, 3))
    result = rlvar.decompose(scores, np.full(23, 1 / 3), **options)
    assert np.flatnonzero(result.growth).tolist() == [4, 5]
    assert np.isnan(result.growth_exponent.value)


def test_to_dict_is_json_and_holds_every_field(rng):
    result = rlvar.decompose(rng.standard_normal((2, 4, 2)))
    fields = json.loads(json.dumps(result.to_dict(arrays=ARRAYS), allow_nan=False))
    assert {*NAMES, "step_variance", "growth", "lag_profile", "mean", "covariance"} <= set(fields)
    assert fields["variance"]["stderr"] is None
    np.testing.assert_array_equal(fields["covariance"], result.covariance)
    assert "covariance" not in result.to_dict()


def test_results_are_frozen_and_picklable(rng):
    result = rlvar.decompose(rng.standard_normal((5, 4, 2)))
    with pytest.raises(AttributeError):
        result.growth = None
    copy = pickle.loads(pickle.dumps(result))
    np.testing.assert_array_equal(copy.covariance, result.covariance)


def test_the_scale_of_sample_weight_does_not_matter(rng):
    scores, p = rng.standard_normal((9, 4, 2)), rng.random(9)
    expected = rlvar.decompose(scores, sample_weight=p)
    for factor in (2.0**-900, 1e-300, 1e300):
        result = rlvar.decompose(scores, sample_weight=p * factor)
        np.testing.assert_allclose(result.growth, expected.growth, rtol=1e-13)
        np.testing.assert_allclose(result.covariance, expected.covariance, rtol=0, atol=1e-13)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_the_first_bad_score_is_named(rng, bad):
    scores = rng.standard_normal((6, 4, 3))
    scores[4, 2, 1] = bad
    with pytest.raises(ValueError, match=r"got scores\[4, 2, 1\] = "):
        rlvar.decompose(scores)
    lengths = [4, 4, 4, 4, 2, 4]
    np.testing.assert_array_equal(
        rlvar.decompose(scores, lengths=lengths).growth,
        rlvar.decompose(np.nan_to_num(scores, posinf=0), lengths=lengths).growth,
    )


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"groups": [1, 2, 3]}, ValueError, r"groups must have shape \(N,\) = \(4,\), got \(3,\)"),
        ({"groups": ["a"] * 4}, ValueError, "at least two different labels"),
        ({"groups": [[1], [2], [3], [4]]}, TypeError, "hashable"),
        ({"groups": np.ones((4, 1))}, ValueError, "groups must have shape"),
        ({"confidence": 1.0}, ValueError, "confidence must lie strictly between 0 and 1, got 1.0"),
    ],
)
def test_bad_arguments_are_named(options, error, message):
    with pytest.raises(error, match=message):
        rlvar.decompose(np.ones((4, 3, 2)), **options)


@pytest.mark.parametrize("verb", [rlvar.decompose, rlvar.covariance])
def test_a_variance_below_the_range_is_told_and_none_is_none(rng, verb):
    scores = rng.standard_normal((20, 4, 3))
    for factor in (1e-200, 1e-300):
        with pytest.raises(ValueError, match="the variance is below the range of float64; rescale"):
            verb(factor * scores)
    for equal in (0.1, 1e-250, 0.0):
        verb(np.full((20, 4, 3), equal))


def test_the_interval_of_covariance_terms_is_one_that_a_covariance_matrix_allows():
    for seed in range(40):
        rng = np.random.default_rng(seed)
        actions = rng.integers(0, 3, (15, 4))
        parts = rlvar.decompose(rlvar.Rollouts(np.eye(3)[actions] - 1 / 3, (actions == 2) * 1.0), "multi")
        most, terms = parts.variance_terms.high, parts.covariance_terms
        assert -most <= terms.low <= terms.value <= terms.high <= 3 * most
