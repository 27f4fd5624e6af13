"""Totals and growth exponents of the squares of units, with each unit left out in closed form.

Leaving out unit u takes sum |y|^2 + |sum y|^2 / (N - size) over it from the squares about the mean: those of
the rest about their own mean are left. The covariance terms are what the squares of the sums over all steps
exceed those of the steps by: the sum over units where they do (`above`), minus the sum where they fall short.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from rlvar import _check
from rlvar._types import Double
from rlvar.analysis.growth import slope
from rlvar.stats.estimate import Moment
from rlvar.terms.passes import Squares


class Totals(NamedTuple):
    """What is summed over steps; the exponent of growth along the sequence with it."""

    variance: Moment
    variance_terms: Moment
    covariance_terms: Moment
    growth_exponent: Moment
    above: Moment  # the covariance terms of units where they are positive
    below: Moment  # and minus those where they are negative


def totals(
    squares: Squares, units: _check.Units, divisor: float, growth_range: tuple[int, int], ddof: int | None
) -> Totals:
    """Return the totals, with each unit left out if `ddof` is given. Growths are overwritten."""
    steps, growths, step_sums, growth_sums = squares
    step_totals, growth_totals = steps.sum(axis=1), growths.sum(axis=0)
    covariances = _known(growths[:, -1] - step_totals, step_totals)
    whole = np.stack([np.maximum(covariances, 0.0).sum(), np.maximum(-covariances, 0.0).sum()])
    values = [*_values(step_totals.sum(), growth_totals, divisor, growth_range), *whole / divisor]
    if ddof is None:
        return Totals(*(Moment(float(value), np.empty(0)) for value in values))
    rest = len(units.members) - units.sizes
    step_losses = step_totals + step_sums.sum(axis=1) / rest
    growths += growth_sums / rest[:, None]
    losses = _known(growths[:, -1] - step_losses, step_losses)
    parts = whole[:, None] - np.stack([np.maximum(losses, 0.0), np.maximum(-losses, 0.0)])
    np.subtract(growth_totals, growths, out=growths)
    steps_left = step_totals.sum() - step_losses
    # What rounding alone leaves counts as 0.
    growths[growths < 1e-12 * growth_totals] = 0.0
    steps_left[steps_left < 1e-12 * step_totals.sum()] = 0.0
    parts[parts < 1e-12 * whole[:, None]] = 0.0
    left_out = [*_values(steps_left, growths, (rest - ddof).astype(np.float64), growth_range)]
    left_out += [*parts / (rest - ddof)]
    return Totals(*(Moment(float(value), each) for value, each in zip(values, left_out, strict=True)))


def _known(covariance: Double, variance: Double) -> Double:
    """Return covariances beside variances, 0 where they are rounding."""
    return np.where(np.abs(covariance) <= 1e-13 * variance, 0.0, covariance)


def _values(
    step_squares: Double, growth_squares: Double, normaliser: float | Double, growth_range: tuple[int, int]
) -> Double:
    """Return four fields of `Totals` from squares: of all steps (...), and of the running sums (..., T)."""
    total = growth_squares[..., -1] / normaliser
    variance = step_squares / normaliser
    first, last = growth_range
    exponent = slope(np.log(np.arange(first, last + 1)), growth_squares[..., first - 1 : last])
    return np.stack([total, variance, _known(total - variance, variance), exponent])
