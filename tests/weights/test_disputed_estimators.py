"""Estimators that the field argues about: james-stein, vl-norm and verl's token baseline."""

import numpy as np
import pytest
from hypothesis import given

import closed_forms
import reference
import rlvar
import strategies

GROUPS = [*"aabbbcccddaabbee", "f"]
N, T = len(GROUPS), 6


def of_steps(rng, **options):
    """Rollouts of random lengths, one with none, with rewards and stand-ins for the squares of each step."""
    lengths = np.append(rng.integers(1, T + 1, N - 1), 0)
    fields = {"lengths": lengths, "groups": GROUPS, "score_squares": rng.random((N, T)), **options}
    return rlvar.Rollouts(rng.standard_normal((N, T, 3)), rng.standard_normal((N, T)), **fields)


@given(case=strategies.sequences())
def test_james_stein_is_its_formula_whatever_the_sizes_of_the_groups(case):
    rewards, labels = case
    expected = reference.james_stein(list(rewards), labels)
    np.testing.assert_allclose(rlvar.james_stein(rewards, labels), expected, rtol=1e-9, atol=1e-9)


def test_james_stein_leaves_out_unscorable_rewards_and_keeps_digits_beside_a_large_mean():
    rewards, prompts = np.array([1.0, 0, 1, 1, 0, 1]), list("aabbcc")
    plain = rlvar.james_stein(rewards, prompts)
    with pytest.warns(UserWarning, match="1 of 7 rewards"):
        found = rlvar.james_stein([*rewards[:4], np.nan, *rewards[4:]], [*prompts[:4], "d", *prompts[4:]])
    np.testing.assert_array_equal(np.delete(found, 4), plain)
    assert found[4] == 0
    np.testing.assert_array_equal(rlvar.james_stein(rewards + 2.0**40, prompts), plain)
    np.testing.assert_allclose(rlvar.james_stein(rewards * 1e200, prompts), plain * 1e200, rtol=1e-15)


def test_james_stein_of_one_far_prompt_is_still_the_mixture_of_the_others():
    rewards = np.array([1e9, 1e9 + 1, 0.0, 1.0, 0.25, 1.25, 0.0, 0.5])
    groups = [0, 0, 1, 1, 2, 2, 3, 3]
    np.testing.assert_allclose(
        rlvar.james_stein(rewards, groups)[:2], reference.james_stein(list(rewards), groups)[:2], rtol=1e-15
    )
    shrink = (1e9 - rlvar.james_stein(rewards, groups)[0] - (1e9 + 1)) / (0.5 - 1e9 - 1)
    assert 0.1 < shrink < 0.75


def test_over_all_data_sets_james_stein_has_the_gradient_of_every_prompt():
    """Three prompts of two samples, each one of three actions: 729 data sets, and as many lambdas."""
    p, scores = np.array([0.5, 0.3, 0.2]), np.eye(3) - [0.5, 0.3, 0.2]
    rewards = np.array([[1.0, 0.0, 3.0], [0.0, 2.0, -1.0], [1.0, 1.0, 5.0]])  # of prompt and action
    draws, probabilities = closed_forms.product_measure(range(3), p, 6)
    groups = np.repeat(np.arange(3), 2)
    mean = {"james_stein": np.zeros((3, 3)), "grpo": np.zeros((3, 3))}
    seen = set()
    for draw, q in zip(draws, probabilities, strict=True):
        r = rewards[groups, draw]
        for name, total in mean.items():
            advantages = getattr(rlvar, name)(r, groups)
            seen.add(round(float(np.abs(advantages).sum()), 9))
            np.add.at(total, groups, q * advantages[:, None] * scores[draw] / 2)
    exact = (p * rewards) @ scores
    np.testing.assert_allclose(mean["james_stein"], exact, rtol=0, atol=1e-14)
    assert np.abs(mean["grpo"] - exact).max() > 0.1
    assert len(seen) > 50
    assert rlvar.estimator("james-stein").unbiased


@pytest.mark.parametrize("completions", [2, 4, 8])
def test_where_prompts_are_alike_james_stein_takes_half_of_the_way_to_their_common_mean(rng, completions):
    """E(r - b)^2 = 1 + (1 - l)^2 / (K - 1) + l^2 mean^2 for this l, near v / (v + v); for rloo l is 0."""
    k, n = completions, 4800
    covered, shrinks = 0, []
    for _ in range(60):
        rewards, groups = rng.standard_normal(n), np.arange(n) // k
        rollouts = rlvar.Rollouts(rng.standard_normal((n, 1, 10)), rewards, groups=groups)
        ratio = rlvar.compare(rollouts, ["james-stein"], reference="rloo")["james-stein"].ratio
        of_prompts = rewards.reshape(-1, k)
        v, s = of_prompts.var(axis=1, ddof=1).mean() / k, of_prompts.mean(axis=1).var()
        shrinks.append((1 - k / n) * v / (v + s))
        spread = 1 + (1 - shrinks[-1]) ** 2 / (k - 1) + shrinks[-1] ** 2 * rewards.mean() ** 2
        covered += ratio.low <= spread / (1 + 1 / (k - 1)) <= ratio.high
    assert covered >= 50  # of 60 intervals of 95 %
    assert np.mean(shrinks) == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 3.0])
