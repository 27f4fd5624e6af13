r"""How the variance grows with length: exponents b of V ~ length^b.

- along the sequence: V(k), the variance of the sum of the first k terms of rollouts that go on to their end;
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
from rlvar.terms.passes import Gradients

STRATA = 4  # quartiles of length
_CHUNK = 1 << 21  # numbers at a time


class LengthGrowth(NamedTuple):
    """The exponent with each unit left out, and the mean lengths of the shortest and longest stratum."""

    exponent: Moment
    shortest: float
    longest: float


@_check.quiet
def slope(log_x: Double, values: Double) -> Double:
    """Slope of the logarithm of values (..., K) on log_x (..., K) by least squares.

    NaN for a single one, and where not all values are positive.
    """
    x = log_x - log_x.mean(axis=-1, keepdims=True)
    y = np.log(np.where(values > 0, values, np.nan))
    return np.asarray((y * x).sum(axis=-1) / (x * x).sum(axis=-1))


def strata_of(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Number the strata of similar length (N,): quantiles; equal lengths stay together."""
    _, place, counts = np.unique(lengths, return_inverse=True, return_counts=True)
    quantiles = STRATA * (np.cumsum(counts) - 0.5 * counts) // len(lengths)
    return np.asarray(np.unique(quantiles, return_inverse=True)[1][place])


@_check.quiet
def length_growth(g: Gradients, lengths: NDArray[np.int64], units: _check.Units) -> LengthGrowth:
    """Fit the variance of whole gradients (N, D) to the lengths (N,) of rollouts.

    With deviations y from the mean of stratum s, of N_s rollouts, leaving out unit u leaves
    sum |y|^2 less the unit's |y|^2 and |sum of its y|^2 / (N_s - its size) there. O(N D).
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
        left[0, present] = (total - squares - sums / rest) / (rest - 1)
        left[1, present] = (length - part.sums(lengths)) / rest
        left[0, left[0] < 1e-12 * total / size] = np.nan  # what is left by rounding alone is none
        strata.append((total / (size - 1), length / size, left[0], left[1]))
    if len(strata) < 2:
        return LengthGrowth(Moment(np.nan, np.empty(0)), np.nan, np.nan)
    values, means, left_values, left_means = map(np.array, zip(*strata, strict=True))
    value = float(slope(np.log(means), values))
    left_out = slope(np.log(left_means).T, left_values.T)
    return LengthGrowth(Moment(value, left_out), float(means.min()), float(means.max()))
