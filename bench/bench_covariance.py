"""Covariance and growth: ours, per instruction set, beside the best numpy."""

import numpy as np
import pytest

import cases
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


def test_rlvar_covariance(benchmark, isa, inputs, shape, dtype):
    benchmark.group = group("covariance", shape, dtype)
    result = benchmark(rlvar.covariance, *inputs)
    scores, weights = inputs
    cases.check(result, cases.numpy_covariance(scores.astype(np.float64), weights), TOLERANCE[dtype])


def test_numpy_covariance(benchmark, inputs, shape, dtype):
    benchmark.group = group("covariance", shape, dtype)
    result = benchmark(cases.numpy_covariance, *inputs)
    cases.check(result, rlvar.covariance(*inputs), TOLERANCE[dtype])


def test_rlvar_decompose(benchmark, isa, inputs, shape, dtype):
    benchmark.group = group("growth", shape, dtype)
    result = benchmark(rlvar.decompose, *inputs)
    scores, weights = inputs
    cases.check(result.growth, cases.numpy_growth(scores.astype(np.float64), weights), 1e-12)


def test_numpy_growth(benchmark, inputs, shape, dtype):
    benchmark.group = group("growth", shape, dtype)
    result = benchmark(cases.numpy_growth, *inputs)
    cases.check(result, rlvar.decompose(*inputs).growth, 10 * TOLERANCE[dtype])
