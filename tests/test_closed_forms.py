"""The claims of the mission, and exact variances: enumerated actions, or quadrature nodes, as rollouts."""

import numpy as np
import pytest

import closed_forms
import reference
import rlvar

pytestmark = pytest.mark.usefixtures("isa")


@pytest.fixture(scope="module")
def policy():
    return closed_forms.EnumeratedPolicy(vocabulary=3, steps=3, seed=1)


def assert_close(actual, exact, scale=0.0):
    """Equal to 1e-12 of the largest entry, or of `scale`."""
    scale = max(scale, np.abs(exact).max())
    np.testing.assert_allclose(actual, exact, rtol=0, atol=1e-12 * scale)


def assert_decomposed(exact, scores, weights, probabilities, **options):
    """Return the decomposition, all of whose variances must follow from the matrix `exact`."""
    parts = rlvar.decompose(scores, weights, sample_weight=probabilities, ddof=0, **options)
    t, total = len(exact), exact.sum()
    assert_close(parts.covariance, exact)
    assert_close(parts.variance.value, total)
    assert_close(parts.variance_terms.value, exact.trace())
    assert_close(parts.covariance_terms.value, total - exact.trace(), scale=total)
    assert_close(parts.step_variance, exact.diagonal())
    assert_close(parts.growth, [exact[:k, :k].sum() for k in range(1, t + 1)])
    assert_close(parts.step_share * total, exact.sum(axis=1), scale=total)
    assert_close(parts.lag_profile, [exact.trace(k) for k in range(t)])
    return parts


def both_weights(rewards, **options):
    """Weights of the single- and of the multi-step estimator, from rewards (N, T) that are 0 if padded."""
    return rewards.sum(axis=1), rlvar.reward_to_go(rewards, **options)


def bernoulli_tokens(steps, p):
    return closed_forms.product_measure((0, 1), (1 - p, p), steps)


@pytest.mark.parametrize("reward", [(1.0, -2.0, 0.5), (0.0, 0.0, 1.0), (3.0, 1.0, -1.0, 0.7, 0.2)])
@pytest.mark.parametrize(("mu", "sigma"), [(0.8, 0.5), (-2.0, 3.0)])
def test_gaussian_bandit_with_a_polynomial_reward_has_its_variance_and_best_baseline(reward, mu, sigma):
    z, p = closed_forms.normals(1, nodes=len(reward) + 1)
    scores = z[:, :, None] / sigma
    rewards = np.polynomial.Polynomial(reward)(mu + sigma * z[:, 0])
    mean, variance, best, left = closed_forms.gaussian_bandit(reward, mu, sigma)
    squares = p * scores[:, 0, 0] ** 2
    assert_close(squares @ rewards / squares.sum(), best)
    for baseline, exact in ((0.0, variance), (best, left), (best + 0.7, left + (0.7 / sigma) ** 2)):
        parts = assert_decomposed(np.array([[exact]]), scores, rewards - baseline, p)
        assert_close(parts.mean, [[mean]])
        assert_close(parts.signal.value, mean**2, scale=exact)
        if mean:
            np.testing.assert_allclose(parts.noise_scale.value, exact / mean**2, rtol=1e-11)
    if reward == (0.0, 0.0, 1.0):
        assert_close([mean, best], [2 * mu, mu**2 + 3 * sigma**2])
        assert_close(variance, mu**4 / sigma**2 + 14 * mu**2 + 15 * sigma**2)


@pytest.mark.parametrize("steps", [1, 2, 3, 4])
@pytest.mark.parametrize("parameters", [(0.8, 0.5, 0.0, 1.0), (-2.0, 3.0, 1.5, 0.4)])
def test_gaussian_sequences_correlate_all_pairs_of_single_steps_and_no_multi_steps(steps, parameters):
    mu, sigma, offset, slope = parameters
    z, p = closed_forms.normals(steps, nodes=3)
    rewards = offset + slope * (mu + sigma * z)
    exact = closed_forms.gaussian_sequences(steps, *parameters)
    single, multi = (
        assert_decomposed(matrix, z[:, :, None] / sigma, weights, p)
        for matrix, weights in zip(exact, both_weights(rewards), strict=True)
    )
    m = offset + slope * mu
    assert_close(single.variance.value, steps**3 * (m / sigma) ** 2 + 2 * steps**2 * slope**2)
    assert_close(single.mean, np.full((steps, 1), slope))
    assert_close(multi.mean, np.full((steps, 1), slope))


