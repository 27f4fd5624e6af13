"""The covariance beside its peers and two floors, in one process, median of many.

    python bench/covariance_ratios.py [--threads 1] [--rounds 15] [--shapes small]

Checks every result, prints a Markdown table, then each promise with what was measured, and exits
with status 1 if one is missed; an aim is only reported. Peers that are not installed are left out.
Everything runs in turn; peers that take more than five times as long as rlvar, only a few times.
Small shapes show that the script runs: there every promise is only an aim. See bench/README.md.
"""

import argparse
import importlib
import sys
from typing import NamedTuple

from timing import Promise, in_turn, keep_memory, limit_threads

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--threads", type=int, default=1)
parser.add_argument("--rounds", type=int, default=15)
parser.add_argument("--shapes", choices=["full", "small"], default="full")
args = parser.parse_args()
limit_threads(args.threads)  # read when numpy, rlvar and the peers are imported
keep_memory()

import numpy as np  # noqa: E402

import cases  # noqa: E402
import covariance_peers as peers  # noqa: E402
import rlvar  # noqa: E402
from rlvar import _core  # noqa: E402


class Shapes(NamedTuple):
    complete: list  # timed beside the peers
    ragged: list
    blocks: tuple
    growth: tuple
    estimators: tuple


SHAPES = {
    "full": Shapes(
        cases.COVARIANCE_SHAPES,
        cases.COVARIANCE_SHAPES[:2],
        (64, 1024, 128),
        (64, 4096, 128),
        (64, 512, 256),
    ),
    "small": Shapes([(16, 32, 8), (9, 70, 5)], [(16, 32, 8)], (8, 64, 8), (8, 128, 8), (8, 32, 8)),
}[args.shapes]
RATE = dict(zip(SHAPES.complete, (0.9, 0.9, 0.8), strict=False))  # promised, of X @ X.T alone
OURS = {np.float32: 1e-6, np.float64: 1e-12}  # of the largest entry, which is on the diagonal
THEIRS = {np.float32: 1e-5, np.float64: 1e-12}
TURNS = {"warm": True, "pause": 0.05} if args.threads > 1 else {}  # OpenBLAS's idle threads spin for 30 ms
SLOW = 5
SLOW_ROUNDS = min(3, args.rounds)
BLOCK, ESTIMATORS = 16, 8


def reference(scores, weights):
    return cases.numpy_covariance(scores.astype(np.float64), weights)


def time_complete(shape, dtype, complete):
    """Median seconds of rlvar, of its peers and of the floors, by name."""
    scores, weights = cases.covariance_inputs(shape, dtype)
    expected = reference(scores, weights)
    x, (a, b) = peers.flat_terms(scores, weights), peers.gemm_inputs(dtype)
    cases.check(rlvar.covariance(scores, weights), expected, OURS[dtype])
    cases.check(x @ x.T / (shape[0] - 1), expected, THEIRS[dtype])
    cases.check(a @ b, a.astype(np.float64) @ b.astype(np.float64), THEIRS[dtype])
    for function in complete.values():
        result = function(scores, weights)
        assert result.dtype == dtype
        cases.check(result, expected, THEIRS[dtype])
    everything = {
        "X @ X.T alone": lambda: x @ x.T,
        "A @ B alone": lambda: a @ b,
        "rlvar": lambda: rlvar.covariance(scores, weights),
    }
    if args.threads > 1:
        everything["rlvar, one thread"] = lambda: rlvar.covariance(scores, weights, num_threads=1)
    everything |= {name: lambda f=f: f(scores, weights) for name, f in complete.items()}
    once = dict(zip(everything, in_turn(*everything.values(), rounds=1, **TURNS), strict=True))
    slow = [name for name in complete if once[name] > SLOW * once["rlvar"]]
    fast = [name for name in everything if name not in slow]
    seconds = {}
    for names, rounds in ((fast, args.rounds), (slow, SLOW_ROUNDS)):
        times = in_turn(*(everything[name] for name in names), rounds=rounds, **TURNS)
        seconds |= zip(names, times, strict=True)
    return seconds


def rates(shape, seconds):
    """Operations a second, by name: N D T (T + 1) for one triangle, 2 n^3 for A @ B."""
    n, t, d = shape
    return {
        name: (2 * peers.GEMM**3 if name == "A @ B alone" else n * d * t * (t + 1)) / time
        for name, time in seconds.items()
    }


def print_rows(shape, dtype, seconds):
    rate = rates(shape, seconds)
    for name, time in seconds.items():
        of_syrk, of_gemm = (rate[name] / rate[floor] for floor in ("X @ X.T alone", "A @ B alone"))
        times = "" if name == "A @ B alone" else f"{time / seconds['rlvar']:.2f}"
        print(
            f"| {shape} | {np.dtype(dtype).name} | {name} | {1e3 * time:.3g} ms | {rate[name] / 1e9:.1f} "
            f"| {of_syrk:.2f} | {of_gemm:.2f} | {times} |",
            flush=True,
        )


