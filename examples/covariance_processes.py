"""The covariance of step terms of rollouts that are bigger than memory, on several processes.

    python examples/covariance_processes.py FOLDER --estimator rloo --workers 4 --out merged.npz
    python examples/covariance_processes.py  # without a FOLDER: the embedded CartPole rollouts

FOLDER holds scores.npy, rewards.npy, lengths.npy ... as `rlvar.load_rollouts` maps them. A shard is a
range of rollouts; a worker maps scores.npy itself and reduces its shards to a `CovarianceAccumulator`
each (`reduce_shard` in shards.py). Only weights and accumulators travel between processes, never
scores, and the parent merges the accumulators in the order of the shards.
"""

from __future__ import annotations

import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor

from shards import main, reduce_shard


def on_processes(shards, workers):
    """Reduce shards, each the arguments of `reduce_shard`, and merge them."""
    # A fork would copy the parent's locks without the threads that hold them; "spawn" starts afresh.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        parts = pool.map(reduce_shard, *zip(*shards, strict=True))  # yields in the order of the shards
        whole = next(parts)
        for part in parts:
            whole.merge(part)
    return whole


if __name__ == "__main__":  # not in the workers, which import this file
    sys.exit(main(on_processes, __doc__))
