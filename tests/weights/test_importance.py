import json

import numpy as np
import pytest

import closed_forms
import reference
import rlvar

N, T = 15, 6


def log_probabilities(rng):
    old = -rng.exponential(1.0, (N, T))
    return old + 0.3 * rng.standard_normal((N, T)), old


@pytest.mark.parametrize("truncate", [None, 1.1])
@pytest.mark.parametrize("kind", ["all", "lengths", "mask"])
@pytest.mark.parametrize("importance", ["token", "sequence", "geometric"])
def test_ratios_are_their_definition_and_junk_changes_nothing(rng, importance, kind, truncate):
    options = {
        "all": {},
        "lengths": {"lengths": [0, *rng.integers(1, T + 1, N - 1)]},
        "mask": {"mask": rng.random((N, T)) < 0.6},
    }[kind]
    alive = reference.live_steps((N, T), **options)
    new, old = log_probabilities(rng)
    expected = reference.importance_ratios(new, old, importance, truncate, **options)
    junk = [np.where(alive, x, np.nan) for x in (new, old)]
    result = rlvar.importance_ratios(*junk, importance=importance, truncate=truncate, **options)
    np.testing.assert_allclose(result.values, expected, rtol=1e-12)
    whole = reference.importance_ratios(new, old, importance, **options)
    single, cut = (
        x[alive] if importance == "token" else x.max(axis=1)[alive.any(axis=1)] for x in (whole, expected)
    )
    assert result.largest == pytest.approx(single.max())
    assert result.truncated == (0 if truncate is None else np.mean(single > truncate))
    assert result.effective_size == pytest.approx(N * cut.mean() ** 2 / np.square(cut).mean())


def test_only_the_whole_sequence_gives_the_gradient_of_the_new_policy():
    new, old = (closed_forms.EnumeratedPolicy(vocabulary=3, steps=3, seed=seed) for seed in (1, 5))
    to_go = reference.reward_to_go(new.rewards)
    totals = np.repeat(new.rewards.sum(axis=1)[:, None], 3, axis=1)

    def mean_gradient(weights, policy):
        parts = rlvar.decompose(new.scores, weights, sample_weight=policy.probabilities, ddof=0)
        return parts.mean.sum(axis=0)

    truth = mean_gradient(totals, new)
    off = {}
    for importance in ("none", "token", "geometric", "sequence"):
        result = rlvar.importance_ratios(new.logp, old.logp, importance=importance)
        off[importance] = max(
            np.abs(mean_gradient(w * result.values, old) - truth).max() for w in (totals, to_go, to_go - 0.7)
        )
    assert off.pop("sequence") < 1e-12
    assert min(off.values()) > 0.05
    cut = rlvar.importance_ratios(new.logp, old.logp, truncate=2.0)
    assert not cut.unbiased
    drawn = np.random.default_rng(0).choice(27, 500, p=old.probabilities)
    for importance in ("none", "token", "geometric", "sequence"):
        result = rlvar.importance_ratios(new.logp[drawn], old.logp[drawn], importance=importance)
        assert result.unbiased == (importance == "sequence")
    assert np.abs(mean_gradient(totals * cut.values, old) - truth).max() > 0.05


def test_equal_policies_and_single_steps_are_unbiased_whatever_the_ratio(rng):
    new, old = log_probabilities(rng)
    for importance in ("token", "geometric"):
        assert rlvar.importance_ratios(new, new, importance=importance, truncate=1.0).unbiased
        assert rlvar.importance_ratios(new, old, importance=importance, lengths=[1] * 14 + [0]).unbiased
        assert not rlvar.importance_ratios(new, old, importance=importance).unbiased
    assert rlvar.importance_ratios(new, new, importance="none").unbiased
    assert not rlvar.importance_ratios(new, old, importance="none", lengths=[1] * 15).unbiased


def test_ratios_of_one_cost_nothing_and_one_huge_ratio_leaves_one_rollout():
    zeros = np.zeros((8, 3))
    assert rlvar.importance_ratios(zeros, zeros).effective_size == 8
    one_huge = zeros.copy()
    one_huge[3, 0] = 600.0  # its square is beyond float64
    result = rlvar.importance_ratios(one_huge, zeros)
    assert result.effective_size == pytest.approx(1)
    assert result.largest == np.exp(600.0)
    fields = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert fields["importance"] == "sequence"
    assert "effective sample size 1.0 of 8" in str(result)


def test_the_effective_size_does_not_depend_on_a_factor_of_all_ratios(rng):
    zeros, far = np.zeros((8, 3)), np.zeros((8, 3))
    far[:, 0] = rng.standard_normal(8)
    near = rlvar.importance_ratios(far, zeros)
    far[:, 1] = -800.0  # ratios that float64 cannot tell from 0
    result = rlvar.importance_ratios(far, zeros)
    assert (result.largest, near.largest > 0) == (0, True)
    assert result.effective_size == pytest.approx(near.effective_size)


