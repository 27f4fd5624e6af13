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


@pytest.mark.parametrize(
    ("rewards", "options", "error", "message"),
    [
        (np.ones((3, 4)), {}, ValueError, r"rewards must have shape \(N, T\) = \(4, 3\) or \(N,\) = \(4,\)"),
        (np.full((4, 3), np.nan), {}, ValueError, r"got rewards\[0, 0\] = nan"),
        ([1, np.nan, 1, 1], {}, ValueError, r"got rewards\[1\] = nan"),
        (REWARDS, {"values": np.ones(4)}, ValueError, r"values must have shape \(N, T\) = \(4, 3\)"),
        (REWARDS, {"values": REWARDS * np.nan}, ValueError, r"got values\[0, 0\] = nan"),
        (REWARDS, {"groups": [1]}, ValueError, "groups must have shape"),
        (REWARDS, {"lengths": [1, 2, 3, 9]}, ValueError, r"got lengths\[3\] = 9"),
    ],
)
def test_bad_arguments_are_named(rewards, options, error, message):
    with pytest.raises(error, match=message):
        rlvar.Rollouts(SCORES, rewards, **options)


def test_nan_is_no_label():
    with pytest.raises(ValueError, match="groups must not hold NaN"):
        rlvar.Rollouts(SCORES, REWARDS, groups=[np.nan] * 4)


def test_a_rollout_without_live_steps_may_have_any_reward():
    assert len(rlvar.Rollouts(SCORES, [np.nan, 1, 1, 1], lengths=[0, 3, 3, 3])) == 4
