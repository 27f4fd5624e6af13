"""What the page of mathematics derives, by sums over all that can happen."""

import itertools
import math
from pathlib import Path

import numpy as np
import pytest

import closed_forms
import rlvar
from tables import table

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "mathematics.md"


@pytest.fixture(scope="module")
def page():
    return PAGE.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def policy():
    return closed_forms.EnumeratedPolicy(vocabulary=3, steps=3, seed=4)


def exactly(scores, weights, probabilities):
    return rlvar.decompose(scores, weights, sample_weight=probabilities, ddof=0)


def bernoulli(steps, p):
    """Scores (2^T, T, 1), tokens (2^T, T) and probabilities of tokens of one logit."""
    tokens, probabilities = closed_forms.product_measure((0, 1), (1 - p, p), steps)
    return (*closed_forms.bernoulli_rollouts(tokens, p), probabilities)


def test_the_mathematics_say_which_estimators_are_unbiased(page):
    said = {name: unbiased == "yes" for name, unbiased, _ in table(page, "estimator")}
    assert said == {estimator.name: estimator.unbiased for estimator in rlvar.estimators()}


@pytest.mark.parametrize("size", [2, 3, 5])
@pytest.mark.parametrize("p", [0.1, 0.5, 0.8])
def test_grpo_scales_the_gradient_of_a_prompt_by_w_of_its_success_rate(size, p):
    # Actions a and b both succeed, with scores of their own; c fails.
    probabilities = np.array([p / 3, 2 * p / 3, 1 - p])
    scores, rewards = np.eye(3) - probabilities, np.array([1.0, 1.0, 0.0])
    gradient = (probabilities * rewards) @ scores
    mean, w = np.zeros(3), 0.0
    for draw in itertools.product(range(3), repeat=size):
        draw, chance = list(draw), math.prod(probabilities[list(draw)])
        advantages = rlvar.grpo(rewards[draw], np.zeros(size))
        mean += chance * (advantages @ scores[draw]) / size
        w += chance * (advantages @ rewards[draw]) / size / (p * (1 - p))
    np.testing.assert_allclose(mean, w * gradient, rtol=1e-12, atol=1e-15)
    assert w == pytest.approx(length_of_grpo(p, size), rel=1e-12)


def length_of_grpo(p, size):
    """w(p): E[A R] / (p (1 - p)) over the number of successes."""
    total = 0.0
    for m in range(size + 1):
        rewards = np.repeat([1.0, 0.0], [m, size - m])
        chance = math.comb(size, m) * p**m * (1 - p) ** (size - m)
        total += chance * (rlvar.grpo(rewards, np.zeros(size)) @ rewards) / size
    return total / (p * (1 - p))


def test_grpo_favours_hard_and_easy_prompts_from_groups_of_four_on():
    shares = np.linspace(0.05, 0.5, 10)
    for size, constant in ((2, math.sqrt(1 / 2)), (3, math.sqrt(4 / 3))):
        np.testing.assert_allclose([length_of_grpo(p, size) for p in shares], constant, rtol=1e-3)
    for size in (4, 8, 16):
        lengths = [length_of_grpo(p, size) for p in shares]
        assert lengths == sorted(lengths, reverse=True)  # towards 1/2
        assert lengths[0] > 1.05 * lengths[-1]
        mirrored = [length_of_grpo(1 - p, size) for p in shares]
        np.testing.assert_allclose(lengths, mirrored, rtol=1e-12)


def test_past_rewards_add_their_variance_and_twice_their_covariance(policy):
    to_go = rlvar.reward_to_go(policy.rewards)
    whole = np.repeat(policy.rewards.sum(axis=1, keepdims=True), 3, axis=1)
    g, past = (np.einsum("nt,ntd->nd", w, policy.scores) for w in (to_go, whole - to_go))
    p = policy.probabilities
    np.testing.assert_allclose(p @ past, 0, atol=1e-15)
    covariance = p @ ((g - p @ g) * past).sum(axis=1)
    single, multi, of_past = (
        exactly(policy.scores, w, p).variance.value for w in (whole, to_go, whole - to_go)
    )
    assert abs(covariance) > 0.01
    assert single == pytest.approx(multi + of_past + 2 * covariance, rel=1e-12)