def test_a_ratio_beyond_float64_must_be_truncated():
    zeros = np.zeros((4, 3))
    far = np.add(zeros, [[0], [0], [400], [0]])
    with pytest.raises(ValueError, match=r"truncate is needed .* exp\(1200\) in rollout 2"):
        rlvar.importance_ratios(far, zeros)
    result = rlvar.importance_ratios(far, zeros, truncate=2)
    assert result.values.max() == 2
    assert (result.largest, result.truncated) == (np.inf, 0.25)
    assert "25.0% truncated at 2, biased" in str(result)
    assert result.to_dict()["largest"] is None


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((np.zeros(3), np.zeros(3)), {}, r"logp must have shape \(N, T\), got \(3,\)"),
        ((np.zeros((2, 3)), np.zeros((3, 2))), {}, r"behavior_logp must have shape \(N, T\) = \(2, 3\)"),
        ((np.zeros((2, 3)), np.full((2, 3), -np.inf)), {}, "behavior_logp must be finite"),
        (
            (np.zeros((2, 3)), np.zeros((2, 3))),
            {"truncate": 1, "importance": "none"},
            "needs import",
        ),
    ],
)
def test_log_probabilities_that_do_not_fit_are_named(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        rlvar.importance_ratios(*arguments, **options)


@pytest.mark.parametrize("importance", ["none", "token", "sequence", "geometric"])
@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0, 0)])
def test_without_rollouts_or_steps_there_are_no_ratios(shape, importance):
    result = rlvar.importance_ratios(np.zeros(shape), np.zeros(shape), importance=importance)
    assert result.values.shape == shape
    assert result.largest == result.truncated == 0
    assert np.isnan(result.mean.value)
    json.dumps(result.to_dict(), allow_nan=False)
    str(result)


def test_a_factor_below_the_range_of_float64_is_an_error_not_a_gradient_of_zero(rng):
    scores, rewards = rng.standard_normal((20, 8, 2)), rng.random(20)
    drift = 0.1 * rng.standard_normal((20, 8))
    for shift, importance in (
        (-120.0, "sequence"),
        (-900.0, "token"),
        (-900.0, "geometric"),
        (-45.0, "sequence"),
    ):
        far = rlvar.Rollouts(scores, rewards, logp=drift + shift, behavior_logp=np.zeros((20, 8)))
        with pytest.raises(ValueError, match=f"all {importance} ratios are below the range of float64"):
            rlvar.compare(far, importance=importance)
    one = rlvar.Rollouts(
        scores, rewards, logp=drift - 120.0 * (np.arange(20) > 2)[:, None], behavior_logp=np.zeros((20, 8))
    )
    rlvar.compare(one, importance="sequence")  # most are 0 beside three


def test_the_mean_ratio_is_one_by_theory_and_its_lack_is_told(rng):
    # Sampled by fair coins, 12 tosses a rollout, under coins of 0.6: E rho = 1 for both kinds.
    tosses = rng.random((4000, 12)) < 0.5
    new, old = np.log(np.where(tosses, 0.6, 0.4)), np.full(tosses.shape, np.log(0.5))
    for importance in ("token", "sequence"):
        result = rlvar.importance_ratios(new, old, importance=importance)
        assert abs(result.mean.value - 1) < 4 * result.mean.stderr
        values = result.values if importance == "token" else result.values[:, :1]
        assert result.mean.value == pytest.approx(values.mean())
        expected = values.mean(axis=1).std(ddof=1) / 4000**0.5
        assert result.mean.stderr == pytest.approx(expected)
        # Log-probabilities of another temperature, say, are not those of the policies at work.
        assert rlvar.importance_ratios(2 * new, old, importance=importance).misses
    lost = rlvar.importance_ratios(new - 50, old)  # what the new policy does is not among the rollouts
    assert lost.misses
    assert lost.mean.value < 1e-200
    assert not rlvar.importance_ratios(new - 50, old, importance="geometric").misses  # whose mean is not 1


def test_a_mean_ratio_counts_each_live_step_or_rollout_once(rng):
    new, old = log_probabilities(rng)
    mask = rng.random((N, T)) < 0.5
    mask[3] = False
    token, sequence = (
        rlvar.importance_ratios(new, old, importance=kind, mask=mask) for kind in ("token", "sequence")
    )
    assert token.mean.value == pytest.approx(token.values[mask].mean())
    assert sequence.mean.value == pytest.approx(sequence.values.max(axis=1)[mask.any(axis=1)].mean())


