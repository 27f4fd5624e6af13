"""Moments of the gradients of independent units, each with one unit left out, and resampled.

From g (U, D), with mean m, deviations y_u = g_u - m and Q = sum |y_u|^2:

    variance       V = Q / (U - 1)
    signal         S = |m|^2 - V / U, the mean of g_u . g_v over u != v: unbiased for |E g|^2
    cross signal   X = m_a . m_b - C / U with C = sum y_a . y_b / (U - 1): unbiased for E g_a . E g_b

Leaving out unit u moves m to m - y_u / (U - 1), and takes U / (U - 1) |y_u|^2 from Q. O(U D).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rlvar.estimate import Moment

Double = NDArray[np.float64]

# Where so small a part of the units carries more than such a share of the squares, the tail has not
# been seen: no interval of a variance can be trusted.
TOP, HEAVY = 0.01, 0.2


def centred(g: Double) -> tuple[Double, Double]:
    """Return the mean (D,) and the deviations (U, D) of g (U, D), which sum to zero to rounding."""
    mean = g.mean(axis=0)
    y = g - mean
    y -= y.mean(axis=0)
    return mean, y


def _covariance(products: Double) -> Moment:
    """Return the covariance of two gradients from the products y_a . y_b (U,) of each unit."""
    u, total = len(products), float(products.sum())
    left_out = (total - products * (u / (u - 1))) / (u - 2) if u > 2 else np.empty(0)
    return Moment(total / (u - 1), left_out)


def variance(g: Double) -> Moment:
    """Trace of the covariance of unit gradients (U, D); never negative."""
    value, left_out = _covariance(np.square(centred(g)[1]).sum(axis=1))
    return Moment(value, np.maximum(left_out, 0.0))


def cross_signal(a: Double, b: Double) -> Moment:
    """Unbiased estimate of E a . E b from gradients (U, D) of the same units."""
    u = len(a)
    (mean_a, y_a), (mean_b, y_b) = centred(a), centred(b)
    value, left_out = _covariance((y_a * y_b).sum(axis=1))
    result = float(mean_a @ mean_b) - value / u
    if u < 3:
        return Moment(result, np.empty(0))
    means = ((mean_a - y_a / (u - 1)) * (mean_b - y_b / (u - 1))).sum(axis=1)
    return Moment(result, means - left_out / (u - 1))


def signal(g: Double) -> Moment:
    """Unbiased estimate of |E g|^2 from unit gradients (U, D); it can be negative."""
    return cross_signal(g, g)


def largest_share(g: Double, fraction: float = 0.0) -> float:
    """Share of sum |g_u - mean|^2 that the largest unit carries; 0 if they are all equal.

    With `fraction`, that of the largest ceil(fraction U) units together.
    """
    squares = np.sort(np.square(centred(g)[1]).sum(axis=1))
    total = float(squares.sum())
    count = max(1, math.ceil(fraction * len(squares)))
    return float(squares[-count:].sum()) / total if total else 0.0


class Resampled(NamedTuple):
    """What B resamples of the units give."""

    variance: Double  # (B,)
    signal: Double  # (B,), an estimate of the same as `signal`
    influence: Double  # (B, U), relative: |g_u - mean*|^2 / V* - 1


def resample_counts(units: int, resamples: int, seed: int) -> Double:
    """How often each unit is drawn in each resample (B, U), with replacement."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(units, np.full(units, 1 / units), size=resamples).astype(np.float64)


def resample(g: Double, counts: Double) -> Resampled:
    """Variances and signals of unit gradients (U, D) drawn `counts` (B, U) times: O(B U D).

    The same counts for several estimators keep them paired. The U-statistic of a resample estimates
    |m|^2 = S + V / U, the signal of what it is drawn from: V / U is taken off, so that it estimates S.
    """
    u = len(g)
    mean, y = centred(g)
    q = np.square(y).sum(axis=1)
    shift = counts @ y / u
    norms = np.square(shift).sum(axis=1)
    plug_in = np.maximum(counts @ q / u - norms, 0.0)
    variances = plug_in * (u / (u - 1))
    with np.errstate(all="ignore"):
        influence = (q - 2 * shift @ y.T + norms[:, None]) / plug_in[:, None] - 1
    extra = float(q.sum()) / (u * (u - 1))
    return Resampled(variances, np.square(mean + shift).sum(axis=1) - variances / u - extra, influence)


def log_stderr(counts: Double, influence: Double) -> Double:
    """Standard errors (B,) of log V*, or of log (V_a* / V_b*) from the difference of influences."""
    u = counts.shape[1]
    result: Double = np.sqrt((counts * np.square(influence)).sum(axis=1) / (u * (u - 1)))
    return result
