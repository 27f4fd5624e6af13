import json
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import reference
import rlvar
import strategies

# Error of the result relative to the largest diagonal entry.
ACCURACY = {np.dtype(np.float32): 1e-6, np.dtype(np.float64): 1e-13}


def assert_close(result, expected, dtype):
    scale = max(float(np.abs(expected.diagonal()).max()), 1e-300)
    np.testing.assert_allclose(result, expected, rtol=0, atol=ACCURACY[np.dtype(dtype)] * scale)


@given(case=strategies.terms())
def test_matches_the_definition(case):
    scores, weights, options = case
    result = rlvar.covariance(scores, weights, **options)
    expected = reference.covariance(scores, weights, **options)
    x = reference.terms(scores, weights, options.get("mask"), options.get("lengths"))
    # Rounding of the mean shows where the spread is far below the terms.
    atol = ACCURACY[scores.dtype] * expected.diagonal().max() + 1e-28 * float((x**2).sum())
    np.testing.assert_allclose(result, expected, rtol=0, atol=atol)


def flat_covariance(scores, weights, **options):
    """The same by one matrix product in float64."""
    n, t, _ = scores.shape
    live = reference.live_steps((n, t), **options)
    x = scores * np.where(live, weights, 0.0)[:, :, None]
    x -= x.mean(axis=0)
    flat = x.transpose(1, 0, 2).reshape(t, -1)
    return flat @ flat.T / (n - 1)


# One panel; several lanes; several tiles; more coordinates than a panel; more than a chunk.
SHAPES = [(2, 1, 1), (9, 5, 3), (300, 12, 16), (20, 530, 7), (5, 3, 700), (3, 2, 1_100_000)]
# Around the sizes of a vector, of the micro-kernel's columns, and of a tile.
SHAPES += [(5, t, 6) for t in (2, 4, 7, 8, 9, 15, 17, 23, 24, 25, 31, 95, 96, 97, 104, 193)]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", SHAPES)
def test_every_isa_and_cut_of_the_work_matches_numpy(isa, rng, dtype, shape):
    n, t, _ = shape
    scores = rng.standard_normal(shape, dtype)
    weights = rng.standard_normal((n, t))
    lengths = rng.integers(0, t + 1, n)
    mask = rng.random((n, t)) < 0.7
    for options in ({}, {"lengths": lengths}, {"mask": mask}):
        expected = flat_covariance(scores, weights, **options)
        assert_close(rlvar.covariance(scores, weights, **options), expected, dtype)


def test_agrees_with_numpy_cov(rng):
    scores = rng.standard_normal((30, 6, 1))
    p = rng.random(30)
    for weights, theirs in (
        ({}, {}),
        ({"sample_weight": p}, {"aweights": p}),
    ):
        for ddof in range(3):
            expected = np.cov(scores[:, :, 0].T, ddof=ddof, **theirs)
            np.testing.assert_allclose(rlvar.covariance(scores, ddof=ddof, **weights), expected, rtol=1e-11)


