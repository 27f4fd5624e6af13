import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import reference
import rlvar
import strategies


def tolerance(dtype, rewards):
    """Rounding of a sum of T rewards, relative to the sum of their sizes."""
    steps = rewards.shape[-1]
    size = np.abs(np.where(np.isfinite(rewards), rewards, 0)).sum(axis=-1, initial=0).max(initial=0)
    return 4 * steps * np.finfo(dtype).eps * float(size)


@given(case=strategies.rewards(), gamma=st.sampled_from([0.0, 0.5, 0.99, 1.0]))
def test_matches_the_definition(case, gamma):
    rewards, options = case
    result = rlvar.reward_to_go(rewards, gamma, **options)
    assert result.dtype == rewards.dtype
    expected = reference.reward_to_go(rewards, gamma, **options)
    np.testing.assert_allclose(result, expected, rtol=0, atol=tolerance(rewards.dtype, rewards))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(1, 1), (1, 1000), (7, 33), (8, 33), (29, 17), (300, 900)])
def test_every_isa_matches_the_definition(isa, rng, dtype, shape):
    rewards = rng.standard_normal(shape).astype(dtype)
    lengths = rng.integers(0, shape[1] + 1, shape[0])
    mask = rng.random(shape) < 0.7
    for options in ({}, {"lengths": lengths}, {"mask": mask}):
        live = reference.live_steps(shape, **options)
        result = rlvar.reward_to_go(rewards, 0.9, **options)
        expected = np.zeros(shape)
        for n in range(shape[0]):  # the recursion: the definition's double sum is too slow here
            future = 0.0
            for t in reversed(range(shape[1])):
                if live[n, t]:
                    expected[n, t] = future = float(rewards[n, t]) + 0.9 * future
        np.testing.assert_allclose(result, expected, rtol=0, atol=tolerance(dtype, rewards))


def test_gamma_zero_gives_the_rewards(rng):
    rewards = rng.standard_normal((9, 20))
    np.testing.assert_array_equal(rlvar.reward_to_go(rewards, 0.0), rewards)


def test_terminal_reward_arrives_whole_100000_steps_ahead():
    rewards = np.zeros((2, 100_001), np.float32)
    rewards[:, -1] = 0.1
    np.testing.assert_array_equal(rlvar.reward_to_go(rewards), np.full_like(rewards, 0.1))


def test_gaps_are_skipped_without_discount():
    result = rlvar.reward_to_go([[1.0, 9.0, 2.0]], 0.5, mask=[[1, 0, 1]])
    np.testing.assert_array_equal(result, [[2.0, 0.0, 2.0]])


def test_what_lies_under_the_mask_changes_no_bit(rng):
    rewards = rng.standard_normal((10, 30))
    mask = rng.random((10, 30)) < 0.5
    clean = rlvar.reward_to_go(np.where(mask, rewards, 0.0), 0.9, mask=mask)
    for junk in (np.nan, np.inf, 1e300):
        dirty = rlvar.reward_to_go(np.where(mask, rewards, junk), 0.9, mask=mask)
        np.testing.assert_array_equal(dirty, clean)
    assert (clean[~mask] == 0).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_strided_views_give_what_their_copies_give(rng, dtype):
    base = rng.standard_normal((40, 50)).astype(dtype)
    for view in (base[::2], base[:, ::3], base[::-1, ::-1], base.T, np.asfortranarray(base), base[:1]):
        expected = rlvar.reward_to_go(view.copy(order="C"), 0.9)
        np.testing.assert_allclose(
            rlvar.reward_to_go(view, 0.9), expected, rtol=0, atol=tolerance(dtype, view)
        )
    zero_strides = np.broadcast_to(base[:, :1], (40, 6))
    np.testing.assert_array_equal(
        rlvar.reward_to_go(zero_strides), rlvar.reward_to_go(np.array(zero_strides))
    )


def test_unaligned_and_byte_swapped_rewards_are_converted(rng):
    records = np.zeros((5, 6), dtype=np.dtype([("flag", "i1"), ("reward", "f8")]))
    records["reward"] = rng.standard_normal((5, 6))
    expected = rlvar.reward_to_go(np.ascontiguousarray(records["reward"]))
    np.testing.assert_array_equal(rlvar.reward_to_go(records["reward"]), expected)
    np.testing.assert_array_equal(rlvar.reward_to_go(records["reward"].astype(">f8")), expected)


def test_out_is_filled_and_returned(rng):
    rewards = rng.standard_normal((6, 9))
    expected = rlvar.reward_to_go(rewards, 0.9)
    strided = np.empty((6, 18))[:, ::2]
    assert rlvar.reward_to_go(rewards, 0.9, out=strided) is strided
    np.testing.assert_allclose(strided, expected, rtol=1e-13)


