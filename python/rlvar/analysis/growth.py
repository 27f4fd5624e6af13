r"""How the variance grows with length: exponents b of V ~ length^b.

- along the sequence: V(k), the variance of the sum of the first k terms of rollouts that go on to their end,
  whose weights include the rewards after step k;
- with the horizon: V_k, the variance of the gradient had the rollouts been cut after k steps, with the
  rewards up to there. With Z_j = S_1 + ... + S_j it is that of R_k Z_k for "single", that of the sum of
  r_j Z_j over j <= k for "multi";
- with the length of rollouts: V_s, the variance of whole gradients among rollouts of similar length, for
  strata s of length. Long rollouts may differ from short ones in more than their length.

b is the slope of log V by least squares, on log k or on the log of the strata's mean length.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rlvar import _check
from rlvar._types import Double
from rlvar.stats.estimate import Moment
from rlvar.terms.passes import Gradients, Terms
from rlvar.weights.batch import Batch
from rlvar.weights.estimators import Estimator

STRATA = 4  # quartiles of length
HORIZONS = 5  # at which rollouts are cut: the curve is smooth, all of them come from one pass
# Estimators that are what they are for rollouts which are cut: their weights come from rewards alone.
OF_REWARDS = ("single", "multi", "single-mean", "multi-mean", "rloo")
_CHUNK = 1 << 21  # numbers at a time


class HorizonGrowth(NamedTuple):
    """The exponent with each unit left out, and the variance (K,) of rollouts cut at `steps` (K,)."""

    exponent: Moment
    steps: NDArray[np.int64]
    variance: Double


NO_HORIZON = HorizonGrowth(Moment(np.nan, np.empty(0)), np.empty(0, np.int64), np.empty(0))


class LengthGrowth(NamedTuple):
    """The exponent with each unit left out, and the variance (S,) in strata of mean `lengths` (S,)."""

    exponent: Moment
    lengths: Double
    variance: Double
    measure: str = "steps"  # or "tokens": what lengths count


NO_STRATA = LengthGrowth(Moment(np.nan, np.empty(0)), np.empty(0), np.empty(0))


@_check.quiet
def slope(log_x: Double, values: Double) -> Double:
    """Slope of the logarithm of values (..., K) on log_x (..., K) by least squares.

    NaN for a single one, and where not all values are positive.
    """
    x = log_x - log_x.mean(axis=-1, keepdims=True)
    y = np.log(np.where(values > 0, values, np.nan))
    return np.asarray((y * x).sum(axis=-1) / (x * x).sum(axis=-1))


def has_horizon(batch: Batch, estimator: Estimator) -> bool:
    """Whether rollouts can be cut: rewards come on the way, and decide the weights alone."""
    return estimator.base in OF_REWARDS and not batch.rewarded_at_the_end


@_check.quiet
def horizon_growth(
    batch: Batch,
    estimator: Estimator,
    terms: Terms,
    samples: _check.Samples,
    divisor: float,
    units: _check.Units,
    growth_range: tuple[int, int],
    *,
    leave_out: bool,
) -> HorizonGrowth:
    """Fit the variance of rollouts that are cut at steps of a range; their live steps are those of `terms`.

    All gradients are sums of the same scores, each horizon with weights of its own: one pass, O(N T D).
    """
    first, last = growth_range
    steps = np.unique(np.rint(np.geomspace(first, last, HORIZONS)).astype(np.int64))
    n, d, p = len(terms.scores), terms.scores.shape[2], samples.weight
    weights = np.zeros((len(steps), *terms.weights.shape))
    for row, k in zip(weights, steps, strict=True):
        try:
            cut = batch.cut(int(k))
        except ValueError:  # the ratio of a part is out of range, that of the whole is not
            return NO_HORIZON
        np.copyto(row, cut.weighed(cut.weights(estimator)), where=cut.live)
    squares, sums = np.zeros((2, len(steps), len(units)))
    width = max(16, _CHUNK // (len(steps) * n))
    for start in range(0, d, width):
        gradients = terms.gradients_of(weights, slice(start, start + width))
        for i, g in enumerate(gradients):
            y = g - (g.mean(axis=0) if p is None else np.einsum("n,nd->d", p, g) / samples.v1)
            squares[i] += units.sums(np.square(y).sum(axis=1) * (1.0 if p is None else p))
            sums[i] += np.square(units.sums(y)).sum(axis=1)
    log_steps, totals = np.log(steps), squares.sum(axis=1)
    left = without_each(squares, sums, units.sizes) if leave_out else np.empty((len(steps), 0))
    exponent = Moment(float(slope(log_steps, totals)), slope(log_steps, left.T))
    return HorizonGrowth(exponent, steps, totals / divisor)


def without_each(squares: Double, sums: Double, sizes: NDArray[np.int64]) -> Double:
    """Sums of squares about the mean (..., U) that are left without each of U units.

    Given their |y|^2 and |sum of y|^2 (..., U). What is left by rounding alone is NaN.
    """
    total = squares.sum(axis=-1, keepdims=True)
    left = total - squares - sums / (sizes.sum() - sizes)
    return np.asarray(np.where(left < 1e-12 * total, np.nan, left))


def strata_of(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Number the strata of similar length (N,): quantiles; equal lengths stay together."""
    _, place, counts = np.unique(lengths, return_inverse=True, return_counts=True)
    quantiles = STRATA * (np.cumsum(counts) - 0.5 * counts) // len(lengths)
    return np.asarray(np.unique(quantiles, return_inverse=True)[1][place])


@_check.quiet
def length_growth(g: Gradients, lengths: NDArray[np.int64], units: _check.Units) -> LengthGrowth:
    """Fit the variance of whole gradients (N, D) to the lengths (N,) of rollouts.

    With deviations y from the mean of stratum s, of N_s rollouts, leaving out unit u leaves
    sum |y|^2 minus the unit's |y|^2 and minus |sum of its y|^2 / (N_s - its size) there. O(N D).
    """
    labels, n, d = strata_of(lengths), len(lengths), g.base.shape[1]
    step = max(1, _CHUNK // n)
    strata: list[tuple[float, float, Double, Double]] = []
    for label in range(labels.max() + 1):
        inside = labels == label
        present, part = units.among(inside)
        squares, sums = np.zeros(len(part)), np.zeros(len(part))
        for start in range(0, d, step):
            x = g.whole(slice(start, start + step))
            y = x - x[inside].mean(axis=0)
            squares += part.sums(np.square(y).sum(axis=1))
            sums += np.square(part.sums(y)).sum(axis=1)
        size, total, length = len(part.members), squares.sum(), lengths[inside].sum()
        if size < 2 or not total > 0 or not length > 0:
            continue
        rest = size - part.sizes
        left = np.full((2, len(units)), [[total / (size - 1)], [length / size]])
        left[0, present] = without_each(squares, sums, part.sizes) / (rest - 1)
        left[1, present] = (length - part.sums(lengths)) / rest
        strata.append((total / (size - 1), length / size, left[0], left[1]))
    if len(strata) < 2:
        return NO_STRATA
    values, means, left_values, left_means = map(np.array, zip(*strata, strict=True))
    value = float(slope(np.log(means), values))
    left_out = slope(np.log(left_means).T, left_values.T)
    return LengthGrowth(Moment(value, left_out), means, values)
