"""What the report says of other prompts x completions."""

import json

import numpy as np
import pytest

import rlvar
from rlvar.reporting.planning import plan_sentences, plan_table
from rlvar.reporting.words import long_name
from sentences import told


def bandits(rng, prompts=40, completions=8, between=3.0):
    """Rewards with an offset of their prompt, and a gradient of its own for each."""
    scores = rng.standard_normal((prompts, completions, 4))
    own = rng.standard_normal((prompts, 1, 4))
    rewards = between * (scores * own).sum(axis=-1) + rng.standard_normal((prompts, completions))
    groups = np.arange(prompts).repeat(completions)
    return rlvar.Rollouts(scores.reshape(-1, 1, 4), rewards.ravel(), groups=groups)


@pytest.fixture(scope="module")
def report():
    return rlvar.report(bandits(np.random.default_rng(0)))


def test_the_verdict_says_what_the_best_shape_of_the_same_rollouts_would_do(report):
    plan, text = report.plans["rloo"], told(report)
    gain = plan.gain
    assert gain.low > 1
    assert plan.budget == 320
    assert (
        f"For the same 320 rollouts, {plan.prompts} prompts x {plan.completions} completions would have "
        f"{1 / gain.value:.2g} times the variance of 40 x 8 with RLOO (95% interval {1 / gain.high:.2g} to "
        f"{1 / gain.low:.2g}). " in text
    )
    single = report.plans["single"].gain
    assert (
        f"With single-step, 320 prompts x 1 completion would have {1 / single.value:.2g} times the variance "
        f"of 40 x 8 with RLOO (95% interval {1 / single.high:.2g} to {1 / single.low:.2g})." in text
    )


def test_estimators_of_one_mean_are_planned_beside_the_reference_and_grpo_beside_itself(report):
    single, grpo = report.plans["single"], report.plans["grpo"]
    assert single.beside
    assert not grpo.beside
    (now,) = [each for each in single.options if each.completions == 8]
    ratio = report.comparison["single"].ratio
    assert 1 / now.gain.value == pytest.approx(ratio.value)
    assert 1 / now.gain.high == pytest.approx(ratio.low)
    assert 1 / now.gain.low == pytest.approx(ratio.high)
    (own,) = [each for each in grpo.options if each.completions == 8]
    assert own.gain.value == 1
    assert "dr-grpo" not in report.plans  # as RLOO's
    assert "in units of its own mean gradient" in told(report)


def test_the_table_has_each_shape_and_marks_the_one_in_use(report):
    lines = plan_table(report.plans, "rloo").splitlines()
    assert "Variance of the mean gradient of 320 rollouts, over that of rloo now" in lines[0]
    assert "grpo, to itself" in lines[1]
    (now,) = [line for line in lines if "  now" in line]
    assert now.strip().startswith("40 x 8")
    shapes = [line.split("  ")[1] for line in lines[2:]]
    assert shapes[0] == "320 x 1"
    assert len(shapes) <= 13
    assert "\n".join(lines) in report.text(full=True)


def test_the_numbers_are_in_the_json(report):
    plans = json.loads(json.dumps(report.to_dict(), allow_nan=False))["plans"]
    assert plans["rloo"]["completions"] == report.plans["rloo"].completions
    assert plans["rloo"]["options"][0]["gain"]["value"] == report.plans["rloo"].gain.value


def test_what_the_groups_do_not_tell_is_called_not_resolved():
    rng = np.random.default_rng(4)
    noise = rlvar.Rollouts(
        rng.standard_normal((32, 1, 3)), rng.standard_normal(32) + 1, groups=np.arange(32) // 4
    )
    with pytest.warns(UserWarning, match="only 8 groups"):
        report = rlvar.report(noise)
    plan = report.plans["rloo"]
    assert plan.completions == 4
    text = told(report)
    assert (
        "For the same 32 rollouts, whether another number of completions would be quieter than 8 x 4 " in text
    )
    assert "with RLOO is not resolved" in text


def test_nothing_is_planned_without_groups_that_tell(rng):
    scores, rewards = rng.standard_normal((24, 2, 3)), rng.standard_normal(24)
    for groups in (None, np.arange(24)):  # of one rollout each
        report = rlvar.report(rlvar.Rollouts(scores, rewards, groups=groups))
        assert report.plans == {}
        assert "For the same" not in told(report)
    two = rlvar.Rollouts(scores, rewards, groups=np.arange(24) // 12)
    with pytest.warns(UserWarning, match="only 2 groups"):
        assert rlvar.report(two).plans == {}
    pairs = rlvar.report(rlvar.Rollouts(scores, rewards, groups=np.arange(24) // 2))
    assert set(pairs.plans) == {"single", "grpo"}  # RLOO takes four
    assert "to itself" not in plan_table(pairs.plans, "rloo")


def test_nothing_is_planned_where_groups_were_kept_by_their_outcome():
    rng = np.random.default_rng(2)
    rewards = np.array([rng.permutation([1, 0, 0, 0, 0, 0, 0, 0]) for _ in range(60)], float).ravel()
    rollouts = rlvar.Rollouts(rng.standard_normal((480, 1, 3)), rewards, groups=np.arange(480) // 8)
    report = rlvar.report(rollouts)
    assert report.sampling.filtered
    assert report.plans == {}


def test_dead_groups_alone_have_another_reference_and_no_plan_of_rloo(rng):
    groups = np.arange(48) // 4
    rollouts = rlvar.Rollouts(rng.standard_normal((48, 1, 3)), 1.0 + rng.random(12)[groups], groups=groups)
    report = rlvar.report(rollouts)
    assert report.comparison.reference == "single"
    assert set(report.plans) == {"single"}
    assert "RLOO does not vary over these rollouts; single-step does." in told(report)


def test_a_gain_without_an_interval_is_not_told():
    rng = np.random.default_rng(0)
    plan = rlvar.plan(bandits(rng, prompts=2), "single", budget=16)
    (sentence,) = plan_sentences({"single": plan}, "single", ["single"], long_name)
    assert sentence.endswith("would be quieter than 2 x 8 with single-step is not resolved.")


def test_a_rare_shape_is_left_out_of_the_table():
    found = rlvar.plan(bandits(np.random.default_rng(0)), "single", budget=5040)
    assert len(found.options) > 30
    assert len(plan_table({"single": found}, "single").splitlines()) <= 15


def test_unequal_groups_are_planned_by_their_mean_size_and_grpo_by_the_smallest():
    rng = np.random.default_rng(0)
    sizes = rng.integers(4, 9, 30)
    groups = np.arange(30).repeat(sizes)
    rollouts = rlvar.Rollouts(
        rng.standard_normal((len(groups), 1, 3)), rng.random(len(groups)), groups=groups
    )
    report = rlvar.report(rollouts)
    assert report.plans["rloo"].in_use == round(sizes.mean())
    assert report.plans["rloo"].budget == 30 * round(sizes.mean())
    assert report.plans["grpo"].in_use == 4
    assert "grpo" not in plan_table(report.plans, "rloo").splitlines()[1]
