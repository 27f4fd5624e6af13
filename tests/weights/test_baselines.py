"""Baselines from the scores: their formulas, and what cross-fitting is for."""

import numpy as np
import pytest

import closed_forms
import reference
import rlvar
from rlvar import _core

MULTI = ("multi-optimal", "otb")
NAMES = ("single-optimal", *MULTI)
GROUPS = [*"aabbbcccddaabbeeff", *"ghijklmn"]  # 14 units in 10 folds
N, T, D = len(GROUPS), 6, 3


def weights(name, rollouts):
    found = rlvar.estimator(name).weights(rollouts)
    return found if name in MULTI else found[:, 0]


def defined(name, scores, totals, to_go, groups, **live):
    """The weights by their definition."""
    function = "token_baseline" if name == "otb" else name.replace("-", "_")
    return getattr(reference, function)(scores, to_go if name in MULTI else totals, groups, **live)


def some_steps(rng, kind, n=N, t=T):
    """Keyword arguments that say which steps are live, some rollouts without any; and the live steps."""
    options = {
        "all": {},
        "lengths": {"lengths": np.append(rng.integers(1, t, n - 1), 0)},
        "mask": {"mask": (rng.random((n, t)) < 0.6) & (np.arange(n) > 0)[:, None]},
    }[kind]
    return options, reference.live_steps((n, t), **options)


