"""Covariance: ours, per instruction set, beside its peers (where installed) and two floors. Growth: numpy."""

import functools

import numpy as np
import pytest

import cases
import covariance_peers as peers
import rlvar

TOLERANCE = {np.float32: 1e-5, np.float64: 1e-12}


def group(operation, shape, dtype):
    return f"{operation} {shape} {np.dtype(dtype).name}"


@pytest.fixture(params=cases.COVARIANCE_SHAPES, ids=str)
def shape(request):
    return request.param


@pytest.fixture(params=cases.DTYPES)
def dtype(request):
    return request.param


@pytest.fixture
def inputs(shape, dtype):
    return cases.covariance_inputs(shape, dtype)


@functools.cache
def expected(shape, dtype):
    scores, weights = cases.covariance_inputs(shape, dtype)
    return cases.numpy_covariance(scores.astype(np.float64), weights)


def test_rlvar_covariance(benchmark, isa, inputs, shape, dtype):
    benchmark.group = group("covariance", shape, dtype)
    result = benchmark(rlvar.covariance, *inputs)
    cases.check(result, expected(shape, dtype), TOLERANCE[dtype])


@pytest.mark.parametrize("peer", peers.COVARIANCE)
def test_peer_covariance(benchmark, peer, inputs, shape, dtype):
    pytest.importorskip(peers.module(peer))
    benchmark.group = group("covariance", shape, dtype)
    peers.COVARIANCE[peer](*inputs)  # numba compiles, torch is imported
    result = benchmark(peers.COVARIANCE[peer], *inputs)
    assert result.dtype == dtype
    cases.check(result, expected(shape, dtype), TOLERANCE[dtype])


def test_floor_syrk(benchmark, inputs, shape, dtype):
    """X @ X.T of terms that are already scaled, centred and transposed."""
    benchmark.group = group("covariance", shape, dtype)
    x = peers.flat_terms(*inputs)
    result = benchmark(lambda: x @ x.T)
    cases.check(result / (shape[0] - 1), expected(shape, dtype), TOLERANCE[dtype])


def test_floor_gemm(benchmark, shape, dtype):
    """A @ B of 2048 x 2048: another amount of work, the machine's speed."""
    benchmark.group = group("covariance", shape, dtype)
    a, b = peers.gemm_inputs(dtype)
    result = benchmark(np.matmul, a, b)
    cases.check(result, a.astype(np.float64) @ b.astype(np.float64), TOLERANCE[dtype])


def test_rlvar_decompose(benchmark, isa, inputs, shape, dtype):
    benchmark.group = group("growth", shape, dtype)
    result = benchmark(rlvar.decompose, *inputs)
    scores, weights = inputs
    cases.check(result.growth, cases.numpy_growth(scores.astype(np.float64), weights), 1e-12)


def test_numpy_growth(benchmark, inputs, shape, dtype):
    benchmark.group = group("growth", shape, dtype)
    result = benchmark(cases.numpy_growth, *inputs)
    cases.check(result, rlvar.decompose(*inputs).growth, 10 * TOLERANCE[dtype])