@pytest.mark.parametrize("parameters", [(1.0, -0.5, 0.4, 0.0, 0.1), (-1.5, 0.2, 0.7, 0.9, 2.0)])
def test_two_linear_quadratic_steps_have_the_gradient_of_the_expected_return(parameters):
    z, p = closed_forms.normals(4, nodes=4)
    scores, rewards = closed_forms.lq_rollouts(z, *parameters)
    exact = closed_forms.lq_covariances(*parameters)
    for matrix, weights in zip(exact, both_weights(rewards), strict=True):
        parts = assert_decomposed(matrix, scores, weights, p)
        assert_close(parts.mean.sum(), closed_forms.lq_gradient(*parameters))
        assert_close(parts.signal.value, closed_forms.lq_gradient(*parameters) ** 2)


@pytest.mark.parametrize("steps", range(1, 11))
@pytest.mark.parametrize("p", [0.3, 0.9])
def test_all_correct_reward_makes_every_covariance_equal(steps, p):
    tokens, probabilities = bernoulli_tokens(steps, p)
    scores, _ = closed_forms.bernoulli_rollouts(tokens, p)
    exact = closed_forms.all_correct_covariance(steps, p)
    parts = assert_decomposed(exact, scores, tokens.all(axis=1), probabilities)
    if steps > 1:
        assert parts.growth_exponent.value == pytest.approx(2, rel=1e-12)
        ratio = parts.covariance_terms.value / parts.variance_terms.value
        assert ratio == pytest.approx(steps - 1, rel=1e-12)


@pytest.mark.parametrize("steps", [2, 5])
def test_all_correct_reward_grows_linearly_if_each_token_has_its_own_logit(steps):
    tokens, probabilities = bernoulli_tokens(steps, 0.6)
    scores = (tokens - 0.6)[:, :, None] * np.eye(steps)
    exact = np.diag(closed_forms.all_correct_covariance(steps, 0.6).diagonal())
    parts = assert_decomposed(exact, scores, tokens.all(axis=1), probabilities)
    assert parts.growth_exponent.value == pytest.approx(1, rel=1e-12)


@pytest.mark.parametrize("steps", [1, 2, 5, 10])
def test_constant_reward_gives_cubes_against_square_pyramids(steps):
    p = 0.3
    v = p * (1 - p)
    tokens, probabilities = bernoulli_tokens(steps, p)
    scores, _ = closed_forms.bernoulli_rollouts(tokens, p)
    exact = closed_forms.length_covariances(np.eye(steps)[-1], v)
    single, multi = (
        assert_decomposed(matrix, scores, weights, probabilities).variance.value
        for matrix, weights in zip(exact, both_weights(np.ones(tokens.shape)), strict=True)
    )
    assert_close(single, v * steps**3)
    assert_close(multi, v * steps * (steps + 1) * (2 * steps + 1) / 6)


def test_lengths_independent_of_the_policy_give_no_covariance_terms():
    p, of_length = 0.3, np.array([0.1, 0.0, 0.4, 0.3, 0.2])
    v, length = p * (1 - p), np.arange(1, 6)
    tokens, probabilities = bernoulli_tokens(5, p)
    scores, _ = closed_forms.bernoulli_rollouts(np.tile(tokens, (5, 1)), p)
    lengths, probabilities = np.repeat(length, 32), np.outer(of_length, probabilities).ravel()
    padding = np.arange(5) >= lengths[:, None]
    scores[padding] = np.nan
    exact = closed_forms.length_covariances(of_length, v)
    single, multi = (
        assert_decomposed(matrix, scores, weights, probabilities, lengths=lengths).variance.value
        for matrix, weights in zip(exact, both_weights(1.0 - padding, lengths=lengths), strict=True)
    )
    assert_close(single, v * (of_length @ length**3))
    assert_close(multi, v * (of_length @ (length * (length + 1) * (2 * length + 1))) / 6)


