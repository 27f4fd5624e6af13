import copy
import itertools
import os
import pickle
import signal
import threading
import tracemalloc
import zipfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import reference
import rlvar
import strategies
from rlvar import _core


def accumulated(scores, weights=None, cuts=(), **options):
    """An accumulator updated with the rollouts between one cut and the next."""
    block = options.pop("block_size", 1)
    result = rlvar.CovarianceAccumulator(block_size=block)
    edges = [0, *sorted(cuts), len(scores)]
    for start, stop in itertools.pairwise(edges):
        part = {name: None if x is None else x[start:stop] for name, x in options.items()}
        result.update(scores[start:stop], None if weights is None else weights[start:stop], **part)
    return result


def assert_same(accumulator, expected, rtol):
    scale = max(np.abs(expected.diagonal()).max(), 1e-300)
    np.testing.assert_allclose(accumulator.covariance(), expected, rtol=0, atol=rtol * scale)


@given(case=strategies.terms(), cuts=st.lists(st.integers(0, 7), max_size=5), size=st.integers(1, 4))
def test_batches_of_any_size_match_the_definition(case, cuts, size):
    scores, weights, options = case
    ddof = options.pop("ddof")
    cuts = [min(cut, len(scores)) for cut in cuts]
    result = accumulated(scores, weights, cuts, block_size=size, **options)
    matrix = reference.covariance(scores, weights, ddof=ddof, **options)
    x = reference.terms(scores, weights, options.get("mask"), options.get("lengths"))
    atol = (
        (1e-6 if scores.dtype == np.float32 else 1e-12) * np.abs(matrix).sum()
        + 1e-26 * float((x**2).sum())
        + 1e-321
    )  # below the normal numbers there are few digits
    blocks = reference.blocks(matrix, size)
    np.testing.assert_allclose(result.covariance(ddof=ddof), blocks, rtol=0, atol=atol)
    assert result.count == len(scores)
    expected = reference.effective_size(len(scores), options.get("sample_weight"))
    assert result.effective_size == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("offset", [0.0, 1e8])
@pytest.mark.parametrize("ragged", [False, True])
def test_any_grouping_agrees_with_one_call_to_1e_12(isa, rng, offset, ragged):
    scores = offset + rng.standard_normal((90, 25, 7))
    weights = rng.standard_normal((90, 25)) if offset == 0 else np.ones((90, 25))
    lengths = rng.integers(0, 26, 90) if ragged else None
    whole = rlvar.covariance(scores, weights, lengths=lengths)
    for size in (1, 2, 7, 64, 90):
        assert_same(accumulated(scores, weights, range(size, 90, size), lengths=lengths), whole, 1e-12)
    parts = [
        accumulated(scores[i::9], weights[i::9], (3,), lengths=None if lengths is None else lengths[i::9])
        for i in range(9)
    ]
    while len(parts) > 1:  # a random tree of merges
        i, j = rng.choice(len(parts), 2, replace=False)
        merged = parts[i] + parts[j]
        parts = [part for k, part in enumerate(parts) if k not in (i, j)] + [merged]
    assert_same(parts[0], whole, 1e-12)


def test_a_mean_1e8_times_the_spread_survives(isa, rng):
    scores = 1e8 + rng.standard_normal((60, 9, 5))
    exact = reference.covariance(scores - 1e8)
    for cuts in ((), range(1, 60), (1, 30, 31)):
        assert_same(accumulated(scores, cuts=cuts), exact, 1e-12)


def test_float32_keeps_its_digits(isa, rng):
    scores = (1e5 + rng.standard_normal((60, 40, 5))).astype(np.float32)
    exact = reference.covariance(scores.astype(np.float64) - 1e5)
    assert_same(accumulated(scores, cuts=range(4, 60, 4)), exact, 1e-6)


def test_sample_weights_of_batches_count_against_each_other(rng):
    scores, p = rng.standard_normal((20, 5, 3)), rng.random(20)
    p[3:6] = 0
    result = accumulated(scores, cuts=(3, 6, 14), sample_weight=p)
    np.testing.assert_allclose(
        result.covariance(), rlvar.covariance(scores, sample_weight=p), rtol=1e-11, atol=1e-14
    )
    exact = rlvar.covariance(scores, sample_weight=p, ddof=0)
    np.testing.assert_allclose(result.covariance(ddof=0), exact, rtol=1e-11, atol=1e-14)


