"""Packed rollouts: what the padded ones give, to the bit, without their padding."""

import copy
import pickle
import tracemalloc

import numpy as np
import pytest

import rlvar
from rlvar import _check, _core

OF_STEPS = ("values", "logp", "behavior_logp", "score_squares", "terminated", "truncated", "next_values")


def pair(rng, n=37, t=19, d=6, dtype=np.float32, step_rewards=True, ends=True, groups=True):
    """Packed rollouts and the same padded, with junk in the padding; some are empty, one has T steps."""
    lengths = rng.integers(0, t + 1, n)
    lengths[[2, 5, n - 1]] = 0, t, 0
    live = np.arange(t) < lengths[:, None]
    scores = rng.standard_normal((n, t, d)).astype(dtype)
    values, logp = rng.standard_normal((n, t)), -rng.random((n, t))
    arrays = {
        "values": values,
        "logp": logp,
        "behavior_logp": logp + rng.standard_normal((n, t)) / 40,
        "score_squares": rng.random((n, t)),
    }
    if ends:
        arrays |= {"terminated": rng.random((n, t)) < 0.05, "truncated": rng.random((n, t)) < 0.05}
        arrays["next_values"] = np.where(arrays["truncated"], 1.0, np.nan)
    rewards = live * rng.integers(0, 3, (n, t)) * 1.0 if step_rewards else rng.integers(0, 2, n)
    shared = {"bootstrap_value": rng.random(n), "groups": np.arange(n) // 4 if groups else None}
    packed = rlvar.Rollouts.packed(
        scores[live],
        lengths,
        rewards[live] if step_rewards else rewards,
        **{name: x[live] for name, x in arrays.items()},
        **shared,
    )
    scores[~live], arrays["values"][~live] = np.nan, np.nan
    return packed, rlvar.Rollouts(scores, rewards, lengths=lengths, **arrays, **shared)


def bits(value):
    """What a result holds, so that equal means to the bit."""
    if isinstance(value, dict):
        return {key: bits(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [bits(each) for each in value]
    if isinstance(value, np.ndarray):
        return value.shape, value.tobytes()
    return value.hex() if isinstance(value, float) else value


def same(one, other):
    assert bits(one) == bits(other)


SHAPES = {
    "narrow": {"d": 1},
    "wide": {"d": 300, "t": 23},
    "double": {"dtype": np.float64, "d": 17},
    "long": {"n": 9, "t": 130, "d": 5},
    "many": {"n": 300, "t": 7, "d": 3},
    "a step": {"t": 1},
}


@pytest.fixture(params=SHAPES.values(), ids=SHAPES)
def rollouts(request, rng):
    return pair(rng, **request.param)


ESTIMATORS = [each.name for each in rlvar.estimators()]


@pytest.mark.filterwarnings("ignore:only 3 groups")
@pytest.mark.parametrize("ends", [False, True])
def test_compare(rng, ends):
    one_episode = (
        [name for name in ESTIMATORS if name != "vtrace"] if not ends else ["single", "multi", "otb", "gae"]
    )
    for shape in SHAPES.values():
        packed, padded = pair(rng, ends=ends, **shape)
        for options in ({}, {"importance": "token", "clip": 0.01}, {"aggregation": "token-mean"}):
            ours, theirs = (rlvar.compare(each, one_episode, **options) for each in (packed, padded))
            same(ours.to_dict(), theirs.to_dict())


@pytest.mark.filterwarnings("ignore:only 3 groups")
def test_decompose(rollouts):
    arrays = ["mean", "lag_profile", "lag_correlation", "covariance"]
    weight = np.random.default_rng(1).integers(0, 3, len(rollouts[0])) * 1.0
    for options in ({}, {"sample_weight": weight}, {"importance": "token"}):
        ours, theirs = (rlvar.decompose(each, "multi", **options) for each in rollouts)
        same(ours.to_dict(arrays=arrays), theirs.to_dict(arrays=arrays))
        assert repr(ours) == repr(theirs)


def test_covariance(rollouts):
    weight = np.random.default_rng(1).integers(0, 3, len(rollouts[0])) * 1.0
    for estimators in ("multi", ["single", "multi", ("mine", lambda r: r.values)]):
        for options in ({}, {"block_size": 4}, {"sample_weight": weight}):
            ours, theirs = (rlvar.covariance(each, estimators, **options) for each in rollouts)
            same(ours, theirs)
    one, other = (rlvar.covariance(rollouts[0], num_threads=threads) for threads in (1, 3))
    same(one, other)


@pytest.mark.parametrize("size", [None, 1, 5])
def test_the_accumulator(rollouts, size):
    found = []
    for each in rollouts:
        accumulator = rlvar.CovarianceAccumulator(block_size=2)
        accumulator.update(each, "multi", rollouts_per_update=size)
        found.append(accumulator)
    ours, theirs = found
    same(ours.covariance(), theirs.covariance())
    same(ours.mean, theirs.mean)


@pytest.mark.filterwarnings("ignore:only 3 groups")
def test_on_policy_test(rollouts):
    ours, theirs = map(rlvar.on_policy_test, rollouts)
    same(ours.to_dict(), theirs.to_dict())


def test_prompt_components(rng):
    packed, padded = pair(rng, n=80, ends=False)
    for name in ("multi", "rloo", "grpo"):
        ours, theirs = (rlvar.prompt_components(each, name) for each in (packed, padded))
        same(ours.to_dict(), theirs.to_dict())


@pytest.mark.filterwarnings("ignore:only 3 groups")
@pytest.mark.parametrize("groups", [False, True])
@pytest.mark.parametrize("step_rewards", [False, True])
def test_the_report(rng, groups, step_rewards):
    for shape in SHAPES.values():
        packed, padded = pair(rng, groups=groups, step_rewards=step_rewards, **shape)
        ours, theirs = map(rlvar.report, (packed, padded))
        same(ours.to_dict(), theirs.to_dict())
        assert repr(ours) == repr(theirs)


def test_copies_are_found(rng):
    scores, lengths = rng.standard_normal((60, 9)), rng.integers(1, 5, 24)
    lengths[-1] += 60 - lengths.sum()
    twice = rlvar.Rollouts.packed(np.tile(scores, (2, 1)), np.tile(lengths, 2), np.tile(np.arange(24.0), 2))
    near = rlvar.Rollouts.packed(
        np.concatenate([scores, scores + 1e-4]), np.tile(lengths, 2), np.tile(np.arange(24.0), 2)
    )
    for each in (twice, near):
        assert rlvar.report(each).sampling.repeated == 24
        assert rlvar.report(each).sampling.copied


def test_scores_are_kept_without_a_copy_and_padded_when_asked_for(rng):
    scores = np.ones((9, 2), np.float32)
    rollouts = rlvar.Rollouts.packed(scores, [4, 0, 5], [1, 2, 3])
    assert rollouts.scores is scores
    assert rollouts.shape == (3, 5, 2)
    assert repr(rollouts) == "Rollouts(N=3, T=5, D=2, lengths 0 to 5, packed)"
    packed, padded = pair(rng)
    again = packed.padded()
    assert padded.padded() is padded
    np.testing.assert_array_equal(again.scores, np.where(padded.live[:, :, None], padded.scores, 0))
    for name in ("rewards", "lengths", "groups", "bootstrap_value", *OF_STEPS):
        ours, theirs = (getattr(each, name) for each in (again, padded))
        live = padded.live if ours.ndim == 2 else slice(None)
        np.testing.assert_array_equal(ours[live], theirs[live])


def test_copies_and_pickles_are_packed(rng):
    packed, _ = pair(rng)
    for other in (copy.deepcopy(packed), pickle.loads(pickle.dumps(packed))):
        same(rlvar.covariance(other), rlvar.covariance(packed))
        assert repr(other) == repr(packed)


@pytest.mark.parametrize(
    "rows",
    [slice(3, 30), slice(1, 20, 2), [8, 1, 1, 4], np.arange(37) % 3 == 0, slice(None, None, -1), [2, 36]],
)
def test_some_packed_rollouts_are_packed(rng, rows):
    packed, padded = pair(rng)
    ours, theirs = packed[rows], padded[rows]
    np.testing.assert_array_equal(ours.scores, theirs.scores[theirs.live])
    np.testing.assert_array_equal(ours.lengths, theirs.lengths)
    longest = max(1, theirs.lengths.max())
    np.testing.assert_array_equal(ours.values[ours.live], theirs.values[theirs.live])
    assert ours.shape == (len(theirs), longest, 6)
    assert np.shares_memory(ours.scores, packed.scores) == (isinstance(rows, slice) and rows.step is None)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int8])
@pytest.mark.parametrize("step_rewards", [False, True])
def test_files_hold_them_packed(rng, tmp_path, dtype, step_rewards):
    packed, _ = pair(rng, step_rewards=step_rewards)
    packed = rlvar.Rollouts.packed(
        (9 * packed.scores).astype(dtype),
        packed.lengths,
        packed.rewards,
        **{name: getattr(packed, name) for name in ("groups", "bootstrap_value", *OF_STEPS)},
    )
    rlvar.save_rollouts(tmp_path / "packed.npz", packed)
    (tmp_path / "folder").mkdir()
    with np.load(tmp_path / "packed.npz") as saved:
        assert all(len(saved[name]) == packed.lengths.sum() for name in ("scores", *OF_STEPS))
        for name, array in saved.items():
            stored = array.astype(dtype) if name == "scores" else array
            np.save(tmp_path / "folder" / f"{name}.npy", stored)
    archive, folder = (rlvar.load_rollouts(tmp_path / name) for name in ("packed.npz", "folder"))
    assert isinstance(folder._stored.base, np.memmap)
    assert folder._stored.dtype == dtype
    for each in (archive, folder):
        assert repr(each) == repr(packed)
        one, other = rlvar.CovarianceAccumulator(), rlvar.CovarianceAccumulator()
        one.update(each, rollouts_per_update=4)
        other.update(packed, rollouts_per_update=4)
        same(one.covariance(), other.covariance())
        same(rlvar.report(each).to_dict(), rlvar.report(packed).to_dict())


def test_as_many_steps_as_rollouts_leave_no_doubt_in_a_file(rng, tmp_path):
    scores, lengths = rng.standard_normal((4, 2)), [2, 0, 1, 1]
    with pytest.raises(ValueError, match=r"rewards of shape \(4,\) may be one per rollout or one per step"):
        rlvar.Rollouts.packed(scores, lengths, [1, 2, 3, 4])
    rollouts = rlvar.Rollouts.packed(scores, lengths, [[1, 2], [0, 0], [3, 0], [4, 0]], values=[1, 2, 3, 4])
    rlvar.save_rollouts(tmp_path / "r.npz", rollouts)
    again = rlvar.load_rollouts(tmp_path / "r.npz")
    for name in ("rewards", "values", "scores"):
        np.testing.assert_array_equal(getattr(again, name), getattr(rollouts, name))
    ones = rlvar.Rollouts.packed(scores, [1, 1, 1, 1], [1, 2, 3, 4])
    assert ones.rewards.shape == (4,)


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"lengths": [2, 3, 3]}, ValueError, "lengths must add up to the number of rows of scores, 9, got 8"),
        ({"lengths": [-1, 5, 5]}, ValueError, r"lengths must not be negative, got lengths\[0\] = -1"),
        ({"lengths": [4.0, 5.0]}, TypeError, "lengths must be integers, got dtype float64"),
        ({"lengths": [9]}, ValueError, "lengths must have at least N = 2 rollouts, got 1"),
        ({"lengths": [[4, 5]]}, ValueError, r"lengths must have shape \(N,\), got \(1, 2\)"),
        ({"lengths": [2**62, 2**62, 9]}, ValueError, "lengths must add up to"),
        (
            {"scores": np.ones((3, 3, 2))},
            ValueError,
            r"scores must have shape \(sum of lengths, D\), got \(3, 3, 2\)",
        ),
        ({"scores": np.ones((9, 0))}, ValueError, "scores must have D >= 1 coordinates"),
        (
            {"rewards": np.ones(8)},
            ValueError,
            r"rewards must have shape \(N,\) = \(3,\) or \(sum of lengths,\) = \(9,\)",
        ),
        ({"rewards": np.ones((3, 4))}, ValueError, r"rewards must have shape"),
        (
            {"values": np.ones(3)},
            ValueError,
            r"values must have shape \(sum of lengths,\) = \(9,\) or \(N, T\) = \(3, 5\)",
        ),
        ({"logp": [0, 0, 0, 0, 0, 0, 0, np.nan, 0]}, ValueError, r"logp must be finite, got logp\[7\] = nan"),
        ({"terminated": [2] * 9}, ValueError, "terminated must be 0 or 1"),
    ],
)
def test_what_does_not_fit_is_named(change, error, match):
    arguments = {"scores": np.ones((9, 2)), "lengths": [2, 2, 5], "rewards": [1, 2, 3], **change}
    with pytest.raises(error, match=match):
        rlvar.Rollouts.packed(**arguments)


