import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import reference
import rlvar
import strategies

# Error of an entry relative to the diagonal entries of its row and column.
ACCURACY = {np.dtype(np.float32): 3e-6, np.dtype(np.float64): 1e-12}


def assert_close(result, expected, dtype):
    root = np.sqrt(np.maximum(expected.diagonal(), 0))
    assert (np.abs(result - expected) <= ACCURACY[np.dtype(dtype)] * np.outer(root, root) + 1e-300).all()


def dense(a, b, weights=None, **options):
    """What `covariance` gives for the outer products, formed in float64."""
    scores = a.astype(np.float64)[..., :, None] * b.astype(np.float64)[..., None, :]
    return rlvar.covariance(scores.reshape(*a.shape[:2], -1), weights, **options)


def factors(rng, n, t, p, q, dtype=np.float64):
    return rng.standard_normal((n, t, p)).astype(dtype), rng.standard_normal((n, t, q)).astype(dtype)


@given(case=strategies.terms(), data=st.data())
def test_matches_the_definition(case, data):
    a, weights, options = case
    q = data.draw(st.integers(1, 4))
    b = data.draw(hnp.arrays(a.dtype, (*a.shape[:2], q), elements=strategies.floats(a.dtype)))
    result = rlvar.covariance_factored(a, b, weights, **options)
    expected = reference.covariance_factored(a, b, weights, **options)
    x = reference.terms(reference.outer_products(a, b), weights, options.get("mask"), options.get("lengths"))
    # Rounding of the mean shows where the spread is far below the terms.
    atol = ACCURACY[a.dtype] * expected.diagonal().max() + 1e-28 * float((x**2).sum())
    np.testing.assert_allclose(result, expected, rtol=0, atol=atol)