@pytest.mark.parametrize("steps", [1, 2, 4, 8])
def test_a_reward_that_knows_nothing_of_the_scores_gives_a_line_and_no_covariance(steps):
    scores, _, probabilities = bernoulli(steps, 0.3)
    rewards, chances = np.array([-1.0, 0.5, 3.0]), np.array([0.2, 0.5, 0.3])
    parts = exactly(
        np.tile(scores, (3, 1, 1)),
        np.repeat(rewards, len(scores)),
        np.outer(chances, probabilities).ravel(),
    )
    assert parts.variance.value == pytest.approx(chances @ rewards**2 * steps * 0.21, rel=1e-12)
    assert parts.covariance_terms.value == pytest.approx(0, abs=1e-12 * parts.variance.value)


@pytest.mark.parametrize("steps", [1, 3, 6, 9])
@pytest.mark.parametrize("p", [0.2, 0.5])
def test_where_the_last_token_decides_the_variance_is_a_line_in_the_length(steps, p):
    scores, tokens, probabilities = bernoulli(steps, p)
    parts, v = exactly(scores, tokens[:, -1], probabilities), p * (1 - p)
    assert parts.variance.value == pytest.approx(p * (steps - 1) * v + p * (1 - p) ** 2 - v**2, rel=1e-12)
    if p == 0.5:
        assert parts.variance.value == (2 * steps - 1) / 16
        assert parts.noise_scale.value == 2 * steps - 1


@pytest.mark.parametrize("steps", [1, 2, 5, 10])
@pytest.mark.parametrize("p", [0.3, 0.5])
def test_without_their_means_rewards_on_the_way_give_squares_and_a_ratio_of_four(steps, p):
    def closed(t):
        v = p * (1 - p)
        m = v * (1 - 3 * v)
        pairs = t * (t - 1) * v**2
        return t * m + 3 * pairs - t**2 * v**2, t * (m - v**2) + pairs / 2

    scores, tokens, probabilities = bernoulli(steps, p)
    to_go = rlvar.reward_to_go(tokens)
    weights = tokens.sum(axis=1) - steps * p, to_go - (steps - np.arange(steps)) * p
    for w, exact in zip(weights, closed(steps), strict=True):
        assert exactly(scores, w, probabilities).variance.value == pytest.approx(exact, rel=1e-10, abs=1e-12)
    long, longer = closed(10**5), closed(2 * 10**5)
    assert long[0] / long[1] == pytest.approx(4, rel=1e-3)
    for one, other in zip(long, longer, strict=True):
        assert math.log2(other / one) == pytest.approx(2, abs=1e-3)


def one_prompt(seed):
    """Probabilities (3,), rewards (3,) and scores (3, 3) of one action."""
    rng = np.random.default_rng(seed)
    probabilities = rng.dirichlet(np.ones(3))
    return probabilities, rng.standard_normal(3) + rng.standard_normal(), np.eye(3) - probabilities


def test_rloo_is_quieter_than_no_baseline_where_the_inequality_says_so():
    outcomes = []
    for seed, size in itertools.product(range(20), (2, 5)):
        p, rewards, scores = one_prompt(seed)
        mean, independent, dependence = closed_forms.rloo_moments(p, rewards, scores, size)
        squares, q = np.square(scores).sum(axis=1), rewards - p @ rewards
        none = (p @ (rewards**2 * squares) - mean @ mean) / size
        gain = p @ (rewards**2 * squares) - p @ (q**2 * squares)
        cost = (p @ q**2 * (p @ squares) + mean @ mean) / (size - 1)
        assert (independent + dependence < none) == (gain > cost)
        outcomes.append(gain > cost)
    assert 5 < sum(outcomes) < 35


