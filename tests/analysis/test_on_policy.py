import itertools
import json

import numpy as np
import pytest

import closed_forms
import reference
import rlvar
from rlvar.weights.batch import Batch


@pytest.fixture(scope="module")
def policy():
    return closed_forms.EnumeratedPolicy(vocabulary=3, steps=6, seed=3)


def moments(scores):
    """|sum_t S_t|^2 and sum_t |S_t|^2 of each rollout."""
    batch = Batch.of(rlvar.Rollouts(scores, np.zeros(len(scores))))
    return batch.squares, batch.step_squares.sum(axis=1)


def sequence_probabilities(policy, pi):
    """Probabilities of the sequences of `policy` under another table pi of next-token probabilities."""
    start = pi.shape[1]
    return np.array(
        [np.prod([pi[a, b] for a, b in zip((start, *s), s, strict=False)]) for s in policy.sequences]
    )


def tempered(pi, temperature):
    result = pi ** (1 / temperature)
    return result / result.sum(axis=1, keepdims=True)


def top_k(pi, k):
    result = np.where(pi >= np.sort(pi, axis=1)[:, -k, None], pi, 0.0)
    return result / result.sum(axis=1, keepdims=True)


def stale(pi):
    result = pi * np.exp(0.7 * np.random.default_rng(1).standard_normal(pi.shape))
    return result / result.sum(axis=1, keepdims=True)


def sample(policy, pi, n, seed=3):
    """Scores under `policy` of n rollouts that were sampled with pi."""
    p = sequence_probabilities(policy, pi)
    return policy.scores[np.random.default_rng(seed).choice(len(p), size=n, p=p / p.sum())]


def test_the_statistic_is_0_in_expectation_under_the_policy_that_scored(isa, policy):
    sums, squares = moments(policy.scores)
    trace = policy.expectation(squares)
    assert trace == pytest.approx(policy.fisher_information().sum(), rel=1e-12)
    assert policy.expectation(sums - squares) == pytest.approx(0, abs=1e-13 * trace)


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_a_rollout_that_ends_by_its_past_keeps_the_expectation_0(policy, steps):
    # A sequence ends after its first token 0, or by a limit on its length.
    ends = [min(s[:steps].index(0) + 1 if 0 in s[:steps] else steps, 4) for s in policy.sequences]
    scores = np.where((np.arange(6) < np.array(ends)[:, None])[:, :, None], policy.scores, 0.0)
    sums, squares = moments(scores)
    assert policy.expectation(sums - squares) == pytest.approx(0, abs=1e-13)


def test_rollouts_of_the_policy_pass(policy):
    result = rlvar.on_policy_test(sample(policy, policy.pi, 10000))
    assert result.on_policy is True
    assert result.ratio.low < 0 < result.ratio.high
    assert result.trace.low < policy.fisher_information().sum() < result.trace.high


@pytest.mark.parametrize(
    "other",
    [
        lambda pi: tempered(pi, 0.7),
        lambda pi: tempered(pi, 1.4),
        lambda pi: top_k(pi, 2),
        stale,
    ],
    ids=["temperature 0.7", "temperature 1.4", "top 2", "stale"],
)
def test_rollouts_of_another_policy_fail_at_the_ratio_of_its_expectations(policy, other):
    pi = other(policy.pi)
    result = rlvar.on_policy_test(sample(policy, pi, 10000))
    assert result.on_policy is False
    assert "do not average to 0 given the past" in str(result)
    p = sequence_probabilities(policy, pi)
    sums, squares = moments(policy.scores)
    mean = p @ policy.scores.sum(axis=1)
    exact = np.array([p @ (sums - squares), mean @ mean]) / (p @ squares)
    for estimate, truth in zip((result.ratio, result.mean_score), exact, strict=True):
        assert estimate.low < truth < estimate.high
        assert abs(estimate.value - truth) < 4 * estimate.stderr