@pytest.mark.parametrize("shape", [(2000, 16, 16), (256, 600, 16), (40, 20, 3)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_bits_do_not_depend_on_the_number_of_threads(isa, rng, shape, dtype):
    scores = rng.standard_normal(shape, dtype)
    weights = rng.standard_normal(shape[:2])
    lengths = rng.integers(1, shape[1] + 1, shape[0])
    sets = rng.standard_normal((2, *shape[:2]))
    for options in ({"estimator": weights}, {"lengths": lengths}, {"block_size": 3}, {"estimator": sets}):
        one = rlvar.covariance(scores, num_threads=1, **options)
        for threads in (2, 3, 8):
            np.testing.assert_array_equal(rlvar.covariance(scores, num_threads=threads, **options), one)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_errors_stay_small_over_many_columns(isa, rng, dtype):
    scores = rng.standard_normal((40, 30, 3000)).astype(dtype)
    weights = rng.standard_normal((40, 30))
    scale = (scores * weights[:, :, None]).var(axis=0, ddof=1).sum(axis=1).max()
    error = np.abs(rlvar.covariance(scores, weights) - flat_covariance(scores, weights)).max()
    assert error < scale * (3e-7 if dtype is np.float32 else 1e-14)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_order_of_the_rollouts_does_not_matter(isa, rng, dtype):
    scores = rng.standard_normal((60, 40, 5)).astype(dtype) + dtype(3)
    weights, p = rng.standard_normal((60, 40)), rng.random(60)
    lengths = rng.integers(0, 41, 60)
    one = rlvar.covariance(scores, weights, lengths=lengths, sample_weight=p)
    shuffled = rng.permutation(60)
    other = rlvar.covariance(
        scores[shuffled], weights[shuffled], lengths=lengths[shuffled], sample_weight=p[shuffled]
    )
    assert_close(other, one, dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_padding_and_a_large_mean_together_cost_no_digits(isa, rng, dtype):
    # All rollouts reach step 10; beyond, the step from the mean to the padding's 0 is the spread.
    scores = (1e4 + rng.standard_normal((50, 20, 4))).astype(dtype)
    lengths = rng.integers(10, 21, 50)
    result = rlvar.covariance(scores, lengths=lengths)
    exact = flat_covariance(scores.astype(np.longdouble), np.ones((50, 20)), lengths=lengths)
    assert_close(result, exact.astype(float), dtype)
    spread = reference.covariance(scores[:, :10].astype(np.float64) - 1e4)
    assert_close(result[:10, :10], spread, dtype)


@pytest.mark.parametrize("light", [1e-6, 1e-12, 1e-16])
@pytest.mark.parametrize("heavy_end", [6, 12])
def test_raggedness_costs_no_digits_however_uneven_the_sample_weights(isa, rng, light, heavy_end):
    scores = rng.standard_normal((40, 12, 6)) + 1e8
    p, lengths = np.full(40, light), np.full(40, 18 - heavy_end)
    p[:3], lengths[:3] = 1, heavy_end
    x = (scores * reference.live_steps((40, 12), lengths=lengths)[:, :, None]).astype(np.longdouble)
    x -= np.tensordot(p.astype(np.longdouble), x, 1) / p.sum(dtype=np.longdouble)
    exact = np.einsum("n,nid,njd->ij", p, x, x) / reference.normaliser(40, p)
    result = rlvar.covariance(scores, lengths=lengths, sample_weight=p)
    assert_close(result, exact.astype(float), np.float64)


def test_subnormal_and_huge_constant_float32_scores(isa, rng):
    tiny = (rng.standard_normal((20, 5, 9)) * 1e-40).astype(np.float32)
    expected = rlvar.covariance(tiny.astype(np.float64))
    np.testing.assert_allclose(rlvar.covariance(tiny), expected, rtol=0, atol=1e-6 * expected.max())
    assert (rlvar.covariance(np.full((20, 5, 9), 1e35, np.float32), np.full(20, 1e10)) == 0).all()


def test_lengths_and_their_mask_agree_to_the_bit(rng):
    scores = rng.standard_normal((30, 25, 6), np.float32)
    lengths = rng.integers(0, 26, 30)
    mask = reference.live_steps((30, 25), lengths=lengths)
    np.testing.assert_array_equal(
        rlvar.covariance(scores, lengths=lengths), rlvar.covariance(scores, mask=mask)
    )


@given(case=strategies.terms(), size=st.integers(1, 8))
def test_blocks_are_sums_of_the_matrix(case, size):
    scores, weights, options = case
    result = rlvar.covariance(scores, weights, block_size=size, **options)
    matrix = reference.covariance(scores, weights, **options)
    x = reference.terms(scores, weights, options.get("mask"), options.get("lengths"))
    atol = ACCURACY[scores.dtype] * np.abs(matrix).sum() + 1e-27 * float((x**2).sum())
    atol += 1e-320  # subnormal squares have few digits
    np.testing.assert_allclose(result, reference.blocks(matrix, size), rtol=0, atol=atol)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(9, 50, 70), (6, 1000, 3), (6000, 20, 40)])
def test_blocks_keep_the_variance(isa, rng, shape, dtype):
    scores = rng.standard_normal(shape, dtype)
    weights = rng.standard_normal(shape[:2])
    for options in ({}, {"lengths": rng.integers(0, shape[1] + 1, shape[0])}):
        matrix = rlvar.covariance(scores, weights, **options)
        for size in (2, 7, shape[1], 10**9):
            result = rlvar.covariance(scores, weights, block_size=size, **options)
            assert_close(
                result,
                np.add.reduceat(
                    np.add.reduceat(matrix, np.arange(0, shape[1], size), 0), np.arange(0, shape[1], size), 1
                ),
                np.float32,
            )
            assert result.sum() == pytest.approx(matrix.sum(), rel=1e-6 if dtype is np.float32 else 1e-11)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(30, 20, 90), (100, 110, 40), (3, 5, 600), (9, 6, 2)])
