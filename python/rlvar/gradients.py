"""Gradient estimates of rollouts: g[n] = sum_t w[n,t] S[n,t], for several sets of weights at once."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rlvar import _check, _core
from rlvar.rollouts import Rollouts

Double = NDArray[np.float64]


def gradients(
    rollouts: Rollouts, weights: Double, threads: int | None = None, *, below: float = 1e150
) -> Double:
    """Return the gradients (E, N, D) of weights (E, N, T), in one pass over the scores.

    Raises, naming the first bad score, unless all are `below`: by default so that their squares are
    finite too.
    """
    n, _, d = rollouts.shape
    live = _check.steps(rollouts.shape[:2], rollouts.mask, rollouts.lengths)
    result = np.empty((len(weights), n, d))
    _core.gradients(rollouts.scores, np.ascontiguousarray(weights), *live, result, threads)
    if not np.abs(result).max() < below:
        _check.raise_not_finite(rollouts.scores, live)
    return result