def test_a_batch_without_weight_takes_no_digits_from_small_weights(rng):
    scores, p = rng.standard_normal((8, 5, 3)), np.r_[1e-300 * rng.random(4), np.zeros(4)]
    result = accumulated(scores, cuts=(4,), sample_weight=p)
    assert_same(result, rlvar.covariance(scores, sample_weight=p), 1e-12)


@pytest.mark.parametrize("scale", [1e-320, 1e-165, 1e300])
def test_sample_weights_of_any_scale(rng, scale):
    scores, p = rng.standard_normal((20, 5, 3)), rng.random(20) + 0.5
    p[:10] *= 2.0**-10
    expected = rlvar.covariance(scores, sample_weight=p)
    for weights in (p * scale, p * np.where(np.arange(20) < 10, 1, scale)):
        result = accumulated(scores, cuts=(5, 10, 15), sample_weight=weights)
        if weights[0] == p[0] * scale:
            tolerance = 1e-3 if scale < 1e-310 else 1e-12  # subnormal weights have few digits
            np.testing.assert_allclose(result.covariance(), expected, rtol=0, atol=tolerance)
        assert np.isfinite(result.covariance()).all()


def test_a_shard_without_weight_changes_nothing_whatever_its_lengths(rng):
    scores, lengths = rng.standard_normal((6, 3, 2)), np.array([1, 2, 3, 3, 3, 3])
    p = np.array([0, 0, 1, 1, 1, 1.0])
    result = rlvar.CovarianceAccumulator()
    result.update(scores, lengths=lengths, sample_weight=p, rollouts_per_update=2)
    assert_same(result, rlvar.covariance(scores, lengths=lengths, sample_weight=p), 1e-12)


def test_a_batch_without_weight_is_counted_and_not_read(rng):
    scores, p = rng.standard_normal((20, 5, 3)), np.r_[np.zeros(12), rng.random(8)]
    result = accumulated(scores, cuts=(4, 8, 12), sample_weight=p)
    assert result.count == 20
    np.testing.assert_allclose(result.covariance(), rlvar.covariance(scores, sample_weight=p), rtol=1e-11)
    scores[2, 0, 0] = np.nan
    spoilt = accumulated(scores, cuts=(4, 8, 12), sample_weight=p)
    np.testing.assert_array_equal(spoilt.covariance(), result.covariance())
    with pytest.raises(ValueError, match="ddof must leave degrees of freedom"):
        accumulated(np.ones((4, 2, 1)), sample_weight=np.zeros(4)).covariance()


def test_growth_totals_and_mean_are_those_of_decompose(rng):
    scores, weights = rng.standard_normal((50, 12, 4)), rng.standard_normal((50, 12))
    lengths = rng.integers(0, 13, 50)
    result = accumulated(scores, weights, (7, 8, 30), lengths=lengths)
    parts = rlvar.decompose(scores, weights, lengths=lengths)
    np.testing.assert_allclose(result.growth(), parts.growth, rtol=1e-12)
    np.testing.assert_allclose(result.mean, parts.mean, rtol=1e-12, atol=1e-14)
    names = ("variance", "variance_terms", "covariance_terms")
    for total, name in zip(result.totals(), names, strict=True):
        assert total == pytest.approx(getattr(parts, name).value, rel=1e-11)
    assert result.totals().variance == result.growth()[-1]


def test_batches_padded_to_different_lengths(rng):
    scores, lengths = rng.standard_normal((12, 9, 3)), np.array([9, 2, 5, 1, 4, 3, 6, 7, 2, 2, 1, 9])
    whole = rlvar.covariance(scores, lengths=lengths)
    for order in (range(0, 12, 2), reversed(range(0, 12, 2))):
        result = rlvar.CovarianceAccumulator()
        for i in order:
            longest = lengths[i : i + 2].max()
            result.update(scores[i : i + 2, :longest], lengths=lengths[i : i + 2])
        assert_same(result, whole, 1e-12)


def test_merging_leaves_the_other_as_it_was_and_plus_leaves_both(rng):
    a, b = (accumulated(rng.standard_normal((8, 4, 2))) for _ in range(2))
    before = a.covariance(), b.covariance()
    both = a + b
    np.testing.assert_array_equal(a.covariance(), before[0])
    a.merge(b)
    np.testing.assert_array_equal(b.covariance(), before[1])
    np.testing.assert_array_equal(a.covariance(), both.covariance())
    total = sum([b])
    total.update(np.ones((1, 4, 2)))
    np.testing.assert_array_equal(b.covariance(), before[1])
    a.merge(a)  # itself: every rollout twice
    assert a.count == 32
    np.testing.assert_allclose(a.covariance(ddof=0), both.covariance(ddof=0), rtol=1e-12)