@pytest.mark.parametrize("steps", [1, 2])
def test_over_all_data_sets_tokens_of_another_coin_give_their_closed_form(steps):
    p, q, rollouts = 0.3, 0.6, 3
    data_sets, probabilities = closed_forms.product_measure([0, 1], [1 - q, q], rollouts * steps)
    means = np.zeros(3)
    for tokens, probability in zip(data_sets, probabilities, strict=True):
        scores, _ = closed_forms.bernoulli_rollouts(tokens.reshape(rollouts, steps), p)
        result = rlvar.on_policy_test(scores)
        trace = result.trace.value
        means += probability * np.array([result.off_diagonal.value, result.mean_score.value * trace, trace])
    assert means == pytest.approx(closed_forms.mismatched_bernoulli(steps, p, q), rel=1e-12, abs=1e-14)


def test_rollouts_of_another_policy_fail_by_their_mean_alone_if_no_two_steps_share_a_parameter(policy):
    scores = np.einsum("ntd,ts->ntsd", sample(policy, tempered(policy.pi, 0.7), 500), np.eye(6))
    result = rlvar.on_policy_test(scores.reshape(500, 6, -1))
    assert result.ratio == rlvar.Estimate(0.0, 0.0, 0.0, 0.0)
    assert result.against == ("mean_score",)


def test_rollouts_of_one_step_from_another_policy_fail_by_their_mean_alone():
    uniform = np.random.default_rng(0).random((200, 1, 1))
    assert rlvar.on_policy_test((uniform < 0.3) - 0.3).on_policy is True
    assert rlvar.on_policy_test((uniform < 0.5) - 0.3).against == ("mean_score",)


def test_a_temperature_of_1_1_is_found_by_the_mean_and_missed_by_the_ratio(policy):
    pi = tempered(policy.pi, 1.1)
    results = [rlvar.on_policy_test(sample(policy, pi, 1000, seed)) for seed in range(20)]
    assert sum("mean_score" in result.against for result in results) >= 18
    assert sum("ratio" in result.against for result in results) <= 2


def test_units_that_differ_in_a_mismatch_without_mean_are_found_by_the_ratio():
    rng = np.random.default_rng(0)
    shift = 0.5 * rng.choice([-1.0, 1.0], (400, 1, 1))
    assert rlvar.on_policy_test(rng.standard_normal((400, 8, 1)) + shift).against == ("ratio",)


def test_steps_that_correlate_negatively_are_no_verdict_against_the_policy():
    # What the docstring says: such an interval comes too easily on policy.
    noise = np.random.default_rng(0).standard_normal((300, 9, 1))
    slightly = rlvar.on_policy_test(noise[:, 1:] - 0.1 * noise[:, :-1])
    assert slightly.ratio.high < 0
    assert slightly.on_policy is True
    result = rlvar.on_policy_test(np.diff(noise, axis=1))
    assert (result.against, result.on_policy, result.positions) == ((), None, True)


def test_rows_of_one_backward_pass_have_the_same_sum_and_fail():
    # Logits of token t: W' times the sum of the embeddings of inputs 0..t, the tokens before it. The
    # gradient by embeddings reaches log p(y_t) through each position j <= t: summed over j it is the
    # score S_t, summed over t the row of position j that one backward pass leaves.
    rng = np.random.default_rng(2)
    steps, vocabulary, width = 4, 3, 2
    embedding, w = rng.standard_normal((vocabulary + 1, width)), rng.standard_normal((width, vocabulary))
    sequences = np.array(list(itertools.product(range(vocabulary), repeat=steps)))
    inputs = np.insert(sequences[:, :-1], 0, vocabulary, axis=1)  # a start token first
    pi = np.exp(embedding[inputs].cumsum(axis=1) @ w)
    pi /= pi.sum(axis=2, keepdims=True)
    probabilities = np.take_along_axis(pi, sequences[:, :, None], axis=2).prod(axis=(1, 2))
    error = (np.eye(vocabulary)[sequences] - pi) @ w.T
    reached = np.triu(np.ones((steps, steps)))
    through = np.einsum("njv,nth,jt->njtvh", np.eye(vocabulary + 1)[inputs], error, reached)
    scores, rows = (through.sum(axis=axis).reshape(len(sequences), steps, -1) for axis in (1, 2))

    options = {"sample_weight": probabilities, "ddof": 0}
    by_score, by_row = (rlvar.decompose(x, **options) for x in (scores, rows))
    assert by_row.variance.value == pytest.approx(by_score.variance.value, rel=1e-12)
    assert by_score.covariance_terms.value == pytest.approx(0, abs=1e-12)
    assert by_row.covariance_terms.value > 0.01 * by_row.variance.value
    drawn = rng.choice(len(sequences), size=2000, p=probabilities)
    assert rlvar.on_policy_test(scores[drawn]).on_policy is True
    result = rlvar.on_policy_test(rows[drawn])
    assert (result.positions, result.on_policy, result.against) == (True, None, ("ratio",))