# One number; p or q of 1; several tiles; more than a panel of a, of b, of both; many coordinates of means.
SHAPES = [
    (2, 1, 1, 1),
    (9, 5, 1, 3),
    (9, 20, 7, 1),
    (5, 200, 3, 4),
    (7, 9, 300, 5),
    (6, 12, 4, 700),
    (5, 7, 257, 260),
]
# Around the sides of what is formed together; more rollouts than a panel's columns; one step.
SHAPES += [(4, 10, p, q) for p, q in ((32, 32), (33, 31), (16, 64), (1, 1030), (97, 2))]
SHAPES += [(600, 3, 5, 4), (40, 1, 20, 30), (3, 97, 17, 19)]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", SHAPES)
def test_every_isa_and_cut_of_the_work_matches_the_dense_covariance(isa, rng, dtype, shape):
    n, t = shape[:2]
    a, b = factors(rng, *shape, dtype)
    weights, p = rng.standard_normal((n, t)), rng.integers(0, 3, n)
    p[:2] = 1
    for options in (
        {},
        {"lengths": rng.integers(0, t + 1, n), "sample_weight": p},
        {"mask": rng.random((n, t)) < 0.7, "block_size": 3},
    ):
        expected = dense(a, b, weights, **options)
        assert_close(rlvar.covariance_factored(a, b, weights, **options), expected, dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("live", ["all", "lengths", "mask"])
def test_a_large_common_mean_costs_no_digits(isa, rng, dtype, live):
    n, t = 40, 110
    options = {
        "all": {},
        "lengths": {"lengths": np.where(np.arange(n) < 30, t, rng.integers(0, t, n))},
        "mask": {"mask": rng.random((n, t)) < 0.97},
    }[live]
    a, b = factors(rng, n, t, 5, 4, dtype)
    a, b = a + dtype(200), b - dtype(300)
    a[:, ::3] -= dtype(200)  # steps with a mean of 0 beside them
    assert_close(rlvar.covariance_factored(a, b, **options), dense(a, b, **options), dtype)


@pytest.mark.parametrize("spread", [1e-2, 1e-4, 1e-6, 1e-8])
@pytest.mark.parametrize("gauge", ["one", "signs", "weights"])
def test_a_mean_far_above_the_spread_keeps_its_digits_however_its_factors_are_scaled(isa, rng, spread, gauge):
    n, t = 30, 6
    a, b = factors(rng, n, t, 5, 7)
    a, b = a[:1] + spread * a, b[:1] + spread * b
    weights = np.ones((n, t))
    if gauge == "signs":  # the means of a and of b are near 0, that of their product is not
        signs = rng.choice([-1.0, 1.0], (n, t, 1))
        a, b = a * signs, b * signs
    if gauge == "weights":
        weights = np.exp2(rng.integers(-9, 9, (n, t)))
        a, b = a * np.exp2(rng.integers(-9, 9, (n, t, 1))), b.copy()
        b /= weights[..., None] * np.exp2(np.rint(np.log2(np.abs(a).max(axis=2, keepdims=True))))
    scores = (a[..., :, None].astype(np.longdouble) * b[..., None, :]).reshape(n, t, -1)
    x = scores * weights[..., None]
    x -= x.mean(axis=0)
    exact = np.einsum("nid,njd->ij", x, x) / (n - 1)
    result = rlvar.covariance_factored(a, b, weights)
    largest = exact.diagonal().max()
    # Rounding of the factors themselves is 1e-16 of the mean.
    accuracy = 1e-12 + 1e-15 / spread
    np.testing.assert_allclose(result, exact.astype(float), rtol=0, atol=accuracy * float(largest))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_equal_terms_have_no_covariance(isa, rng, dtype):
    a, b = (np.repeat(x, 20, axis=0) for x in factors(rng, 1, 30, 6, 5, dtype))
    terms = float((a**2).sum() * (b**2).sum())
    assert np.abs(rlvar.covariance_factored(a, b, np.full(20, 0.1))).max() <= 1e-30 * terms


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_steps_of_any_size_keep_their_digits_beside_each_other(isa, rng, dtype):
    a, b = factors(rng, 20, 12, 6, 5, dtype)
    a *= np.exp2(rng.integers(-60, 60, (20, 12, 1))).astype(dtype)
    b *= np.exp2(rng.integers(-60, 60, (1, 12, 1))).astype(dtype)
    a[:, 3] = b[:, 3] = 1e-40  # subnormal in float32
    a[:, 3] *= rng.standard_normal((20, 6)) > 0
    weights = np.exp2(rng.integers(-30, 30, (20, 12)))
    assert_close(rlvar.covariance_factored(a, b, weights), dense(a, b, weights), dtype)


@pytest.mark.parametrize("junk", [np.nan, np.inf, 1e38])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_what_is_not_live_is_never_read(rng, junk, dtype):
    a, b = factors(rng, 20, 30, 4, 3, dtype)
    weights, p = rng.standard_normal((20, 30)), rng.integers(0, 3, 20)
    p[:2], p[4] = 1, 0
    a += dtype(20)  # some steps are centred, and padded with their centre
    b[:, :15] += dtype(20)
    mask = rng.random((20, 30)) < 0.95
    lengths = rng.integers(0, 31, 20)
    for options, live in (({"mask": mask}, mask), ({"lengths": lengths}, np.arange(30) < lengths[:, None])):
        read = live & (p > 0)[:, None]
        spoilt = [np.where(read[..., None], x, dtype(junk)) for x in (a, b)]
        sound = rlvar.covariance_factored(a, b, weights, sample_weight=p, **options)
        assert np.isfinite(sound).all()
        result = rlvar.covariance_factored(*spoilt, np.where(live, weights, junk), sample_weight=p, **options)
        np.testing.assert_array_equal(result, sound)


def test_steps_that_nobody_reaches_are_exactly_0(rng):
    a, b = factors(rng, 9, 20, 4, 3)
    mask = rng.random((9, 20)) < 0.8
    mask[:, [3, 19]] = False
    result = rlvar.covariance_factored(a, b, mask=mask)
    assert (result[[3, 19]] == 0).all()
    assert (result[:, [3, 19]] == 0).all()


def test_lengths_and_their_mask_agree_to_the_bit(rng):
    a, b = factors(rng, 30, 25, 6, 5, np.float32)
    lengths = rng.integers(0, 26, 30)
    mask = reference.live_steps((30, 25), lengths=lengths)
    np.testing.assert_array_equal(
        rlvar.covariance_factored(a, b, lengths=lengths), rlvar.covariance_factored(a, b, mask=mask)
    )


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(400, 16, 8, 8), (30, 250, 16, 40), (20, 20, 70, 200)])
def test_bits_do_not_depend_on_the_number_of_threads(isa, rng, shape, dtype):
    a, b = factors(rng, *shape, dtype)
    weights = rng.standard_normal(shape[:2])
    lengths = rng.integers(1, shape[1] + 1, shape[0])
    for x, options in ((a, {}), (a, {"lengths": lengths}), (a, {"block_size": 3}), (a + dtype(9), {})):
        one = rlvar.covariance_factored(x, b + dtype(9), weights, num_threads=1, **options)
        for threads in (2, 3, 8):
            result = rlvar.covariance_factored(x, b + dtype(9), weights, num_threads=threads, **options)
            np.testing.assert_array_equal(result, one)


