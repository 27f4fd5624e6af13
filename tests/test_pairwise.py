import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given

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


# One block; several sample blocks; tiles; more coordinates than a panel; more than a chunk.
SHAPES = [(2, 1, 1), (9, 5, 3), (300, 12, 16), (20, 530, 7), (5, 3, 700), (3, 2, 1_100_000)]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", SHAPES)
def test_every_isa_and_cut_of_the_work_matches_numpy(isa, rng, dtype, shape):
    n, t, _ = shape
    scores = rng.standard_normal(shape, dtype)
    weights = rng.standard_normal((n, t))
    lengths = rng.integers(0, t + 1, n)
    mask = rng.random((n, t)) < 0.7
    for options in ({}, {"lengths": lengths}, {"mask": mask}):
        live = reference.live_steps((n, t), **options)
        x = scores * np.where(live, weights, 0.0)[:, :, None]
        x -= x.mean(axis=0)
        flat = x.transpose(1, 0, 2).reshape(t, -1)
        assert_close(rlvar.covariance(scores, weights, **options), flat @ flat.T / (n - 1), dtype)


def test_agrees_with_numpy_cov(rng):
    scores = rng.standard_normal((30, 6, 1))
    p = rng.random(30)
    np.testing.assert_allclose(rlvar.covariance(scores), np.cov(scores[:, :, 0].T), rtol=1e-12)
    np.testing.assert_allclose(
        rlvar.covariance(scores, sample_weight=p), np.cov(scores[:, :, 0].T, aweights=p), rtol=1e-12
    )


@pytest.mark.parametrize("shape", [(2000, 16, 16), (256, 600, 16), (40, 20, 3)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_bits_do_not_depend_on_the_number_of_threads(isa, rng, shape, dtype):
    scores = rng.standard_normal(shape, dtype)
    weights = rng.standard_normal(shape[:2])
    one = rlvar.covariance(scores, weights, num_threads=1)
    for threads in (2, 3, 8):
        np.testing.assert_array_equal(rlvar.covariance(scores, weights, num_threads=threads), one)


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
    np.testing.assert_array_equal(rlvar.covariance(tiny), np.ldexp(rlvar.covariance(scores), 2 * exponent))


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
            {"weights": np.ones((3, 4))},
            ValueError,
            r"weights must have shape \(N, T\) = \(4, 3\) or \(N,\) = \(4,\), got \(3, 4\)",
        ),
        (GOOD, {"weights": np.ones(3)}, ValueError, "weights must have shape"),
        (GOOD, {"weights": [1, 2, np.nan, 3]}, ValueError, r"got weights\[2\] = nan"),
        (GOOD, {"lengths": [1, 2, 3, 4]}, ValueError, r"got lengths\[3\] = 4"),
        (GOOD, {"sample_weight": [1, 2, 3]}, ValueError, r"sample_weight must have shape \(N,\) = \(4,\)"),
        (GOOD, {"sample_weight": [1, -1, 1, 1]}, ValueError, r"got sample_weight\[1\] = -1"),
        (GOOD, {"sample_weight": [1, np.nan, 1, 1]}, ValueError, r"got sample_weight\[1\] = nan"),
        (GOOD, {"sample_weight": np.zeros(4)}, ValueError, "sample_weight must not be all zero"),
        (GOOD, {"sample_weight": [0, 1, 0, 0]}, ValueError, "ddof must leave degrees of freedom"),
        (GOOD, {"ddof": 4}, ValueError, "ddof must leave degrees of freedom"),
        (GOOD, {"ddof": 1.5}, ValueError, "ddof must be a non-negative integer, got 1.5"),
        (GOOD, {"ddof": -1}, ValueError, "ddof must be a non-negative integer"),
        (GOOD, {"num_threads": 0}, ValueError, "num_threads must be at least 1, got 0"),
        (GOOD, {"num_threads": 1.5}, TypeError, "num_threads must be an integer, got float"),
        (GOOD, {"out": np.empty((2, 2))}, ValueError, r"out must have shape \(3, 3\)"),
    ],
)
def test_bad_arguments_are_named(scores, options, error, message):
    with pytest.raises(error, match=message):
        rlvar.covariance(scores, **options)


MEMORY_PROBE = """
import resource, sys
import numpy as np, rlvar
n, t, d, threads = map(int, sys.argv[1:])
scores = np.empty((n, t, d), np.float32)
np.random.default_rng(0).standard_normal(scores.shape, np.float32, out=scores)
weights = np.ones((n, t))
rlvar.covariance(scores[:2, :2], num_threads=threads)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
rlvar.covariance(scores, weights, num_threads=threads)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in KiB on Linux only")
@pytest.mark.parametrize(
    "shape", [(256, 512, 64), (40_000, 32, 32), (8, 1500, 64), (16, 16, 100_000)], ids=str
)
@pytest.mark.parametrize("threads", [1, 8])
def test_extra_memory_stays_below_64_mib_and_two_matrices(shape, threads):
    command = [sys.executable, "-c", MEMORY_PROBE, *map(str, shape), str(threads)]
    extra = int(subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout)
    assert extra < 64 * 2**20 + 2 * shape[1] ** 2 * 8