def test_rows_of_positions_have_no_mean_and_the_covariance_of_their_shares():
    net = closed_forms.MixingNetwork(seed=0)
    p, c = net.probabilities, net.shares
    scores, rows = c.sum(axis=1), c.sum(axis=2)
    np.testing.assert_allclose(np.einsum("m,mjd->jd", p, rows), 0, atol=1e-14)
    by_score, by_row = (rlvar.covariance(x, sample_weight=p, ddof=0) for x in (scores, rows))
    assert by_row.sum() == pytest.approx(by_score.sum(), rel=1e-12)
    np.testing.assert_allclose(by_score, np.diag(np.diag(by_score)), atol=1e-14)
    # One token's shares alone correlate.
    np.testing.assert_allclose(by_row, np.einsum("m,mitd,mjtd->ij", p, c, c), atol=1e-14)
    assert by_row.sum() / np.trace(by_row) == pytest.approx(0.877, abs=1e-3)  # less than 1: the other sign
    # Reward-to-go keeps its mean, as rows know nothing of past rewards, but has another variance.
    to_go = reference.reward_to_go(net.rewards)
    of_scores, of_rows = (rlvar.decompose(x, to_go, sample_weight=p, ddof=0) for x in (scores, rows))
    np.testing.assert_allclose(of_rows.mean.sum(axis=0), of_scores.mean.sum(axis=0), atol=1e-12)
    assert abs(of_rows.variance.value / of_scores.variance.value - 1) > 0.01
    total = net.rewards.sum(axis=1)
    whole = [rlvar.decompose(x, total, sample_weight=p, ddof=0).variance.value for x in (scores, rows)]
    assert whole[0] == pytest.approx(whole[1], rel=1e-12)


def test_rows_of_positions_are_told_from_token_scores_and_from_another_policy(policy):
    net = closed_forms.MixingNetwork(seed=0)
    for seed in range(8):
        drawn = np.random.default_rng(seed).choice(len(net.probabilities), 1000, p=net.probabilities)
        assert rlvar.on_policy_test(net.shares.sum(axis=2)[drawn]).positions
        assert not rlvar.on_policy_test(net.shares.sum(axis=1)[drawn]).positions
        for other in (
            lambda pi: tempered(pi, 0.7),
            lambda pi: tempered(pi, 1.1),
            lambda pi: top_k(pi, 2),
            stale,
        ):
            for n in (30, 300):
                assert not rlvar.on_policy_test(sample(policy, other(policy.pi), n, seed)).positions


@pytest.mark.parametrize("n", [30, 100])
def test_token_scores_are_hardly_ever_taken_for_rows_of_positions(policy, n):
    wrong = 0
    for seed in range(400):
        wrong += rlvar.on_policy_test(sample(policy, policy.pi, n, seed)).positions
    assert wrong <= 4


@pytest.mark.parametrize("confidence", [0.8, 0.95])
@pytest.mark.parametrize(
    "draw",
    [
        lambda policy, seed: (sample(policy, policy.pi, 200, seed), None),
        lambda policy, seed: (sample(policy, policy.pi, 30, seed), None),
        lambda policy, seed: (sample(policy, policy.pi, 90, seed), np.arange(90) % 36),
        lambda policy, seed: (np.random.default_rng(seed).binomial(1, 0.05, (30, 10, 1)) - 0.05, None),
    ],
    ids=["200 rollouts", "30 rollouts", "36 groups of 2 or 3", "few heads"],
)
def test_on_policy_the_verdict_is_wrong_no_more_often_than_it_says(policy, draw, confidence):
    data_sets, wrong = 400, np.zeros(2)
    for seed in range(data_sets):
        scores, groups = draw(policy, seed)
        result = rlvar.on_policy_test(scores, groups=groups, confidence=confidence)
        assert result.on_policy is not None or result.positions
        wrong += [not result.on_policy, "mean_score" in result.against]
    error = 1 - confidence
    within = 3 * np.sqrt(error * (1 - error) / data_sets)
    assert wrong[0] / data_sets < error + within
    assert wrong[1] / data_sets > error / 8  # nor is it a test that cannot fail