def test_scores_are_martingale_differences_with_the_fisher_informations_as_variances(policy):
    exact = np.diag(policy.fisher_information())
    parts = assert_decomposed(exact, policy.scores, None, policy.probabilities)
    np.testing.assert_allclose(parts.mean, 0, atol=1e-15)


def test_an_enumerated_policy_has_its_exact_covariance_and_one_mean_for_both_estimators(policy):
    single, multi = (
        assert_decomposed(policy.covariance(w), policy.scores, w, policy.probabilities).mean.sum(axis=0)
        for w in (
            np.repeat(policy.rewards.sum(axis=1)[:, None], 3, axis=1),
            rlvar.reward_to_go(policy.rewards),
        )
    )
    assert np.abs(single).max() > 0.01
    np.testing.assert_allclose(single, multi, rtol=0, atol=1e-14)


def test_subtracting_any_function_of_the_prefix_keeps_the_mean_of_every_step(policy, rng):
    noise = rng.standard_normal(policy.rewards.shape)
    causal = np.stack([policy.given_prefix(noise[:, t], t) for t in range(3)], axis=1)
    to_go = rlvar.reward_to_go(policy.rewards)
    before, after = (
        assert_decomposed(policy.covariance(w), policy.scores, w, policy.probabilities)
        for w in (to_go, to_go - causal)
    )
    assert_close(after.mean, before.mean)
    assert np.abs(after.step_variance - before.step_variance).max() > 0.1


def test_the_best_causal_baseline_is_the_mean_of_the_weight_by_squared_score(policy):
    """With b = E[w |S|^2 | prefix] / E[|S|^2 | prefix] it takes E[b^2 |S|^2] from C[t,t], by Pythagoras."""
    norms = np.square(policy.scores).sum(axis=2)
    for weights in (rlvar.reward_to_go(policy.rewards), policy.rewards.sum(axis=1, keepdims=True)):
        weighted = norms * weights
        best = np.stack(
            [policy.given_prefix(weighted[:, t], t) / policy.given_prefix(norms[:, t], t) for t in range(3)],
            axis=1,
        )
        options = {"sample_weight": policy.probabilities, "ddof": 0}
        before, after = (
            rlvar.decompose(policy.scores, w, **options).step_variance
            for w in (np.broadcast_to(weights, norms.shape), weights - best)
        )
        assert_close(before - after, policy.probabilities @ (norms * best**2))


def test_averaging_out_the_future_lowers_the_variance_of_every_step_but_the_last(policy):
    """Rao-Blackwell: with Q_t = E[G_t | prefix, action], C[t,t] falls by E[(G_t - Q_t)^2 |S_t|^2]."""
    to_go = rlvar.reward_to_go(policy.rewards)
    q = np.stack([policy.given_prefix(to_go[:, t], t + 1) for t in range(3)], axis=1)
    before, after = (
        assert_decomposed(policy.covariance(w), policy.scores, w, policy.probabilities) for w in (to_go, q)
    )
    assert_close(after.mean, before.mean)
    fall = policy.probabilities @ ((to_go - q) ** 2 * np.square(policy.scores).sum(axis=2))
    assert_close(before.step_variance - after.step_variance, fall)
    assert (fall[:-1] > 0.01).all()


