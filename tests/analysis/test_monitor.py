"""A monitor says of all its steps what one batch of them all would say."""

import json
import pickle
import sys
import threading
import warnings

import numpy as np
import pytest

import rlvar

NAMES = ("single", "rloo", "grpo", "dr-grpo")


def draw(rng, groups=8, size=6, d=12, steps=1, signal=0.4, uneven=False, reward=None):
    """Rollouts of one training step: normal scores, rewards that depend on the first coordinates."""
    labels = np.repeat(np.arange(groups), rng.integers(4, size + 3, groups) if uneven else size)
    n = len(labels)
    scores = rng.standard_normal((n, steps, d))
    if reward is None:
        reward = signal * scores[:, :, 0].sum(axis=1) + rng.standard_normal(groups)[labels]
        reward = reward + rng.standard_normal(n)
    return rlvar.Rollouts(scores, reward, groups=labels)


def fed(rollouts, estimators=NAMES, **options):
    monitor = rlvar.Monitor(estimators, **{"window": 100, **options})
    for each in rollouts:
        monitor.update(each)
    return monitor


@pytest.fixture(scope="module")
def steps():
    rng = np.random.default_rng(0)
    return [draw(rng) for _ in range(20)]


@pytest.fixture(scope="module")
def monitor(steps):
    return fed(steps)


def plain(rollouts, name):
    """Variance and signal of one step by definition, and its unit gradients."""
    labels = rollouts.groups
    w = rlvar.estimator(name).weights(rollouts)
    g = (w[:, :, None] * rollouts.scores).sum(axis=1)
    sums = np.stack([g[labels == u].sum(axis=0) for u in range(labels.max() + 1)])
    sizes = np.bincount(labels)
    mean = sums.sum(axis=0) / sizes.sum()
    y = (sums - sizes[:, None] * mean) / sizes.mean()
    v = np.square(y).sum() / (len(y) - 1)
    return v, mean @ mean - v / len(y)


def test_variances_and_signals_are_means_over_steps_of_the_unbiased_ones(steps, monitor):
    for name in NAMES:
        v, s = np.transpose([plain(each, name) for each in steps])
        assert monitor[name].variance.value == pytest.approx(v.mean(), rel=1e-12)
        if name in ("grpo", "single"):
            base = np.mean([plain(each, "rloo")[0] for each in steps])
            assert monitor[name].ratio.value == pytest.approx(v.mean() / base, rel=1e-12)
        if name in ("rloo", "grpo"):
            assert monitor[name].signal.value == pytest.approx(s.mean(), rel=1e-9)
            assert monitor[name].noise_scale.value == pytest.approx(v.mean() / s.mean(), rel=1e-9)
    assert monitor.reference == "rloo"
    assert monitor["single"].signal == monitor["rloo"].signal  # one mean: that of the quieter
    assert monitor["dr-grpo"].factor == pytest.approx(5 / 6, rel=1e-9)
    assert (monitor.unit, monitor.units, monitor.batch_units, monitor.steps) == ("group", 8, 8, 20)


def test_it_says_of_one_step_what_compare_says(steps):
    one, batch = fed(steps[:1]), rlvar.compare(steps[0], NAMES, reference="rloo")
    for row in one:
        assert row.variance.value == pytest.approx(batch[row.name].variance.value, rel=1e-12)
        assert row.ratio.value == pytest.approx(batch[row.name].ratio.value, rel=1e-12)
        assert row.noise_scale.value == pytest.approx(batch[row.name].noise_scale.value, rel=1e-9)
        assert np.isnan(row.variance.low)
        assert row.unbiased == batch[row.name].unbiased