def promises_of_rates(shape, dtype, seconds, complete):
    where, rate = f"covariance {shape} {np.dtype(dtype).name}:", rates(shape, seconds)
    yield Promise(
        f"{where} rate over that of X @ X.T alone",
        rate["rlvar"] / rate["X @ X.T alone"],
        "at least",
        RATE[shape],
    )
    yield Promise(
        f"{where} rate over that of A @ B alone", rate["rlvar"] / rate["A @ B alone"], "at least", 0.9, True
    )
    if complete:
        best = min(complete, key=seconds.get)
        yield Promise(
            f"{where} times faster than the best peer ({best})",
            seconds[best] / seconds["rlvar"],
            "at least",
            1.2,
        )
    if args.threads > 1:
        speed_up = seconds["rlvar, one thread"] / seconds["rlvar"]
        yield Promise(f"{where} speed-up on {args.threads} threads", speed_up, "at least", 1.7, True)


def over(dividend, divisor):
    """Ratio of the median seconds of two functions."""
    first, second = in_turn(dividend, divisor, rounds=args.rounds, **TURNS)
    return first / second


def ragged(shape, dtype):
    """Lengths uniform on 1 .. T leave a third of the products."""
    n, t, _ = shape
    scores, weights = cases.covariance_inputs(shape, dtype)
    lengths = np.random.default_rng(1).integers(1, t + 1, n)
    live = np.arange(t) < lengths[:, None]
    cases.check(
        rlvar.covariance(scores, weights, lengths=lengths), reference(scores, weights * live), OURS[dtype]
    )
    return Promise(
        f"covariance {shape} {np.dtype(dtype).name}: time of ragged lengths over full ones",
        over(
            lambda: rlvar.covariance(scores, weights, lengths=lengths),
            lambda: rlvar.covariance(scores, weights),
        ),
        "at most",
        0.45,
    )


def blocks(shape):
    scores, weights = cases.covariance_inputs(shape, np.float32)
    summed = reference(scores, weights).reshape(shape[1] // BLOCK, BLOCK, -1, BLOCK).sum(axis=(1, 3))
    cases.check(rlvar.covariance(scores, weights, block_size=BLOCK), summed, OURS[np.float32])
    return Promise(
        f"covariance {shape} float32: times faster with block_size={BLOCK}",
        over(
            lambda: rlvar.covariance(scores, weights, block_size=1),
            lambda: rlvar.covariance(scores, weights, block_size=BLOCK),
        ),
        "at least",
        20,
    )


def growth(shape):
    scores, weights = cases.covariance_inputs(shape, np.float32)
    expected = cases.numpy_growth(scores.astype(np.float64), weights)
    cases.check(rlvar.decompose(scores, weights).growth, expected, 1e-6)
    return Promise(
        f"decompose {shape} float32: time over scores.sum()",
        over(lambda: rlvar.decompose(scores, weights), lambda: scores.sum()),
        "at most",
        4,
    )


def estimators(shape):
    scores, _ = cases.covariance_inputs(shape, np.float32)
    weights = np.random.default_rng(1).standard_normal((ESTIMATORS, *shape[:2]))
    for result, w in zip(rlvar.covariance(scores, weights), weights, strict=True):
        cases.check(result, reference(scores, w), OURS[np.float32])
    return Promise(
        f"covariance {shape} float32: times faster for {ESTIMATORS} estimators at once",
        over(
            lambda: [rlvar.covariance(scores, w) for w in weights],
            lambda: rlvar.covariance(scores, weights),
        ),
        "at least",
        2,
        True,
    )


def main():
    complete, lacking = peers.installed()
    versions = [f"rlvar {rlvar.__version__}, {_core.isa}, numpy {np.__version__}"]
    for name in sorted({peers.module(peer) for peer in complete} - {"numpy"}):
        module = importlib.import_module(name)
        versions.append(f"{name} {module.__version__}")
        if name == "torch":
            module.set_num_threads(args.threads)
    print(", ".join(versions) + f", {args.threads} thread(s)")
    for name in lacking:
        print(f"not measured: {name} (it is not installed)")
    print("\n| shape | dtype | what | time | GFLOP/s | of X @ X.T | of A @ B | times rlvar's |")
    print("|---|---|---|---|---|---|---|---|")
    promises = []
    for shape in SHAPES.complete:
        for dtype in cases.DTYPES:
            seconds = time_complete(shape, dtype, complete)
            print_rows(shape, dtype, seconds)
            promises += promises_of_rates(shape, dtype, seconds, complete)
    promises += [ragged(shape, dtype) for shape in SHAPES.ragged for dtype in cases.DTYPES]
    promises += [blocks(SHAPES.blocks), growth(SHAPES.growth), estimators(SHAPES.estimators)]
    if args.shapes == "small":
        promises = [promise._replace(aim=True) for promise in promises]
    print()
    for promise in promises:
        print(promise)
    return int(not all(promise.kept or promise.aim for promise in promises))


if __name__ == "__main__":
    sys.exit(main())
