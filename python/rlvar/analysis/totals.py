"""Totals and growth exponents of the squares of units, with each unit left out in closed form."""

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


def totals(
    squares: Squares, units: _check.Units, divisor: float, growth_range: tuple[int, int], ddof: int | None
) -> Totals:
    """Return the totals, with each unit left out if `ddof` is given. Growths are overwritten."""
    values = _values(squares.steps.sum(), squares.growths.sum(axis=0), divisor, growth_range)
    left_out = np.empty((4, 0)) if ddof is None else _without_each(squares, units, ddof, growth_range)
    return Totals(*(Moment(float(value), each) for value, each in zip(values, left_out, strict=True)))


def _values(
    step_squares: Double, growth_squares: Double, normaliser: float | Double, growth_range: tuple[int, int]
) -> Double:
    """Return the fields of `Totals` from squares: of all steps (...), and of the running sums (..., T)."""
    total = growth_squares[..., -1] / normaliser
    variance = step_squares / normaliser
    first, last = growth_range
    exponent = slope(np.log(np.arange(first, last + 1)), growth_squares[..., first - 1 : last])
    covariance = np.where(np.abs(total - variance) <= 1e-13 * variance, 0.0, total - variance)  # rounding
    return np.stack([total, variance, covariance, exponent])


def _without_each(squares: Squares, units: _check.Units, ddof: int, growth_range: tuple[int, int]) -> Double:
    """Return the values with each unit left out (4, U).

    Leaving out unit u takes sum |y|^2 + |sum y|^2 / (N - size) over it from the squares about the mean:
    those of the rest about their own mean are left.
    """
    steps, growths, step_sums, growth_sums = squares
    step_squares, growth_squares = steps.sum(), growths.sum(axis=0)
    rest = len(units.members) - units.sizes
    step_losses = steps.sum(axis=1) + step_sums.sum(axis=1) / rest
    growths += growth_sums / rest[:, None]
    np.subtract(growth_squares, growths, out=growths)
    steps_left = step_squares - step_losses
    # What is left by rounding alone is none.
    growths[growths < 1e-12 * growth_squares] = 0.0
    steps_left[steps_left < 1e-12 * step_squares] = 0.0
    return _values(steps_left, growths, (rest - ddof).astype(np.float64), growth_range)
