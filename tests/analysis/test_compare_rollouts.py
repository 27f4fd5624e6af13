"""Two sets of rollouts side by side, against plain loops over the units that are left out."""

import math
import pickle
import zlib

import numpy as np
import pytest

import rlvar
from rlvar.analysis.compare_rollouts import numbering

QUANTITIES = ("ratio", "signal_ratio", "noise_scale_ratio")


def prompts(labels, *, seed=0, sizes=3, d=4, effect=1.0, spread=0.5, **options):
    """Rollouts of one step on prompts by these labels, which decide the factor of their rewards."""
    rng = np.random.default_rng(seed)
    counts = np.broadcast_to(sizes, len(labels))
    factor = [
        np.exp(spread * np.random.default_rng(zlib.crc32(repr(label).encode())).standard_normal())
        for label in labels
    ]
    z = rng.standard_normal((counts.sum(), 1, d))
    rewards = np.repeat(factor, counts) * (1 + effect * z[:, 0, 0] + rng.standard_normal(counts.sum()))
    groups = [label for label, count in zip(labels, counts, strict=True) for _ in range(count)]
    return rlvar.Rollouts(z, rewards, groups=groups, **options)


def named(*numbers):
    return [f"prompt {n} of {n % 3} and {n * n}" for n in numbers]


def variance_of_a_rollout(rollouts, without=None):
    """N times the variance of the batch's gradient of "single", with the label of a group left out."""
    labels = np.array([rollouts.group_labels[k] for k in rollouts.groups])
    g = rollouts.rewards[:, None] * rollouts.scores[:, 0]
    kept = [label for label in rollouts.group_labels if label != without]
    sums = np.array([g[labels == label].sum(axis=0) for label in kept])
    sizes = np.array([(labels == label).sum() for label in kept])
    y = (sums - sizes[:, None] * sums.sum(axis=0) / sizes.sum()) / sizes.mean()
    u = len(kept)
    return np.square(y).sum() / (u - 1) / u * len(labels) if without is None else np.square(y).sum() / (u - 1)


def left_out(rollouts, every):
    """The variance with each of all labels left out; of one that the set does not have, the mean.

    A set's own deviations are scaled so that a jackknife of all M has the variance of one of its U.
    """
    labels, m = rollouts.group_labels, len(every)
    own = {label: variance_of_a_rollout(rollouts, label) for label in labels}
    mean, u = np.mean(list(own.values())), len(labels)
    scale = math.sqrt((u - 1) / u * m / (m - 1))
    return np.array([mean + scale * (own.get(label, mean) - mean) for label in every])


CASES = {
    "all prompts": (named(*range(12)), named(*range(12))),
    "some prompts": (named(*range(12)), named(*range(5, 20))),
    "no prompt": (named(*range(12)), named(*range(20, 30))),
}


@pytest.mark.parametrize("shared", CASES)
@pytest.mark.parametrize("sizes", [3, "unequal"])
def test_the_ratio_of_variances_is_that_of_plain_loops_over_units(shared, sizes):
    of_a, of_b = CASES[shared]
    a = prompts(of_a, sizes=np.arange(len(of_a)) % 3 + 1 if sizes == "unequal" else sizes)
    b = prompts(of_b, sizes=np.arange(len(of_b)) % 4 + 2 if sizes == "unequal" else 5, seed=1, effect=2.0)
    row = rlvar.compare_rollouts(a, b, "single")["single"]
    v, w = variance_of_a_rollout(a), variance_of_a_rollout(b)
    assert [float(x) for x in row.variance] == pytest.approx([v, w])
    assert row.ratio.value == pytest.approx(w / v)
    every = list(dict.fromkeys([*of_a, *of_b]))
    ratios = left_out(b, every) / left_out(a, every) * len(b) * len(of_a) / (len(a) * len(of_b))
    m = len(every)
    stderr = math.sqrt((m - 1) / m * np.square(ratios - ratios.mean()).sum())
    assert row.ratio.stderr == pytest.approx(stderr, rel=1e-9)


def test_without_groups_independent_rollouts_have_the_sum_of_both_relative_variances():
    rng = np.random.default_rng(0)
    a, b = (rlvar.Rollouts(rng.standard_normal((n, 1, 3)), rng.standard_normal(n)) for n in (200, 300))
    found = rlvar.compare_rollouts(a, b, "single")
    each = [rlvar.compare(x, "single")["single"].variance for x in (a, b)]
    relative = math.hypot(*(x.stderr / x.value for x in each))
    assert found["single"].ratio.stderr / found["single"].ratio.value == pytest.approx(relative, rel=0.03)
    assert not found.paired
    assert "no groups to match" in found.pairing


