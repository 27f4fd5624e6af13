"""PPO's clip: which steps it leaves without gradient, and how many."""

import numpy as np
import pytest

import reference
import rlvar

N, T = 24, 5
BOTH = ("single", "multi")


@pytest.fixture
def stale(rng):
    logp, old = -rng.random((2, N, T))
    return rlvar.Rollouts(
        rng.standard_normal((N, T, 2)),
        rng.standard_normal((N, T)),
        lengths=np.append(rng.integers(1, T + 1, N - 1), 0),
        groups=np.arange(N) // 3,
        logp=logp,
        behavior_logp=old,
    )


def derivative(rollouts, advantages, clip):
    """Of PPO's objective by the log-probability of each live step, by differences."""
    step = 1e-6
    up, down = (
        reference.ppo_objective(rollouts.logp + d, rollouts.behavior_logp, advantages, clip)
        for d in (step, -step)
    )
    return np.where(rollouts.live, (up - down) / (2 * step), 0)


@pytest.mark.parametrize("clip", [(0.2, 0.28), (0.1, 0.1), (1.0, np.inf), (0.0, 0.0)])
def test_the_clipped_estimator_is_the_gradient_of_ppos_objective(stale, clip):
    """The gradient of the objective is its derivative by logp times the score of each step."""
    advantages = reference.reward_to_go(stale.rewards, lengths=stale.lengths)
    weights = derivative(stale, advantages, clip)
    expected = rlvar.compare(stale, [("ppo", weights)], reference="ppo")["ppo"]
    found = rlvar.compare(stale, ["multi"], reference="multi", importance="token", clip=clip)["multi"]
    assert found.variance.value == pytest.approx(expected.variance.value, rel=1e-6)
    assert found.signal.value == pytest.approx(expected.signal.value, rel=1e-6)
    unclipped = advantages * np.exp(stale.logp - stale.behavior_logp)
    cut = stale.live & (weights == 0) & (unclipped != 0)
    assert found.clipped == cut.sum() / stale.live.sum()
    assert (found.clipped > 0) == (clip[1] < 1)


def test_what_is_clipped_depends_on_the_sign_of_each_estimators_weights(stale):
    own = np.where(np.arange(N) % 2, 1.0, -1.0)
    result = rlvar.compare(
        stale, ["multi", ("mine", own), ("minus", -own)], reference="multi", importance="token", clip=0.2
    )
    assert len({row.clipped for row in result}) == 3
    ratios = np.exp(stale.logp - stale.behavior_logp)[stale.live]
    both = (ratios > 1.2).mean() + (ratios < 0.8).mean()
    assert result["mine"].clipped + result["minus"].clipped == pytest.approx(both)
    shares = ", ".join(f"{row.name} {row.clipped:.1%}" for row in result)
    assert f"share of the steps clipped, which biases the mean: {shares}" in str(result)
    assert result.to_dict()["rows"][0]["clipped"] == result["multi"].clipped


def test_a_clip_of_whole_sequences_takes_all_their_steps(stale):
    """GSPO: one ratio a rollout, so one share of rollouts."""
    result = rlvar.compare(stale, ["rloo"], reference="rloo", importance="geometric", clip=(3e-4, 4e-4))
    weights = rlvar.estimator("rloo").weights(stale)[:, 0]
    log = np.array([(stale.logp - stale.behavior_logp)[n, : stale.lengths[n]].mean() for n in range(N - 1)])
    cut = np.where(weights[:-1] > 0, log > np.log1p(4e-4), (weights[:-1] < 0) & (log < np.log1p(-3e-4)))
    assert result["rloo"].clipped == cut @ stale.lengths[:-1] / stale.lengths.sum()


def test_a_clip_biases_unless_the_policies_agree(rng, stale):
    tosses = rng.random((N, 1)) < 0.5
    one_step = {"logp": np.log(np.where(tosses, 0.7, 0.3)), "behavior_logp": np.full((N, 1), np.log(0.5))}
    for kind, ratio_unbiased in (("sequence", True), ("token", True)):  # of one step
        rollouts = rlvar.Rollouts(rng.standard_normal((N, 1, 1)), rng.standard_normal(N), **one_step)
        plain, clipped = (rlvar.compare(rollouts, BOTH, importance=kind, clip=c) for c in (None, 10.0))
        assert plain["multi"].unbiased is ratio_unbiased
        assert clipped["multi"].unbiased is False
        assert clipped["multi"].variance == plain["multi"].variance
        assert plain["multi"].clipped is None
    same = rlvar.Rollouts(stale.scores, stale.rewards, logp=stale.logp, behavior_logp=stale.logp + 1e-6)
    assert rlvar.compare(same, BOTH, importance="token", clip=0.2)["multi"].unbiased
    assert not rlvar.compare(same, BOTH, importance="token", clip=1e-7)["multi"].unbiased


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"clip": 0.2},
            ValueError,
            "clip needs importance ratios without truncate: importance='token' as in",
        ),
        ({"clip": 0.2, "importance": "token", "truncate": 2.0}, ValueError, "clip needs importance ratios"),
        ({"clip": -0.1, "importance": "token"}, ValueError, "clip must not be negative, got -0.1"),
        ({"clip": (0.1, 0.2, 3.0), "importance": "token"}, ValueError, r"or a pair \(below, above\), got"),
        ({"clip": "0.2", "importance": "token"}, TypeError, "clip must be a number, got str"),
    ],
)
def test_a_clip_that_makes_no_sense_is_named(stale, options, error, message):
    with pytest.raises(error, match=message):
        rlvar.compare(stale, **options)


def test_without_ratios_beside_them_only_the_ratios_are_clipped(stale):
    result = rlvar.compare(stale, ["multi"], importance=["none", "token"], clip=0.2)
    assert result["multi:none"].clipped is None
    assert result["multi:token"].clipped > 0