def test_steps_count_by_their_degrees_of_freedom():
    rng = np.random.default_rng(1)
    steps = [draw(rng, groups=u) for u in (3, 9, 5)]
    v, _ = np.transpose([plain(each, "rloo") for each in steps])
    assert fed(steps)["rloo"].variance.value == pytest.approx((v * [2, 8, 4]).sum() / 14, rel=1e-12)
    decayed = fed(steps, window=None, decay=0.5)
    w = np.array([2, 8, 4]) * [0.25, 0.5, 1.0]
    assert decayed["rloo"].variance.value == pytest.approx((v * w).sum() / w.sum(), rel=1e-12)
    last = fed(steps, window=2)
    assert last["rloo"].variance.value == pytest.approx((v * [0, 8, 4]).sum() / 12, rel=1e-12)
    assert last.steps == 3


def test_the_interval_shrinks_with_the_steps_and_holds_the_truth():
    rng, d, k, signal = np.random.default_rng(2), 12, 6, 0.4
    a = signal**2 * (d + 1) + d
    truth = a / (k - 1) / signal**2  # V / |mu|^2 of rloo
    monitor, widths = rlvar.Monitor(["rloo"]), []
    for step in range(50):
        monitor.update(draw(rng, d=d, size=k, signal=signal, groups=16))
        if step in (9, 49):
            x = monitor["rloo"].noise_scale
            assert x.low < truth < x.high
            widths.append(np.log(x.high / x.low))
    assert widths[1] < 0.7 * widths[0]


@pytest.mark.parametrize("uneven", [False, True])
def test_shards_of_the_same_steps_give_what_one_process_has(uneven):
    rng = np.random.default_rng(3)
    steps = [draw(rng, uneven=uneven, steps=4) for _ in range(12)]
    whole = fed(steps).metrics()
    parts = [fed([each[each.groups < cut] for each in steps]) for cut in (3,)]
    parts += [fed([each[(each.groups >= 3) & (each.groups < 4)] for each in steps[:0]])]
    parts += [fed([each[each.groups >= 3] for each in steps])]
    merged = parts[0].merge(parts[1]).merge(parts[2])
    assert merged.metrics().keys() == whole.keys()
    for key, value in merged.metrics().items():
        assert value == pytest.approx(whole[key], rel=1e-12, abs=1e-13), key
    assert {"best_prompts", "growth_exponent", "mean_score", "ratio/grpo", "reward"} <= whole.keys()


def test_shards_of_one_group_each_make_a_step():
    rng = np.random.default_rng(4)
    steps = [draw(rng, groups=3) for _ in range(9)]
    shards = []
    for u in range(3):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            shards.append(fed([each[each.groups == u] for each in steps]))
    found, whole = shards[0].merge(shards[1]).merge(shards[2]), fed(steps)
    for row in whole:
        assert found[row.name].noise_scale.high == pytest.approx(row.noise_scale.high, rel=1e-11)
    assert found.plan().gain.value == pytest.approx(whole.plan().gain.value, rel=1e-12)


def test_a_second_update_of_a_step_adds_a_shard(steps):
    one = rlvar.Monitor(NAMES)
    for step, each in enumerate(steps):
        one.update(each[each.groups < 3], step=step)
        one.update(each[each.groups >= 3], step=step)
    assert one.steps == 20
    whole = fed(steps)
    assert one["grpo"].ratio.low == pytest.approx(whole["grpo"].ratio.low, rel=1e-12)
    assert [each["step"] for each in one.history] == list(range(20))


def test_other_steps_are_joined(steps):
    first, second = fed(steps[:12], window=8), rlvar.Monitor(NAMES, window=8)
    for number, each in enumerate(steps[12:], 13):
        second.update(each, step=number)
    whole = fed(steps, window=8)
    for joined in (first.merge(second), second.merge(first)):
        assert joined["single"].ratio == whole["single"].ratio
        assert joined.steps == 20
        assert joined.on_policy == whole.on_policy