def test_an_alarm_that_an_unseen_action_gives_says_how_large_it_must_be():
    # Gradients by the probabilities of tokens; the rarest has 94 % of the trace.
    p = np.array([0.6, 0.25, 0.1, 0.048, 0.002])
    share, wrong, held = (1 / p[4] - 1) / (1 / p - 1).sum(), 0, 0
    for seed in range(60):
        tokens = np.random.default_rng(seed).choice(5, (30, 12), p=p)
        result = rlvar.on_policy_test(np.eye(5)[tokens] / p - 1)
        if result.on_policy is False:
            wrong, held = wrong + 1, held + (result.unseen_share <= share)
            assert 0 < result.unseen_share < 1
        else:
            assert result.unseen_share == 0
    assert wrong > 15
    assert held == wrong


def test_steps_that_correlate_need_an_unseen_action_of_their_size(rng):
    result = rlvar.on_policy_test(np.repeat(rng.standard_normal((60, 1, 2)), 4, axis=1))
    assert result.against == ("ratio",)
    assert result.unseen_share == result.ratio.low / (1 + result.ratio.low)


def test_the_embedded_rollouts_are_on_policy():
    rollouts = rlvar.datasets.cartpole()
    assert rlvar.on_policy_test(rollouts.scores, lengths=rollouts.lengths).on_policy is True


def by_definition(scores, mask, labels):
    """The ratio, mean score, off-diagonal sum and trace in plain loops."""
    live = [[s for s, alive in zip(*pair, strict=True) if alive] for pair in zip(scores, mask, strict=True)]
    off = np.array([sum(x[i] @ x[j] for i in range(len(x)) for j in range(len(x)) if i != j) for x in live])
    trace = np.array([sum(s @ s for s in x) for x in live], float)
    sums = np.array([sum(x, np.zeros(scores.shape[2])) for x in live])
    statistics = (
        lambda kept: off[kept].sum() / trace[kept].sum(),
        lambda kept: reference.mean_score(sums[kept], trace[kept], labels[kept]),
        lambda kept: off[kept].mean(),
        lambda kept: trace[kept].mean(),
    )
    everything = np.arange(len(live))
    return [(f(everything), reference.jackknife_stderr(f, labels)) for f in statistics]