def test_prompts_in_both_make_intervals_narrower_and_a_few_without_a_match_are_not_dropped():
    labels = named(*range(60))
    a, b = (prompts(labels, seed=seed, sizes=8, effect=2.0) for seed in (0, 1))
    matched, apart = (rlvar.compare_rollouts(a, b, "single", paired=each) for each in (None, False))
    assert matched.paired
    assert not apart.paired
    assert matched.shared == 60
    for name in QUANTITIES:
        x, y = (getattr(each["single"], name) for each in (matched, apart))
        assert x.value == y.value
        assert y.low < x.low < x.high < y.high
    x, y = matched.reward_difference, apart.reward_difference
    assert x.high - x.low < 0.8 * (y.high - y.low)
    fewer = rlvar.compare_rollouts(a, prompts(labels[6:], seed=1, sizes=8, effect=2.0), "single")
    assert fewer.shared == 54
    assert "6 of A and 0 of B have no match" in fewer.pairing
    assert fewer["single"].variance[0] == matched["single"].variance[0]


def test_the_difference_of_rewards_is_that_of_groups_left_out_together():
    labels = named(*range(12))
    sizes = np.arange(12) % 3 + 1
    a, b = prompts(labels, sizes=sizes), prompts(labels, sizes=sizes[::-1], seed=1)
    found = rlvar.compare_rollouts(a, b, "single")

    def mean(rollouts, without=None):
        kept = [rollouts.group_labels[k] != without for k in rollouts.groups]
        return rollouts.rewards[kept].mean()

    left_out = np.array([mean(b, label) - mean(a, label) for label in labels])
    stderr = math.sqrt(11 / 12 * np.square(left_out - left_out.mean()).sum())
    assert found.reward_difference.value == pytest.approx(mean(b) - mean(a))
    assert found.reward_difference.stderr == pytest.approx(stderr)


@pytest.mark.parametrize("with_groups", [True, False])
def test_the_same_rollouts_twice_have_ratios_of_exactly_1(with_groups):
    rollouts = prompts(named(*range(12)))
    if not with_groups:
        rollouts = rlvar.Rollouts(rollouts.scores, rollouts.rewards)
    for other in (rollouts, pickle.loads(pickle.dumps(rollouts))):
        found = rlvar.compare_rollouts(rollouts, other, names=("x.npz", "x.npz"))
        assert found.identical
        assert found.names == ("x.npz (first)", "x.npz (second)")
        assert "same rollouts" in found.pairing
        assert found.reward_difference.interval == (0.0, 0.0)
        for row in found:
            assert all(getattr(row, name).interval == (1.0, 1.0) for name in QUANTITIES)
    scores = rollouts.scores.copy()
    scores[-1, 0, -1] += 1e-9
    other = rlvar.Rollouts(scores, rollouts.rewards, groups=rollouts.groups if with_groups else None)
    assert not rlvar.compare_rollouts(rollouts, other).identical


def test_a_group_of_one_is_a_rollout_and_sizes_of_groups_have_one_unit():
    rng = np.random.default_rng(4)
    s, r = rng.standard_normal((48, 1, 3)), rng.standard_normal(48) + 1
    plain, alone = rlvar.Rollouts(s, r), rlvar.Rollouts(s, r, groups=named(*range(48)))
    in_fours = rlvar.Rollouts(s, r, groups=np.repeat(named(*range(12)), 4))
    found = rlvar.compare_rollouts(plain, alone, "single")["single"]
    assert found.ratio.value == pytest.approx(1.0, rel=1e-12)
    found = rlvar.compare_rollouts(alone, in_fours, "single")
    assert found["single"].ratio.value == pytest.approx(1.0, abs=0.3)  # not 4: rollouts are independent here
    assert any("A group holds 1 rollouts in A and 4 in B" in note for note in found.notes)
    n = found["single"].noise_scale[1].value
    assert n == pytest.approx(4 * rlvar.compare(in_fours, "single")["single"].noise_scale.value)