def test_what_does_not_merge_is_refused(steps):
    a, b = fed(steps[:3], ["rloo", "single-mean"]), fed(steps[:3], ["rloo", "single-mean"])
    with pytest.raises(ValueError, match="single-mean"):
        a.merge(b)
    a, b = fed(steps, window=5), fed(steps[17::-1], window=5)
    with pytest.raises(ValueError, match="have left the window"):
        a.merge(b)
    with pytest.raises(ValueError, match="got this one itself"):
        a.merge(a)
    with pytest.raises(ValueError, match=r"have the same rollouts at step .: shards must be disjoint"):
        fed(steps[:3]).merge(fed(steps[:3]))
    with pytest.raises(ValueError, match="window"):
        a.merge(fed(steps, window=6))
    with pytest.raises(ValueError, match="estimators"):
        a.merge(fed(steps, ["rloo"], window=5))
    with pytest.raises(TypeError, match="Monitor"):
        a.merge(steps)
    rng = np.random.default_rng(5)
    wide = [rlvar.Monitor() for _ in range(2)]
    for each in wide:
        each.update({"a": np.broadcast_to(rng.standard_normal((2, 1)), (2, 5_000_000)).astype(np.float32)})
    with pytest.raises(ValueError, match="sketch"):
        wide[0].merge(wide[1])


def test_a_state_and_a_pickle_go_on_with_the_same_bits(steps, tmp_path):
    before = fed(steps[:10], window=8)
    again = [pickle.loads(pickle.dumps(before)), rlvar.Monitor.from_state(before.state_dict())]
    for each in (before, *again):
        for rollouts in steps[10:]:
            each.update(rollouts)
    for each in again:
        assert each.metrics() == before.metrics()
        assert each.history == before.history
        assert repr(each) == repr(before)
    flat = json.dumps(before.state_dict(), default=lambda x: x.tolist())
    assert len(flat) > 1000
    with pytest.raises(ValueError, match="state"):
        rlvar.Monitor.from_state({"version": 0})


def test_weights_of_your_own_are_given_again(steps):
    mine = ("mine", lambda rollouts: rollouts.rewards)
    monitor = fed(steps, ["rloo", mine])
    state = monitor.state_dict()
    with pytest.raises(ValueError, match="mine"):
        rlvar.Monitor.from_state(state)
    again = rlvar.Monitor.from_state(state, ["rloo", mine])
    again.update(steps[0])
    assert again.steps == 21
    with pytest.raises(TypeError, match="function"):
        rlvar.Monitor([("mine", np.ones(48))]).update(steps[0])


def test_gradients_give_what_rollouts_give(steps, monitor):
    other = rlvar.Monitor(window=100)
    for each in steps:
        found = {}
        for name in NAMES:
            g = (rlvar.estimator(name).weights(each)[:, :, None] * each.scores).sum(axis=1)
            found[name] = np.stack([g[each.groups == u].mean(axis=0) for u in range(8)])
        other.update(found, unbiased=("single", "rloo"), sizes=np.full(8, 6))
    for row in other:
        assert row.noise_scale.interval == pytest.approx(monitor[row.name].noise_scale.interval, rel=1e-9)
    assert other.unit == "group"
    assert other.plan() is None
    assert other.growth is None
    assert other.on_policy.on_policy is None


def test_inner_products_give_what_gradients_give():
    rng = np.random.default_rng(6)
    a, b = rlvar.Monitor(), rlvar.Monitor()
    for _ in range(10):
        x = rng.standard_normal((5, 40)) + 0.3
        y = x + rng.standard_normal((5, 40))
        a.update({"x": x, "y": y})
        b.update({"x": x @ x.T, "y": y @ y.T, ("x", "y"): x @ y.T}, gram_of=40)
    for row in a:
        assert b[row.name].ratio.interval == pytest.approx(row.ratio.interval, rel=1e-6)
        assert b[row.name].signal.interval == pytest.approx(row.signal.interval, rel=1e-6)


def test_the_batch_in_use_may_be_larger_than_the_step():
    rng = np.random.default_rng(7)
    monitor = rlvar.Monitor(["rloo"])
    for _ in range(10):
        monitor.update(draw(rng, signal=1.0), batch=96)
    assert monitor.batch_units == 16
    x = monitor["rloo"].noise_scale
    assert monitor.enough.value == pytest.approx(16 / x.value)
    assert monitor.enough.interval == pytest.approx((16 / x.high, 16 / x.low))
    assert monitor.plan().budget == 96


