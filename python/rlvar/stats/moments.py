r"""Moments of the gradients of independent units, each with one unit left out, and resampled.

The batch's gradient is m = sum g_u / sum L_u over U units with gradients g_u (D,) and sizes L_u: all
1 for a plain mean, their tokens for a token mean. With s_u = L_u / mean L and the deviations
y_u = g_u / mean L - s_u m, which sum to 0, and Q = sum |y_u|^2,

    variance       V = Q / (U - 1), so that Var(m) = V / U; exact for equal sizes, else the delta method
    signal         S = |m|^2 - V / U: for equal sizes the mean of g_u . g_v over u != v, unbiased
    cross signal   X = m_a . m_b - C / U with C = sum y_a . y_b / (U - 1), for E m_a . E m_b

Leaving out unit u moves m by -y_u / (U - s_u), and with it what every other unit deviates: in closed
form from Q, sum s y and sum s^2. O(U D) for all units.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from rlvar._types import Double
from rlvar.stats.estimate import Moment

# Where so small a part of the units carries more than such a share of the squares, the tail has not
# been seen: no interval of a variance can be trusted.
TOP, HEAVY = 0.01, 0.2


class Sample(NamedTuple):
    """The gradients of U units, as their mean and what each deviates from it."""

    mean: Double  # (D,)
    deviations: Double  # (U, D)
    sizes: Double  # (U,), relative: their mean is 1


def sample(gradients: Double, sizes: Double | None = None) -> Sample:
    """Make a sample of unit gradients (U, D) whose mean is sum of gradients / sum of sizes (U,)."""
    u = len(gradients)
    if sizes is None:
        relative = np.ones(u)
        mean = gradients.mean(axis=0)
        y = gradients - mean
    else:
        size = float(sizes.mean())
        relative = sizes / size
        mean = gradients.mean(axis=0) / size
        y = gradients / size
        y -= relative[:, None] * mean
    rest = y.mean(axis=0)  # rounding of the mean
    y -= relative[:, None] * rest
    return Sample(mean + rest, y, relative)


def _covariance(a: Sample, b: Sample) -> Moment:
    """Return sum y_a . y_b / (U - 1)."""
    (y_a, s), y_b, u = (a.deviations, a.sizes), b.deviations, len(a.sizes)
    products = (y_a * y_b).sum(axis=1)
    total = float(products.sum())
    if u < 3:
        return Moment(total / (u - 1), np.empty(0))
    # The others deviate y_v + s_v y_u / room once u is left out, of a mean size room / (U - 1).
    room = u - s
    with np.errstate(all="ignore"):  # one unit may have all the size: nothing is left without it
        cross = y_a @ (s @ y_b) + y_b @ (s @ y_a) - 2 * s * products
        others = total - products + cross / room + products * (s @ s - s * s) / room**2
        left_out = others * ((u - 1) / room) ** 2 / (u - 2)
    return Moment(total / (u - 1), left_out)


def variance(g: Sample) -> Moment:
    """Trace of the covariance of one unit's part in the mean; what rounding leaves of it is none."""
    value, left_out = _covariance(g, g)
    return Moment(value, np.where(left_out < 1e-12 * value, 0.0, left_out))


def cross_signal(a: Sample, b: Sample) -> Moment:
    """Estimate E m_a . E m_b from two gradients of the same units, without the bias of a plug-in."""
    u = len(a.sizes)
    value, left_out = _covariance(a, b)
    result = float(a.mean @ b.mean) - value / u
    if u < 3:
        return Moment(result, np.empty(0))
    with np.errstate(all="ignore"):
        means_a, means_b = (x.mean - x.deviations / (u - x.sizes)[:, None] for x in (a, b))
        return Moment(result, (means_a * means_b).sum(axis=1) - left_out / (u - 1))


def signal(g: Sample) -> Moment:
    """Estimate |E m|^2 without the bias of a plug-in; it can be negative."""
    return cross_signal(g, g)


def largest_share(g: Sample, fraction: float = 0.0) -> float:
    """Share of sum |y_u|^2 that the largest unit carries; 0 if none deviates.

    With `fraction`, that of the largest ceil(fraction U) units together.
    """
    squares = np.sort(np.square(g.deviations).sum(axis=1))
    total = float(squares.sum())
    count = max(1, math.ceil(fraction * len(squares)))
    return float(squares[-count:].sum()) / total if total else 0.0