def test_vl_norm_is_rloo_times_powers_of_the_length(rng, alpha):
    rollouts = of_steps(rng, groups=[*"aabbbcccddaabbe", "e", "a"])
    powers = reference.length_weights(rollouts.live_steps, alpha)
    np.testing.assert_allclose(rlvar.length_weights(rollouts.live_steps, alpha), powers, rtol=1e-13)
    rloo, found = (
        rlvar.estimator(name, **options).weights(rollouts)
        for name, options in (("rloo", {}), ("vl-norm", {"alpha": alpha}))
    )
    np.testing.assert_allclose(found, rloo * powers[:, None], rtol=1e-13)
    assert rlvar.estimator("vl-norm", alpha=alpha).unbiased is False


def test_vl_norm_with_alpha_1_is_the_sequence_mean_but_for_one_factor(rng):
    rollouts = of_steps(rng, groups=[*"aabbbcccddaabbe", "e", "a"])
    weighed = rlvar.compare(rollouts, ["vl-norm", "rloo"], reference="rloo")["vl-norm"]
    means = rlvar.compare(rollouts, ["rloo"], reference="rloo", aggregation="sequence-mean")["rloo"]
    live = rollouts.live_steps[rollouts.live_steps > 0]
    factor = 1 / np.mean(1.0 / live) ** 2
    assert weighed.variance.value == pytest.approx(means.variance.value * factor, rel=1e-12)


def test_lengths_beyond_float64_powers_still_have_weights_of_mean_1():
    np.testing.assert_allclose(rlvar.length_weights([1000, 2000], 400.0), [2.0, 0.0], atol=1e-100)
    np.testing.assert_array_equal(rlvar.length_weights([0, 0]), [0, 0])
    with pytest.raises(ValueError, match="alpha must be finite and positive, got 0"):
        rlvar.length_weights([1, 2], 0)
    with pytest.raises(ValueError, match=r"lengths must have shape \(N,\), got \(1, 2\)"):
        rlvar.length_weights([[1, 2]])


@pytest.mark.parametrize("stale", [False, True])
@pytest.mark.parametrize("kind", ["lengths", "mask"])
def test_otb_verl_is_its_formula_by_prompt_and_never_reads_dead_steps(rng, kind, stale):
    live = {"lengths": np.append(rng.integers(1, T + 1, N - 1), 0)}
    if kind == "mask":
        live = {"mask": rng.random((N, T)) < 0.6}
    alive = reference.live_steps((N, T), **live)
    squares, rewards, logp, old = rng.random((4, N, T))
    junk = {"score_squares": np.where(alive, squares, np.nan), "groups": GROUPS}
    if stale:
        junk |= {"logp": -logp, "behavior_logp": -old}
    rollouts = rlvar.Rollouts(
        rng.standard_normal((N, T, 2)), np.where(alive, rewards, np.nan), **junk, **live
    )
    to_go = reference.reward_to_go(rewards, **live)
    expected = reference.otb_verl(to_go, squares, GROUPS, **live)
    estimator = rlvar.estimator("otb-verl")
    np.testing.assert_allclose(estimator.weights(rollouts), expected, rtol=1e-12, atol=1e-12)
    if stale:
        ratios = reference.importance_ratios(-logp, -old, "token", **live)
        expected = reference.otb_verl(to_go, squares, GROUPS, ratios, **live)
        found = rlvar.compare(rollouts, [estimator, ("mine", expected)], reference="mine", importance="token")
        assert found["otb-verl"].ratio.value == pytest.approx(1, rel=1e-12)


def test_the_squared_score_by_the_logits_is_that_of_a_softmax_policy():
    """Where the logits are the parameters, the stand-in is the squared norm itself."""
    policy = closed_forms.EnumeratedPolicy(vocabulary=3, steps=3, seed=1)
    rows = [(3, *sequence[:-1]) for sequence in policy.sequences]
    stand_in = 1 - 2 * np.exp(policy.logp) + np.square(policy.pi[rows]).sum(axis=2)
    np.testing.assert_allclose(stand_in, np.square(policy.scores).sum(axis=2), rtol=1e-12)


def test_otb_verl_needs_what_it_stands_on(rng):
    with pytest.raises(ValueError, match="estimator 'otb-verl' needs score_squares: pass score_squares="):
        rlvar.estimator("otb-verl").weights(of_steps(rng, score_squares=None))


def test_in_its_own_baseline_otb_verl_shrinks_the_mean_which_otb_does_not(rng):
    """Terminal rewards of a bandit whose |S|^2 is the same for all actions: A = (1 - 1/K) that of rloo."""
    draws = rng.integers(0, 2, 4000)
    scores, rewards = (draws - 0.5)[:, None, None], draws * 2.0
    groups = np.arange(4000) // 4
    rollouts = rlvar.Rollouts(scores, rewards, groups=groups, score_squares=np.full((4000, 1), 0.25))
    verl, rloo = (rlvar.estimator(name).weights(rollouts) for name in ("otb-verl", "rloo"))
    np.testing.assert_allclose(verl, 0.75 * rloo, atol=1e-7)
    assert rlvar.estimator("otb-verl").unbiased is False