def test_steps_without_variance_count_and_steps_of_one_group_do_not():
    rng = np.random.default_rng(8)
    alive = [draw(rng) for _ in range(9)]
    dead = draw(rng, reward=np.ones(48))
    v = np.mean([plain(each, "rloo")[0] for each in alive])
    monitor = fed([*alive, dead], ["rloo", "grpo"])
    assert monitor["rloo"].variance.value == pytest.approx(0.9 * v, rel=1e-12)
    only = fed([dead] * 9, ["rloo", "grpo"])
    assert only["rloo"].variance.value == 0
    assert np.isnan(only["grpo"].ratio.value)
    assert "noise_scale" not in only.metrics()
    assert "rloo" in repr(only)
    before = fed(alive, ["rloo"])
    with pytest.warns(UserWarning, match="one group"):
        before.update(draw(rng, groups=1))
    before.update(draw(rng, groups=1))  # told once
    assert before["rloo"].variance.value == pytest.approx(v, rel=1e-12)
    assert before.steps == 11


def test_a_refused_step_changes_nothing(steps):
    monitor = fed(steps[:9])
    before = monitor.metrics()
    s, r, labels = steps[0].scores, steps[0].rewards, steps[0].groups
    bad = [
        (np.zeros(3), {}, TypeError, "what must be"),
        ({"rloo": np.ones((4, 2))}, {}, TypeError, "two monitors"),
        (steps[0], {"step": 3}, ValueError, "step"),
        (steps[0], {"batch": 0}, ValueError, "batch"),
        (steps[0], {"sizes": np.ones(8)}, TypeError, "sizes"),
        (rlvar.Rollouts(s, r), {}, ValueError, "units"),
        (rlvar.Rollouts(s, r, groups=labels, scores_of="the head"), {}, ValueError, "scores_of"),
        (rlvar.Rollouts(s * np.nan, r, groups=labels), {}, ValueError, "scores"),
    ]
    for what, options, error, match in bad:
        with pytest.raises(error, match=match):
            monitor.update(what, **options)
    assert monitor.metrics() == before
    fresh = rlvar.Monitor()
    with pytest.raises(ValueError, match="scores"):
        fresh.update(bad[-1][0])
    fresh.update({"a": np.ones((3, 2)), "b": np.ones((3, 2))})
    assert [row.name for row in fresh] == ["a", "b"]
    with pytest.raises(ValueError, match="gradients must have a, b"):
        fresh.update({"a": np.ones((3, 2))})


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"window": 0}, "window"),
        ({"window": 10, "decay": 0.9}, "window or decay, not both"),
        ({"decay": 1.0}, "decay"),
        ({"confidence": 1.0}, "confidence"),
        ({"estimators": ["nothing"]}, "nothing"),
    ],
)
def test_options_are_checked(options, match):
    with pytest.raises(ValueError, match=match):
        rlvar.Monitor(**options)


def test_what_is_compared_by_default():
    rng = np.random.default_rng(9)
    grouped, alone = draw(rng), rng.standard_normal((10, 3, 2))
    monitor = fed([grouped], None)
    assert [row.name for row in monitor] == ["single", "rloo", "grpo", "dr-grpo"]
    assert monitor.reference == "rloo"
    monitor = fed([rlvar.Rollouts(alone, rng.standard_normal((10, 3)))], None)
    assert [row.name for row in monitor] == ["single", "multi"]
    assert (monitor.reference, monitor.unit) == ("single", "rollout")
    assert monitor.plan() is None
    other = fed([grouped], ["grpo"], reference="dr-grpo")
    assert [row.name for row in other] == ["grpo"]
    assert other["grpo"].ratio.value > 0
    empty = rlvar.Monitor()
    assert empty.metrics() == {"steps": 0.0}
    assert (len(empty), empty.history, "grpo" in empty) == (0, [], False)
    assert "nothing" in repr(empty)
    with pytest.raises(KeyError, match="none yet"):
        empty["grpo"]


