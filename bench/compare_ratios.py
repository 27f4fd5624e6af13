"""Eight estimators compared at once: time over that of one, and memory over that of the scores.

    python bench/compare_ratios.py [--threads 1] [--rounds 15]

Checks each variance against numpy, then prints each promise with what was measured; exits with
status 1 if one is missed. One estimator is "multi". "from rewards" are eight whose weights need no
scores; "cross-fitted" are eight with baselines from the scores, which take a pass of their own.
"multi-optimal" takes two more: its aim is only reported. Memory is the most that numpy holds at any
time, the scores included.
"""

import argparse
import sys
import tracemalloc

from timing import Promise, in_turn, limit_threads

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--threads", type=int, default=1)
parser.add_argument("--rounds", type=int, default=15)
args = parser.parse_args()
limit_threads(args.threads)  # read when numpy and rlvar are imported

import numpy as np  # noqa: E402

import cases  # noqa: E402
import rlvar  # noqa: E402

SHAPE, GROUP = (512, 1024, 128), 4
ONE = ["multi"]
EIGHT = {
    "from rewards": ["single", "multi", "single-mean", "multi-mean", "rloo", "grpo", "dr-grpo", "opo"],
    "cross-fitted": ["single", "multi", "rloo", "grpo", "single-optimal", "otb", "alpha", "opo-cross"],
    "cross-fitted, multi-optimal too": [
        "single", "multi", "rloo", "grpo", "single-optimal", "otb", "alpha", "multi-optimal",
    ],
}  # fmt: skip


def compare(rollouts, names):
    return rlvar.compare(rollouts, names, reference=names[0])


def check(rollouts, names):
    """Against numpy's variance of the group means."""
    result = compare(rollouts, names)
    for name in names:
        w = rlvar.estimator(name).weights(rollouts)
        w = np.broadcast_to(w if w.ndim == 2 else w[:, None], SHAPE[:2])
        g = np.stack([w_n @ s.astype(np.float64) for w_n, s in zip(w, rollouts.scores, strict=True)])
        units = g.reshape(-1, GROUP, SHAPE[2]).mean(axis=1)
        cases.check(result[name].variance.value, units.var(axis=0, ddof=1).sum(), 1e-10)


def memory(rollouts, names):
    """Most bytes held during a call, over those of the scores."""
    tracemalloc.start()
    compare(rollouts, names)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return (peak + rollouts.scores.nbytes) / rollouts.scores.nbytes


def main():
    n, t, _ = SHAPE
    rng = np.random.default_rng(0)
    scores, rewards = rng.standard_normal(SHAPE, np.float32), rng.standard_normal((n, t))
    rollouts = rlvar.Rollouts(scores, rewards, groups=np.arange(n) // GROUP)
    promises = []
    for what, names in EIGHT.items():
        check(rollouts, names)
        one, eight = in_turn(
            lambda: compare(rollouts, ONE), lambda names=names: compare(rollouts, names), rounds=args.rounds
        )
        where = f"compare {SHAPE} float32, {len(names)} estimators {what}:"
        promises += [
            Promise(
                f"{where} time over one ({1e3 * one:.1f} ms)", eight / one, "at most", 3, "optimal" in what
            ),
            Promise(f"{where} memory over the scores", memory(rollouts, names), "at most", 1.2),
        ]
    for promise in promises:
        print(promise)
    return int(not all(promise.kept or promise.aim for promise in promises))


if __name__ == "__main__":
    sys.exit(main())
