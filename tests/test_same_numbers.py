"""The same bits whatever the number of threads, of ours and of BLAS, and whatever numpy's error state."""

import os
import subprocess
import sys

import pytest

SCRIPT = """
import sys, warnings
import numpy as np, rlvar

if sys.argv[1] == "raise":
    np.seterr(all="raise")
    warnings.simplefilter("error")

def bits(name, x):
    if isinstance(x, dict):
        for key, value in x.items():
            bits(f"{name}.{key}", value)
    elif isinstance(x, (list, tuple)):
        for i, value in enumerate(x):
            bits(f"{name}[{i}]", value)
    elif isinstance(x, np.ndarray):
        print(name, x.astype(float).tobytes().hex())
    else:
        print(name, x.hex() if isinstance(x, float) else x)

rng = np.random.default_rng(0)
groups = np.repeat(np.arange(40), rng.integers(1, 7, 40))
n = len(groups)
scores = rng.standard_normal((n, 30, 300)).astype(np.float32)
rewards, lengths = rng.standard_normal((n, 30)), rng.integers(1, 31, n)
flat = rlvar.Rollouts(scores, rewards)
grouped = rlvar.Rollouts(scores, rewards, groups=groups, lengths=lengths)
# Underflows that do no harm: one rollout has all the reward, all others 0 or next to it.
sparse = rlvar.Rollouts(scores[:, :, :2], np.where(np.arange(n) == 3, 1.0, 1e-300))
for name, rollouts in (("flat", flat), ("grouped", grouped), ("sparse", sparse)):
    bits(f"report {name}", rlvar.report(rollouts).to_dict())
    bits(f"bootstrap {name}", rlvar.compare(rollouts, interval=rlvar.Bootstrap(200)).to_dict())
g = {"a": scores.sum(axis=1)[:100], "b": scores[:100, 0]}
bits("sketched", rlvar.compare_gradients(g, sketched=True).to_dict())
pairs = {(a, b): np.einsum("ud,vd->uv", g[a], g[b], dtype=float) for a in g for b in g}
products = {a if a == b else (a, b): k for (a, b), k in pairs.items() if a <= b}
bits("products", rlvar.compare_gradients(products, gram_of=300).to_dict())
# Products of this size are where OpenBLAS's bits change with its threads.
wide = rlvar.Rollouts(rng.standard_normal((300, 2, 2000)).astype(np.float32), rng.standard_normal((300, 2)))
bits("bootstrap wide", rlvar.compare(wide, interval=rlvar.Bootstrap(300)).to_dict())
bits("cartpole", rlvar.report(rlvar.datasets.cartpole(), ["single", "multi", "reinforce++"]).to_dict())
names = ["single", "multi", "single-optimal", "multi-optimal", "otb", "opo"]
for aggregation in ("sum", "sequence-mean", "token-mean"):
    compared = rlvar.compare(grouped, names, aggregation=aggregation)
    bits(aggregation, compared.to_dict())
    if aggregation != "sequence-mean":
        bits("headroom", rlvar.headroom(compared).to_dict())
parts = rlvar.prompt_components(grouped)
bits("prompts", parts.to_dict())
bits("plan", rlvar.plan(parts, target=1e3, cost_prompt=9).to_dict())
for rollouts in (flat, grouped):
    found = rlvar.decompose(rollouts, "multi")
    bits("decompose", found.to_dict())
    bits("covariance", found.covariance)
    bits("on policy", rlvar.on_policy_test(rollouts).to_dict())
accumulator = rlvar.CovarianceAccumulator()
for part in (slice(0, 50), slice(50, n)):
    accumulator.update(scores[part], rewards[part])
bits("accumulator", accumulator.covariance())
"""


def numbers(threads, state="warn"):
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    environment = {**os.environ, **dict.fromkeys(names, str(threads))}
    command = [sys.executable, "-c", SCRIPT, state]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stderr
    return run.stdout.splitlines()


@pytest.fixture(scope="module")
def plain():
    return numbers(1)


@pytest.mark.parametrize("threads", [2, 3])
def test_no_bit_of_any_result_depends_on_the_number_of_threads(plain, threads):
    assert [pair for pair in zip(plain, numbers(threads), strict=True) if len(set(pair)) > 1] == []


def test_numbers_are_the_same_where_numpy_raises_for_every_underflow(plain):
    assert numbers(1, "raise") == plain
