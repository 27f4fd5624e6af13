"""The scans: ours, per instruction set, beside numpy, scipy, numba and torch (where installed)."""

import functools

import numpy as np
import pytest

import cases
import returns_peers as peers
import rlvar

TOLERANCE = {np.float32: 1e-5, np.float64: 1e-12}


@pytest.fixture(params=cases.RETURNS_SHAPES, ids=str)
def shape(request):
    return request.param


@pytest.fixture(params=cases.DTYPES)
def dtype(request):
    return request.param


@functools.cache
def expected(operation, shape, dtype):
    rewards, values = peers.inputs(shape, dtype)
    if operation == "reward_to_go":
        return peers.expected(rewards)[:1]
    return peers.expected(rewards, values, lam=peers.LAMBDA)


def run(benchmark, operation, function, shape, dtype, **constants):
    benchmark.group = f"{operation} {shape} {np.dtype(dtype).name}"
    arrays = peers.inputs(shape, dtype)
    if operation == "reward_to_go":
        arrays = arrays[:1]
    function(*arrays, **constants)  # numba compiles, torch is imported
    results = benchmark(function, *arrays, **constants)
    if operation == "reward_to_go":
        results = (results,)
    for result, right in zip(results, expected(operation, shape, dtype), strict=True):
        assert result.dtype == dtype
        cases.check(result, right, TOLERANCE[dtype])


def test_rlvar_reward_to_go(benchmark, isa, shape, dtype):
    run(benchmark, "reward_to_go", rlvar.reward_to_go, shape, dtype, gamma=cases.GAMMA)


@pytest.mark.parametrize("peer", peers.REWARD_TO_GO)
def test_peer_reward_to_go(benchmark, peer, shape, dtype):
    pytest.importorskip(peer)
    run(benchmark, "reward_to_go", peers.REWARD_TO_GO[peer], shape, dtype)


def test_rlvar_gae(benchmark, isa, shape, dtype):
    run(benchmark, "gae", rlvar.gae, shape, dtype, gamma=cases.GAMMA, lam=peers.LAMBDA)


@pytest.mark.parametrize("peer", peers.GAE)
def test_peer_gae(benchmark, peer, shape, dtype):
    pytest.importorskip(peer)
    run(benchmark, "gae", peers.GAE[peer], shape, dtype)
