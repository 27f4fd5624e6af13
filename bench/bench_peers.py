"""Every timing: ours, per instruction set, beside its peers (where installed) and two floors."""

import functools

import numpy as np
import pytest

import peers
import rlvar

TOLERANCE = {np.float32: 1e-5, np.float64: 1e-12}
SCAN = {"gamma": peers.GAMMA}
OURS = {
    "covariance": rlvar.covariance,
    "covariance_factored": rlvar.covariance_factored,
    "decompose": lambda *arrays: rlvar.decompose(*arrays).growth,
    "reward_to_go": lambda rewards: rlvar.reward_to_go(rewards, **SCAN),
    "gae": lambda *arrays: rlvar.gae(*arrays, lam=peers.LAMBDA, **SCAN),
}
SHAPES = {
    "covariance": peers.COVARIANCE_SHAPES,
    "covariance_factored": peers.FACTORED_SHAPES,
    "decompose": peers.COVARIANCE_SHAPES,
    "reward_to_go": peers.SCAN_SHAPES,
    "gae": peers.SCAN_SHAPES,
}
CASES = [(operation, shape) for operation, shapes in SHAPES.items() for shape in shapes]
each_dtype = pytest.mark.parametrize("dtype", peers.DTYPES)


def inputs(operation, shape, dtype):
    if operation in ("covariance", "decompose"):
        return peers.covariance_inputs(shape, dtype)
    if operation == "covariance_factored":
        return peers.factored_inputs(shape, dtype)
    return peers.scan_inputs(shape, dtype)[: 1 if operation == "reward_to_go" else 2]


@functools.cache
def expected(operation, shape, dtype):
    arrays = inputs(operation, shape, dtype)
    if operation == "covariance_factored":
        return (peers.numpy_factored(*(array.astype(np.float64) for array in arrays)),)
    if operation in ("covariance", "decompose"):
        function = peers.numpy_covariance if operation == "covariance" else peers.numpy_growth
        return (function(arrays[0].astype(np.float64), arrays[1]),)
    return peers.scans(*arrays, lam=peers.LAMBDA if operation == "gae" else 1.0)[: len(arrays)]


def run(benchmark, operation, function, shape, dtype):
    benchmark.group = f"{operation} {shape} {np.dtype(dtype).name}"
    arrays = inputs(operation, shape, dtype)
    function(*arrays)  # numba compiles, torch is imported
    results = benchmark(function, *arrays)
    results = results if isinstance(results, tuple) else (results,)
    for result, right in zip(results, expected(operation, shape, dtype), strict=True):
        peers.check(result, right, TOLERANCE[dtype])


@pytest.mark.parametrize(("operation", "shape"), CASES)
@each_dtype
def test_rlvar(benchmark, isa, operation, shape, dtype):
    run(benchmark, operation, OURS[operation], shape, dtype)


@pytest.mark.parametrize(
    ("operation", "shape", "peer"), [(*case, peer) for case in CASES for peer in peers.PEERS[case[0]]]
)
@each_dtype
def test_peer(benchmark, operation, shape, peer, dtype):
    pytest.importorskip(peers.module(peer))
    run(benchmark, operation, peers.PEERS[operation][peer], shape, dtype)


@pytest.mark.parametrize("shape", peers.COVARIANCE_SHAPES)
@each_dtype
def test_floor_syrk(benchmark, shape, dtype):
    """X @ X.T of terms that are already scaled, centred and transposed."""
    x = peers.flat_terms(*peers.covariance_inputs(shape, dtype))
    run(benchmark, "covariance", lambda *_: x @ x.T / (shape[0] - 1), shape, dtype)


@each_dtype
def test_floor_gemm(benchmark, dtype):
    """A @ B of 2048 x 2048: the machine's speed."""
    a, b = peers.gemm_inputs(dtype)
    result = benchmark(np.matmul, a, b)
    peers.check(result, a.astype(np.float64) @ b.astype(np.float64), TOLERANCE[dtype])