def test_out_may_be_the_rewards_or_overlap_them(rng):
    rewards = rng.standard_normal((6, 9))
    expected = rlvar.reward_to_go(rewards, 0.9)
    in_place = rewards.copy()
    rlvar.reward_to_go(in_place, 0.9, out=in_place)
    np.testing.assert_array_equal(in_place, expected)
    buffer = np.zeros((6, 10))
    buffer[:, :9] = rewards
    rlvar.reward_to_go(buffer[:, :9], 0.9, out=buffer[:, 1:])
    np.testing.assert_allclose(buffer[:, 1:], expected, rtol=1e-13)
    backwards = rewards.copy()
    rlvar.reward_to_go(backwards, 0.9, out=backwards[:, ::-1])
    np.testing.assert_allclose(backwards[:, ::-1], expected, rtol=1e-13)


def test_inputs_are_never_changed(rng):
    rewards = rng.standard_normal((6, 9))
    kept = rewards.copy()
    rewards.setflags(write=False)
    rlvar.reward_to_go(rewards, lengths=[1, 2, 3, 4, 5, 9])
    np.testing.assert_array_equal(rewards, kept)


@pytest.mark.parametrize(
    ("given_as", "result"),
    [
        (np.int32, np.float64),
        (np.uint8, np.float64),
        (bool, np.float64),
        (np.float16, np.float32),
        (np.float32, np.float32),
    ],
)
def test_dtypes(given_as, result):
    rewards = np.ones((2, 3), given_as)
    out = rlvar.reward_to_go(rewards)
    assert out.dtype == result
    np.testing.assert_array_equal(out, [[3, 2, 1]] * 2)


def test_lists_and_empty_arrays():
    np.testing.assert_array_equal(rlvar.reward_to_go([[1, 2], [3, 4]]), [[3, 2], [7, 4]])
    assert rlvar.reward_to_go(np.empty((0, 5))).shape == (0, 5)
    assert rlvar.reward_to_go(np.empty((5, 0))).shape == (5, 0)
    np.testing.assert_array_equal(rlvar.reward_to_go([[1.0, 2.0]], lengths=[0]), [[0.0, 0.0]])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([1.0, 2.0],), ValueError, r"rewards must have shape \(N, T\), got \(2,\)"),
        (([[1.0], [1.0, 2.0]],), ValueError, "rewards must be a rectangular array"),
        (([["a"]],), TypeError, "rewards must be float32.*got dtype <U1"),
        (([[1j]],), TypeError, "got dtype complex128"),
        (([[None]],), TypeError, "rewards must be an array of real numbers, got dtype object"),
        ((np.ma.masked_array([[1.0]]),), TypeError, "pass the mask as mask="),
        (([[1.0, np.nan]],), ValueError, r"got rewards\[0, 1\] = nan"),
        (([[1.0, -np.inf]],), ValueError, r"got rewards\[0, 1\] = -inf"),
        (([[1.0]], 1.5), ValueError, "gamma must lie in 0..1, got 1.5"),
        (([[1.0]], np.nan), ValueError, "gamma must lie in 0..1, got nan"),
        (([[1.0]], None), TypeError, "gamma must be a number, got NoneType"),
    ],
)
def test_bad_arguments_are_named(arguments, error, message):
    with pytest.raises(error, match=message):
        rlvar.reward_to_go(*arguments)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"lengths": [1, 2], "mask": np.ones((2, 3))}, ValueError, "must not both be given"),
        ({"lengths": [1, 4]}, ValueError, r"lengths must lie in 0..T = 0..3, got lengths\[1\] = 4"),
        ({"lengths": [-1, 2]}, ValueError, r"got lengths\[0\] = -1"),
        ({"lengths": [1]}, ValueError, r"lengths must have shape \(N,\) = \(2,\), got \(1,\)"),
        ({"lengths": [1.0, 2.0]}, TypeError, "lengths must be integers, got dtype float64"),
        ({"mask": np.ones((3, 2))}, ValueError, r"mask must have shape \(N, T\) = \(2, 3\), got \(3, 2\)"),
        ({"mask": np.full((2, 3), 2)}, ValueError, r"mask must hold only 0 and 1, got mask\[0, 0\] = 2"),
        ({"mask": np.full((2, 3), "x")}, TypeError, "mask must be booleans"),
        ({"out": np.empty((3, 2))}, ValueError, r"out must have shape \(2, 3\), got \(3, 2\)"),
        ({"out": np.empty((2, 3), np.float32)}, TypeError, "out must have dtype float64, got float32"),
        ({"out": [[0.0] * 3] * 2}, TypeError, "out must be a numpy array, got list"),
    ],
)
def test_bad_options_are_named(options, error, message):
    with pytest.raises(error, match=message):
        rlvar.reward_to_go(np.ones((2, 3)), **options)


def test_nothing_is_written_when_an_error_is_raised():
    out = np.full((1, 2), 7.0)
    with pytest.raises(ValueError, match="finite"):
        rlvar.reward_to_go([[np.nan, 1.0]], out=out)
    read_only = np.full((1, 2), 7.0)
    read_only.setflags(write=False)
    with pytest.raises(ValueError, match="out must be writeable"):
        rlvar.reward_to_go([[1.0, 1.0]], out=read_only)
    assert (out == 7).all()
    assert (read_only == 7).all()
