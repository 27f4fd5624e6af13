r"""How the baselines of the other rollouts change when a unit is left out.

With weights w_i = R_i - b_i, a baseline b_i that is one number per rollout, and b_i = sum n_j / sum d_j over
other rollouts j, a unit u takes n_u and d_u from both sums:

    b_i - b_i(u) = (n_u - b_i d_u) / (sum d_j - d_u).

The jackknife of a variance that leaves these weights as they are lacks what the fit adds to its spread: where
a baseline has little to gain that is most of it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rlvar import _check
from rlvar._types import Double
from rlvar.weights.baselines import folds_of
from rlvar.weights.batch import Batch
from rlvar.weights.estimators import Estimator


@dataclass(frozen=True, eq=False)
class Refit:
    """A fitted baseline of N rollouts in U units, dealt into folds that are not in each other's fit."""

    numerators: Double  # n_u (U,)
    denominators: Double  # d_u (U,)
    baselines: Double  # b_i (N,)
    below: Double  # sum of d_j over those that b_i is fitted to (N,)
    folds: NDArray[np.int64]  # of rollouts (N,)
    fold_of_unit: NDArray[np.int64]  # (U,)

    def __call__(self, slopes: Double) -> Double:
        """Sum over rollouts of `slopes` (N,), by their weights, times the change of those without u (U,)."""
        rates = slopes / self.below
        moved = [np.bincount(self.folds, x) for x in (rates, rates * self.baselines)]
        # What is fitted to others than the fold that u is in.
        above, beside = (x.sum() - x[self.fold_of_unit] for x in moved)
        change = self.numerators * above - self.denominators * beside
        return np.asarray(change / (1 - self.denominators / self.below.mean()))


@_check.quiet
def refit_of(batch: Batch, estimator: Estimator, units: _check.Units) -> Refit | None:
    """Return how "single-mean" and "single-optimal" are fitted; None for other estimators."""
    n = len(batch.rollouts)
    unit = np.empty(n, np.int64)
    unit[units.members] = np.repeat(np.arange(len(units)), units.sizes)
    if estimator.base == "single-mean":  # to all others, its own unit's too, which are left out with it
        denominators, folds = np.ones(n), unit
        below = np.full(n, n - 1.0)
    elif estimator.base == "single-optimal":
        denominators, folds = batch.squares / (batch.squares.max() or 1.0), folds_of(batch).folds
        inside = np.bincount(folds, denominators)
        below = (inside.sum() - inside)[folds]
    else:
        return None
    baselines = batch.returns - batch.weights(estimator)[:, 0]
    return Refit(
        units.sums(batch.returns * denominators),
        units.sums(denominators),
        baselines,
        np.where(below > 0, below, np.inf),
        folds,
        folds[units.members[units.offsets[:-1]]],
    )