@pytest.mark.parametrize("groups", [None, list("aabbbcccddaabbeeff")])
@pytest.mark.parametrize("kind", ["all", "lengths", "mask"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_every_number_matches_its_definition(isa, rng, groups, kind, dtype):
    scores = rng.standard_normal((18, 7, 5)).astype(dtype)
    options = {
        "all": {},
        "lengths": {"lengths": rng.integers(0, 8, 18)},
        "mask": {"mask": rng.random((18, 7)) < 0.6},
    }[kind]
    mask = reference.live_steps((18, 7), **options)
    expected = by_definition(scores.astype(float), mask, np.array(groups or np.arange(18)))
    result = rlvar.on_policy_test(scores, groups=groups, **options)
    for estimate, (value, stderr) in zip(
        (result.ratio, result.mean_score, result.off_diagonal, result.trace), expected, strict=True
    ):
        assert estimate.value == pytest.approx(value, rel=1e-10)
        assert estimate.stderr == pytest.approx(stderr, rel=1e-8)
    assert result.units == (6 if groups else 18)


def test_junk_in_dead_steps_changes_nothing(rng):
    scores, mask = rng.standard_normal((12, 6, 3)), rng.random((12, 6)) < 0.6
    junk = np.where(mask[:, :, None], scores, np.nan)
    assert rlvar.on_policy_test(junk, mask=mask) == rlvar.on_policy_test(scores, mask=mask)


def test_the_order_of_rollouts_does_not_matter(rng):
    scores, groups = rng.standard_normal((20, 6, 3)), rng.integers(0, 6, 20)
    order = rng.permutation(20)
    for options, permuted in (({}, {}), ({"groups": groups}, {"groups": groups[order]})):
        one, other = rlvar.on_policy_test(scores, **options), rlvar.on_policy_test(scores[order], **permuted)
        for a, b in ((one.ratio, other.ratio), (one.mean_score, other.mean_score)):
            assert (a.value, a.stderr, a.low) == pytest.approx((b.value, b.stderr, b.low), rel=1e-9)


def test_the_scale_of_scores_does_not_matter(rng):
    scores = rng.standard_normal((20, 6, 3))
    small, large = rlvar.on_policy_test(scores), rlvar.on_policy_test(scores * 2.0**40)
    assert (large.ratio, large.mean_score) == (small.ratio, small.mean_score)


def test_one_step_has_nothing_off_the_diagonal(isa, rng):
    result = rlvar.on_policy_test(rng.standard_normal((10, 1, 37)))
    assert result.ratio == rlvar.Estimate(0.0, 0.0, 0.0, 0.0)
    assert result.on_policy is True


def test_equal_steps_reach_the_largest_ratio():
    # |T s|^2 = T^2 |s|^2: a ratio of T - 1, and of T with the diagonal.
    result = rlvar.on_policy_test(np.ones((5, 8, 2)))
    assert (result.ratio.value, result.ratio.low) == (7, 7)
    assert (result.mean_score.value, result.mean_score.low) == (8, 8)
    assert result.on_policy is False


def test_no_scores_but_0_give_no_verdict():
    result = rlvar.on_policy_test(np.zeros((5, 3, 2)))
    assert np.isnan([result.ratio.value, result.mean_score.value]).all()
    assert result.on_policy is None
    assert "no verdict" in str(result)


def test_two_units_or_scores_in_one_alone_give_no_verdict(rng):
    scores = rng.standard_normal((8, 3, 2))
    assert rlvar.on_policy_test(scores, groups=list("aaaabbbb")).on_policy is None
    assert rlvar.on_policy_test(scores[:2]).on_policy is None
    assert rlvar.on_policy_test(scores, lengths=[3] + [0] * 7).on_policy is None


def test_bits_do_not_depend_on_the_number_of_threads(rng):
    scores = rng.standard_normal((300, 9, 4))
    one = rlvar.on_policy_test(scores, num_threads=1)
    for threads in (2, 5):
        assert rlvar.on_policy_test(scores, num_threads=threads) == one


def test_printable_and_json_ready(rng):
    result = rlvar.on_policy_test(rng.standard_normal((10, 4, 2)), confidence=0.9)
    assert str(result).startswith("ratio  ")
    fields = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert fields["ratio"]["value"] == result.ratio.value
    assert fields["ratio"]["confidence"] == 0.9
    assert fields["mean_score"]["low"] == result.mean_score.low
    assert fields["against"] == list(result.against)
    assert fields["on_policy"] is result.on_policy


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_the_first_bad_score_is_named(rng, bad):
    scores = rng.standard_normal((6, 4, 3))
    scores[2, 3, 1] = scores[4, 0, 0] = bad
    with pytest.raises(ValueError, match=rf"got scores\[2, 3, 1\] = {bad}"):
        rlvar.on_policy_test(scores)


@pytest.mark.parametrize(
    ("scores", "options", "error", "message"),
    [
        (np.ones((4, 3)), {}, ValueError, r"scores must have shape \(N, T, D\), got \(4, 3\)"),
        (np.ones((1, 3, 2)), {}, ValueError, "at least N = 2"),
        (np.full((4, 3, 2), 1e200), {}, ValueError, "beyond the range of float64"),
        (np.ones((4, 3, 2)), {"groups": ["a"] * 4}, ValueError, "at least two different labels"),
        (np.ones((4, 3, 2)), {"lengths": [1, 2, 3, 4]}, ValueError, r"got lengths\[3\] = 4"),
        (np.ones((4, 3, 2)), {"mask": np.ones((3, 4), bool)}, ValueError, "mask must have shape"),
        (np.ones((4, 3, 2)), {"confidence": 1}, ValueError, "confidence must lie strictly"),
        (np.ones((4, 3, 2)), {"num_threads": 0}, ValueError, "num_threads must be at least 1"),
    ],
)
def test_bad_arguments_are_named(scores, options, error, message):
    with pytest.raises(error, match=message):
        rlvar.on_policy_test(scores, **options)
