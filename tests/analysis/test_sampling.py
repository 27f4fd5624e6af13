import json

import numpy as np
import pytest

import rlvar
from rlvar.analysis.sampling import chance_of_no_dead_group, kept_noise_scale, sampling_of
from rlvar.weights.batch import Batch
from sentences import told


def sampling(scores, rewards, **options):
    return sampling_of(Batch.of(rlvar.Rollouts(scores, rewards, **options)))


def verdict(scores, rewards, estimators=("single", "multi"), **options):
    report = rlvar.report(rlvar.Rollouts(scores, rewards, **options), list(estimators))
    return told(report)


def tokens(rng, n, steps, vocabulary=3):
    """Scores and rewards of a policy with few rollouts, which repeat by chance."""
    chosen = rng.integers(0, vocabulary, (n, steps))
    return np.eye(vocabulary)[chosen] - 1 / vocabulary, chosen.sum(axis=1) % 2.0


@pytest.mark.parametrize("order", ["epochs", "one after the other", "shuffled"])
@pytest.mark.parametrize("times", [2, 4])
def test_copies_of_rollouts_are_counted_and_told(rng, order, times):
    scores, rewards = rng.standard_normal((30, 4, 3)), rng.standard_normal((30, 4))
    rows = np.tile(np.arange(30), times)
    rows = {"epochs": rows, "one after the other": np.sort(rows), "shuffled": rng.permutation(rows)}[order]
    found = sampling(scores[rows], rewards[rows])
    assert (found.repeated, found.copied, found.distinct) == (30 * (times - 1), True, False)
    text = verdict(scores[rows], rewards[rows])
    assert f"{30 * (times - 1)} of {30 * times} rollouts equal an earlier one in scores and rewards" in text
    assert "they are copies, or share prompts" in text
    assert sampling(scores, rewards).distinct is True
    assert "earlier one" not in verdict(scores, rewards)


@pytest.mark.parametrize("rounding", [1e-7, 1e-3])
def test_copies_whose_scores_were_computed_anew_are_copies(rounding):
    found = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        rows = rng.permutation(np.tile(np.arange(25), 3))
        scores, rewards = rng.standard_normal((25, 4, 3))[rows], rng.integers(0, 2, 25)[rows].astype(float)
        scores *= 1 + rounding * rng.standard_normal(scores.shape)
        found.append(sampling(scores, rewards).repeated)
    assert found == [50] * 20


def test_scores_that_are_close_by_chance_are_no_copies():
    for seed in range(40):
        rng = np.random.default_rng(seed)
        found = sampling(rng.standard_normal((400, 1, 1)), rng.integers(0, 2, 400).astype(float))
        assert found.repeated == 0


