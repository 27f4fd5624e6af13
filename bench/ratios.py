"""The speed table of the README: ours and its peers in turn, in one process, median of many.

    python bench/ratios.py [--threads 1] [--rounds 15]

Prints a Markdown table, checks every result, and exits with status 1 if a speed that the README
promises is missed: covariance at least as fast as the best numpy on (256, 512, 64), reward_to_go
ten times faster than the numpy loop on (256, 4096).
"""

import argparse
import sys

from timing import in_turn, limit_threads

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--threads", type=int, default=1)
parser.add_argument("--rounds", type=int, default=15)
args = parser.parse_args()
limit_threads(args.threads)  # read when numpy and rlvar are imported

import numpy as np  # noqa: E402

import cases  # noqa: E402
import rlvar  # noqa: E402
from rlvar import _core  # noqa: E402


def row(operation, shape, dtype, peer, ours, theirs):
    name = np.dtype(dtype).name
    print(
        f"| `{operation}` | {shape} | {name} | {1e3 * ours:.3g} ms | {peer} | {1e3 * theirs:.3g} ms "
        f"| {theirs / ours:.1f} |"
    )


def main():
    print(f"rlvar {rlvar.__version__}, {_core.isa}, numpy {np.__version__}, {args.threads} thread(s)\n")
    print("| operation | shape | dtype | rlvar | peer | its time | times faster |")
    print("|---|---|---|---|---|---|---|")
    missed = []
    for shape in cases.COVARIANCE_SHAPES:
        for dtype in cases.DTYPES:
            inputs = cases.covariance_inputs(shape, dtype)
            expected = cases.numpy_covariance(inputs[0].astype(np.float64), inputs[1])
            cases.check(rlvar.covariance(*inputs), expected, 1e-6)
            cases.check(cases.numpy_covariance(*inputs), expected, 1e-5)
            ours, theirs = in_turn(
                lambda inputs=inputs: rlvar.covariance(*inputs),
                lambda inputs=inputs: cases.numpy_covariance(*inputs),
                rounds=args.rounds,
            )
            row("covariance", shape, dtype, "numpy: scale, centre, X @ X.T", ours, theirs)
            if shape == (256, 512, 64) and theirs < ours:
                missed.append(f"covariance {shape} {np.dtype(dtype).name}: {theirs / ours:.2f}, promised 1")
    for shape in cases.COVARIANCE_SHAPES[:1]:
        inputs = cases.covariance_inputs(shape, np.float32)
        cases.check(rlvar.decompose(*inputs).growth, cases.numpy_growth(*inputs), 1e-4)
        ours, theirs = in_turn(
            lambda inputs=inputs: rlvar.decompose(*inputs),
            lambda inputs=inputs: cases.numpy_growth(*inputs),
            rounds=args.rounds,
        )
        row("decompose", shape, np.float32, "numpy: growth curve alone", ours, theirs)
    for shape in cases.RETURNS_SHAPES:
        rewards = cases.returns_inputs(shape, np.float32)
        expected = cases.numpy_reward_to_go(rewards.astype(np.float64))
        peers = {
            "numpy: loop over steps": cases.numpy_reward_to_go,
            "scipy: lfilter": cases.lfilter_reward_to_go,
        }
        for peer, function in peers.items():
            cases.check(rlvar.reward_to_go(rewards, cases.GAMMA), expected, 1e-5)
            cases.check(function(rewards), expected, 1e-5)
            ours, theirs = in_turn(
                lambda rewards=rewards: rlvar.reward_to_go(rewards, cases.GAMMA),
                lambda rewards=rewards, function=function: function(rewards),
                rounds=args.rounds,
            )
            row("reward_to_go", shape, np.float32, peer, ours, theirs)
            if shape == (256, 4096) and peer.startswith("numpy") and theirs < 10 * ours:
                missed.append(f"reward_to_go {shape}: {theirs / ours:.1f}, promised 10")
    for line in missed:
        print(f"missed: {line}", file=sys.stderr)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