def test_the_components_of_rloo_are_those_of_the_closed_form():
    p, rewards, scores = one_prompt(1)
    squares, q = np.square(scores).sum(axis=1), rewards - p @ rewards
    mean = (p * q) @ scores
    h = (rewards[:, None] - rewards)[:, :, None] * (scores[:, None] - scores) / 2
    both = p[:, None] * p
    np.testing.assert_allclose(np.einsum("ij,ijd->d", both, h), mean, atol=1e-15)
    one = np.einsum("j,ijd->id", p, h)  # E[h_12 | first]
    z1 = p @ np.square(one).sum(axis=1) - mean @ mean  # tr Cov(h_12, h_13)
    z2 = (both * np.square(h).sum(axis=2)).sum() - mean @ mean  # tr Var(h_12)
    within, pairs = p @ (q**2 * squares) - mean @ mean, p @ q**2 * (p @ squares) + mean @ mean
    assert 4 * z1 == pytest.approx(within, rel=1e-12)
    assert 2 * z2 - 4 * z1 == pytest.approx(pairs, rel=1e-12)
    for size in (2, 3, 8):
        _, independent, dependence = closed_forms.rloo_moments(p, rewards, scores, size)
        exact = within / size + pairs / (size * (size - 1))
        assert independent + dependence == pytest.approx(exact, rel=1e-12)
    between = pairs / 16  # then 1 + sqrt(16) completions are the best of as many rollouts
    cost = [size * between + within + pairs / (size - 1) for size in range(2, 50)]
    assert 2 + int(np.argmin(cost)) == 5


def test_at_the_noise_scale_the_best_step_gains_half():
    signal, variance, curvature = 0.7, 5.6, 1.9
    noise_scale = variance / signal
    for size in (1.0, noise_scale, 100.0):
        steps = np.linspace(0, 1, 1_000_001)
        gains = steps * signal - steps**2 * curvature / 2 * (signal + variance / size)
        best = signal / (2 * curvature) / (1 + noise_scale / size)
        assert gains.max() == pytest.approx(best, rel=1e-9)
        if size == noise_scale:
            assert best == signal / (2 * curvature) / 2


def test_the_plug_in_signal_minus_the_jackknifes_bias_is_the_signal(rng):
    gradients = rng.standard_normal((9, 4)) + 0.3
    left_out = [np.square(np.delete(gradients, u, axis=0).mean(axis=0)).sum() for u in range(9)]
    plug_in = np.square(gradients.mean(axis=0)).sum()
    bias = 8 * (np.mean(left_out) - plug_in)
    assert bias == pytest.approx(gradients.var(axis=0, ddof=1).sum() / 9, rel=1e-12)
    pairs = [gradients[u] @ gradients[v] for u, v in itertools.permutations(range(9), 2)]
    signal = rlvar.compare_gradients({"g": gradients})["g"].signal.value
    assert signal == pytest.approx(plug_in - bias, rel=1e-12)
    assert signal == pytest.approx(np.mean(pairs), rel=1e-12)


@pytest.mark.parametrize("steps", [1, 4, 7])
def test_the_square_of_a_sequences_ratio_grows_exponentially(steps):
    p, q = np.array([0.2, 0.5, 0.3]), np.array([0.4, 0.4, 0.2])
    tokens = np.array(list(itertools.product(range(3), repeat=steps)))
    logp, behavior = np.log(p)[tokens], np.log(q)[tokens]
    rho = np.exp((logp - behavior).sum(axis=1))
    chances = q[tokens].prod(axis=1)
    assert chances @ rho == pytest.approx(1, rel=1e-12)
    one = (p**2 / q).sum()
    assert chances @ rho**2 == pytest.approx(one**steps, rel=1e-12)
    assert one > 1