@pytest.mark.parametrize("by", ["returns", "gradients"])
def test_prompts_in_a_row_that_share_no_start_are_asked_for(by):
    asked = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        scores, prompts = rng.standard_normal((256, 1, 5)), rng.standard_normal((16, 6)).repeat(16, axis=0)
        of_scores = (prompts[:, :5] * scores[:, 0]).sum(axis=1)
        rewards = of_scores if by == "gradients" else prompts[:, 5] + rng.standard_normal(256)
        found = sampling(scores, rewards)
        assert not sampling(scores, rewards, groups=np.arange(256) // 16).grouped
        shuffled = rng.permutation(256)
        assert not sampling(scores[shuffled], rewards[shuffled]).grouped
        asked.append(found.neighbours and found.grouped)
    assert np.mean(asked) >= 0.75
    assert "share prompts? In the order given, neighbours resemble each other" in verdict(scores, rewards)


@pytest.mark.parametrize("tail", ["normal", "lognormal", "rare"])
def test_independent_rollouts_do_not_resemble_their_neighbours(tail):
    for seed in range(200):
        rng = np.random.default_rng(seed)
        normal = rng.standard_normal(60)
        rewards = {"normal": normal, "lognormal": np.exp(2 * normal), "rare": (normal > 1.8) * 1.0}[tail]
        assert not sampling(rng.standard_normal((60, 1, 3)), rewards).neighbours


def short_answers(rng, prompts, size, answers, certain):
    """Completions of prompts, most of them the prompt's first answer."""
    labels = np.arange(prompts).repeat(size)
    chosen = np.where(rng.random(len(labels)) < certain, 0, rng.integers(0, answers, len(labels)))
    scores = rng.standard_normal((prompts, answers, 2, 3))[labels, chosen]
    return scores, (chosen == 0).astype(float), labels


@pytest.mark.parametrize("certain", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("size", [2, 8])
def test_completions_that_agree_in_their_group_are_no_copies(size, certain):
    for seed in range(40):
        scores, rewards, groups = short_answers(np.random.default_rng(seed), 30, size, 3, certain)
        found = sampling(scores, rewards, groups=groups)
        assert found.repeated > 0
        assert not found.copied


@pytest.mark.parametrize("new_groups", [False, True])
def test_groups_that_are_there_twice_are_copies(rng, new_groups):
    scores, rewards, groups = short_answers(rng, 30, 4, 3, 0.5)
    rows = np.tile(np.arange(120), 2)
    labels = groups[rows] + new_groups * 30 * (np.arange(240) >= 120)
    found = sampling(scores[rows], rewards[rows], groups=labels)
    assert found.copied
    text = verdict(scores[rows], rewards[rows], groups=labels)
    assert "they are copies. Signals, noise scales and intervals" in text


def test_a_few_copies_side_by_side_are_told(rng):
    scores, rewards = rng.standard_normal((200, 4, 3)), rng.standard_normal(200)
    rows = np.sort(np.concatenate([np.arange(200), np.arange(40)]))
    found = sampling(scores[rows], rewards[rows])
    assert (found.repeated, found.copied) == (40, True)
    # Anywhere they may be chance: that they are there is said.
    found = sampling(scores[rng.permutation(rows)], rewards[rows])
    assert found.repeated == 0
    order = rng.permutation(rows)
    found = sampling(scores[order], rewards[order])
    assert (found.repeated, found.copied, found.distinct) == (40, False, None)


@pytest.mark.parametrize("steps", [1, 3, 6])
@pytest.mark.parametrize("n", [12, 40, 400])
def test_rollouts_that_repeat_by_chance_are_not_called_copies_and_their_first_scores_no_groups(steps, n):
    for seed in range(60):
        found = sampling(*tokens(np.random.default_rng(seed), n, steps))
        assert not found.copied
        assert not found.grouped
    assert found.repeated > 0 or 3**steps > n
    assert found.sharing > 0


def test_distinct_rollouts_of_unlike_probabilities_look_like_no_groups():
    # Those that start with 0 have few continuations and come first: distinct ones are not exchangeable.
    rng = np.random.default_rng(0)
    start = rng.integers(0, 2, 2000)
    after = np.where(start == 0, rng.integers(0, 200, 2000), rng.integers(0, 4000, 2000))
    scores = np.stack([start - 0.5, after + 1.0], axis=1)[:, :, None]
    assert not sampling(scores, np.zeros(2000)).grouped


def test_a_repetition_by_chance_is_told_as_one():
    text = verdict(*tokens(np.random.default_rng(0), 60, 3))
    assert "equal an earlier one in scores and rewards. A policy with few possible rollouts repeats" in text


def test_what_is_not_live_makes_no_rollout_another(rng):
    scores, rewards = rng.standard_normal((24, 5, 2)), rng.standard_normal((24, 5))
    lengths = np.tile(rng.integers(1, 5, 12), 2)
    for array in (scores, rewards):
        array[12:] = array[:12]
        dead = np.arange(5) >= lengths[:, None]
        array[dead] = rng.standard_normal(array[dead].shape)
    assert sampling(scores, rewards, lengths=lengths).repeated == 12
    mask = np.arange(5) < lengths[:, None]
    assert sampling(scores, rewards, mask=mask).repeated == 12
    empty = np.where(np.arange(24) % 2, lengths, 0)
    assert sampling(scores, rewards, lengths=empty).repeated == 6
    rewards[0, 0] += 1
    assert sampling(scores, rewards, mask=mask).repeated == 11
    scores[1, 0, 1] = np.nextafter(scores[1, 0, 1], 9.0)
    assert sampling(scores, rewards, mask=mask).repeated == 10


def prompts_without_groups(rng, kind):
    """16 prompts with 16 rollouts each: first scores by prompt and first token, values by prompt."""
    prompt, token = np.repeat(np.arange(16), 16), rng.integers(0, 4, 256)
    scores = rng.standard_normal((256, 5, 6))
    scores[:, 0] = rng.standard_normal((16, 4, 6))[prompt, token]
    values = rng.standard_normal((256, 5))
    values[:, 0] = rng.standard_normal(16)[prompt]
    options = {"values": values} if kind == "values" else {}
    return scores, rng.standard_normal(256), options


@pytest.mark.parametrize("kind", ["scores", "values"])
def test_prompts_without_groups_are_asked_for(rng, kind):
    scores, rewards, options = prompts_without_groups(rng, kind)
    found = sampling(scores, rewards, **options)
    assert found.grouped
    assert found.sharing >= 250
    text = verdict(scores, rewards, **options)
    shared = "first score" if kind == "scores" else "first value"
    assert f"Do these rollouts share prompts? {found.sharing} of 256 share their {shared}" in text
    with_groups = sampling(scores, rewards, groups=np.repeat(np.arange(16), 16), **options)
    assert (with_groups.grouped, with_groups.sharing) == (False, 0)


def test_values_of_prompts_in_turns_are_found_by_their_equal_numbers(rng):
    scores, rewards, options = prompts_without_groups(rng, "values")
    order = np.argsort(np.tile(np.arange(16), 16), kind="stable")
    options["values"] = options["values"][order]
    assert sampling(scores, rewards, **options).grouped


def test_one_start_for_all_or_few_at_random_are_no_prompts():
    for seed in range(60):
        rng = np.random.default_rng(seed)
        values = rng.standard_normal((90, 3))
        values[:, 0] = 0.7
        scores, rewards = rng.standard_normal((90, 3, 2)), rng.standard_normal(90)
        assert not sampling(scores, rewards, values=values).grouped
        values[:, 0] = rng.integers(0, 12, 90)
        found = sampling(scores, rewards, values=values)
        assert not found.grouped
        assert found.sharing > 80


def test_continuous_rollouts_share_nothing(rng):
    found = sampling(rng.standard_normal((300, 4, 2)), rng.standard_normal(300))
    assert (found.repeated, found.sharing, found.grouped, found.distinct) == (0, 0, False, True)
    assert (found.groups, found.dead_groups, found.mixed, found.filtered) == (None, None, None, None)


def groups_of_coins(rng, groups, size, keep_dead=True, d=3):
    """Rewards 0 and 1 of prompts whose success rates are uniform."""
    kept = []
    while len(kept) < groups:
        rewards = (rng.random(size) < rng.random()).astype(float)
        if keep_dead or 0 < rewards.sum() < size:
            kept.append(rewards)
    scores = rng.standard_normal((groups * size, 1, d))
    return scores, np.concatenate(kept), {"groups": np.arange(groups).repeat(size)}


def test_dead_groups_are_counted_and_said_with_what_dropping_them_saves():
    rng = np.random.default_rng(0)
    scores, rewards, options = groups_of_coins(rng, 300, 4)
    scores[:, 0, 0] += 2 * (rewards - 0.5)
    of_groups = rewards.reshape(-1, 4).sum(axis=1)
    dead = np.count_nonzero((of_groups == 0) | (of_groups == 4))
    found = sampling(scores, rewards, **options)
    assert (found.groups, found.dead_groups, found.filtered) == (300, dead, False)
    assert found.mixed == 1 - dead / 300
    report = rlvar.report(rlvar.Rollouts(scores, rewards, **options), ["single", "rloo"])
    kept = kept_noise_scale(report.comparison["rloo"].noise_scale, found.mixed)
    text = told(report)
    assert f"{dead} of 300 groups are dead: all their rewards are equal" in text
    assert f"the noise scale of RLOO is then {kept.value:.3g} groups that are kept" in text


def test_the_noise_scale_of_kept_groups_is_that_of_rloo_without_the_dead():
    rng = np.random.default_rng(0)
    scores, rewards, options = groups_of_coins(rng, 20000, 4)
    scores[:, 0, 0] += rewards - 0.5
    rollouts = rlvar.Rollouts(scores, rewards, **options)
    mixed = np.repeat(np.ptp(rewards.reshape(-1, 4), axis=1) > 0, 4)
    everything, kept = (
        rlvar.compare(x, ["rloo"], reference="rloo")["rloo"].noise_scale for x in (rollouts, rollouts[mixed])
    )
    assert kept_noise_scale(everything, mixed.mean()).value == pytest.approx(kept.value, rel=1e-3)


def test_groups_that_a_filter_kept_withdraw_unbiased_from_common_baselines():
    rng = np.random.default_rng(1)
    scores, rewards, options = groups_of_coins(rng, 150, 8, keep_dead=False)
    rollouts = rlvar.Rollouts(scores, rewards, **options)
    assert sampling_of(Batch.of(rollouts)).filtered is True
    rows = rlvar.compare(rollouts, ["single", "single-mean", "rloo", "grpo"])
    assert {row.name: row.unbiased for row in rows} == {
        "single": False,
        "single-mean": False,
        "rloo": True,
        "grpo": False,
    }
    report = rlvar.report(rollouts, ["single", "rloo"])
    text = told(report)
    assert "None of the 150 groups is dead" in text
    assert "for the same precision" not in text
    assert rlvar.report(rollouts, ["single", "rloo"], reference="rloo").headroom is None
    scores, rewards, options = groups_of_coins(rng, 150, 8)
    assert rlvar.compare(rlvar.Rollouts(scores, rewards, **options))["single"].unbiased is True


@pytest.mark.parametrize(("groups", "size"), [(16, 4), (16, 8), (64, 8), (200, 8), (100, 16)])
def test_groups_that_are_mixed_by_chance_are_hardly_ever_taken_for_filtered(groups, size):
    rng, found, data_sets = np.random.default_rng(2), 0, 150
    for seed in range(data_sets):
        rates = np.full(groups, 0.5) if seed % 2 else rng.beta(4, 4, groups)
        wins = rng.binomial(size, rates)
        if ((wins > 0) & (wins < size)).all():
            found += chance_of_no_dead_group(wins, np.full(groups, size)) < 0.01
    assert found <= 5


def test_two_rollouts_a_group_are_all_mixed_in_a_half_at_most():
    # p^2 + (1 - p)^2 is at least 2 p (1 - p).
    chance = chance_of_no_dead_group(np.ones(6, int), np.full(6, 2))
    assert chance == pytest.approx(0.5**6, rel=1e-6)


@pytest.mark.parametrize("rewards", [np.arange(16.0), np.ones(16)], ids=["many values", "one value"])
def test_a_filter_is_not_looked_for_but_in_rewards_of_two_values(rng, rewards):
    found = sampling(rng.standard_normal((16, 1, 2)), rewards, groups=np.arange(16) // 2)
    assert found.filtered is None


def test_it_is_in_the_json_of_the_report(rng):
    scores, rewards, options = groups_of_coins(rng, 20, 4)
    found = rlvar.report(rlvar.Rollouts(scores, rewards, **options)).to_dict()["sampling"]
    assert found == json.loads(json.dumps(found))
    assert found["distinct"] is True
    assert found["mixed"] == pytest.approx(1 - found["dead_groups"] / 20)


def test_groups_of_several_episodes_have_no_return_to_be_dead_by(rng):
    ends = np.zeros((20, 6), bool)
    ends[:, 2] = True
    found = sampling(
        rng.standard_normal((20, 6, 2)),
        rng.standard_normal((20, 6)),
        terminated=ends,
        groups=np.arange(20) // 2,
    )
    assert (found.groups, found.filtered) == (None, None)


def test_padding_without_lengths_is_noted_and_only_then(rng):
    scores, rewards = rng.standard_normal((40, 9, 3)), rng.standard_normal((40, 9))
    lengths = np.where(np.arange(40) < 30, 5, 9)
    ended = np.arange(9) >= lengths[:, None]
    scores[ended], rewards[ended] = 0.0, 0.0
    note = "In 30 of 40 rollouts the scores of the last step are all 0"
    assert note in told(rlvar.report(rlvar.Rollouts(scores, rewards)))
    for options in ({"lengths": lengths}, {"mask": ~ended}):
        assert rlvar.report(rlvar.Rollouts(scores, rewards, **options)).sampling.padded == 0
