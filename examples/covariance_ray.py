"""The covariance of step terms of rollouts that are bigger than memory, on Ray.

    pip install '.[ray]'
    python examples/covariance_ray.py FOLDER --estimator rloo --workers 4 --out merged.npz
    python examples/covariance_ray.py  # without a FOLDER: the embedded CartPole rollouts

The same as covariance_processes.py, which is the shorter one to read first, but shards are merged by
tasks too, pairwise in a tree: the driver receives one accumulator, after about log2(shards) merges in
a row. The workers map scores.npy themselves; on a cluster of several machines, FOLDER must be a path
that all of them see.
"""

from __future__ import annotations

import logging
import sys

import ray

from shards import main, reduce_shard


@ray.remote
def add(first, second):
    """Return a new accumulator; the arguments lie in Ray's store, shared and read-only."""
    return first + second


def on_ray(shards, workers):
    """Reduce shards, each the arguments of `reduce_shard`, and merge them."""
    # "local" starts a cluster of our own even where one runs; for that one, pass its address alone.
    ray.init(
        address="local",
        num_cpus=workers,
        include_dashboard=False,
        logging_level=logging.ERROR,
        log_to_driver=False,
    )
    try:
        reduce = ray.remote(reduce_shard)
        parts = [reduce.remote(*shard) for shard in shards]
        while len(parts) > 1:
            pairs = zip(parts[::2], parts[1::2], strict=False)
            odd = parts[-1:] if len(parts) % 2 else []  # waits for the next level
            parts = [add.remote(first, second) for first, second in pairs] + odd
        return ray.get(parts[0])
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None  # what the task raised, without the tracebacks of the tree
    finally:
        ray.shutdown()


if __name__ == "__main__":
    sys.exit(main(on_ray, __doc__))
