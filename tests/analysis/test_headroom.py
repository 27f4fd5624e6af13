import json

import numpy as np
import pytest

import reference
import rlvar
from rlvar.weights.batch import Batch
from rlvar.weights.estimators import resolve

NAMES = ["single", "multi", "single-mean", "single-optimal", "otb"]


@pytest.fixture
def comparison(rng):
    scores = rng.standard_normal((60, 4, 3))
    return rlvar.compare(rlvar.Rollouts(scores, 3 + scores[:, :, 0]), NAMES)


def test_shares_are_those_of_the_variances_and_their_intervals_are_paired(comparison):
    room = rlvar.headroom(comparison)
    v = {row.name: row.variance.value for row in comparison}
    assert room.best == min(("single-optimal", "otb"), key=v.get)
    assert room.removable.value == pytest.approx(1 - v[room.best] / v["single"])
    assert room.removable.low < room.removable.value < room.removable.high < 1
    assert set(room.removed) == set(NAMES) - {"single", room.best}
    for name, part in room.removed.items():
        assert part.value == pytest.approx((v["single"] - v[name]) / (v["single"] - v[room.best]))
    assert str(room).startswith(f"{room.best} removes {room.removable} of the variance of single\n")
    assert json.loads(json.dumps(room.to_dict(), allow_nan=False))["best"] == room.best


def test_the_interval_of_a_part_leaves_out_the_same_rollout_from_all_three(rng):
    scores, names = rng.standard_normal((14, 3, 2)), ["single", "multi", "otb"]
    rollouts = rlvar.Rollouts(scores, 4 + rng.standard_normal((14, 3)))
    g = [reference.gradients(scores, resolve([name])[0].weights(Batch.of(rollouts))) for name in names]

    def part(kept):
        single, multi, best = (x[kept].var(axis=0, ddof=1).sum() for x in g)
        return (single - multi) / (single - best)

    ours = rlvar.headroom(rlvar.compare(rollouts, names)).removed["multi"]
    assert ours.value == pytest.approx(part(np.arange(14)))
    assert ours.stderr == pytest.approx(reference.jackknife_stderr(part, np.arange(14)))


def test_what_reward_to_go_removes_and_what_the_baseline_adds_make_up_what_is_removable(rng):
    scores, rewards = rng.standard_normal((60, 4, 3)), 3 + rng.standard_normal((60, 4))
    comparison = rlvar.compare(rlvar.Rollouts(scores, rewards), [*NAMES, "multi-optimal"])
    room, v = rlvar.headroom(comparison), {row.name: row.variance.value for row in comparison}
    assert room.best in ("otb", "multi-optimal")
    assert room.reward_to_go.value == pytest.approx(1 - v["multi"] / v["single"])
    ratio = comparison["multi"].ratio
    assert room.reward_to_go.interval == pytest.approx((1 - ratio.high, 1 - ratio.low))
    assert room.on_top.value == pytest.approx(1 - v[room.best] / v["multi"])
    assert (1 - room.reward_to_go.value) * (1 - room.on_top.value) == pytest.approx(1 - room.removable.value)
    assert f"reward-to-go alone removes {room.reward_to_go}\n" in str(room)
    assert f"the baseline adds {room.on_top} of what reward-to-go leaves\n" in str(room)


def test_only_a_baseline_over_returns_to_go_stands_on_top_of_them(rng):
    scores, rewards = rng.standard_normal((60, 4, 3)), 3 + rng.standard_normal((60, 4))
    rollouts = rlvar.Rollouts(scores, rewards)
    constant = rlvar.headroom(rlvar.compare(rollouts, ["multi", "single-optimal"]))
    assert np.isnan(constant.on_top.value)
    assert constant.reward_to_go.low > 0
    terminal = rlvar.Rollouts(scores, rewards[:, 0])
    for given, names, to in (
        (terminal, ["multi", "otb"], "single"),  # multi is single
        (rollouts, ["otb"], "single"),  # multi is not compared
        (rollouts, ["multi", "otb"], "multi"),
        (rollouts, ["multi", "otb"], "single-mean"),
    ):
        room = rlvar.headroom(rlvar.compare(given, names, reference=to))
        assert np.isnan([room.reward_to_go.value, room.on_top.value]).all()
        assert "reward-to-go" not in str(room)


def test_the_reference_may_be_left_out_of_the_rows(comparison):
    assert rlvar.headroom(comparison.only(["otb"])).removed == {}


def test_what_is_not_removable_beyond_doubt_is_not_divided_by(rng):
    rollouts = rlvar.Rollouts(rng.standard_normal((40, 3, 2)), rng.standard_normal(40))
    room = rlvar.headroom(rlvar.compare(rollouts, ["single", "multi", "single-optimal"]))
    assert room.removable.low < 0
    assert np.isnan(room.removed["multi"].value)
    assert room.to_dict()["removed"]["multi"]["value"] is None


def test_only_comparisons_have_headroom():
    with pytest.raises(TypeError, match="comparison must be a Comparison, got int"):
        rlvar.headroom(5)


def test_with_several_ratios_the_best_is_looked_for_among_all(rng):
    logp = -rng.exponential(1.0, (60, 4))
    stale = {"logp": logp, "behavior_logp": logp + 0.2 * rng.standard_normal((60, 4))}
    rollouts = rlvar.Rollouts(rng.standard_normal((60, 4, 2)), np.full(60, 3.0), **stale)
    result = rlvar.compare(rollouts, ["single", "otb"], importance=["none", "token", "sequence"])
    assert rlvar.headroom(result).best == "otb:sequence"  # the only ratio that leaves the mean alone
    rollouts = rlvar.Rollouts(rollouts.scores, np.full((60, 4), 3.0), **stale)
    room = rlvar.headroom(rlvar.compare(rollouts, ["multi", "otb"], importance=["token", "sequence"]))
    assert room.best == "otb:sequence"
    assert room.on_top.value > 0


def test_baselines_that_were_not_compared_or_bias_the_mean_are_refused(rng):
    rollouts = rlvar.Rollouts(
        rng.standard_normal((40, 3, 2)), rng.standard_normal(40), lengths=rng.integers(1, 4, 40)
    )
    with pytest.raises(ValueError, match=r"must have one of single-optimal, .* too, got single, multi"):
        rlvar.headroom(rlvar.compare(rollouts, ["single", "multi"]))
    with pytest.raises(ValueError, match="the baselines compared estimate another mean gradient than single"):
        rlvar.headroom(rlvar.compare(rollouts, ["single", "otb"], aggregation="sequence-mean"))


def test_what_is_left_of_a_gain_in_small_batches_is_a_share_of_the_same(rng):
    scores, rewards = rng.standard_normal((300, 4, 3)), 3 + rng.standard_normal((300, 4))
    names = [*NAMES, *(rlvar.estimator("otb", batch_size=size) for size in (20, 64))]
    comparison = rlvar.compare(rlvar.Rollouts(scores, rewards), names)
    room, v = rlvar.headroom(comparison), {row.name: row.variance.value for row in comparison}
    assert room.best == "otb"
    assert list(room.in_batches) == [20, 64]
    for size, share in room.in_batches.items():
        assert share.value == pytest.approx(1 - v[f"otb(batch_size={size})"] / v["multi"])
    assert room.in_batches[20].value < room.in_batches[64].value < room.on_top.value
    assert not any("batch" in name for name in room.removed)
    assert f"fitted to batches of 20: {room.in_batches[20]}\n" in str(room)
    assert room.to_dict()["in_batches"]["64"]["value"] == room.in_batches[64].value
