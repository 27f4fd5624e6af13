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
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rlvar.estimate import Moment

Double = NDArray[np.float64]

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


def resample_counts(units: int, resamples: int, seed: int | np.random.Generator) -> Double:
    """How often each unit is drawn in each resample (B, U), with replacement."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(units, np.full(units, 1 / units), size=resamples).astype(np.float64)


def draws(units: int, resamples: int, seed: int, *, width: int = 1) -> Iterator[tuple[slice, Double]]:
    """Yield `resample_counts` a few resamples at a time, with which of the resamples they are.

    So many that neither counts nor `width` numbers for each resample take more than 8 MiB.
    """
    rng = np.random.default_rng(seed)
    step = max(1, (1 << 20) // max(units, width))
    for start in range(0, resamples, step):
        part = slice(start, min(start + step, resamples))
        yield part, resample_counts(units, part.stop - part.start, rng)


class Resampled(NamedTuple):
    """A sample in B resamples of its units; those of several samples are paired by their counts."""

    counts: Double  # (B, U)
    sample: Sample
    shifts: Double  # (B, D), what the mean moves by
    size: Double  # (B,), mean relative size


def resample(g: Sample, counts: Double) -> Resampled:
    """Draw the units of a sample `counts` (B, U) times each. O(B U D)."""
    size = counts @ g.sizes
    with np.errstate(all="ignore"):  # units of size 0 alone may be drawn
        return Resampled(counts, g, counts @ g.deviations / size[:, None], size / len(g.sizes))


def _resampled_covariance(a: Resampled, b: Resampled) -> Double:
    """Return `_covariance` of each resample (B,)."""
    (counts, sample, shift_a, size), (y_b, shift_b) = a, (b.sample.deviations, b.shifts)
    y_a, s, u = sample.deviations, sample.sizes, len(sample.sizes)
    total = counts @ (y_a * y_b).sum(axis=1) + (counts @ (s * s)) * (shift_a * shift_b).sum(axis=1)
    total -= (shift_a * (counts @ (s[:, None] * y_b))).sum(axis=1)
    total -= (shift_b * (counts @ (s[:, None] * y_a))).sum(axis=1)
    with np.errstate(all="ignore"):
        result: Double = total / size**2 / (u - 1)
    return result


def resampled_variance(g: Resampled) -> Double:
    """Return the variance in each resample (B,): it estimates V (U - 1) / U."""
    return np.maximum(_resampled_covariance(g, g), 0.0)


def resampled_cross_signal(a: Resampled, b: Resampled) -> Double:
    """Return an estimate of the cross signal X in each resample (B,).

    What a resample is drawn from has the signal m_a . m_b = X + C / U: C / U is taken off.
    """
    u = len(a.sample.sizes)
    means = ((a.sample.mean + a.shifts) * (b.sample.mean + b.shifts)).sum(axis=1)
    products = (a.sample.deviations * b.sample.deviations).sum(axis=1)
    drawn_from = float(products.sum()) / (u * (u - 1))
    result: Double = means - _resampled_covariance(a, b) / u - drawn_from
    return result


def influence(g: Resampled) -> Double:
    """Return the derivative of log V in each resample by the share of each unit, (B, U).

    With e_u = y_u - s_u shift, K = sum e^2 and M = sum s e over what is drawn:
    |e_u|^2 U / K - 1 - 2 (s_u / size - 1) - 2 e_u . M / (size K).
    """
    counts, (_, y, s), shifts, size = g
    u = len(s)
    with np.errstate(all="ignore"):
        e = np.square(y).sum(axis=1) - 2 * (shifts @ y.T) * s
        e += np.square(shifts).sum(axis=1)[:, None] * (s * s)
        k = (counts * e).sum(axis=1)
        drawn = counts @ (s[:, None] * y) - (counts @ (s * s))[:, None] * shifts
        moved = drawn @ y.T - (drawn * shifts).sum(axis=1)[:, None] * s
        result: Double = e * (u / k)[:, None] - 1 - 2 * (s / size[:, None] - 1)
        result -= moved * (2 / (size * k))[:, None]
    return result


def log_stderr(counts: Double, influence: Double) -> Double:
    """Standard errors (B,) of log V*, or of log (V_a* / V_b*) from the difference of influences."""
    u = counts.sum(axis=1)
    result: Double = np.sqrt((counts * np.square(influence)).sum(axis=1) / (u * (u - 1)))
    return result