@pytest.mark.parametrize(
    ("labels", "is_one"),
    [
        ([0, 1, 2, 3], True),
        ([7, 5, 6], True),
        (["0", "1", "2"], True),
        (["prompt-1", "prompt-2"], True),
        (["q09.txt", "q10.txt", "q08.txt"], True),
        ([10, 553, 71], False),
        (["What is 1+1?", "What is 1+2?"], True),  # and so nothing is taken for granted
        (["What is 1+1?", "Name a river."], False),
        (["a1", "b2"], False),
        (["a", "b"], False),
        ([(1, 2), (2, 2)], False),
        ([0, "1"], False),
        ([True, False], False),
    ],
)
def test_consecutive_numbers_are_a_mere_numbering(labels, is_one):
    assert numbering(labels) is is_one


def test_labels_that_are_numbers_match_only_if_asked():
    a, b = prompts(range(12)), prompts(range(12), seed=1)
    found = rlvar.compare_rollouts(a, b, "single")
    assert not found.paired
    assert "consecutive numbers" in found.pairing
    asked = rlvar.compare_rollouts(a, b, "single", paired=True)
    assert (asked.shared, asked.matched_by) == (12, "labels")
    assert "as asked" in asked.pairing


def test_labels_outlive_slices_files_and_packing(tmp_path):
    whole = prompts(named(*range(16)))
    part = whole[np.flatnonzero(whole.groups >= 5)][::-1]
    assert part.group_labels == tuple(named(*range(15, 4, -1)))
    rlvar.save_rollouts(tmp_path / "part.npz", part)
    again = rlvar.load_rollouts(tmp_path / "part.npz")
    assert again.group_labels == part.group_labels
    assert rlvar.compare_rollouts(whole, again, "single").shared == 11
    packed = rlvar.Rollouts.packed(whole.scores[:, 0], np.ones(48, int), whole.rewards, groups=whole.groups)
    assert packed[9:].padded().group_labels == tuple(range(3, 16))


@pytest.mark.parametrize(
    ("labels", "kept"),
    [([10, 10, 7, 7], (10, 7)), ([(1, 2), (1, 2), (3, 4), (3, 4)], (0, 1)), ([2**70, 2**70, 1, 1], (0, 1))],
)
def test_labels_that_are_no_plain_array_become_numbers_in_files(tmp_path, labels, kept):
    rollouts = rlvar.Rollouts(np.ones((4, 1, 1)), np.arange(4.0), groups=labels)
    rlvar.save_rollouts(tmp_path / "x.npz", rollouts)
    assert rlvar.load_rollouts(tmp_path / "x.npz").group_labels == kept


def test_rollouts_are_paired_by_position_if_asked():
    rng = np.random.default_rng(5)
    factor = np.exp(0.5 * rng.standard_normal(100))
    sets = [
        rlvar.Rollouts(rng.standard_normal((100, 1, 3)), factor * (1 + rng.random(100))) for _ in range(2)
    ]
    found = rlvar.compare_rollouts(*sets, "single", paired=True)
    apart = rlvar.compare_rollouts(*sets, "single")
    assert found.matched_by == "positions"
    assert found["single"].ratio.stderr < 0.95 * apart["single"].ratio.stderr


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (prompts(named(1, 2, 3)), prompts(named(4, 5, 6)), "share none"),
        (prompts(named(1, 2, 3)), rlvar.datasets.cartpole(), "old has groups|new has none"),
        (rlvar.datasets.cartpole()[:100], rlvar.datasets.cartpole(), "equal numbers of rollouts"),
    ],
)
def test_what_cannot_be_paired_is_refused(a, b, message):
    with pytest.raises(ValueError, match=message):
        rlvar.compare_rollouts(a, b, names=("old", "new"), paired=True)


def sized(d, seed=0, **options):
    return prompts(named(*range(20)), d=d, effect=3.0, seed=seed, **options)


def test_scores_of_different_parts_are_refused():
    a, b = sized(4, scores_of="all 9 parameters of A"), sized(4, 1, scores_of="the head of A")
    with pytest.raises(ValueError, match="the same choice of parameters"):
        rlvar.compare_rollouts(a, b)