def test_rollouts_of_several_episodes_are_watched_as_far_as_they_tell(rng):
    ends = np.zeros((12, 6), bool)
    ends[::3, 2] = True
    steps = rng.standard_normal((12, 6, 2)), rng.standard_normal((12, 6))
    rollouts = rlvar.Rollouts(*steps, terminated=ends, groups=np.arange(12) // 4)
    monitor = fed([rollouts] * 2, None)
    assert [row.name for row in monitor] == ["single", "multi"]
    assert not rlvar.report(rollouts).plans


def test_a_plan_is_that_of_the_pooled_components():
    rng = np.random.default_rng(10)
    steps = [draw(rng, signal=1.0) for _ in range(10)]
    monitor = fed(steps, ["single", "rloo"])
    parts = [rlvar.prompt_components(each, "rloo") for each in steps]
    plan = monitor.plan(budget=48)
    for option in plan.options:
        expected = np.mean([each.batch_variance(option.prompts, option.completions).value for each in parts])
        assert option.variance.value == pytest.approx(expected, rel=1e-9)
    best = fed(steps, ["single"]).plan(budget=48)
    assert (best.in_use, best.prompts * best.completions) == (6, 48)


def test_growth_is_the_slope_of_the_first_terms():
    rng = np.random.default_rng(11)
    steps = [draw(rng, steps=16, signal=0.0) for _ in range(12)]
    monitor = fed(steps, ["single"])
    # R does not depend on the scores: the variance of the first k terms is k times that of one.
    assert monitor.growth.low < 1 < monitor.growth.high
    assert monitor.growth.high - monitor.growth.low < 0.2
    assert fed([draw(rng)] * 9).growth is None


def test_a_filter_is_told_from_all_steps():
    rng = np.random.default_rng(15)
    kept = []
    for _ in range(9):
        reward = np.zeros((40, 4))
        reward[:, 0] = 1  # one success in each group, as if dead groups had been dropped
        kept.append(draw(rng, groups=40, size=4, reward=reward.ravel()))
    filtered = fed(kept, ["single", "rloo"])
    assert filtered["rloo"].unbiased
    assert not filtered["single"].unbiased  # what is common to groups is in its mean
    dead = draw(rng, groups=40, size=4, reward=np.repeat(np.arange(40) % 2, 4).astype(float))
    assert fed([*kept, dead], ["single", "rloo"])["single"].unbiased


def test_another_policy_is_found_and_the_alarm_stays():
    rng = np.random.default_rng(12)
    monitor = rlvar.Monitor(["single"], window=5)
    for step in range(80):
        off = 0.3 if 20 <= step < 60 else 0.0
        scores = rng.standard_normal((20, 2, 3)) + off
        monitor.update(rlvar.Rollouts(scores, rng.standard_normal(20)))
        if step == 19:
            assert monitor.on_policy.on_policy is True
            assert monitor.on_policy.mean_score.low < 0 < monitor.on_policy.mean_score.high
    test = monitor.on_policy
    assert test.on_policy is False
    assert 20 < test.since < 60
    assert monitor.metrics()["on_policy"] == 0
    assert f"since step {test.since}" in repr(monitor)
    assert 0 < test.unseen_share < 1
    assert json.loads(json.dumps(test.to_dict()))["since"] == test.since


def test_memory_is_constant_and_history_is_thinned():
    rng = np.random.default_rng(13)
    monitor = rlvar.Monitor(window=10)
    sizes = []
    for step in range(1, 651):
        x = rng.standard_normal((3, 4))
        monitor.update({"a": x}, step=step)
        if step in (300, 600):
            sizes.append(len(pickle.dumps(monitor)))
    assert len(monitor._records) == 10
    numbers = [each["step"] for each in monitor.history]
    assert numbers[-1] == 650  # the last of all, and every second one
    assert len(numbers) <= 513
    assert set(np.diff(numbers[:-1])) == {2.0}
    assert sizes[1] < 1.1 * sizes[0]


def test_two_threads_do_not_corrupt_it(steps):
    monitor = rlvar.Monitor(["rloo"], window=10)
    failed = []

    def feed():
        try:
            for each in steps[:5]:
                monitor.update(each)
                monitor.metrics()
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=feed) for _ in range(4)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for each in threads:
            each.start()
        for each in threads:
            each.join()
    finally:
        sys.setswitchinterval(interval)
    assert not failed
    assert monitor.steps == 20
    assert [r.step for r in monitor._records] == list(range(11, 21))


