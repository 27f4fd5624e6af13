"""The moments of unit gradients in resamples of whole units."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from rlvar._types import Double
from rlvar.stats.moments import Sample


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
