r"""Moments of the gradients of independent units, each with one unit left out.

The batch's gradient is m = sum g_u / sum L_u over U units with gradients g_u (D,) and sizes L_u: all
1 for single rollouts, their numbers of rollouts or tokens for groups. With s_u = L_u / mean L and the
deviations y_u = g_u / mean L - s_u m, which sum to 0, and Q = sum |y_u|^2,

    variance       V = Q / (U - 1), so that Var(m) = V / U; exact for equal sizes, else the delta method
    signal         S = |m|^2 - V / U: for equal sizes the mean of g_u . g_v over u != v, unbiased
    cross signal   X = m_a . m_b - C / U with C = sum y_a . y_b / (U - 1), for E m_a . E m_b

Leaving out unit u moves m by -y_u / (U - s_u), and with it what every other unit deviates: in closed
form from Q, sum s y and sum s^2. All that is needed of the D coordinates are sums over them, `Products`:
they are added up a few columns at a time, each centred before anything is multiplied. O(U D).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np

from rlvar import _check, _core
from rlvar._check import quiet
from rlvar._types import Double
from rlvar.stats.estimate import Moment

# Where so small a part of the units carries more than such a share of the squares, the tail has not
# been seen: no interval of a variance can be trusted.
TOP, HEAVY = 0.01, 0.2
_CHUNK = 1 << 16  # numbers of one temporary


def without_each(x: Double) -> Double:
    """Sum of the others for each of x (U,), without a difference that would cancel."""
    zero = np.zeros(1)
    before = np.concatenate([zero, np.cumsum(x[:-1])])
    after = np.concatenate([np.cumsum(x[:0:-1])[::-1], zero])
    return np.asarray(before + after)


class Rows(Protocol):
    """Rows (N, D) that are made a few columns at a time, each of them a number times a row of `base`."""

    @property
    def base(self) -> Double: ...
    def whole(self, coordinates: slice = ...) -> Double: ...


@dataclass(frozen=True, eq=False)
class Sizes:
    """Relative sizes s of U units, their mean 1, and what is left of them without each."""

    given: Double  # (U,)

    @cached_property
    def even(self) -> bool:
        return bool((self.given == self.given[0]).all())

    @cached_property
    def mean(self) -> float:
        return float(self.given.mean())

    @cached_property
    def relative(self) -> Double:
        """s_u (U,)."""
        return np.ones(len(self.given)) if self.even else self.given / self.mean

    @cached_property
    def room(self) -> Double:
        """U - s_u (U,), the sum of the others, whichever unit dominates."""
        return without_each(self.given) / self.mean

    @cached_property
    def squares(self) -> Double:
        """Sum of the squares of the others (U,)."""
        return without_each(np.square(self.given)) / self.mean**2


@dataclass(frozen=True, eq=False)
class Sample:
    """Gradients of units (U, D), and sizes (U,) of the units, ones by default: their mean is sum over sum.

    With `units` the rows are those of rollouts (N, D), and their sums over each unit count.
    """

    rows: Rows | Double
    given: Double | None = None
    units: _check.Units | None = None
    # What a change of V by the number of each row (N,) makes without each unit (U,), where those numbers are
    # fitted to the units.
    refit: Callable[[Double], Double] | None = None

    @property
    def _base(self) -> Double:
        return self.rows if isinstance(self.rows, np.ndarray) else self.rows.base

    @cached_property
    def sizes(self) -> Sizes:
        return Sizes(np.ones(len(self._base)) if self.given is None else self.given)

    @property
    def dimension(self) -> int:
        return int(self._base.shape[1])

    def columns(self, part: slice) -> Double:
        """Gradients of units, a few columns of them (U, d)."""
        rows = self.rows[:, part] if isinstance(self.rows, np.ndarray) else self.rows.whole(part)
        return rows if self.units is None else self.units.sums(rows)

    def slopes(self, part: slice, y: Double) -> Double:
        """Half the derivative of sum |y|^2 by the number of each row (N,), of a few columns."""
        base = self._base[:, part]
        if self.units is not None:
            of_row = np.empty(base.shape)
            of_row[self.units.members] = np.repeat(y, self.units.sizes, axis=0)
            y = of_row
        return np.asarray(np.einsum("nd,nd->n", base, y) / self.sizes.mean)

    def centred(self, gradients: Double) -> tuple[Double, Double]:
        """Mean (d,) of columns, and what the units deviate from it (U, d)."""
        if self.sizes.mean != 1.0:
            gradients = gradients / self.sizes.mean
        mean = gradients.mean(axis=0)
        s = None if self.sizes.even else self.sizes.relative[:, None]
        y = gradients - (mean if s is None else s * mean)
        rest = y.mean(axis=0)  # rounding of the mean
        y -= rest if s is None else s * rest
        return mean + rest, y


@dataclass(eq=False)
class Products:
    """All that is needed of the coordinates of two samples a and b of the same units: sums over them."""

    sizes: Sizes
    linear: Double  # m_a . y_b + m_b . y_a of each unit (U,)
    diagonal: Double  # y_a . y_b of each unit (U,)
    crossed: Double  # y_a . (sum s y_b) + y_b . (sum s y_a) of each unit (U,)
    # The matrix (U, U) of all y_a . y_b, if asked for, as a product of the fewest numbers.
    gram: tuple[Double, ...] = ()
    means: float = 0.0  # m_a . m_b
    identical: bool = True  # whether the two are the same to the bit
    refitted: Double | float = 0.0  # what refits without each unit add to V (U,)

    def add(self, mean_a: Double, y_a: Double, mean_b: Double, y_b: Double) -> None:
        """Add what some columns give."""
        # np.einsum without `optimize` never calls BLAS, whose bits depend on the number of threads.
        self.means += float((mean_a * mean_b).sum())
        self.diagonal += np.einsum("ud,ud->u", y_a, y_b)
        for mean, y, z in ((mean_a, y_a, y_b), (mean_b, y_b, y_a)):
            self.linear += np.einsum("ud,d->u", z, mean)
            if not self.sizes.even:  # else the sum of all y, which is 0
                self.crossed += np.einsum("ud,d->u", z, np.einsum("u,ud->d", self.sizes.relative, y))


@quiet
def products(
    samples: Sequence[Sample], reference: int = 0, *, gram: bool = False, threads: int | None = None
) -> list[tuple[Products, Products]]:
    """Return the products of each sample with itself, and with the reference.

    Raises ValueError for gradients so small that their squares are none in float64.
    """
    sizes, numbers = samples[reference].sizes, range(len(samples))
    u, d = len(sizes.given), samples[reference].dimension
    found = {(i, j): Products(sizes, *np.zeros((3, u))) for i in numbers for j in (i, reference)}
    kept: list[Double] = []
    if gram and u < d:
        for p in found.values():
            p.gram = (np.zeros((u, u)),)
    elif gram:
        kept = [np.empty((u, d)) for _ in numbers]
        for (i, j), p in found.items():
            p.gram = (kept[i], kept[j].T)
    some = np.zeros(len(samples), bool)
    slopes = [np.zeros(len(each._base)) for each in samples]
    step = max(8, _CHUNK // u)  # so that no bit depends on more than the shape
    for part in (slice(start, min(start + step, d)) for start in range(0, d, step)):
        columns = [each.columns(part) for each in samples]
        some |= [bool(x.any()) for x in columns]
        centred = [each.centred(x) for each, x in zip(samples, columns, strict=True)]
        for i, each in enumerate(samples):
            if each.refit is not None:
                slopes[i] += each.slopes(part, centred[i][1])
        for (i, j), p in found.items():
            p.identical = p.identical and (i == j or np.array_equal(columns[i], columns[j]))
            p.add(*centred[i], *centred[j])
            if gram and not kept:
                _core.add_matmul(centred[i][1], centred[j][1].T, p.gram[0], threads)
        for y, (_, deviations) in zip(kept, centred, strict=False):
            y[:, part] = deviations
    for i, each in enumerate(samples):
        if each.refit is not None:
            found[i, i].refitted = each.refit(2 * slopes[i] / (u - 1))
    for i in numbers:
        _check.refuse_underflow(found[i, i].diagonal.sum() + u * found[i, i].means, some[i].any)
    return [(found[i, i], found[i, reference]) for i in numbers]


@quiet
def _covariance(p: Products) -> Moment:
    """Return sum y_a . y_b / (U - 1)."""
    u, total = len(p.diagonal), float(p.diagonal.sum())
    if u < 3:
        return Moment(total / (u - 1), np.empty(0))
    # The others deviate y_v + s_v y_u / room once u is left out, of a mean size room / (U - 1); one unit
    # may have all the size: nothing is left without it.
    s, room, squares = p.sizes.relative, p.sizes.room, p.sizes.squares
    cross = p.crossed - 2 * s * p.diagonal
    others = total - p.diagonal + cross / room + p.diagonal * squares / room**2
    return Moment(total / (u - 1), others * ((u - 1) / room) ** 2 / (u - 2))


@quiet
def variance(p: Products) -> Moment:
    """Trace of the covariance of one unit's part in the mean; what rounding leaves of it is none."""
    value, left_out = _covariance(p)
    if len(left_out):
        left_out = left_out + p.refitted
    return Moment(value, np.where(left_out < 1e-12 * value, 0.0, left_out))


@quiet
def signal(p: Products) -> Moment:
    """Estimate E m_a . E m_b, |E m|^2 of one sample, without the bias of a plug-in; it can be negative."""
    u = len(p.diagonal)
    value, left_out = _covariance(p)
    if u < 3:
        return Moment(p.means - value / u, np.empty(0))
    room = p.sizes.room
    means = p.means - p.linear / room + p.diagonal / room**2
    return Moment(p.means - value / u, means - left_out / (u - 1))


def largest_share(p: Products, fraction: float = 0.0) -> float:
    """Share of sum |y_u|^2 that the largest unit carries; 0 if none deviates.

    With `fraction`, that of the largest ceil(fraction U) units together.
    """
    squares = np.sort(p.diagonal)
    total = float(squares.sum())
    count = max(1, math.ceil(fraction * len(squares)))
    return float(squares[-count:].sum()) / total if total else 0.0