def test_blocks_are_sums_of_the_matrix(rng):
    a, b = factors(rng, 30, 50, 4, 3)
    matrix = rlvar.covariance_factored(a, b)
    for size in (1, 2, 7, 49, 50, 10**9):
        result = rlvar.covariance_factored(a, b, block_size=size)
        np.testing.assert_allclose(result, reference.blocks(matrix, size), rtol=0, atol=1e-12 * matrix.max())


def test_the_sum_of_all_entries_is_the_variance_of_the_gradient(rng):
    a, b = factors(rng, 20, 30, 6, 5)
    weights = rng.standard_normal((20, 30))
    gradients = np.einsum("nt,ntk,ntl->nkl", weights, a, b)
    total = rlvar.covariance_factored(a, b, weights).sum()
    assert total == pytest.approx(gradients.var(axis=0, ddof=1).sum(), rel=1e-12)


def test_the_gradient_of_an_output_head_is_a_product_of_factors(rng):
    # log pi(y) = h W^T - logsumexp: its gradient in W is (onehot - pi) (x) h.
    n, t, tokens, width = 12, 9, 11, 6
    h, head = rng.standard_normal((n, t, width)), rng.standard_normal((tokens, width))
    logits = np.einsum("ntk,vk->ntv", h, head)
    pi = np.exp(logits) / np.exp(logits).sum(axis=2, keepdims=True)
    y = rng.integers(0, tokens, (n, t))
    a = np.eye(tokens)[y] - pi
    matrix = rlvar.covariance_factored(a, h, rng.standard_normal(n))
    assert matrix.shape == (t, t)
    nudged = head.copy()
    nudged[2, 3] += 1e-6
    change = np.einsum("ntk,vk->ntv", h, nudged)
    logp, before = (np.log(np.exp(z) / np.exp(z).sum(axis=2, keepdims=True)) for z in (change, logits))
    numeric = np.take_along_axis(logp - before, y[..., None], axis=2)[..., 0] / 1e-6
    np.testing.assert_allclose(a[..., 2] * h[..., 3], numeric, atol=1e-5)


def test_arrays_of_any_kind_are_taken(rng):
    a, b = factors(rng, 6, 5, 4, 3)
    wanted = rlvar.covariance_factored(a, b)
    apart = np.empty((5, 6, 8))
    apart[..., ::2] = a.transpose(1, 0, 2)
    results = [
        rlvar.covariance_factored(a.tolist(), b.tolist()),
        rlvar.covariance_factored(apart.transpose(1, 0, 2)[..., ::2], np.asfortranarray(b)),
        rlvar.covariance_factored(a[:, ::-1].copy()[:, ::-1], b[::-1].copy()[::-1]),
    ]
    for result in results:
        np.testing.assert_array_equal(result, wanted)
    mixed = rlvar.covariance_factored(a.astype(np.float32), b)
    np.testing.assert_array_equal(mixed, rlvar.covariance_factored(a.astype(np.float32).astype(float), b))
    half = rlvar.covariance_factored(a.astype(np.float16), b.astype(np.float16))
    assert half.dtype == np.float64


def test_out_gets_the_result_and_is_untouched_by_errors(rng):
    a, b = factors(rng, 6, 5, 4, 3)
    out = np.full((5, 5), 7.0)
    bad = b.copy()
    bad[3, 2, 1] = np.nan
    with pytest.raises(ValueError, match=r"b must be finite in live steps, got b\[3, 2, 1\] = nan"):
        rlvar.covariance_factored(a, bad, np.zeros(6), out=out)
    assert (out == 7).all()
    assert rlvar.covariance_factored(a, b, out=out) is out
    np.testing.assert_array_equal(out, rlvar.covariance_factored(a, b))
    strided = np.zeros((10, 10))[::2, ::2]
    rlvar.covariance_factored(a, b, out=strided)
    np.testing.assert_array_equal(strided, out)


A, B = np.ones((4, 3, 2)), np.ones((4, 3, 5))