def test_policies_whose_tokens_differ_are_not_close_even_where_whole_sequences_agree():
    old = np.full((40, 2), -6.0)
    new = old + np.array([5.0, -5.0])
    for importance in ("token", "none", "geometric"):
        result = rlvar.importance_ratios(new, old, importance=importance)
        assert not result.close
        assert not result.unbiased
    assert (rlvar.importance_ratios(new, old).values == 1).all()


def nucleus(rng, n, steps, keep, tokens=6):
    """Log-probabilities of tokens by their softmax and by the sampler, which draws the `keep` likeliest."""
    p = np.sort(rng.dirichlet(np.ones(tokens), (4, 1)), axis=2)[:, :, ::-1]  # in one of four states
    states = rng.integers(0, 4, (n, steps))
    q = np.where(np.arange(tokens) < keep, p, 0.0)
    q /= q.sum(axis=2, keepdims=True)
    drawn = (rng.random((n, steps, 1)) > q[states, 0].cumsum(axis=2)).sum(axis=2)
    with np.errstate(divide="ignore"):
        return np.log(p[states, 0, drawn]), np.log(q[states, 0, drawn])


@pytest.mark.parametrize("n", [16, 64, 400])
def test_ratios_are_not_called_unbiased_where_the_sampler_never_takes_some_tokens(n):
    found = []
    for seed in range(20):
        new, old = nucleus(np.random.default_rng(seed), n, 6, keep=4)
        result = rlvar.importance_ratios(new, old)
        assert result.mean.value < 1
        found.append(not result.consistent and not result.unbiased and result.misses)
        assert result.consistent or "not 1" in str(result)
    assert np.mean(found) >= (0.85 if n == 16 else 1.0)


def test_a_sampler_that_takes_all_is_hardly_ever_said_not_to():
    wrong = 0
    for seed in range(600):
        rng = np.random.default_rng(seed)
        # Normal actions of another mean: ratios of steps have a deviation of 0.7, to one side.
        z = rng.standard_normal((30, 1 + seed % 6))
        result = rlvar.importance_ratios(0.63 * z - 0.63**2 / 2, np.zeros(z.shape))
        wrong += not result.unbiased
    assert wrong <= 6


def test_what_the_policy_never_takes_has_a_ratio_of_0_and_stops_nothing():
    rng = np.random.default_rng(1)
    old, new = nucleus(rng, 60, 3, keep=6)[0], np.empty((60, 3))
    new[:] = old
    gone = rng.random((60, 3)) < 0.1
    new[gone] = -np.inf
    for importance, expected in (
        ("token", ~gone),
        ("sequence", ~gone.any(axis=1, keepdims=True) & np.ones((60, 3), bool)),
        ("geometric", ~gone.any(axis=1, keepdims=True) & np.ones((60, 3), bool)),
    ):
        result = rlvar.importance_ratios(new, old, importance=importance)
        np.testing.assert_array_equal(result.values, expected)
        assert result.impossible == gone.sum()
        assert (result.largest, result.gap) == (1.0, 0.0)
        json.dumps(result.to_dict(), allow_nan=False)
    rollouts = rlvar.Rollouts(rng.standard_normal((60, 3, 2)), np.ones(60), logp=new, behavior_logp=old)
    weighed = rlvar.compare(rollouts, importance="sequence")["single"]
    left = rlvar.compare(
        rlvar.Rollouts(rollouts.scores * ~gone.any(axis=1)[:, None, None], np.ones(60)), ["single"]
    )["single"]
    assert weighed.variance == left.variance
    assert not rlvar.importance_ratios(new, old, importance="none").close
    with pytest.raises(ValueError, match="all sequence ratios are 0: with a logp of minus infinity"):
        rlvar.compare(
            rlvar.Rollouts(rollouts.scores, np.ones(60), logp=np.full((60, 3), -np.inf), behavior_logp=old),
            importance="sequence",
        )


@pytest.mark.parametrize("make", [rlvar.importance_ratios, None])
def test_a_sampler_cannot_have_drawn_what_it_never_takes(make):
    zeros, bad = np.zeros((4, 3)), np.zeros((4, 3))
    bad[2, 1] = -np.inf
    if make is None:

        def make(new, old):
            return rlvar.Rollouts(np.zeros((4, 3, 1)), np.ones(4), logp=new, behavior_logp=old)

    make(bad, zeros)
    draws = (
        r"live steps \(a policy never samples what it gives probability 0\), got behavior_logp\[2, 1\] = -inf"
    )
    with pytest.raises(ValueError, match=f"behavior_logp must be finite in {draws}"):
        make(zeros, bad)
    for value in (np.nan, np.inf):
        bad[2, 1] = value
        with pytest.raises(ValueError, match=r"logp must be finite .*, or minus infinity, got logp\[2, 1\]"):
            make(bad, zeros)
