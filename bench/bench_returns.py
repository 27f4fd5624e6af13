"""Returns-to-go: ours, per instruction set, beside numpy's loop and scipy's filter."""

import numpy as np
import pytest

import cases
import rlvar

TOLERANCE = {np.float32: 1e-5, np.float64: 1e-12}


@pytest.fixture(params=cases.RETURNS_SHAPES, ids=str)
def shape(request):
    return request.param


@pytest.fixture(params=cases.DTYPES)
def dtype(request):
    return request.param


def run(benchmark, function, shape, dtype, *arguments):
    benchmark.group = f"reward_to_go {shape} {np.dtype(dtype).name}"
    rewards = cases.returns_inputs(shape, dtype)
    result = benchmark(function, rewards, *arguments)
    assert result.dtype == dtype
    cases.check(result, cases.numpy_reward_to_go(rewards.astype(np.float64)), TOLERANCE[dtype])


def test_rlvar(benchmark, isa, shape, dtype):
    run(benchmark, rlvar.reward_to_go, shape, dtype, cases.GAMMA)


def test_numpy_loop(benchmark, shape, dtype):
    run(benchmark, cases.numpy_reward_to_go, shape, dtype)


def test_scipy_lfilter(benchmark, shape, dtype):
    run(benchmark, cases.lfilter_reward_to_go, shape, dtype)
