"""What rewards alone tell, against definitions by loops and against worlds whose components are known."""

import itertools
import json

import numpy as np
import pytest

import rlvar


def recorded(rewards, groups=None, **others):
    groups = None if groups is None else np.asarray(groups)
    return rlvar.RecordedRollouts("mine", "mine", np.asarray(rewards, float), groups=groups, **others)


def of_prompts(rng, prompts=60, completions=8):
    chance = rng.beta(0.5, 0.5, prompts)
    return recorded(
        rng.random((prompts, completions)).T.ravel() < np.tile(chance, completions),
        np.tile(np.arange(prompts), completions),
    )


def test_dead_groups_are_counted_and_told_apart_by_their_reward():
    report = rlvar.report_rewards(recorded([0, 0, 1, 1, 0, 1, 0.5, 0.5, 1], [0, 0, 1, 1, 2, 2, 3, 3, 4]))
    assert (report.groups, report.dead_groups, report.dead_at_least, report.dead_at_most) == (5, 3, 1, 1)
    assert "3 of 5 groups are dead (60%, 1 with all rewards at the least (0) and 1 " in report.verdict[0]


def test_components_are_those_of_a_gradient_whose_scores_are_1(rng):
    data = of_prompts(rng)
    report = rlvar.report_rewards(data)
    rollouts = rlvar.Rollouts(np.ones((480, 1, 1)), data.rewards, groups=data.groups)
    expected = rlvar.prompt_components(rollouts)
    assert (report.within, report.between) == (expected.within, expected.between)
    for row in report.completions:
        assert row.variance == expected.batch_variance(1, row.completions)
    assert [row.completions for row in report.completions] == [1, 2, 4, 8, 16, 32]
    whole = expected.within.value + expected.between.value
    assert report.between_share.value == pytest.approx(expected.between.value / whole)


def test_shares_of_dead_groups_with_fewer_completions_are_those_of_all_subsets(rng):
    data = recorded(rng.integers(0, 3, 36), np.repeat(np.arange(6), 6))
    found = {row.completions: row.dead for row in rlvar.report_rewards(data).completions}
    for k in (3, 6):
        shares = []
        for group in data.rewards.reshape(6, 6):
            subsets = list(itertools.combinations(group, k))
            shares.append(np.mean([len(set(subset)) == 1 for subset in subsets]))
        assert found[k] == pytest.approx(np.mean(shares))
    assert found[1] is None
    assert found[12] is None


def test_the_share_between_prompts_is_covered_in_a_known_world(rng):
    # p ~ Beta(1/2, 1/2): Var p = 1/8 of E p (1 - p) + Var p = 1/4.
    ends = [rlvar.report_rewards(of_prompts(rng)).between_share for _ in range(200)]
    assert 0.90 < np.mean([end.low <= 0.5 <= end.high for end in ends]) <= 1


def test_filtered_groups_are_said(rng):
    data = of_prompts(rng, 200, 4)
    wins = np.bincount(data.groups, data.rewards)
    kept = np.isin(data.groups, np.flatnonzero((wins > 0) & (wins < 4)))
    report = rlvar.report_rewards(recorded(data.rewards[kept], data.groups[kept]))
    assert report.filtered
    assert "they seem to have been kept by their outcome" in report.verdict[0]


def test_what_is_missing_is_said():
    alone = rlvar.report_rewards(recorded([0, 1, 2]))
    assert "There are no groups" in alone.verdict[0]
    assert "need token ids or text, which the file lacks" in alone.verdict[-1]
    text = rlvar.report_rewards(recorded([0, 1], texts=[("a", "b")] * 2))
    assert "rlvar report mine --model MODEL computes them from the text" in text.verdict[-1]


def test_rewards_that_are_all_equal_teach_nothing():
    for groups in (None, [0, 0, 1, 1]):
        report = rlvar.report_rewards(recorded([1, 1, 1, 1], groups))
        assert report.verdict[0] == "All rewards are 1: there is nothing to learn from them."
        assert len(report.verdict) == 2


def test_few_groups_resolve_no_share():
    verdict = " ".join(rlvar.report_rewards(recorded(np.arange(5.0), [0, 0, 1, 1, 2])).verdict)
    assert "not resolved with these 3 groups" in verdict


def test_every_number_is_in_the_json_and_finite(rng):
    for report in (
        rlvar.report_rewards(of_prompts(rng)),
        rlvar.report_rewards(recorded([1.0, 2.0])),
        rlvar.report_rewards(recorded([3.0] * 4, [0, 0, 1, 1])),
        rlvar.report_rewards(recorded([3.0, 4.0], [0, 0])),
    ):
        fields = json.loads(json.dumps(report.to_dict(), allow_nan=False))
        assert fields["verdict"] == report.verdict
        assert fields["mean"]["value"] == report.mean.value
        assert str(report) == repr(report)


def test_other_things_are_refused():
    with pytest.raises(TypeError, match="recorded must be a RecordedRollouts, got list"):
        rlvar.report_rewards([1.0, 2.0])
    with pytest.raises(ValueError, match="mine: two rollouts or more are needed, got 1"):
        rlvar.report_rewards(recorded([1.0]))