def test_a_packed_score_that_is_not_finite_is_named_as_the_caller_has_it(rng):
    packed, _ = pair(rng)
    packed.scores[200, 3] = np.inf
    for verb in (rlvar.compare, rlvar.decompose, rlvar.covariance, rlvar.on_policy_test, rlvar.report):
        with pytest.raises(
            ValueError, match=r"scores must be finite in live steps, got scores\[200, 3\] = inf"
        ):
            verb(packed)
    with pytest.raises(ValueError, match=r"got scores\[200, 3\] = inf"):
        rlvar.CovarianceAccumulator().update(packed, rollouts_per_update=3)


def test_files_that_are_packed_need_lengths(tmp_path):
    np.savez(tmp_path / "r.npz", scores=np.ones((9, 2)), rewards=np.ones(3))
    with pytest.raises(ValueError, match=r"scores of shape \(9, 2\) are packed, .*, and need lengths"):
        rlvar.load_rollouts(tmp_path / "r.npz")
    np.savez(tmp_path / "r.npz", scores=np.ones((9, 2)), rewards=np.ones(3), mask=np.ones((3, 3)))
    with pytest.raises(ValueError, match="and no mask"):
        rlvar.load_rollouts(tmp_path / "r.npz")


def test_nothing_is_ever_padded_but_numbers_a_step(rng):
    n, longest, d = 400, 600, 1000
    lengths = np.full(n, 5)
    lengths[7] = longest
    scores = rng.standard_normal((lengths.sum(), d)).astype(np.float32)
    rollouts = rlvar.Rollouts.packed(scores, lengths, rng.random(lengths.sum()))
    tracemalloc.start()
    rlvar.report(rollouts)
    rlvar.covariance(rollouts)
    rlvar.CovarianceAccumulator().update(rollouts)
    rollouts[3:].live_steps  # noqa: B018
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < n * longest * d * 4 / 8  # 960 MB padded; an accumulator has some arrays (T, D)


