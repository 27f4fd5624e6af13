"""Totals and growth exponents of the squares of units, with each unit left out, or drawn, and intervals.

Leaving a unit out is in closed form. A resample draws whole units with replacement
and adds up their squares about the means of all rollouts, which stay as they are: that moves a variance by
O(1 / U) of its spread, and takes no pass over the scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rlvar import _check
from rlvar import units as unit_moments
from rlvar.estimate import Estimate, Moment, bca, bootstrap_t, jackknife
from rlvar.growth import Stratum, drawn, slope
from rlvar.inference import Bootstrap
from rlvar.terms import Squares

Double = NDArray[np.float64]


def summaries(
    squares: Squares,
    units: _check.Units,
    within: Moment,
    divisor: float,
    growth_range: tuple[int, int],
    ddof: int | None,
) -> list[Moment]:
    """Return total, variance terms, covariance terms, growth exponent, that within strata and its shift.

    With one unit left out each if `ddof` is given, and nothing otherwise. Growths are overwritten.
    """
    values = _values(units.total(squares.steps).sum(), units.total(squares.growths), divisor, growth_range)
    left_out, others = np.empty((4, 0)), np.empty(0)
    if ddof is not None:
        left_out, others = _without_each(squares, units, ddof, growth_range), within.left_out
    return [
        *(Moment(float(value), each) for value, each in zip(values, left_out, strict=True)),
        Moment(within.value, others),
        Moment(float(_shift(within.value, values[3])), _shift(others, left_out[3])),
    ]


def _shift(within: float | Double, overall: Double) -> Double:
    """Exponents within strata less those over all: 0 where that is rounding, as with one stratum."""
    shift = np.asarray(within - overall)
    return np.where(np.abs(shift) < 1e-10, 0.0, shift)


def _values(
    step_squares: Double, growth_squares: Double, normaliser: float | Double, growth_range: tuple[int, int]
) -> Double:
    """Return total, variance terms, covariance terms and growth exponent.

    From sums of squares: of all steps (...), and of the running sums (..., T).
    """
    total = growth_squares[..., -1] / normaliser
    variance = step_squares / normaliser
    first, last = growth_range
    exponent = slope(growth_squares[..., first - 1 : last], first)
    return np.stack([total, variance, total - variance, exponent])


def _without_each(squares: Squares, units: _check.Units, ddof: int, growth_range: tuple[int, int]) -> Double:
    """Return the values with each unit (one copy of it) left out (4, U).

    Leaving out unit u takes sum |y|^2 + |sum y|^2 / (N - size) over it from the squares about the mean:
    those of the rest about their own mean are left.
    """
    steps, growths, step_sums, growth_sums = squares
    step_squares, growth_squares = units.total(steps).sum(), units.total(growths)
    rest = units.total(units.sizes) - units.sizes
    step_losses = steps.sum(axis=1) + step_sums.sum(axis=1) / rest
    growths += growth_sums / rest[:, None]
    np.subtract(growth_squares, growths, out=growths)
    steps_left = step_squares - step_losses
    # What is left by rounding alone is none.
    growths[growths < 1e-12 * growth_squares] = 0.0
    steps_left[steps_left < 1e-12 * step_squares] = 0.0
    return _values(steps_left, growths, (rest - ddof).astype(np.float64), growth_range)


class Resamples(NamedTuple):
    """The summaries of B resamples, and the exponents within strata and less that over all."""

    values: Double  # (6, B)
    stderrs: Double  # (3, B): of the logarithms of total and variance terms, of the covariance terms


def resample(
    bootstrap: Bootstrap,
    units: _check.Units,
    squares: Squares,
    strata: Sequence[Stratum],
    per_rollout: float,
    growth_range: tuple[int, int],
) -> Resamples:
    """Draw whole units with their squares, which are divided by `per_rollout` for each rollout drawn."""
    steps, growths = squares.steps.sum(axis=1), squares.growths
    parts, whole = np.stack([growths[:, -1], steps, growths[:, -1] - steps]), units.total(steps)
    result = Resamples(np.empty((6, bootstrap.resamples)), np.empty((3, bootstrap.resamples)))
    for part, counts in unit_moments.draws(len(units), *bootstrap, units.copies, width=growths.shape[1]):
        rollouts = counts @ units.sizes
        values = _values(counts @ steps, counts @ growths, rollouts * per_rollout, growth_range)
        within = drawn(strata, counts) if strata else np.full(len(counts), np.nan)
        result.values[:, part] = [*values, within, _shift(within, values[3])]
        for i, own in enumerate(parts):
            # What each unit adds to a ratio of squares to rollouts, relative to it if that is positive,
            # else to all squares of steps: no square is out of range.
            with np.errstate(all="ignore"):
                influence = own - (counts @ own / rollouts)[:, None] * units.sizes
                influence *= units.number / (counts @ own if i < 2 else np.full(len(counts), whole))[:, None]
                stderrs = unit_moments.log_stderr(counts, influence)
                stderrs[stderrs < 1e-12] = 0.0  # of equal units, by rounding
                result.stderrs[i, part] = stderrs if i < 2 else stderrs * (whole / (rollouts * per_rollout))
    return result


def estimate(
    moment: Moment, i: int, resampled: Resamples | None, confidence: float, copies: NDArray[np.int64] | None
) -> Estimate:
    """Give the i-th of the values in `Resamples` its interval; the first two are positive."""
    positive = i < 2
    if resampled is None:
        return jackknife(*moment, confidence, positive=positive, copies=copies)
    values = resampled.values[i]
    if i < 3:
        stderrs = resampled.stderrs[i]
        return bootstrap_t(
            moment, moment.value, values, stderrs, confidence, positive=positive, copies=copies
        )
    return bca(moment, values, confidence, copies)