def test_empty_accumulators_and_batches_change_nothing(rng):
    a = accumulated(rng.standard_normal((8, 4, 2)))
    before = a.covariance()
    a.update(np.empty((0, 4, 2)))
    a.merge(rlvar.CovarianceAccumulator())
    for result in (a, a + rlvar.CovarianceAccumulator(), rlvar.CovarianceAccumulator() + a):
        np.testing.assert_array_equal(result.covariance(), before)
        assert result.count == 8
    empty = rlvar.CovarianceAccumulator()
    assert empty.count == 0
    for ask in (empty.covariance, empty.growth, empty.totals, lambda: empty.mean):
        with pytest.raises(ValueError, match="has no rollouts yet"):
            ask()


def test_one_rollout_has_no_variance():
    a = accumulated(np.ones((1, 4, 2)))
    with pytest.raises(ValueError, match="ddof must leave degrees of freedom, got ddof = 1 for 1 samples"):
        a.covariance()
    assert (a.covariance(ddof=0) == 0).all()


GOOD = np.random.default_rng(0).standard_normal((6, 4, 3))


def spoilt(index, value):
    scores = GOOD.copy()
    scores[index] = value
    return scores


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((spoilt((4, 2, 1), np.nan),), {}, ValueError, r"got scores\[4, 2, 1\] = nan"),
        ((spoilt((4, 2, 1), np.inf)[4:5],), {}, ValueError, r"got scores\[0, 2, 1\] = inf"),
        ((GOOD * 1e200,), {}, ValueError, "beyond the range of float64"),
        ((GOOD[:, :, :2],), {}, ValueError, "scores must have D = 3 coordinates, as before, got 2"),
        ((GOOD[0],), {}, ValueError, r"scores must have shape \(N, T, D\), got \(4, 3\)"),
        ((GOOD[:, :0],), {}, ValueError, "T >= 1 steps"),
        ((GOOD, np.ones(5)), {}, ValueError, "weights must have shape"),
        ((GOOD,), {"lengths": [5] * 6}, ValueError, r"got lengths\[0\] = 5"),
        ((GOOD,), {"sample_weight": -np.ones(6)}, ValueError, "sample_weight must not be negative"),
        ((GOOD.astype(complex),), {}, TypeError, "complex128"),
    ],
)
def test_a_refused_batch_leaves_the_accumulator_as_it_was(arguments, options, error, message):
    accumulator = accumulated(GOOD)
    before = accumulator.covariance()
    with pytest.raises(error, match=message):
        accumulator.update(*arguments, **options)
    assert accumulator.count == 6
    np.testing.assert_array_equal(accumulator.covariance(), before)


def test_what_does_not_fit_is_not_merged():
    accumulator = accumulated(GOOD)
    with pytest.raises(TypeError, match="other must be a CovarianceAccumulator, got ndarray"):
        accumulator.merge(GOOD)
    with pytest.raises(TypeError, match="unsupported operand"):
        accumulator + 1
    with pytest.raises(ValueError, match="block_size must be 1, as here, got 2"):
        accumulator.merge(accumulated(GOOD, block_size=2))
    with pytest.raises(ValueError, match="other must have D = 3 coordinates, as before, got 2"):
        accumulator.merge(accumulated(GOOD[:, :, :2]))
    with pytest.raises(ValueError, match="block_size must be at least 1, got 0"):
        rlvar.CovarianceAccumulator(block_size=0)