def test_kernels_refuse_rows_that_there_are_not():
    rows, weights = np.ones((9, 2)), np.ones((3, 5))
    for lengths, starts, steps in (
        ([2, 2, 6], [0, 2, 4], 6),
        ([2, 2, 5], [0, 2, 5], 5),
        ([2, 2, 5], [0, -1, 4], 5),
        ([2, 2, 5], [0, 2, 4], 4),
        ([2, 2, 5], [0, 2], 5),
        (None, [0, 2, 4], 5),
    ):
        live = None if lengths is None else np.array(lengths)
        terms = _core.Terms(rows, weights[:, :steps], live, None, None, (np.array(starts), steps))
        with pytest.raises(ValueError, match="has changed"):
            _core.means(terms, np.empty((steps, 2)), 1)
    mask = np.ones((3, 5), np.uint8)
    terms = _core.Terms(rows, weights, None, mask, None, (np.array([0, 2, 4]), 5))
    with pytest.raises(ValueError, match="has changed"):
        _core.means(terms, np.empty((5, 2)), 1)


def test_a_packed_array_is_indexed_as_the_padded_one(rng):
    lengths = np.array([3, 0, 4])
    rows = rng.standard_normal((7, 5))
    padded = np.zeros((3, 4, 5))
    padded[np.arange(4) < lengths[:, None]] = rows
    packed = _check.Packed.of(rows, lengths)
    assert (packed.shape, len(packed), packed.dtype) == (padded.shape, 3, padded.dtype)
    for one, other in zip(packed, padded, strict=True):
        np.testing.assert_array_equal(one, other)
    for part in (slice(1, 3), slice(0, 2)):
        np.testing.assert_array_equal(list(packed[part]), padded[part])
    assert len(packed[1:1]) == 0
    np.testing.assert_array_equal(list(packed[:, :, 1:3]), padded[:, :, 1:3])
    n, t = np.array([2, 0]), np.array([3, 1])
    np.testing.assert_array_equal(packed[n, t], padded[n, t])
    np.testing.assert_array_equal(packed[n, t, :2], padded[n, t, :2])


def test_weights_of_your_own_may_be_packed_too(rng):
    packed, padded = pair(rng)
    weights = rng.standard_normal(padded.values.shape)
    flat = weights[padded.live]
    for own in (flat, weights, lambda rollouts: flat):
        same(rlvar.covariance(packed, ("mine", own)), rlvar.covariance(padded, ("mine", weights)))
    same(rlvar.covariance(packed, ("mine", weights[:, 0])), rlvar.covariance(padded, ("mine", weights[:, 0])))
    with pytest.raises(ValueError, match=r"estimator 'mine': weights must have shape \(N,\) = \(37,\) or"):
        rlvar.covariance(packed, ("mine", flat[1:]))
    with pytest.raises(ValueError, match=r"weights must be finite, got weights\[7\] = nan"):
        rlvar.covariance(packed, ("mine", np.where(np.arange(len(flat)) == 7, np.nan, flat)))
