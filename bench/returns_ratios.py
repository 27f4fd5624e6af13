"""The scans beside np.copyto and their peers, in one process, float32, median of many.

    python bench/returns_ratios.py [--rounds 51] [--warm]

Checks every result, prints a Markdown table, then each promise with what was measured, and exits
with status 1 if one is missed. numba and torch are left out where they are not installed. One
thread; the fast ones run in turn and write to the same arrays, then the slow ones, a few times.
With --warm each is timed right after an untimed run of its own, which favours np.copyto most.
"""

import argparse
import importlib.util
import sys
from collections.abc import Callable
from typing import NamedTuple

from timing import in_turn, limit_threads

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--rounds", type=int, default=51)
parser.add_argument("--warm", action="store_true")
args = parser.parse_args()
limit_threads(1)  # read when numpy, rlvar, numba and torch are imported

import numpy as np  # noqa: E402

import cases  # noqa: E402
import returns_peers as peers  # noqa: E402
import rlvar  # noqa: E402
from rlvar import _core  # noqa: E402

OUT_OF_CACHE = (1024, 16384)
SLOW_ROUNDS = min(3, args.rounds)


class Scan(NamedTuple):
    ours: Callable
    peers: dict
    arrays: int  # read, and as many written
    constants: dict
    copies_in_cache: float  # promised: at most so many times np.copyto
    copies_out_of_cache: float | None
    numba: float  # promised: at least so many times faster


SCANS = {
    "reward_to_go": Scan(rlvar.reward_to_go, peers.REWARD_TO_GO, 1, {"gamma": cases.GAMMA}, 3, 1.6, 3),
    "gae": Scan(rlvar.gae, peers.GAE, 2, {"gamma": cases.GAMMA, "lam": peers.LAMBDA}, 4, None, 2),
}


def check(scan, arrays, results, **options):
    results = results if isinstance(results, tuple) else (results,)
    right = peers.expected(*arrays, **{**scan.constants, **options})
    for result, column in zip(results, right[: scan.arrays], strict=True):
        assert result.dtype == np.float32
        cases.check(result, column, 1e-5)


def time_scan(scan, shape):
    """Median seconds of everything that is timed on one shape, by name."""
    arrays = peers.inputs(shape, np.float32)[: scan.arrays]
    outputs = tuple(np.empty_like(array) for array in arrays)
    out = outputs if scan.arrays > 1 else outputs[0]
    rng = np.random.default_rng(1)
    terminated = rng.random(shape, np.float32) < 0.002
    terminated[:, -1] = False
    variants = {
        "rlvar": {},
        "rlvar, 0.2 % terminated": {"terminated": terminated},
        "rlvar, random mask": {"mask": rng.random(shape, np.float32) < 0.5},
        "rlvar, gamma = 1": {"gamma": 1.0},
    }

    def copy():
        for array, output in zip(arrays, outputs, strict=True):
            np.copyto(output, array)

    def ours(**options):
        return scan.ours(*arrays, **{**scan.constants, **options})

    # np.copyto leaves its output out of the cache: what follows it is not what is compared.
    fast, slow = {"np.copyto": copy, "rlvar, without out=": ours}, {}
    check(scan, arrays, ours())
    for name, function in scan.peers.items():
        if importlib.util.find_spec(name):
            check(scan, arrays, function(*arrays))
            slow[name] = lambda function=function: function(*arrays)
    if slow.pop("numba", None):
        fast["numba"] = lambda: scan.peers["numba"](*arrays, out=out)
    for name, options in variants.items():
        check(scan, arrays, ours(**options, out=out), **options)
        fast[name] = lambda options=options: ours(**options, out=out)
    seconds = in_turn(*fast.values(), rounds=args.rounds, warm=args.warm)
    seconds += in_turn(*slow.values(), rounds=SLOW_ROUNDS)
    return dict(zip([*fast, *slow], seconds, strict=True))


def promises(scan, shape, seconds):
    """(what, measured, at most) of one shape; faster than numba by f is at most 1 / f of its time.

    Ours is the faster of a new array and out=, which is looked through for NaN before it is written.
    """
    ours = min(seconds["rlvar"], seconds["rlvar, without out="])
    if shape == OUT_OF_CACHE:
        if scan.copies_out_of_cache:
            yield "time over np.copyto, out of cache", ours / seconds["np.copyto"], scan.copies_out_of_cache
        return
    yield "time over np.copyto, in cache", ours / seconds["np.copyto"], scan.copies_in_cache
    if "numba" in seconds:
        yield "time over numba's", ours / seconds["numba"], 1 / scan.numba
    for variant in ("0.2 % terminated", "random mask", "gamma = 1"):
        yield f"{variant}, time over plain", seconds[f"rlvar, {variant}"] / seconds["rlvar"], 1.5


def call_overhead():
    """Microseconds of one small call, of a thousand in a row."""
    rewards = np.random.default_rng(0).standard_normal((8, 16))
    cases.check(rlvar.reward_to_go(rewards, cases.GAMMA), peers.expected(rewards)[0], 1e-12)

    def thousand():
        for _ in range(1000):
            rlvar.reward_to_go(rewards, cases.GAMMA)

    return 1e3 * in_turn(thousand, rounds=args.rounds)[0]


def main():
    versions = [f"rlvar {rlvar.__version__}, {_core.isa}, numpy {np.__version__}"]
    for name in ("numba", "torch"):
        if importlib.util.find_spec(name):
            module = importlib.import_module(name)
            versions.append(f"{name} {module.__version__}")
            if name == "torch":
                module.set_num_threads(1)
    print(", ".join(versions) + ", one thread, float32\n")
    print("| operation | shape | what | time | over np.copyto | over rlvar |")
    print("|---|---|---|---|---|---|")
    verdicts = []
    for operation, scan in SCANS.items():
        for shape in [*cases.RETURNS_SHAPES, OUT_OF_CACHE]:
            seconds = time_scan(scan, shape)
            for name, time in seconds.items():
                print(
                    f"| `{operation}` | {shape} | {name} | {1e3 * time:.3g} ms "
                    f"| {time / seconds['np.copyto']:.3g} | {time / seconds['rlvar']:.3g} |",
                    flush=True,
                )
            verdicts += [
                (f"{operation} {shape}: {what}", *rest) for what, *rest in promises(scan, shape, seconds)
            ]
    verdicts.append(("reward_to_go (8, 16) float64: microseconds of a call", call_overhead(), 5))
    print()
    for what, measured, limit in verdicts:
        print(f"{'pass' if measured <= limit else 'MISSED'}  {what} {measured:.2f}, at most {limit:.3g}")
    if not importlib.util.find_spec("numba"):
        print("not measured: the times over numba's (it is not installed)")
    return int(any(measured > limit for _, measured, limit in verdicts))


if __name__ == "__main__":
    sys.exit(main())