def test_the_mean_of_ratios_would_say_nothing():
    rng = np.random.default_rng(14)
    steps = [draw(rng, groups=4, size=16, d=60, signal=0.7) for _ in range(50)]
    ratios = np.array([np.divide(*plain(each, "rloo")) for each in steps])
    truth = (0.49 * 61 + 60) / 15 / 0.49
    found = fed(steps, ["rloo"])["rloo"].noise_scale
    assert (ratios < 0).any()
    assert found.low < truth < found.high
    assert abs(found.value / truth - 1) < 0.3
    assert not abs(ratios.mean() / truth - 1) < 0.3


def test_a_state_is_plain_and_goes_through_json(monitor):
    state = json.loads(json.dumps(monitor.state_dict()))
    again = rlvar.Monitor.from_state(state)
    assert again.metrics() == monitor.metrics()
    assert again.history == monitor.history
    assert repr(again) == repr(monitor)
    del state["every"]
    with pytest.raises(ValueError, match="state is not what state_dict of a Monitor returned: KeyError"):
        rlvar.Monitor.from_state(state)


def test_what_rests_on_an_unresolved_signal_is_logged_by_its_bounds_alone():
    rng = np.random.default_rng(5)
    metrics = fed([draw(rng, signal=0.0) for _ in range(20)]).metrics()
    assert {"noise_scale", "batch_over_noise_scale"}.isdisjoint(metrics)
    assert metrics["noise_scale/low"] > 0
    assert metrics["batch_over_noise_scale/high"] > 0
    assert "batch_over_noise_scale/low" not in metrics


def test_a_few_steps_log_and_show_no_noise_scale_below_zero():
    rng = np.random.default_rng(0)
    monitor = next(m for m in (fed([draw(rng, signal=0.0)]) for _ in range(50)) if m["rloo"].signal.value < 0)
    assert {"noise_scale", "batch_over_noise_scale"}.isdisjoint(monitor.metrics())
    assert "noise scale is not resolved" in repr(monitor)


def test_no_step_merges_with_a_copy_of_itself_though_all_rewards_are_one():
    monitor = rlvar.Monitor(["rloo"])
    for scores in np.random.default_rng(1).standard_normal((3, 32, 1, 12)):
        monitor.update(rlvar.Rollouts(scores, np.ones(32), groups=np.arange(32) // 4))
    with pytest.raises(ValueError, match="both have the same rollouts at step 1"):
        monitor.merge(pickle.loads(pickle.dumps(monitor)))


def test_steps_of_one_group_count_for_nothing_but_rewards():
    rng = np.random.default_rng(6)
    several, alone = [draw(rng) for _ in range(9)], [draw(rng, groups=1) for _ in range(9)]
    with pytest.warns(UserWarning, match="one group only"):
        both = fed([*several, *alone])
    assert (both.units, both.batch_units, both.pooled) == (8, 8, 9)
    assert "18 steps of 8 groups, 9 pooled" in repr(both)
    report = both.report()
    assert "over 9 monitored steps of two or more groups" in report.verdict[0]
    assert "18 monitored steps, of which 9," in str(report)
    assert both["rloo"].noise_scale.value == pytest.approx(fed(several)["rloo"].noise_scale.value)
