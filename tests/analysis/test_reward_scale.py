import math

import numpy as np
import pytest

import rlvar

LINEAR = 0.3


def bandits(rng, groups, size, d=8, *, linear=True):
    """Rewards 0 and 1; if linear, each prompt's gradient is proportional to p (1 - p)."""
    p = 1 / (1 + np.exp(-2 * rng.standard_normal((groups, 1))))
    scores = rng.choice([-1.0, 1.0], (groups, size, d))
    effect = p * (1 - p) * LINEAR if linear else np.minimum(p, 1 - p) * (np.abs(p - 0.5) > 0.35)
    rewards = rng.random((groups, size)) < p + effect * scores[..., 0]
    labels = np.arange(groups).repeat(size)
    return rlvar.Rollouts(scores.reshape(-1, 1, d), rewards.ravel().astype(float), groups=labels)


def row(rollouts, name, reference="rloo"):
    return rlvar.compare(rollouts, [name], reference=reference)[name]


@pytest.mark.parametrize("size", [4, 8])
def test_the_ratio_at_the_scale_of_the_rewards_is_that_of_noise_scales(size):
    rng, d = np.random.default_rng(0), 8
    # By the model: E[a | u] = w(p) g_u and E |a|^2 as it is, from many groups.
    found = row(bandits(rng, 30000, size), "grpo")
    assert found.noise_scale_ratio.resolved
    low, high = found.noise_scale_ratio.interval
    assert low < found.reward_scaled_ratio.value < high
    assert found.reward_scaled_ratio.high / found.reward_scaled_ratio.low < 0.2 * (high / low - 1) + 1
    truth, covered = found.reward_scaled_ratio.value, 0
    for seed in range(100):
        small = row(bandits(np.random.default_rng(seed), 40, size, d), "grpo")
        ratio = small.reward_scaled_ratio
        covered += ratio.low <= truth <= ratio.high
        assert ratio.high / ratio.low < 1.5
        assert small.noise_scale_ratio.high == math.inf or small.noise_scale_ratio.resolved
    assert covered >= 86


def test_it_is_the_ratio_over_the_square_of_the_rewards_scale(rng):
    rollouts = bandits(rng, 30, 5)
    found, r, groups = row(rollouts, "grpo"), rollouts.rewards, rollouts.groups
    c = (rlvar.grpo(r, groups) @ r) / (rlvar.rloo(r, groups) @ r)
    assert found.reward_scaled_ratio.value == pytest.approx(found.ratio.value / c**2, rel=1e-12)


@pytest.mark.parametrize("name", ["dr-grpo", "reinforce++"])
def test_what_is_a_number_times_rloo_is_so_at_any_scale(rng, name):
    rollouts = bandits(rng, 30, 5)
    found = row(rollouts, name, "single")
    expected = row(rollouts, "rloo", "single").ratio.value
    assert found.reward_scaled_ratio.value == pytest.approx(expected, rel=1e-9)
    low, high = found.reward_scaled_bracket
    assert low < found.reward_scaled_ratio.value * (1 + 1e-9)
    assert found.reward_scaled_ratio.value < high * (1 + 1e-9)
    known = row(rollouts, name, "rloo")  # no model is needed where the factor is known
    assert known.factor is not None
    assert known.reward_scaled_ratio is None


def test_the_bracket_holds_where_the_model_is_wrong():
    rollouts = bandits(np.random.default_rng(3), 30000, 8, linear=False)
    found = row(rollouts, "grpo")
    truth, (low, high) = found.noise_scale_ratio, found.reward_scaled_bracket
    assert truth.resolved
    assert not found.reward_scaled_ratio.low < truth.value < found.reward_scaled_ratio.high
    assert low < truth.value < high


@pytest.mark.parametrize("size", [4, 8])
def test_the_bracket_is_by_the_least_and_largest_length_of_any_prompt(size):
    rollouts = bandits(np.random.default_rng(3), 60, size)
    found = row(rollouts, "grpo")
    p, w = np.linspace(0.001, 0.999, 999), 0.0
    for x in range(1, size):
        spread = math.sqrt(x * (size - x) / (size * (size - 1))) + 1e-6
        chance = math.comb(size, x) * p**x * (1 - p) ** (size - x)
        w = w + chance * (x / size) * (1 - x / size) / spread / (p * (1 - p))
    expected = (found.ratio.low / w.max() ** 2, found.ratio.high / w.min() ** 2)
    assert found.reward_scaled_bracket == pytest.approx(expected, rel=5e-3)


def test_without_groups_of_one_size_and_rewards_of_two_values_there_is_no_bracket(rng):
    labels = np.repeat(np.arange(12), [3, 4] * 6)
    scores = rng.standard_normal((42, 1, 3))
    uneven = row(rlvar.Rollouts(scores, rng.integers(0, 2, 42) * 1.0, groups=labels), "grpo")
    several = row(rlvar.Rollouts(scores, rng.standard_normal(42), groups=np.arange(42) // 3), "grpo")
    for each in (uneven, several):
        assert each.reward_scaled_ratio.value > 0
        assert each.reward_scaled_bracket is None


def test_it_is_not_defined_for_other_weights(rng):
    rollouts = rlvar.Rollouts(
        rng.standard_normal((40, 3, 2)),
        rng.integers(0, 2, (40, 3)) * 1.0,
        groups=np.arange(40) // 4,
        values=rng.standard_normal((40, 3)),
        lengths=rng.integers(1, 4, 40),
    )
    for found in rlvar.compare(rollouts, ["single", "rloo", "opo", "gae"]):  # unbiased, not centred, by step
        assert found.reward_scaled_ratio is None
    assert rlvar.compare(rollouts, ["grpo"], reference="grpo")["grpo"].reward_scaled_ratio is None
    assert row(rollouts, "grpo").reward_scaled_ratio is not None
    mean = rlvar.compare(rollouts, ["grpo"], reference="rloo", aggregation="sequence-mean")
    assert mean["grpo"].reward_scaled_ratio is None


def test_the_verdict_says_the_ratio_with_its_assumption():
    report = rlvar.report(bandits(np.random.default_rng(0), 60, 8), ["rloo", "grpo"], reference="rloo")
    found = report.comparison["grpo"]
    (sentence,) = [line for line in report.verdict if "Scaled by the rewards" in line]
    assert f"it needs {found.reward_scaled_ratio.value:.2f} times as many groups for the same" in sentence
    assert (
        "if the gradient of each prompt along the mean gradient is proportional to the variance" in sentence
    )
    low, high = found.reward_scaled_bracket
    assert f"assuming only that no prompt opposes the mean gradient, {low:.2f} to {high:.2f}" in sentence