@pytest.mark.parametrize("group", [2, 3])
@pytest.mark.parametrize(("vocabulary", "steps"), [(3, 1), (2, 2)])
def test_leave_one_out_is_unbiased_and_noisier_than_independent_samples(vocabulary, steps, group):
    """The K samples of a group stand as the K steps of one rollout, whose gradient is their mean."""
    policy = closed_forms.EnumeratedPolicy(vocabulary, steps, seed=2)
    scores, rewards = policy.scores.sum(axis=1), policy.rewards.sum(axis=1)
    mean, independent, dependence = closed_forms.rloo_moments(policy.probabilities, rewards, scores, group)
    draws, probabilities = closed_forms.product_measure(range(len(rewards)), policy.probabilities, group)
    labels = np.repeat(np.arange(len(draws)), group)
    weights = rlvar.rloo(rewards[draws].ravel(), labels).reshape(draws.shape) / group
    exact = np.full((group, group), dependence / (group * (group - 1)))
    np.fill_diagonal(exact, independent / group)
    parts = assert_decomposed(exact, scores[draws], weights, probabilities)
    assert_close(parts.mean, np.tile(mean / group, (group, 1)))
    assert parts.variance.value > 1.01 * parts.variance_terms.value


@pytest.mark.parametrize("group", [2, 3])
def test_compare_reproduces_leave_one_out_on_all_groups_of_equally_likely_outcomes(group):
    """Actions of probability 1/2, 1/4, 1/4 are four outcomes, two the same: every tuple is as likely."""
    outcomes = np.array([0, 0, 1, 2])
    scores = (np.eye(3) - [0.5, 0.25, 0.25])[outcomes]
    rewards = np.array([1.0, -0.5, 3.0])[outcomes]
    p = np.full(4, 0.25)
    mean, independent, dependence = closed_forms.rloo_moments(p, rewards, scores, group)
    draws, _ = closed_forms.product_measure(range(4), p, group)
    units, members = len(draws), draws.ravel()
    labels = np.repeat(np.arange(units), group)
    rollouts = rlvar.Rollouts(scores[members][:, None], rewards[members], groups=labels)
    result = rlvar.compare(rollouts, ["single", "rloo", "dr-grpo"], reference="single")
    alone = {
        name: rlvar.compare(rollouts, [name], reference=name)[name] for name in ("single", "rloo", "dr-grpo")
    }
    single = (p @ (rewards**2 * np.square(scores).sum(axis=1)) - mean @ mean) / group
    for name, variance, shrunk in (
        ("single", single, 1.0),
        ("rloo", independent + dependence, 1.0),
        ("dr-grpo", independent + dependence, (group - 1) / group),
    ):
        exact = shrunk**2 * variance * units / (units - 1)  # compare takes the units for a sample
        assert_close(result[name].variance.value, exact)
        assert_close(result[name].ratio.value, shrunk**2 * variance / single)
        assert_close(alone[name].signal.value, shrunk**2 * (mean @ mean) - exact / units)
        # One mean, one signal, that of the quieter of the two if it can be told; of "dr-grpo" by its factor.
        told = "rloo" if result["rloo"].ratio.high < 1 else "single"
        assert_close(result[name].signal.value, shrunk**2 * alone[told].signal.value)
        assert_close(result[name].factor, shrunk)


def test_terminal_reward_makes_the_two_estimators_agree_to_the_bit(rng):
    scores = rng.standard_normal((50, 9, 4), np.float32)
    terminal = rng.standard_normal(50)
    lengths = rng.integers(1, 10, 50)
    per_step = np.zeros((50, 9))
    per_step[np.arange(50), lengths - 1] = terminal
    for rewards in (terminal, per_step):
        rollouts = rlvar.Rollouts(scores, rewards, lengths=lengths)
        result = rlvar.compare(rollouts, ["single", "multi"])
        assert result["single"].variance == result["multi"].variance
        assert result["single"].signal == result["multi"].signal
        assert result["multi"].ratio == rlvar.Estimate(1.0, 0.0, 1.0, 1.0)
    to_go = rlvar.reward_to_go(per_step, lengths=lengths)
    np.testing.assert_array_equal(
        rlvar.covariance(scores, to_go, lengths=lengths), rlvar.covariance(scores, terminal, lengths=lengths)
    )


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
    tokens, probabilities = bernoulli_tokens(steps, p)
    scores, rewards = closed_forms.bernoulli_rollouts(tokens, p)
    for weights, exact in zip(both_weights(rewards), closed_forms.bernoulli_variances(steps, p), strict=True):
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
