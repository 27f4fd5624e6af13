import copy
import pickle

import numpy as np
import pytest

import rlvar

SCORES, REWARDS = np.ones((4, 3, 2)), np.ones((4, 3))


def test_scores_are_kept_without_a_copy():
    for dtype in (np.float32, np.float64):
        scores = np.ones((4, 3, 2), dtype)
        assert rlvar.Rollouts(scores, REWARDS).scores is scores


def test_fields_shape_and_lengths():
    rollouts = rlvar.Rollouts(SCORES, REWARDS, lengths=[3, 0, 2, 1], groups=["b", "a", "b", "a"])
    assert rollouts.shape == (4, 3, 2)
    assert len(rollouts) == 4
    np.testing.assert_array_equal(rollouts.live_steps, [3, 0, 2, 1])
    np.testing.assert_array_equal(rollouts.groups, [0, 1, 0, 1])
    assert repr(rollouts) == "Rollouts(N=4, T=3, D=2, lengths 0 to 3, 2 groups)"
    gaps = rlvar.Rollouts(SCORES, REWARDS, mask=[[1, 0, 1]] * 4, values=REWARDS)
    np.testing.assert_array_equal(gaps.live_steps, [2, 2, 2, 2])
    np.testing.assert_array_equal(rlvar.Rollouts(SCORES, [1, 2, 3, 4]).live_steps, [3, 3, 3, 3])


def test_frozen():
    with pytest.raises(AttributeError):
        rlvar.Rollouts(SCORES, REWARDS).rewards = None


def test_junk_in_padding_is_ignored():
    rewards = np.where(np.arange(3) < 2, 1.0, np.nan) * np.ones((4, 1))
    rollouts = rlvar.Rollouts(SCORES, rewards, lengths=[2] * 4, values=rewards)
    assert rlvar.compare(rollouts)["multi"].variance.value == 0


FULL = {
    "lengths": np.array([3, 2, 2, 1]),
    "values": REWARDS.copy(),
    "groups": np.array([0, 0, 1, 1]),
    "logp": -REWARDS,
    "behavior_logp": -REWARDS,
    "score_squares": REWARDS.copy(),
    "terminated": REWARDS > 1,
    "truncated": REWARDS > 0,
    "next_values": REWARDS.copy(),
    "bootstrap_value": np.ones(4),
    "tokens": np.array([9, 2, 5, 1]),
    "scores_of": "the final norm of Llama",
    "sketched": True,
}


ARRAYS = {name: x for name, x in FULL.items() if isinstance(x, np.ndarray)}


def full():
    return rlvar.Rollouts(SCORES, REWARDS.copy(), **copy.deepcopy(FULL))


def equal(one, other):
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in ("scores", *FULL))


def test_what_the_caller_does_to_small_arrays_later_changes_nothing():
    given = {"rewards": REWARDS.copy(), **copy.deepcopy(FULL)}
    rollouts = rlvar.Rollouts(SCORES, **given)
    for name in ARRAYS:
        given[name][...] = 0
    assert equal(rollouts, full())
    mask = np.ones((4, 3), bool)
    gaps = rlvar.Rollouts(SCORES, REWARDS, mask=mask)
    mask[:] = False
    assert gaps.live.all()
    for name in ("rewards", "live", "live_steps", "token_counts", *ARRAYS):
        with pytest.raises(ValueError, match="read-only"):
            getattr(rollouts, name)[...] = 0


def test_what_is_live_is_computed_once():
    rollouts = full()
    for name in ("live", "live_steps", "steps"):
        assert getattr(rollouts, name) is getattr(rollouts, name)


def test_copies_and_pickles_are_the_same_rollouts():
    rollouts = full()
    rollouts.live_steps  # noqa: B018
    for other in (copy.copy(rollouts), copy.deepcopy(rollouts), pickle.loads(pickle.dumps(rollouts))):
        assert equal(rollouts, other)
        assert not other.rewards.flags.writeable
        assert repr(other) == repr(rollouts)


