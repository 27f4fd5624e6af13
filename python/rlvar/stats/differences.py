"""Interval of a difference of two skewed positive parts, such as the covariance terms of many rollouts."""

from __future__ import annotations

import math
from dataclasses import replace

from rlvar._check import quiet
from rlvar.stats.estimate import Estimate, Moment
from rlvar.stats.intervals import correlation, jackknife


@quiet
def difference(whole: Moment, above: Moment, below: Moment, confidence: float) -> Estimate:
    r"""Interval of `whole`, which is `above` minus `below`, both of them 0 or positive.

    A mean of contributions of either sign misses on one side where few large ones make up most of it: the
    tail of `above`, if it was not drawn, is above the interval, that of `below` is below it. Each part has an
    interval on the log scale, with the tail on its upper side. With their margins l and u

    .. math:: h - c = \sqrt{u_a^2 + l_b^2 - 2 r u_a l_b}, \qquad c - l = \sqrt{l_a^2 + u_b^2 - 2 r l_a u_b}

    (Zou & Donner 2008, "MOVER"), r the correlation of the two by the jackknife. Of many units it is the plain
    interval, as then both margins of either part are the same. See ``studies/decompose_coverage.py``.
    """
    plain = jackknife(*whole, confidence)
    a, b = (jackknife(*part, confidence, positive=True) for part in (above, below))
    if not all(map(math.isfinite, (plain.low, a.low, a.high, b.low, b.high))):
        return plain
    r = correlation(above.left_out, below.left_out)

    def margin(of_a: float, of_b: float) -> float:
        return math.sqrt(max((of_a - of_b) ** 2 + 2 * (1 - r) * of_a * of_b, 0.0))

    unit = max(a.high, b.high) or 1.0
    up = unit * margin((a.high - a.value) / unit, (b.value - b.low) / unit)
    down = unit * margin((a.value - a.low) / unit, (b.high - b.value) / unit)
    low, high = plain.value - down, plain.value + up
    return replace(plain, low=low, high=high, resolved=low > 0 or high < 0)