@pytest.mark.parametrize("rewards_by", ["step", "rollout"])
@pytest.mark.parametrize("groups", [None, GROUPS])
@pytest.mark.parametrize("kind", ["all", "lengths", "mask"])
@pytest.mark.parametrize("name", NAMES)
def test_every_baseline_is_its_formula_fold_by_fold(isa, rng, name, kind, groups, rewards_by):
    options, alive = some_steps(rng, kind)
    scores = rng.standard_normal((N, T, D)) + 0.3
    if rewards_by == "step":
        rewards = rng.standard_normal((N, T)) + 1
        totals, to_go = np.where(alive, rewards, 0).sum(axis=1), reference.reward_to_go(rewards, **options)
        rewards = np.where(alive, rewards, np.nan)
    else:
        rewards = totals = rng.standard_normal(N) + 1
        to_go = np.repeat(totals[:, None], T, axis=1)
    expected = defined(name, scores, totals, to_go, groups, **options)
    junk = np.where(alive[:, :, None], scores, np.nan)
    result = weights(name, rlvar.Rollouts(junk, rewards, groups=groups, **options))
    np.testing.assert_allclose(result, expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kind", ["all", "lengths", "mask"])
@pytest.mark.parametrize("d", [1, 3, 16, 37])
def test_projections_match_their_definition_and_never_read_dead_steps(isa, rng, dtype, kind, d):
    options, alive = some_steps(rng, kind, n=7)
    wide = rng.standard_normal((7, 2 * T, d + 1)).astype(dtype)
    scores, vectors, out = wide[:, ::2, :d], rng.standard_normal((7, d)), np.full((7, T), np.nan)
    expected = reference.projections(scores, vectors, **options)
    scores[~alive] = np.nan
    mask = options["mask"].view(np.uint8) if "mask" in options else None
    for threads in (1, 3):
        terms = _core.Terms(scores, None, options.get("lengths"), mask)
        _core.projections(terms, vectors, out, threads)
        np.testing.assert_allclose(out, expected, rtol=1e-12, atol=1e-12)
        assert (out[~alive] == 0).all()


def test_single_optimal_approaches_the_best_baseline_of_a_gaussian_bandit(rng):
    mu, sigma, n = 0.8, 0.5, 40_000
    _, variance, best, left = closed_forms.gaussian_bandit((0.0, 0.0, 1.0), mu, sigma)
    z = rng.standard_normal(n)
    rewards = (mu + sigma * z) ** 2
    rollouts = rlvar.Rollouts(z[:, None, None] / sigma, rewards)
    stderr = (z**2 * (rewards - best)).std() / np.sqrt(n)  # E[z^2] = 1
    assert (
        np.abs(rewards - weights("single-optimal", rollouts) - best).max() < 4 * stderr < 0.1
    )  # the mean reward is 0.5 away
    ratio = rlvar.compare(rollouts, ["single-optimal"])["single-optimal"].ratio
    assert ratio.low < left / variance < ratio.high


def test_multi_optimal_is_the_quietest_where_scores_are_independent(rng):
    # r_t = a_t^2: the best constant is E[G_t] + 2 sigma^2, and R holds the noise of the past besides.
    sigma = 2.0
    z = rng.standard_normal((3000, 6))
    rollouts = rlvar.Rollouts(z[:, :, None] / sigma, (0.5 + sigma * z) ** 2)
    others = ["single-optimal", "multi-mean", "multi", "otb"]
    for name in others:
        ratio = rlvar.compare(rollouts, ["multi-optimal"], reference=name)["multi-optimal"].ratio
        assert ratio.high < 0.97, name


def test_on_policy_any_other_constants_add_their_distance_in_squared_scores(rng):
    """V(b + c) - V(b) = sum_t c_t^2 E|S_t|^2, by Pythagoras."""
    policy = closed_forms.EnumeratedPolicy(vocabulary=3, steps=3, seed=1)
    p, to_go = policy.probabilities, reference.reward_to_go(policy.rewards)
    squares = p @ np.square(policy.scores).sum(axis=2)
    g = reference.gradients(policy.scores, to_go)
    best = p @ reference.projections(policy.scores, g) / squares

    def variance(constants):
        w = to_go - constants
        return rlvar.decompose(policy.scores, w, sample_weight=p, ddof=0).variance.value

    for other in rng.standard_normal((5, 3)):
        assert variance(best + other) - variance(best) == pytest.approx(other**2 @ squares, rel=1e-9)


@pytest.mark.parametrize("groups", [None, GROUPS])
@pytest.mark.parametrize("name", NAMES)
def test_a_reward_is_in_no_baseline_of_its_own_fold_and_in_those_of_all_others(rng, name, groups):
    options, alive = some_steps(rng, "lengths")
    scores, rewards = rng.standard_normal((N, T, D)), rng.standard_normal(N)
    changed = rewards.copy()
    changed[3] += 5

    def baselines(rewards):
        w = weights(name, rlvar.Rollouts(scores, rewards, groups=groups, **options))
        return np.where(alive, rewards[:, None] - w.reshape(N, -1), 0)

    others = reference.in_other_folds(range(N) if groups is None else groups, 3)
    own = np.setdiff1d(np.arange(N), others)
    before, after = baselines(rewards), baselines(changed)
    np.testing.assert_allclose(before[own], after[own], rtol=0, atol=1e-14)
    assert (np.abs((before - after)[others, 0][alive[others, 0]]) > 1e-6).all()


@pytest.mark.parametrize("name", ["single", *NAMES, "opo"])
def test_over_all_data_sets_of_three_rollouts_the_mean_is_the_gradient(name):
    policy = closed_forms.EnumeratedPolicy(vocabulary=2, steps=2, seed=3)
    lengths = np.array([1 if sequence[0] == 0 else 2 for sequence in policy.sequences])
    live = np.arange(2) < lengths[:, None]
    rewards = np.where(live, policy.rewards + 2, 0)
    s = np.where(live[:, :, None], policy.scores, 0)
    exact = policy.probabilities @ (rewards.sum(axis=1)[:, None] * s.sum(axis=1))
    draws, probabilities = closed_forms.product_measure(range(4), policy.probabilities, 3)
    mean = np.zeros(exact.shape)
    for draw, p in zip(draws, probabilities, strict=True):
        rollouts = rlvar.Rollouts(policy.scores[draw], rewards[draw], lengths=lengths[draw])
        mean += p * reference.gradients(s[draw], weights(name, rollouts)).mean(axis=0)
    error = np.abs(mean - exact).max() / np.abs(exact).max()
    assert rlvar.estimator(name).unbiased == (error < 1e-12)
    assert error < 1e-12 or error > 0.01


@pytest.mark.parametrize("name", ["single-optimal", "multi-optimal"])
def test_rewards_of_pure_noise_leave_nothing_to_gain_but_in_sample(rng, name):
    n, t = 30, 8
    within, crossed = [], []
    for _ in range(200):
        scores, rewards = rng.standard_normal((n, t, 2)), rng.standard_normal(n)
        s = scores.sum(axis=1)
        if name == "single-optimal":
            squares = np.square(s).sum(axis=1)
            fitted = rewards - rewards @ squares / squares.sum()
        else:
            projections = reference.projections(scores, rewards[:, None] * s)
            fitted = rewards[:, None] - projections.sum(axis=0) / np.square(scores).sum(axis=(0, 2))
        result = rlvar.compare(rlvar.Rollouts(scores, rewards), [("fitted", fitted), name])
        within.append(result["fitted"].ratio.value)
        crossed.append(result[name].ratio.value)
    assert np.mean(within) < 0.985
    assert np.mean(crossed) > 1 + 2 * np.std(crossed) / np.sqrt(len(crossed))


@pytest.mark.parametrize("name", NAMES)
def test_up_to_ten_units_have_a_fold_each_so_that_order_does_not_matter(rng, name):
    groups = np.repeat(np.arange(9), 2)
    scores, rewards = rng.standard_normal((18, T, D)), rng.standard_normal((18, T))
    lengths = rng.integers(1, T + 1, 18)
    order = rng.permutation(18)
    before = weights(name, rlvar.Rollouts(scores, rewards, groups=groups, lengths=lengths))
    after = weights(
        name, rlvar.Rollouts(scores[order], rewards[order], groups=groups[order], lengths=lengths[order])
    )
    np.testing.assert_allclose(after, before[order], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", MULTI)
def test_a_step_that_no_other_fold_reaches_keeps_its_return(rng, name):
    lengths = np.array([5, 2, 3, 3])
    rewards = np.full((4, 5), 0.1)
    result = weights(name, rlvar.Rollouts(rng.standard_normal((4, 5, 2)), rewards, lengths=lengths))
    np.testing.assert_allclose(result[0, 3:], [0.2, 0.1])
    assert result[0, 2] != pytest.approx(0.3)


@pytest.mark.parametrize("name", NAMES)
def test_scores_of_zero_leave_the_returns(name):
    rollouts = rlvar.Rollouts(np.zeros((4, 3, 2)), np.ones(4), lengths=[0, 0, 0, 0])
    result = weights(name, rollouts)
    np.testing.assert_array_equal(result, np.zeros((4, 3)) if name in MULTI else np.ones(4))


@pytest.mark.parametrize("name", NAMES)
def test_one_group_cannot_be_cross_fitted(rng, name):
    with pytest.raises(ValueError, match="groups must have at least two different labels"):
        weights(name, rlvar.Rollouts(rng.standard_normal((4, 3, 2)), np.ones(4), groups=list("aaaa")))


@pytest.mark.parametrize("name", NAMES)
def test_a_bad_score_is_named(rng, name):
    scores = rng.standard_normal((5, 3, 2))
    scores[3, 1, 0] = np.nan
    with pytest.raises(ValueError, match=r"^scores must be finite .*got scores\[3, 1, 0\] = nan"):
        rlvar.compare(rlvar.Rollouts(scores, np.ones((5, 3))), [name])


def test_constants_stay_within_the_returns_of_the_other_folds():
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 10, (128, 3))
    scores = np.eye(10)[tokens] - 0.1
    scores = np.concatenate([scores, 3 * scores.sum(axis=1, keepdims=True)[:, [0, 0, 0]]], axis=2)
    lengths = rng.integers(1, 4, 128)
    rewards = (tokens.sum(axis=1) % 10 == 0).astype(float)
    rollouts = rlvar.Rollouts(scores, rewards, lengths=lengths)
    baselines = rewards[:, None] - weights("multi-optimal", rollouts)
    live = np.arange(3) < lengths[:, None]
    assert (baselines[live] >= 0).all()
    assert (baselines[live] <= 1).all()
    cartpole = rlvar.compare(rlvar.datasets.cartpole(), ["multi-optimal"], reference="multi")
    assert cartpole["multi-optimal"].ratio.value < 1.1  # 5 times without it


@pytest.mark.parametrize("groups", [None, np.arange(512) // 4])
@pytest.mark.parametrize("name", NAMES)
def test_a_baseline_fitted_to_batches_is_fitted_to_no_other_rollouts(rng, name, groups):
    scores, rewards = rng.standard_normal((512, 3, 2)), rng.standard_normal(512)
    rollouts = rlvar.Rollouts(scores, rewards, groups=groups)
    changed = rewards.copy()
    changed[17] += 100
    fitted = rlvar.estimator(name, batch_size=8)  # 64 batches: one deal
    before, after = (
        fitted.weights(each).reshape(512, -1)[:, 0] - each.rewards
        for each in (rollouts, rlvar.Rollouts(scores, changed, groups=groups))
    )
    reached = np.flatnonzero(np.abs(after - before) > 1e-9)
    assert 4 <= len(reached) <= 8
    assert 17 not in reached
    assert fitted.name == f"{name}(batch_size=8)"
    for size in (1, 2, 600):  # as far as there are units
        assert np.isfinite(rlvar.estimator(name, batch_size=size).weights(rollouts)).all()


@pytest.mark.parametrize("name", NAMES)
def test_the_variance_of_batches_is_the_mean_over_ways_to_deal_them(name):
    rng = np.random.default_rng(0)
    variances = []
    scores = rng.standard_normal((160, 3, 2))
    rewards = 1 + rng.standard_normal((160, 3))
    rollouts = rlvar.Rollouts(scores, rewards)
    ours = rlvar.compare(rollouts, [rlvar.estimator(name, batch_size=32)])[f"{name}(batch_size=32)"]
    for _ in range(60):
        order = rng.permutation(160)
        parts = [rollouts[order[k : k + 32]] for k in range(0, 160, 32)]
        w = np.concatenate([rlvar.estimator(name).weights(part) for part in parts])
        g = reference.gradients(scores[order], w)
        variances.append(g.var(axis=0, ddof=1).sum())
    assert ours.variance.value == pytest.approx(np.mean(variances), rel=0.02)
    assert ours.variance.value > rlvar.compare(rollouts, [name])[name].variance.value
    with pytest.raises(ValueError, match="fitted to batches: leave one out"):
        rlvar.compare(rollouts, [rlvar.estimator(name, batch_size=32)], scale=[1.0, 2.0])
