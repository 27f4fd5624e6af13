"""What covariance_processes.py and covariance_ray.py share: shards of rollouts, and the command line."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np

import rlvar


def cut(folder, estimator, block_size, count):
    """Cut the rollouts in a folder into shards: the arguments of `reduce_shard` for each."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder")
    rollouts = rlvar.load_rollouts(folder)
    weights = rlvar.estimator(estimator).weights(rollouts)  # they may depend on rewards in other shards
    arrays = {"estimator": weights, "lengths": rollouts.lengths, "mask": rollouts.mask}
    edges = np.linspace(0, len(rollouts), count + 1).astype(int).tolist()
    for part in map(slice, edges[:-1], edges[1:]):
        here = {name: array[part] for name, array in arrays.items() if array is not None}
        yield folder / "scores.npy", part, here, block_size


def reduce_shard(path, part, arrays, block_size):
    """Reduce one slice of the scores in a file; `arrays` are its weights and its mask or lengths."""
    scores = np.load(path, mmap_mode="r")[part]  # nothing is read before update, a block at a time
    # One thread: the workers share the cores already.
    accumulator = rlvar.CovarianceAccumulator(block_size=block_size, num_threads=1)
    try:
        accumulator.update(scores, **arrays)
    except ValueError as error:  # its indices count from the start of the shard
        raise ValueError(f"in the shard of rollouts from {part.start} on: {error}") from None
    return accumulator


def write_cartpole(folder):
    """Write the embedded rollouts as `load_rollouts` reads them, and return the folder."""
    rollouts = rlvar.datasets.cartpole()
    for name in ("scores", "rewards", "lengths"):
        np.save(folder / f"{name}.npy", getattr(rollouts, name))
    return folder


def main(run, doc):
    """Parse the command line, let `run(shards, workers)` do the work, print and save what it returns."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, metavar="FOLDER")
    parser.add_argument("--estimator", default="multi", help="a name in rlvar.estimators()")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--shards", type=int, help="4 for each worker by default: long and short even out")
    parser.add_argument("--block-size", type=int, default=1, help="sum so many consecutive steps first")
    parser.add_argument("--out", type=Path, help="save the merged accumulator (.npz)")
    args = parser.parse_args()
    count = 4 * args.workers if args.shards is None else args.shards
    try:
        if args.workers < 1 or count < 1:
            raise ValueError("--workers and --shards must be at least 1")
        if args.out and not args.out.resolve().parent.is_dir():  # now, not after hours of work
            raise FileNotFoundError(f"{args.out.resolve().parent} is not a folder")
        with tempfile.TemporaryDirectory() as scratch:
            folder = args.folder or write_cartpole(Path(scratch))
            shards = list(cut(folder.resolve(), args.estimator, args.block_size, count))
            whole = run(shards, args.workers)
        totals = whole.totals()._asdict()
        print(f"{args.folder or 'CartPole'}: {args.estimator}, {whole.count} rollouts in {count} shards")
        print("\n".join(f"{name.replace('_', ' '):<16}  {value:.6g}" for name, value in totals.items()))
        if args.out:
            whole.save(args.out)
    except (OSError, TypeError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0
