"""Scores of whole sequences, added up over their tokens, with the number of these: what they still tell."""

import numpy as np
import pytest

import rlvar

N, T, D = 48, 9, 5
# They weigh a rollout by one number.
OF_ROLLOUTS = (
    *("single", "single-mean", "rloo", "grpo", "dr-grpo", "reinforce++"),
    *("opo", "single-optimal", "james-stein", "vl-norm"),
)
OF_STEPS = ("multi-mean", "multi-optimal", "otb", "otb-verl", "gae", "n-step", "vtrace")


def both(rng, **of_whole):
    """The same rollouts by tokens (N, T, D), with padding, and as sequences (N, 1, D)."""
    lengths = rng.integers(0, T + 1, N)
    lengths[:2] = T, 0
    live = np.arange(T) < lengths[:, None]
    scores, rewards = rng.standard_normal((N, T, D)), rng.integers(0, 2, N) + lengths / 7
    logp = -rng.random((N, T))
    old = logp + rng.standard_normal((N, T)) / 20
    groups = np.arange(N) // 4
    tokens = rlvar.Rollouts(scores, rewards, lengths=lengths, logp=logp, behavior_logp=old, groups=groups)
    whole = rlvar.Rollouts(
        np.where(live[:, :, None], scores, 0).sum(axis=1, keepdims=True),
        rewards,
        lengths=np.minimum(lengths, 1),
        logp=np.where(live, logp, 0).sum(axis=1, keepdims=True),
        behavior_logp=np.where(live, old, 0).sum(axis=1, keepdims=True),
        tokens=lengths,
        groups=groups,
        **of_whole,
    )
    return tokens, whole


@pytest.mark.parametrize("importance", ["none", "sequence", "geometric"])
@pytest.mark.parametrize("aggregation", ["sum", "sequence-mean", "token-mean"])
def test_sums_of_token_scores_give_what_the_token_scores_give(rng, aggregation, importance):
    options = {"aggregation": aggregation, "importance": importance}
    ours, theirs = (rlvar.compare(each, OF_ROLLOUTS, **options) for each in both(rng))
    for row in ours:
        other = theirs[row.name]
        for name in ("variance", "ratio", "signal", "noise_scale"):
            one, two = getattr(row, name), getattr(other, name)
            assert [*one.interval, one.value] == pytest.approx(
                [*two.interval, two.value], rel=1e-9, nan_ok=True
            )
        assert (row.unbiased, row.differs, row.identical) == (other.unbiased, other.differs, other.identical)


def test_the_clip_of_gspo_counts_tokens(rng):
    options = {"importance": "geometric", "clip": 0.005, "aggregation": "sequence-mean"}
    ours, theirs = (rlvar.compare(each, ["single", "rloo"], **options) for each in both(rng))
    assert 0 < ours["rloo"].clipped < 1
    assert ours["rloo"].clipped == pytest.approx(theirs["rloo"].clipped)
    assert ours["rloo"].variance.value == pytest.approx(theirs["rloo"].variance.value)


def test_growth_with_length_goes_by_tokens(rng):
    tokens, whole = both(rng)
    ours, theirs = (rlvar.decompose(each, "single") for each in (whole, tokens))
    assert ours.length_exponent.interval == pytest.approx(theirs.length_exponent.interval)
    assert "tokens" in repr(ours)
    report = rlvar.report(whole)
    (sentence,) = [each for each in report.verdict if each.startswith("From quartile to quartile of length")]
    assert "tokens, the variance" in sentence
    assert "  tokens 0 to 9, median" in repr(report)


def test_reward_to_go_within_a_step_is_not_claimed(rng):
    tokens, whole = both(rng)
    note = "Each rollout is a single step here, so multi-step is single-step"
    compared = rlvar.compare(whole, ["single", "multi"])
    assert compared["multi"].identical
    assert any(each.startswith(note) for each in compared.notes)
    assert not any(each.startswith(note) for each in rlvar.compare(whole, ["single", "rloo"]).notes)
    assert not any(each.startswith(note) for each in rlvar.compare(tokens).notes)
    report = rlvar.report(whole, ["single", "multi"])
    assert any(each.startswith(note) for each in report.notes)
    assert "covariance between its tokens is inside the variance term" in report.text(full=True)
    on_policy = rlvar.Rollouts(whole.scores, whole.rewards, lengths=whole.lengths, tokens=whole.tokens)
    assert rlvar.report(on_policy).headroom.best == "single-optimal"


@pytest.mark.parametrize("name", [*OF_STEPS, "multi(0.9)", "single(0.9)"])
def test_what_weighs_the_tokens_of_a_step_differently_is_refused(rng, name):
    ones = np.ones((N, 1))
    _, whole = both(rng, values=ones, score_squares=ones)
    if "(" in name:
        name = rlvar.estimator(name.partition("(")[0], gamma=0.9)
    with pytest.raises(ValueError, match="needs token scores: it weighs the tokens of a rollout differently"):
        rlvar.compare(whole, [name])


def test_the_ratio_of_a_token_is_not_that_of_several(rng):
    _, whole = both(rng)
    with pytest.raises(ValueError, match="importance='token' needs the log-probability of each token"):
        rlvar.compare(whole, importance="token")


def test_steps_of_several_tokens_are_cut_where_their_tokens_are_not_asked_for(rng):
    scores, rewards = rng.standard_normal((30, 4, 3)), rng.standard_normal((30, 4))
    turns = rlvar.Rollouts(scores, rewards, tokens=rng.integers(4, 90, 30))
    steps = rlvar.Rollouts(scores, rewards)
    ours, theirs = (rlvar.decompose(each, "multi") for each in (turns, steps))
    assert ours.horizon_exponent == theirs.horizon_exponent
    assert not np.isnan(ours.horizon_exponent.value)
    report = rlvar.report(turns, aggregation="sequence-mean")
    assert np.isnan(report.decompositions["multi"].horizon_exponent.value)


def test_rollouts_of_other_numbers_of_tokens_are_no_copies(rng):
    scores, rewards = np.tile(rng.standard_normal((20, 1, 9)), (2, 1, 1)), np.ones(40)
    same = rlvar.Rollouts(scores, rewards, tokens=np.full(40, 7))
    other = rlvar.Rollouts(scores, rewards, tokens=np.arange(40) + 1)
    assert rlvar.report(same).sampling.repeated == 20
    assert rlvar.report(other).sampling.repeated == 0
