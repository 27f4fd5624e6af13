"""The claims of the mission, each a test."""

import numpy as np
import pytest

import closed_forms
import reference
import rlvar


@pytest.fixture(scope="module")
def policy():
    return closed_forms.EnumeratedPolicy(vocabulary=3, steps=4, seed=0)


def test_terminal_reward_makes_the_two_estimators_agree_to_the_bit(rng):
    scores = rng.standard_normal((50, 9, 4), np.float32)
    terminal = rng.standard_normal(50)
    lengths = rng.integers(1, 10, 50)
    per_step = np.zeros((50, 9))
    per_step[np.arange(50), lengths - 1] = terminal
    for rewards in (terminal, per_step):
        rollouts = rlvar.Rollouts(scores, rewards, lengths=lengths)
        result = rlvar.compare(rollouts)
        assert result["single"].variance == result["multi"].variance
        assert result["single"].signal == result["multi"].signal
        assert result["multi"].ratio == rlvar.Estimate(1.0, 0.0, 1.0, 1.0)
    to_go = rlvar.reward_to_go(per_step, lengths=lengths)
    np.testing.assert_array_equal(
        rlvar.covariance(scores, to_go, lengths=lengths), rlvar.covariance(scores, terminal, lengths=lengths)
    )


def test_scores_of_an_enumerated_policy_have_mean_zero(policy):
    mean = rlvar.decompose(policy.scores, sample_weight=policy.probabilities, ddof=0).mean
    np.testing.assert_allclose(mean, 0, atol=1e-15)


def test_both_means_agree(policy):
    to_go = rlvar.reward_to_go(policy.rewards)
    means = [
        rlvar.decompose(policy.scores, weights, sample_weight=policy.probabilities, ddof=0).mean.sum(axis=0)
        for weights in (policy.rewards.sum(axis=1), to_go)
    ]
    assert np.abs(means[0]).max() > 0.01
    np.testing.assert_allclose(means[0], means[1], rtol=0, atol=1e-14)


def test_an_enumerated_policy_reproduces_its_exact_covariance(isa, policy):
    for weights in (
        rlvar.reward_to_go(policy.rewards),
        np.repeat(policy.rewards.sum(axis=1)[:, None], 4, axis=1),
    ):
        exact = policy.covariance(weights)
        options = {"sample_weight": policy.probabilities, "ddof": 0}
        scale = exact.diagonal().max()
        result = rlvar.covariance(policy.scores, weights, **options)
        np.testing.assert_allclose(result, exact, rtol=0, atol=1e-12 * scale)
        parts = rlvar.decompose(policy.scores, weights, **options)
        assert parts.variance.value == pytest.approx(exact.sum(), rel=1e-12)
        assert parts.variance_terms.value == pytest.approx(exact.trace(), rel=1e-12)


def test_per_step_rewards_give_multi_step_the_lower_variance_on_cartpole():
    ratio = rlvar.compare(rlvar.datasets.cartpole(), ["single", "multi"])["multi"].ratio
    assert ratio.value < ratio.high < 1


def test_variance_terms_and_covariance_terms_add_up_to_the_variance_of_the_gradients():
    rollouts = rlvar.datasets.cartpole()
    weights = rlvar.reward_to_go(rollouts.rewards, lengths=rollouts.lengths)
    matrix = rlvar.covariance(rollouts.scores, weights, lengths=rollouts.lengths)
    t = len(matrix)
    lower = matrix[np.tril_indices(t, -1)]
    assert len(lower) == t * (t - 1) // 2
    gradients = reference.gradients(rollouts.scores, weights, lengths=rollouts.lengths)
    variance = gradients.var(axis=0, ddof=1).sum()
    assert matrix.trace() + 2 * lower.sum() == pytest.approx(variance, rel=1e-6)
    parts = rlvar.decompose(rollouts.scores, weights, lengths=rollouts.lengths)
    assert parts.variance_terms.value + parts.covariance_terms.value == pytest.approx(variance, rel=1e-12)


@pytest.mark.parametrize("steps", [1, 2, 5, 10])
@pytest.mark.parametrize("p", [0.3, 0.5])
def test_bernoulli_tokens_reproduce_their_closed_form(steps, p):
    tokens = np.array(np.meshgrid(*[[0, 1]] * steps, indexing="ij")).reshape(steps, -1).T
    probabilities = np.where(tokens, p, 1 - p).prod(axis=1)
    scores, rewards = closed_forms.bernoulli_rollouts(tokens, p)
    for weights, exact in zip(
        (rewards.sum(axis=1), rlvar.reward_to_go(rewards)),
        closed_forms.bernoulli_variances(steps, p),
        strict=True,
    ):
        parts = rlvar.decompose(scores, weights, sample_weight=probabilities, ddof=0)
        assert parts.variance.value == pytest.approx(exact, rel=1e-12)


def test_bernoulli_ratio_tends_to_three():
    for p in (0.2, 0.5):
        distance = [
            abs(np.divide(*closed_forms.bernoulli_variances(t, p)) - 3) for t in (10, 100, 1000, 10**5)
        ]
        assert distance == sorted(distance, reverse=True)
        assert distance[-1] < 1e-3


def test_bernoulli_ratio_of_long_sequences_is_measured():
    p, steps = 0.5, 400
    tokens = np.random.default_rng(1).random((3000, steps)) < p
    scores, rewards = closed_forms.bernoulli_rollouts(tokens, p)
    result = rlvar.compare(rlvar.Rollouts(scores, rewards), reference="multi")
    exact = np.divide(*closed_forms.bernoulli_variances(steps, p))
    ratio = result["single"].ratio
    assert ratio.low < exact < ratio.high
    assert ratio.high - ratio.low < 0.5