@pytest.mark.parametrize(
    ("a", "b", "options", "error", "message"),
    [
        (A[0], B, {}, ValueError, r"a must have shape \(N, T, p\), got \(3, 2\)"),
        (A, B[0], {}, ValueError, r"b must have shape \(N, T, q\), got \(3, 5\)"),
        (
            A,
            B[:, :2],
            {},
            ValueError,
            r"b must have shape \(N, T, q\) = \(4, 3, q\) as a has it, got \(4, 2, 5\)",
        ),
        (A[:1], B[:1], {}, ValueError, "a must have at least N = 2 rollouts"),
        (A[:, :0], B[:, :0], {}, ValueError, "a must have T >= 1 steps and p >= 1 coordinates"),
        (A, B[..., :0], {}, ValueError, "b must have T >= 1 steps and q >= 1 coordinates"),
        (A.astype(complex), B, {}, TypeError, "a must be float32.*complex128"),
        (A, "no", {}, TypeError, "b must be"),
        (A * np.inf, B, {}, ValueError, r"a must be finite in live steps, got a\[0, 0, 0\] = inf"),
        (A, B, {"weights": np.ones(3)}, ValueError, "weights must have shape"),
        (A, B, {"weights": [1, 2, np.nan, 3]}, ValueError, r"got weights\[2\] = nan"),
        (A, B, {"lengths": [1, 2, 3, 4]}, ValueError, r"got lengths\[3\] = 4"),
        (A, B, {"lengths": [1] * 4, "mask": np.ones((4, 3))}, ValueError, "pass lengths or mask, not both"),
        (A, B, {"sample_weight": [1, -1, 1, 1]}, ValueError, r"got sample_weight\[1\] = -1"),
        (A, B, {"sample_weight": [0, 1, 0, 0]}, ValueError, "ddof must leave degrees of freedom"),
        (A, B, {"ddof": 4}, ValueError, "ddof must leave degrees of freedom"),
        (A, B, {"block_size": 0}, ValueError, "block_size must be at least 1, got 0"),
        (A, B, {"num_threads": 0}, ValueError, "num_threads must be at least 1, got 0"),
        (A, B, {"out": np.empty((2, 2))}, ValueError, r"out must have shape \(3, 3\)"),
    ],
)
def test_bad_arguments_are_named(a, b, options, error, message):
    with pytest.raises(error, match=message):
        rlvar.covariance_factored(a, b, **options)


def test_results_beyond_the_range_are_errors_and_factors_may_be(rng):
    a, b = factors(rng, 5, 4, 3, 2)
    with pytest.raises(ValueError, match="beyond the range of float64"):
        rlvar.covariance_factored(1e200 * a, b)
    with pytest.raises(ValueError, match="the variance is below the range of float64"):
        rlvar.covariance_factored(1e-100 * a, 1e-100 * b)
    with pytest.raises(ValueError, match="the variance is below the range of float64"):
        rlvar.covariance_factored(1e-150 * a, 1e-150 * b, np.full(5, 1e-20))
    assert (rlvar.covariance_factored(0 * a, b) == 0).all()
    scale = 2.0**600
    np.testing.assert_allclose(
        rlvar.covariance_factored(scale * a, b / scale), rlvar.covariance_factored(a, b), rtol=1e-12
    )


INTERRUPT = """
import os, signal, sys, threading, time
import numpy as np, rlvar
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background
rng = np.random.default_rng(0)
a, b = rng.standard_normal((2, 64, 2048, 192), np.float32)  # seconds of work
out = np.full((2048, 2048), 7.0)

def interrupt():
    global sent
    sent = time.monotonic()
    os.kill(os.getpid(), signal.SIGINT)

threading.Timer(0.3, interrupt).start()
try:
    rlvar.covariance_factored(a, b, out=out, num_threads=int(sys.argv[1]))
    sys.exit("not interrupted")
except KeyboardInterrupt:
    print(time.monotonic() - sent)
assert (out == 7).all()
"""


@pytest.mark.parametrize("threads", [1, 2])
def test_ctrl_c_stops_a_long_computation_and_leaves_nothing_half_done(threads):
    command = [sys.executable, "-c", INTERRUPT, str(threads)]
    result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert float(result.stdout) < 1.0  # what the documentation promises


FORK = """
import os, sys, warnings
import numpy as np, rlvar
warnings.simplefilter("ignore")  # 3.12 warns of threads at every fork
a, b = np.random.default_rng(0).standard_normal((2, 60, 100, 16))
expected = rlvar.covariance_factored(a, b, num_threads=4)
child = os.fork()
if child == 0:
    os._exit(0 if (rlvar.covariance_factored(a, b, num_threads=4) == expected).all() else 1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_a_forked_child_computes_the_same_bits_after_a_parallel_region():
    subprocess.run([sys.executable, "-c", FORK], check=True, timeout=60)


MEMORY = """
import resource
import numpy as np, rlvar
rng = np.random.default_rng(0)
a, b = rng.standard_normal((2, 64, 512, 64), np.float32)
rlvar.covariance_factored(a[:2, :2], b[:2, :2])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
rlvar.covariance_factored(a, b)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in KiB on Linux only")
def test_neither_scores_nor_their_mean_are_ever_in_memory():
    extra = int(subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, check=True).stdout)
    assert extra < 16 * 2**20  # the scores would take 512 MiB, the mean 8 or 16