@pytest.mark.parametrize("kernel", ["covariance", "add_product"])
def test_an_interrupt_anywhere_leaves_the_accumulator_as_it_was(monkeypatch, kernel):
    accumulator, other = accumulated(GOOD), accumulated(2 * GOOD)
    before = accumulator.covariance()

    def interrupted(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(_core, kernel, interrupted)
        with pytest.raises(KeyboardInterrupt):
            accumulator.update(GOOD)
        with pytest.raises(KeyboardInterrupt):
            accumulator.update(GOOD, rollouts_per_update=2)
        if kernel == "add_product":
            with pytest.raises(KeyboardInterrupt):
                accumulator.merge(other)
    np.testing.assert_array_equal(accumulator.covariance(), before)


def test_updates_in_threads_of_their_own_accumulators(rng):
    scores = rng.standard_normal((64, 30, 8))
    parts = [rlvar.CovarianceAccumulator(num_threads=2) for _ in range(4)]
    workers = [threading.Thread(target=part.update, args=(scores[i::4],)) for i, part in enumerate(parts)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert_same(parts[0] + parts[1] + (parts[2] + parts[3]), rlvar.covariance(scores), 1e-12)


def in_threads(*calls):
    """Make the calls at once; return how many came back within a minute."""
    workers = [threading.Thread(target=call, daemon=True) for call in calls]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    return sum(not worker.is_alive() for worker in workers)


def test_threads_that_share_an_accumulator_lose_nothing(tmp_path, rng):
    batches = rng.integers(-3, 4, (96, 8, 20, 6)).astype(float)
    total, others = rlvar.CovarianceAccumulator(num_threads=1), []

    def feed(part):
        for k, batch in enumerate(part):
            if k % 3:
                total.update(batch, rollouts_per_update=3 if k % 3 == 1 else None)
            else:
                total.merge(accumulated(batch))
            totals = total.totals()  # of whole updates, whatever the others do
            assert totals.variance == pytest.approx(totals.variance_terms + totals.covariance_terms)
            others.append((total + accumulated(batch)).count)
            total.save(tmp_path / f"{k}.npz")

    assert in_threads(*(lambda i=i: feed(batches[i::8]) for i in range(8))) == 8
    assert total.count == 96 * 8
    assert len(others) == 96
    assert_same(total, rlvar.covariance(batches.reshape(-1, 20, 6)), 1e-12)


def test_accumulators_that_merge_each_other_do_not_wait_for_each_other(rng):
    a, b = (accumulated(rng.standard_normal((4, 30, 4))) for _ in range(2))

    def merge(into, other):
        for _ in range(8):
            into.merge(other)

    assert in_threads(lambda: merge(a, b), lambda: merge(b, a), lambda: merge(a, a)) == 3
    assert a.effective_size == pytest.approx(a.count)


def test_threads_with_other_coordinates_cannot_both_be_first():
    for _ in range(20):
        accumulator, refused = rlvar.CovarianceAccumulator(), []

        def update(d, accumulator=accumulator, refused=refused):
            try:
                accumulator.update(np.ones((9, 3, d)))
            except ValueError as error:
                refused.append(str(error))

        assert in_threads(lambda update=update: update(2), lambda update=update: update(3)) == 2
        assert len(refused) == 1
        assert accumulator.count == 9


def test_copies_are_independent_and_may_be_made_while_another_thread_updates(rng):
    accumulator = accumulated(rng.standard_normal((4, 6, 2)))
    with accumulator._lock:  # as in the middle of an update
        copies = [copy.copy(accumulator), copy.deepcopy(accumulator), pickle.loads(pickle.dumps(accumulator))]
        for each in copies:
            each.update(np.ones((3, 6, 2)))
            assert each.count == 7
        assert (accumulator + copies[0]).count == 11
    assert accumulator.count == 4


def test_a_forked_child_does_not_wait_for_a_lock_of_its_parent(rng):
    accumulator = accumulated(rng.standard_normal((4, 6, 2)))
    with accumulator._lock:
        child = os.fork()
        if child == 0:
            try:
                fresh = rlvar.CovarianceAccumulator()
                fresh.merge(accumulator)
                os._exit(0 if fresh.count == 4 else 1)
            finally:
                os._exit(2)
    assert os.waitpid(child, 0)[1] == 0


def test_pickled_and_saved_accumulators_go_on_to_the_bit(tmp_path, rng):
    path = tmp_path / "part.npz"
    accumulator = accumulated(rng.standard_normal((9, 7, 2)), block_size=2, sample_weight=rng.random(9))
    accumulator.save(path)
    more = rng.standard_normal((5, 8, 2))
    for other in (pickle.loads(pickle.dumps(accumulator)), rlvar.CovarianceAccumulator.load(path)):
        other.update(more)
        assert (other.block_size, other.count) == (2, 14)
        reference_accumulator = pickle.loads(pickle.dumps(accumulator))
        reference_accumulator.update(more)
        np.testing.assert_array_equal(other.covariance(), reference_accumulator.covariance())
        np.testing.assert_array_equal(other.mean, reference_accumulator.mean)


def test_an_empty_accumulator_is_saved_too(tmp_path):
    rlvar.CovarianceAccumulator(block_size=3).save(tmp_path / "empty.npz")
    result = rlvar.CovarianceAccumulator.load(str(tmp_path / "empty.npz"))
    assert (result.count, result.block_size) == (0, 3)


def test_truncated_damaged_and_foreign_files_are_refused(tmp_path):
    path = tmp_path / "part.npz"
    accumulated(GOOD).save(path)
    good = path.read_bytes()
    bad = tmp_path / "bad.npz"
    for length in range(0, len(good), 97):
        bad.write_bytes(good[:length])
        with pytest.raises(ValueError, match=r"bad.npz: it is (not an|a damaged) .npz file"):
            rlvar.CovarianceAccumulator.load(bad)
    with zipfile.ZipFile(path) as archive:
        place = archive.getinfo("sums.npy").header_offset + 200
    bad.write_bytes(good[:place] + bytes(b ^ 1 for b in good[place : place + 8]) + good[place + 8 :])
    with pytest.raises(ValueError, match=r"bad.npz: array sums cannot be read: Bad CRC"):
        rlvar.CovarianceAccumulator.load(bad)
    np.savez(bad, scores=GOOD)
    with pytest.raises(ValueError, match=r"bad.npz: it is not a saved CovarianceAccumulator"):
        rlvar.CovarianceAccumulator.load(bad)
    with pytest.raises(FileNotFoundError):
        rlvar.CovarianceAccumulator.load(tmp_path / "none.npz")
    with pytest.raises(ValueError, match="num_threads must be at least 1, got 0"):
        rlvar.CovarianceAccumulator.load(path, num_threads=0)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("version", 2, "it has version 2, but this rlvar reads version 1"),
        ("block_size", 0, "block_size must be at least 1"),
        ("block_size", 1.0, "block_size must be an integer"),
        ("rollouts", 2.5, "integer"),
        ("rollouts", -6, "weights"),
        ("rollouts", 2, "weights"),
        ("exponent", 2**62, "weights"),
        ("weight", 0.0, "weights"),
        ("weight", -1.0, "weights"),
        ("weight", 1e300, "weights"),
        ("weight", np.ones(2), "size 1"),
        ("square_weight", 0.0, "weights"),
        ("square_weight", np.nan, "weights"),
        ("square_weight", 1.5, "weights"),
        ("sums", np.ones((2, 2)), "moments"),
        ("sums", np.ones((4, 4), np.float32), "moments"),
        ("sums", np.triu(np.ones((4, 4))), "no covariance"),
        ("sums", -np.eye(4), "no covariance"),
        ("sums", 3 * np.ones((4, 4)) - 2 * np.eye(4), "no covariance"),
        ("sums", 1.9 * np.eye(4) - 0.9 * np.ones((4, 4)), "no covariance"),
        ("mean", np.full((4, 3), np.nan), "moments"),
        ("mean", np.ones((4, 0)), "moments"),
        ("mean", np.ones(3), "unpack"),
        ("tail", None, "array tail cannot be read: it is missing"),
    ],
)
def test_what_cannot_be_an_accumulator_is_not_loaded(tmp_path, name, value, message):
    accumulated(GOOD).save(tmp_path / "part.npz")
    with np.load(tmp_path / "part.npz") as archive:
        fields = {**archive, name: value}
    np.savez(tmp_path / "bad.npz", **{key: each for key, each in fields.items() if each is not None})
    with pytest.raises(ValueError, match=f"bad.npz: .*{message}"):
        rlvar.CovarianceAccumulator.load(tmp_path / "bad.npz")


