r"""The ratio of two positive numbers that are estimated from independent data.

With x = log a, y = log b and the ends of their intervals, each on its own side of x and y, the square-root
rule (MOVER; Zou & Donner 2008) recovers the variance that matters at each end:

    low  = x - y - sqrt((x - x_low)^2 + (y_high - y)^2),
    high = x - y + sqrt((x_high - x)^2 + (y - y_low)^2) .

It takes intervals as skewed as they are: an upper end of infinity leaves the ratio without one. Data that are
not independent give x and y a correlation r: p^2 + q^2 below a root becomes p^2 - 2 r p q + q^2.
"""

from __future__ import annotations

import math

import numpy as np

from rlvar._check import quiet
from rlvar.stats.estimate import Estimate


@quiet
def unpaired_ratio(a: Estimate, b: Estimate, correlated: float = 0.0) -> Estimate:
    """Return a / b with its interval; NaN unless both are positive. Both have intervals of one confidence."""

    def margin(p: float, q: float) -> float:
        if math.inf in (p, q):
            return math.inf
        return float(np.sqrt(np.maximum(p * p - 2 * correlated * p * q + q * q, 0.0)))

    if not (a.value > 0 and b.value > 0 and math.isfinite(a.value) and math.isfinite(b.value)):
        return Estimate(math.nan, confidence=a.confidence, resolved=False)
    (x, x_low, x_high), (y, y_low, y_high) = (
        [float(np.log(np.float64(max(each, 0.0)))) for each in (of.value, of.low, of.high)] for of in (a, b)
    )
    value = x - y
    low = value - margin(x - x_low, y_high - y)
    high = value + margin(x_high - x, y - y_low)
    stderr = float(np.exp(value)) * margin(a.stderr / a.value, b.stderr / b.value)
    ends = (float(np.exp(each)) for each in (value, low, high))
    value, low, high = ends
    return Estimate(value, stderr, low, high, a.confidence, a.resolved and b.resolved)