@pytest.mark.parametrize("rows", [slice(1, 3), [2, 0], np.array([True, False, False, True])])
def test_some_rollouts_are_rollouts(rows):
    some = full()[rows]
    np.testing.assert_array_equal(some.lengths, FULL["lengths"][rows])
    np.testing.assert_array_equal(some.next_values, FULL["next_values"][rows])
    np.testing.assert_array_equal(some.tokens, FULL["tokens"][rows])
    assert (some.scores_of, some.sketched) == ("the final norm of Llama", True)
    assert len(full()[1:]) == 3
    with pytest.raises(TypeError, match="indexed by a slice or an array, got int"):
        full()[0]


def test_what_is_not_read_of_the_ends_of_episodes_may_be_anything():
    junk = np.where(np.eye(4, 3) > 0, 1.0, np.nan)
    rlvar.Rollouts(SCORES, REWARDS, truncated=np.eye(4, 3), next_values=junk)
    ends = {"terminated": [[0, 0, 1]] * 4, "bootstrap_value": [np.nan] * 4}
    rlvar.Rollouts(SCORES, REWARDS, **ends)
    with pytest.raises(ValueError, match=r"bootstrap_value must be finite, got bootstrap_value\[2\] = nan"):
        rlvar.Rollouts(SCORES, REWARDS, **ends, lengths=[3, 0, 2, 3])


def test_a_rollout_without_live_steps_may_have_any_reward():
    assert len(rlvar.Rollouts(SCORES, [np.nan, 1, 1, 1], lengths=[0, 3, 3, 3])) == 4


def test_tokens_are_counted_apart_from_steps_where_they_are_given():
    counts = np.array([7, 0, 3, 1], np.uint8)
    rollouts = rlvar.Rollouts(SCORES, REWARDS, lengths=[3, 0, 2, 1], tokens=counts)
    np.testing.assert_array_equal(rollouts.token_counts, [7, 0, 3, 1])
    assert rollouts.tokens.dtype == np.int64
    assert repr(rollouts) == "Rollouts(N=4, T=3, D=2, lengths 0 to 3, tokens 0 to 7)"
    assert rollouts.to_dict()["tokens"] == [7, 0, 3, 1]
    steps = rlvar.Rollouts(SCORES, REWARDS, lengths=[3, 0, 2, 1])
    assert steps.tokens is None
    assert steps.token_counts is steps.live_steps


@pytest.mark.parametrize(
    ("tokens", "error", "match"),
    [
        ([3, 0, 2, 0], ValueError, r"tokens must be at least the number of live steps.* got tokens\[3\] = 0"),
        ([3, 1, 2, 1], ValueError, r"tokens must be 0 in rollouts without live steps, got tokens\[1\] = 1"),
        ([3, -1, 2, 1], ValueError, r"tokens must not be negative, got tokens\[1\] = -1"),
        ([3.0, 0, 2, 1], TypeError, "tokens must be integers, got dtype float64"),
        ([3, 0, 2], ValueError, r"tokens must have shape \(N,\) = \(4,\), got \(3,\)"),
    ],
)
def test_counts_of_tokens_that_cannot_be_are_refused(tokens, error, match):
    with pytest.raises(error, match=match):
        rlvar.Rollouts(SCORES, REWARDS, lengths=[3, 0, 2, 1], tokens=tokens)


def test_what_the_scores_are_is_a_sentence_and_yes_or_no():
    assert rlvar.Rollouts(SCORES, REWARDS).to_dict().items() >= {"scores_of": None, "sketched": False}.items()
    with pytest.raises(TypeError, match="scores_of must be a string, got int"):
        rlvar.Rollouts(SCORES, REWARDS, scores_of=3)
    with pytest.raises(ValueError, match="scores_of must not be empty"):
        rlvar.Rollouts(SCORES, REWARDS, scores_of=" ")
    with pytest.raises(TypeError, match="sketched must be True or False, got 'no'"):
        rlvar.Rollouts(SCORES, REWARDS, sketched="no")