def test_several_sets_of_weights_give_what_each_gives_alone(isa, rng, shape, dtype):
    scores = rng.standard_normal(shape, dtype)
    sets = rng.standard_normal((4, *shape[:2]))
    sets[1] = 0
    lengths = rng.integers(0, shape[1] + 1, shape[0])
    mask = rng.random(shape[:2]) < 0.7
    junk = np.where(mask, sets, np.nan)
    for weights, options in (
        (sets, {}),
        (sets, {"lengths": lengths, "sample_weight": rng.random(shape[0])}),
        (junk, {"mask": mask}),
    ):
        results = rlvar.covariance(scores, weights, **options)
        assert results.shape == (4, shape[1], shape[1])
        for result, w in zip(results, weights, strict=True):
            assert_close(result, rlvar.covariance(scores, w, **options), dtype)
    blocks = rlvar.covariance(scores, sets, block_size=4)
    np.testing.assert_array_equal(blocks[2], rlvar.covariance(scores, sets[2], block_size=4))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_several_sets_share_only_where_no_digits_are_lost(isa, rng, dtype):
    scores = (1e5 + rng.standard_normal((60, 9, 200))).astype(dtype)
    sets = np.stack([np.ones((60, 9)), rng.standard_normal((60, 9))])
    results = rlvar.covariance(scores, sets)
    assert_close(results[0], reference.covariance(scores.astype(np.float64) - 1e5), dtype)
    assert_close(results[1], rlvar.covariance(scores, sets[1]), dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_mean_far_above_the_spread_costs_no_digits(isa, rng, dtype):
    # What float32 and float64 make of 1e6 + noise; the differences to 1e6 are exact.
    scores = (1e6 + rng.standard_normal((200, 9, 5))).astype(dtype)
    spread = scores.astype(np.float64) - 1e6
    assert_close(rlvar.covariance(scores), reference.covariance(spread), dtype)


def test_the_rounding_of_weighted_terms_costs_no_digits(isa, rng):
    scores = rng.uniform(1, 2, (200, 4, 5)).astype(np.float32)
    weights = 1e6 / scores[:, :, 0] + rng.standard_normal((200, 4))
    exact = scores.astype(np.longdouble) * weights[:, :, None]
    exact[:, :, 1:] = 0  # the first coordinate has the mean far above the spread
    alone = scores.copy()
    alone[:, :, 1:] = 0
    x = (exact - exact.mean(axis=0))[:, :, 0]
    assert_close(rlvar.covariance(alone, weights), (x.T @ x / 199).astype(float), np.float32)


@pytest.mark.parametrize("exponent", [-100, 100])
def test_float32_products_neither_underflow_nor_overflow(isa, rng, exponent):
    scores = rng.standard_normal((50, 6, 4), np.float32)
    tiny = np.ldexp(scores, exponent)
    wanted = np.ldexp(rlvar.covariance(scores), 2 * exponent)
    assert_close(rlvar.covariance(tiny), wanted, np.float32)
    np.testing.assert_array_equal(
        rlvar.covariance(tiny.astype(np.float64)),
        np.ldexp(rlvar.covariance(scores.astype(np.float64)), 2 * exponent),
    )


def test_symmetric_and_positive_semidefinite(rng):
    matrix = rlvar.covariance(rng.standard_normal((10, 40, 2)), rng.standard_normal((10, 40)))
    np.testing.assert_array_equal(matrix, matrix.T)
    assert np.linalg.eigvalsh(matrix).min() > -1e-12 * matrix.diagonal().max()


def test_constant_terms_have_no_variance():
    np.testing.assert_array_equal(rlvar.covariance(np.full((7, 3, 2), 0.1)), np.zeros((3, 3)))


def test_padding_is_never_read(rng):
    scores = rng.standard_normal((8, 5, 3))
    lengths = np.array([5, 3, 0, 1, 2, 5, 4, 4])
    live = reference.live_steps((8, 5), lengths=lengths)
    clean = rlvar.covariance(scores, lengths=lengths)
    dirty = np.where(live[:, :, None], scores, np.nan)
    weights = np.where(live, 1.0, np.inf)
    np.testing.assert_array_equal(rlvar.covariance(dirty, weights, lengths=lengths), clean)
    np.testing.assert_array_equal(rlvar.covariance(dirty, weights, mask=live), clean)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_strided_scores_give_the_bits_of_their_copies(rng, dtype):
    base = rng.standard_normal((20, 12, 8)).astype(dtype)
    views = [
        base[::2, ::3],
        base[::-1, ::-1],
        base[:, :, ::2],
        base.transpose(1, 0, 2),
        base.transpose(2, 1, 0),
        base[:, :, 3:6],
        base[:, :, :1],
        np.broadcast_to(base[:, :1], (20, 4, 8)),
        np.asfortranarray(base),
    ]
    for view in views:
        np.testing.assert_array_equal(rlvar.covariance(view), rlvar.covariance(view.copy(order="C")))
    weights = rng.standard_normal((24, 40))[::-1, ::2][:20, :12]
    np.testing.assert_array_equal(rlvar.covariance(base, weights), rlvar.covariance(base, weights.copy()))


def test_read_only_lists_integers_and_half_precision(rng):
    scores = rng.integers(-3, 4, (6, 4, 2))
    expected = rlvar.covariance(scores.astype(np.float64))
    np.testing.assert_array_equal(rlvar.covariance(scores), expected)
    np.testing.assert_array_equal(rlvar.covariance(scores.tolist()), expected)
    np.testing.assert_allclose(rlvar.covariance(scores.astype(np.float16)), expected, atol=1e-6)
    read_only = scores.astype(np.float64)
    read_only.setflags(write=False)
    np.testing.assert_array_equal(rlvar.covariance(read_only), expected)


def test_memory_mapped_scores(tmp_path, rng):
    scores = rng.standard_normal((6, 4, 2))
    np.save(tmp_path / "scores.npy", scores)
    mapped = np.load(tmp_path / "scores.npy", mmap_mode="r")
    np.testing.assert_array_equal(rlvar.covariance(mapped), rlvar.covariance(scores))


def test_out_is_filled_and_returned(rng):
    scores = rng.standard_normal((6, 4, 2))
    out = np.empty((8, 8))[::2, ::2]
    assert rlvar.covariance(scores, out=out) is out
    np.testing.assert_array_equal(out, rlvar.covariance(scores))


def test_two_rollouts_are_enough_and_repeated_weights_count(rng):
    scores = rng.standard_normal((2, 3, 2))
    half = (scores[0] - scores[1]) / np.sqrt(2)
    np.testing.assert_allclose(rlvar.covariance(scores), half @ half.T, rtol=1e-13)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_first_bad_score_is_named_and_out_is_untouched(rng, bad, dtype):
    scores = rng.standard_normal((6, 4, 3)).astype(dtype)
    scores[4, 2, 1] = scores[5, 0, 0] = bad
    out = np.full((4, 4), 7.0)
    with pytest.raises(ValueError, match=r"scores must be finite in live steps, got scores\[4, 2, 1\] = "):
        rlvar.covariance(scores, np.zeros(6), out=out)
    assert (out == 7).all()


def test_overflow_is_an_error_not_an_infinity():
    scores = np.array([[[1e200]], [[-1e200]]])
    with pytest.raises(ValueError, match="beyond the range of float64"):
        rlvar.covariance(scores)


GOOD = np.ones((4, 3, 2))


@pytest.mark.parametrize(
    ("scores", "options", "error", "message"),
    [
        (np.ones((4, 3)), {}, ValueError, r"scores must have shape \(N, T, D\), got \(4, 3\)"),
        (np.ones((1, 3, 2)), {}, ValueError, "at least N = 2 rollouts"),
        (np.ones((4, 0, 2)), {}, ValueError, "T >= 1 steps"),
        (np.ones((4, 3, 0)), {}, ValueError, "D >= 1 coordinates"),
        (GOOD.astype(complex), {}, TypeError, "scores must be float32.*complex128"),
        (GOOD.astype(np.longdouble), {}, TypeError, "got dtype"),
        (
            GOOD,
            {"estimator": np.ones((3, 4))},
            ValueError,
            r"weights must have shape \(N, T\) = \(4, 3\) or \(N,\) = \(4,\), got \(3, 4\)",
        ),
        (GOOD, {"estimator": np.ones(3)}, ValueError, "weights must have shape"),
        (GOOD, {"estimator": [1, 2, np.nan, 3]}, ValueError, r"got weights\[2\] = nan"),
        (GOOD, {"lengths": [1, 2, 3, 4]}, ValueError, r"got lengths\[3\] = 4"),
        (GOOD, {"sample_weight": [1, 2, 3]}, ValueError, r"sample_weight must have shape \(N,\) = \(4,\)"),
        (GOOD, {"sample_weight": [1, -1, 1, 1]}, ValueError, r"got sample_weight\[1\] = -1"),
        (GOOD, {"sample_weight": [1, np.nan, 1, 1]}, ValueError, r"got sample_weight\[1\] = nan"),
        (GOOD, {"sample_weight": np.zeros(4)}, ValueError, "sample_weight must not be all zero"),
        (GOOD, {"sample_weight": [0, 1, 0, 0]}, ValueError, "ddof must leave degrees of freedom"),
        (GOOD, {"ddof": 4}, ValueError, "ddof must leave degrees of freedom"),
        (GOOD, {"ddof": 1.5}, ValueError, "ddof must be a non-negative integer, got 1.5"),
        (GOOD, {"ddof": -1}, ValueError, "ddof must be a non-negative integer"),
        (GOOD, {"block_size": 0}, ValueError, "block_size must be at least 1, got 0"),
        (GOOD, {"estimator": np.ones((2, 3, 4))}, ValueError, r"weights must have shape \(E, N, T\)"),
        (GOOD, {"estimator": np.ones((0, 4, 3))}, ValueError, r"with E >= 1, got \(0, 4, 3\)"),
        (
            GOOD,
            {"estimator": [[[1] * 3] * 3 + [[1, np.nan, 1]]]},
            ValueError,
            r"got weights\[0\]\[3, 1\] = nan",
        ),
        (GOOD, {"num_threads": 0}, ValueError, "num_threads must be at least 1, got 0"),
        (GOOD, {"num_threads": 1.5}, TypeError, "num_threads must be an integer, got float"),
        (GOOD, {"out": np.empty((2, 2))}, ValueError, r"out must have shape \(3, 3\)"),
    ],
)
def test_bad_arguments_are_named(scores, options, error, message):
    with pytest.raises(error, match=message):
        rlvar.covariance(scores, **options)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_bad_score_is_named_whatever_is_computed(rng, bad):
    scores = rng.standard_normal((6, 4, 30))
    scores[4, 2, 1] = bad
    for options in ({"block_size": 2}, {"estimator": np.ones((9, 6, 4))}):
        with pytest.raises(ValueError, match=r"got scores\[4, 2, 1\] = "):
            rlvar.covariance(scores, **options)


MEMORY_PROBE = """
import json, resource, sys
import numpy as np, rlvar
n, t, d, threads = map(int, sys.argv[1:5])
options = json.loads(sys.argv[5])
scores = np.empty((n, t, d), sys.argv[6])
for rollout in scores:
    rollout[:] = np.random.default_rng(0).standard_normal(rollout.shape, scores.dtype)
weights = np.ones((n, t))
rlvar.covariance(scores[:2, :2], num_threads=threads)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
rlvar.covariance(scores, weights, num_threads=threads, **options)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in KiB on Linux only")
@pytest.mark.parametrize(
    ("shape", "dtype", "options"),
    [
        ((256, 512, 64), "f4", {}),
        ((40_000, 32, 32), "f4", {}),
        ((8, 1500, 64), "f4", {}),
        ((16, 16, 100_000), "f4", {}),
        ((2, 4000, 128), "f8", {"lengths": [4000, 3000]}),
        ((512, 512, 64), "f4", {"block_size": 2}),
        ((3000, 64, 64), "f8", {"block_size": 2}),
    ],
    ids=str,
)
@pytest.mark.parametrize("threads", [1, 8])
def test_extra_memory_stays_below_64_mib_and_two_matrices(shape, dtype, options, threads):
    command = [sys.executable, "-c", MEMORY_PROBE, *map(str, shape), str(threads), json.dumps(options), dtype]
    extra = int(subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout)
    size = -(-shape[1] // options.get("block_size", 1))
    assert extra < 64 * 2**20 + 2 * size**2 * 8


INTERRUPT_PROBE = """
import os, signal, sys, threading, time
import numpy as np, rlvar
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background
threads = int(sys.argv[1])
scores = np.random.default_rng(0).standard_normal((64, 4096, 256), np.float32)  # some 5 seconds' work
accumulator = rlvar.CovarianceAccumulator(num_threads=threads)
accumulator.update(scores[:2, :8])
before = accumulator.covariance()
out = np.full((4096, 4096), 7.0)


def interrupt():
    global sent
    sent = time.monotonic()
    os.kill(os.getpid(), signal.SIGINT)


def covariance():
    rlvar.covariance(scores, out=out, num_threads=threads)


def update():
    accumulator.update(scores)


for compute in (covariance, update):
    threading.Timer(0.3, interrupt).start()
    try:
        compute()
        sys.exit("not interrupted")
    except KeyboardInterrupt:
        print(time.monotonic() - sent)
assert (out == 7).all() and accumulator.count == 2 and (accumulator.covariance() == before).all()
"""


@pytest.mark.parametrize("threads", [1, 2])
def test_ctrl_c_stops_a_long_computation_and_leaves_nothing_half_done(threads):
    command = [sys.executable, "-c", INTERRUPT_PROBE, str(threads)]
    result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert max(map(float, result.stdout.split())) < 1.0  # what the documentation promises


@pytest.mark.parametrize("spread", [1e-4, 1e-6, 1e-8])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_step_of_little_spread_beside_a_large_one_keeps_its_digits_in_sets_too(rng, dtype, spread):
    scores = rng.standard_normal((40, 6, 50))
    scores[:, 1] = 1 + spread * rng.standard_normal((40, 50))
    scores = scores.astype(dtype)
    sets = np.stack([np.ones((40, 6)), *rng.standard_normal((4, 40, 6))])
    together, alone = rlvar.covariance(scores, sets)[0], rlvar.covariance(scores, sets[0])
    np.testing.assert_allclose(together[1, 1], alone[1, 1], rtol=1e-6)


def test_a_tuple_of_estimators_is_a_sequence_of_them_and_a_pair_is_one(rng):
    rollouts = rlvar.Rollouts(rng.standard_normal((30, 6, 3)), rng.standard_normal((30, 6)))
    pair, both = (
        rlvar.covariance(rollouts, ("mine", np.ones(30))),
        rlvar.covariance(rollouts, ("single", "multi")),
    )
    assert (pair.shape, both.shape) == ((6, 6), (2, 6, 6))


@pytest.mark.parametrize(
    ("scores", "rewards"), [(1e-200, 1.0), (1.0, 1e-200), (1e-200, 1e-200), (1e-300, 1e10)]
)
def test_a_variance_below_the_range_is_told_by_all_even_where_products_are_0(rng, scores, rewards):
    tiny = rlvar.Rollouts(scores * rng.standard_normal((20, 3, 2)), rewards * rng.standard_normal((20, 3)))
    verbs = [rlvar.covariance, rlvar.decompose]
    for name in ("single", "multi", "single-optimal", "multi-optimal", "otb"):
        verbs.append(lambda rollouts, name=name: rlvar.compare(rollouts, [name]))
    for verb in verbs:
        with pytest.raises(ValueError, match="the variance is below the range of float64; rescale"):
            verb(tiny)


def test_gradients_that_cancel_have_no_variance_and_are_no_underflow():
    rollouts = rlvar.Rollouts(np.tile([[[1.0], [-1.0]]], (20, 1, 1)), np.ones(20))
    assert rlvar.compare(rollouts, ["single"])["single"].variance.value == 0.0
    assert rlvar.covariance(rollouts).sum() == 0.0


def test_a_variance_below_the_range_is_told_for_sets_of_weights_too(rng):
    for d in (2, 100):  # one by one, and from shared products
        with pytest.raises(ValueError, match="the variance is below the range of float64; rescale"):
            rlvar.covariance(1e-200 * rng.standard_normal((20, 4, d)), rng.standard_normal((4, 20, 4)))