def test_results_beyond_the_range_are_told_after_loading_too(tmp_path):
    accumulated(1e153 * GOOD).save(tmp_path / "part.npz")
    with np.load(tmp_path / "part.npz") as archive:
        fields = {**archive, "square_weight": 1 - 1e-15, "pairs": 1e-15}
    np.savez(tmp_path / "part.npz", **fields)
    loaded = rlvar.CovarianceAccumulator.load(tmp_path / "part.npz")
    assert np.isfinite(loaded.covariance(ddof=0)).all()
    far = accumulated(-1e160 * np.ones((6, 4, 3)))
    for use in (loaded.covariance, loaded.growth, loaded.totals, lambda: loaded.merge(far)):
        with pytest.raises(ValueError, match="beyond the range of float64"):
            use()


def test_the_error_state_of_numpy_changes_nothing(rng):
    small = 1e-155 * rng.standard_normal((6, 4, 3))

    def results():
        both = accumulated(small) + accumulated(1e5 * small)
        return both.covariance(), both.growth(), both.totals(), both.mean

    expected = results()
    with np.errstate(all="raise"):
        for one, other in zip(results(), expected, strict=True):
            np.testing.assert_array_equal(one, other)


def test_saving_is_at_once_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "part.npz"
    accumulated(GOOD).save(path)
    before = path.read_bytes()

    def full(file, array, **options):
        file.write(b"half of it")
        raise OSError("no space left on device")

    with pytest.raises(FileNotFoundError, match="none"):
        accumulated(GOOD).save(tmp_path / "none" / "part.npz")
    monkeypatch.setattr(np.lib.format, "write_array", full)
    with pytest.raises(OSError, match="no space left"):
        accumulated(2 * GOOD).save(path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["part.npz"]


def write_folder(folder, dtype=np.float32):
    rng = np.random.default_rng(0)
    scores = rng.standard_normal((50, 9, 4)).astype(dtype)
    np.save(folder / "scores.npy", scores)
    return (
        np.load(folder / "scores.npy", mmap_mode="r"),
        rng.standard_normal((50, 9)),
        rng.integers(0, 10, 50),
    )


def test_a_stream_of_mapped_scores_is_one_call(tmp_path):
    scores, weights, lengths = write_folder(tmp_path)
    done = []
    result = rlvar.CovarianceAccumulator()
    result.update(
        scores, weights, lengths=lengths, rollouts_per_update=16, progress=lambda *at: done.append(at)
    )
    assert done == [(16, 50), (32, 50), (48, 50), (50, 50)]
    assert_same(result, rlvar.covariance(scores, weights, lengths=lengths), 1e-6)
    mask = reference.live_steps((50, 9), lengths=lengths)
    masked = rlvar.CovarianceAccumulator()
    masked.update(scores, weights, mask=mask, rollouts_per_update=16, sample_weight=np.ones(50))
    np.testing.assert_array_equal(masked.covariance(), result.covariance())


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_a_stream_takes_the_memory_of_its_blocks_alone(tmp_path, dtype):
    np.save(tmp_path / "scores.npy", np.ones((1000, 10, 512), dtype))
    scores = np.load(tmp_path / "scores.npy", mmap_mode="r")
    for source in (scores, rlvar.Rollouts(scores, np.ones(1000))):
        tracemalloc.start()
        rlvar.CovarianceAccumulator().update(source, rollouts_per_update=50)
        assert tracemalloc.get_traced_memory()[1] < scores.nbytes / 4
        tracemalloc.stop()


def test_a_stream_names_the_bad_score_and_changes_nothing(tmp_path):
    scores, weights, _ = write_folder(tmp_path)
    scores = scores.copy()
    scores[37, 2, 1] = np.nan
    result = accumulated(scores[:10], weights[:10])
    with pytest.raises(ValueError, match=r"got scores\[37, 2, 1\] = nan"):
        result.update(scores, weights, rollouts_per_update=16)
    assert result.count == 10


def test_a_progress_bar_counts_rollouts(tmp_path, capsys):
    scores, weights, _ = write_folder(tmp_path)
    result = rlvar.CovarianceAccumulator()
    result.update(scores, weights, rollouts_per_update=16, progress=True)
    assert "50/50" in capsys.readouterr().err


def test_a_progress_bar_without_tqdm_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "tqdm", None)
    result = rlvar.CovarianceAccumulator()
    with pytest.raises(ImportError, match=r"pip install 'rlvar\[progress\]'"):
        result.update(GOOD, progress=True)
    assert result.count == 0


def test_repr_says_what_it_holds():
    assert repr(rlvar.CovarianceAccumulator(block_size=2)) == "CovarianceAccumulator(count=0, block_size=2)"
    assert repr(accumulated(GOOD)) == "CovarianceAccumulator(count=6, block_size=1, B=4, D=3)"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_a_child_of_fork_holds_no_lock_that_another_thread_held(rng):
    accumulator = rlvar.CovarianceAccumulator()
    with accumulator._lock:  # as another thread does while it merges
        child = os.fork()
        if child == 0:
            signal.alarm(20)
            accumulator.update(np.ones((4, 3, 2)))
            os._exit(0 if accumulator.count == 4 else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_moments_below_the_normal_numbers_are_saved_and_loaded(tmp_path):
    for seed in range(40):
        accumulator = rlvar.CovarianceAccumulator()
        accumulator.update(np.random.default_rng(seed).standard_normal((3, 4, 1)) * 1e-160)
        accumulator.save(tmp_path / "a.npz")
        assert rlvar.CovarianceAccumulator.load(tmp_path / "a.npz").count == 3