@pytest.mark.parametrize(
    ("a", "b", "coordinates"),
    [
        ({"scores_of": "all of A"}, {"scores_of": "all of A"}, "same"),
        ({"scores_of": "all of A"}, {"scores_of": "all of B"}, "different"),
        ({}, {}, "assumed"),
        ({}, {"d": 6}, "different"),
        ({"scores_of": "all of A"}, {"scores_of": "all of A", "d": 6}, "different"),
        (
            {"scores_of": "all of A", "sketched": True},
            {"scores_of": "all of A", "d": 6, "sketched": True},
            "same",
        ),
        ({"sketched": True}, {"d": 6, "sketched": True}, "assumed"),
        ({"sketched": True}, {}, "different"),
    ],
)
def test_variances_are_compared_of_the_same_parameters_alone(a, b, coordinates):
    found = rlvar.compare_rollouts(sized(a.pop("d", 4), **a), sized(b.pop("d", 4), 1, **b), "single")
    row = found["single"]
    assert found.coordinates == coordinates
    assert math.isnan(row.ratio.value) == math.isnan(row.signal_ratio.value) == (coordinates == "different")
    assert row.noise_scale_ratio.value > 0
    assert any("same parameters" in note or "not compared" in note for note in found.notes) == (
        coordinates != "same"
    )
    assert (row.sketch_stderr is None) == (not (found.coordinates and "sketched" in a | b))


def test_errors_and_warnings_name_the_set():
    good = rlvar.datasets.cartpole()
    scores = good.scores.copy()
    scores[3, 0, 0] = math.nan
    bad = rlvar.Rollouts(scores, good.rewards, lengths=good.lengths)
    with pytest.raises(ValueError, match=r"new: .*scores"):
        rlvar.compare_rollouts(good, bad, names=("old", "new"))
    with pytest.raises(ValueError, match=r"A: .*rloo"):
        rlvar.compare_rollouts(good, good[:100], "rloo")
    with pytest.raises(TypeError, match="b must be a Rollouts, got list"):
        rlvar.compare_rollouts(good, [1])
    with pytest.raises(TypeError, match="names must be two strings"):
        rlvar.compare_rollouts(good, good, names="AB")
    with pytest.warns(UserWarning, match="new: only 5 rollouts"):
        rlvar.compare_rollouts(good, good[:5], names=("old", "new"))


def test_two_units_have_values_and_no_intervals():
    good = rlvar.datasets.cartpole()
    with pytest.warns(UserWarning, match="only 2 rollouts: no intervals"):
        found = rlvar.compare_rollouts(good, good[:2])
    row = found["single"]
    assert row.ratio.value > 0
    assert all(math.isnan(x.low) for x in (row.ratio, found.reward_difference))
    assert any("Of B: only 2 rollouts" in note for note in found.notes)


def test_by_default_what_both_sets_allow_is_compared_and_rloo_first():
    grouped, plain = prompts(named(*range(12))), rlvar.datasets.cartpole()
    assert [row.name for row in rlvar.compare_rollouts(grouped, plain)] == ["single"]
    other = prompts(named(*range(12)), seed=1)
    found = rlvar.compare_rollouts(grouped, other)
    assert [row.name for row in found] == ["single", "rloo", "grpo", "dr-grpo"]
    assert found.reference == "rloo"
    own = rlvar.compare_rollouts(grouped, other, [("own", lambda rollouts: rollouts.rewards - 1)])
    assert own["own"].unbiased == (None, None)


def test_signals_that_are_not_resolved_leave_ratios_open():
    rng = np.random.default_rng(0)
    strong = prompts(named(*range(40)), effect=3.0, spread=0.1)
    weak = rlvar.Rollouts(rng.standard_normal((120, 1, 4)), rng.standard_normal(120), groups=strong.groups)
    row = rlvar.compare_rollouts(strong, weak, "single")["single"]
    assert row.signal[0].resolved
    assert not row.signal[1].resolved
    assert not row.noise_scale_ratio.resolved
    assert math.isnan(row.noise_scale_ratio.value) or row.noise_scale_ratio.high == math.inf


def test_rollouts_in_both_files_are_told():
    whole = rlvar.datasets.cartpole()
    found = rlvar.compare_rollouts(whole[:150], whole[100:])
    assert any(note.startswith("50 rollouts of B are in A as well") for note in found.notes)
    assert not any("as well" in note for note in rlvar.compare_rollouts(whole[:128], whole[128:]).notes)


def test_a_tail_is_told_where_few_units_decide():
    whole = rlvar.datasets.cartpole()
    notes = rlvar.compare_rollouts(whole[:128], whole[128:]).notes
    assert any(note.startswith("Of A: few of 128 rollouts decide") for note in notes)


def test_threads_change_no_bit():
    whole = rlvar.datasets.cartpole()
    found = [rlvar.compare_rollouts(whole[:100], whole[100:], num_threads=n).to_dict() for n in (1, 3)]
    assert found[0] == found[1]
