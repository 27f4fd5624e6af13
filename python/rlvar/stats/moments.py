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
from collections.abc import Sequence
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
_TINY = 2.0**-1000  # squares of this size have lost digits, or all
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

    def centred(self, gradients: Double) -> tuple[Double, Double]:
        """Mean (d,) of columns, and what the units deviate from it (U, d)."""
        if self.sizes.mean != 1.0:
            gradients = gradients / self.sizes.mean
        mean = gradients.mean(axis=0)
        s = None if self.sizes.even else self.sizes.relative[:, None]
        # In rows, as the kernel of products takes them, whatever the layout of the gradients.
        y = np.subtract(gradients, mean if s is None else s * mean, order="C")
        rest = y.mean(axis=0)  # rounding of the mean
        y -= rest if s is None else s * rest
        return mean + rest, y


class Blocks:
    """Inner products y_u . y_v of the units of one block, for blocks that differ by at most one unit.

    One block of up to 64 units, else blocks of at most 32, with 2^21 numbers in all as long as that leaves 8
    to a block: by U alone.
    """

    def __init__(self, units: int) -> None:
        size = units if units <= 64 else max(8, min(32, (1 << 21) // units))
        count = -(-units // size)
        self.edges = [units * k // count for k in range(count + 1)]
        size = -(-units // count)
        self.products = np.zeros((count, size, size))  # a smaller block ends in zeros

    def add(self, y: Double, threads: int | None) -> None:
        for start, stop, to in zip(self.edges, self.edges[1:], self.products, strict=False):
            part, m = y[start:stop], stop - start
            _core.add_matmul(part, part.T, to[:m, :m], threads)

    def trace_of_square(self, unit: float) -> float:
        """Return tr Sigma^2 / unit^2 without bias, NaN for fewer than four units.

        In each block the linear-time U-statistic of Song et al. (2012), which no shift of all y changes.
        """
        m = np.diff(self.edges).astype(np.float64)
        if m.min() < 4:
            return math.nan
        k = self.products / unit
        k[:, range(k.shape[1]), range(k.shape[1])] = 0.0
        rows = k.sum(axis=2)
        squares, crossed = np.square(k).sum(axis=(1, 2)), np.square(rows).sum(axis=1)
        found = squares + rows.sum(axis=1) ** 2 / ((m - 1) * (m - 2)) - 2 * crossed / (m - 2)
        return float((found / (m - 3)).sum() / m.sum())


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
    columns: int = 0  # D
    identical: bool = True  # whether the two are the same to the bit
    # Of a sample with itself: products within blocks.
    blocks: Blocks | None = None

    def add(self, mean_a: Double, y_a: Double, mean_b: Double, y_b: Double) -> None:
        """Add what some columns give."""
        # np.einsum without `optimize` never calls BLAS, whose bits depend on the number of threads.
        self.means += float((mean_a * mean_b).sum())
        self.columns += len(mean_a)
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
    for i in numbers:
        found[i, i].blocks = Blocks(u)
    kept: list[Double] = []
    if gram and u < d:
        for p in found.values():
            p.gram = (np.zeros((u, u)),)
    elif gram:
        kept = [np.empty((u, d)) for _ in numbers]
        for (i, j), p in found.items():
            p.gram = (kept[i], kept[j].T)
    some = np.zeros(len(samples), bool)
    step = max(8, _CHUNK // u)  # so that no bit depends on more than the shape
    for part in (slice(start, min(start + step, d)) for start in range(0, d, step)):
        columns = [each.columns(part) for each in samples]
        some |= [bool(x.any()) for x in columns]
        centred = [each.centred(x) for each, x in zip(samples, columns, strict=True)]
        for (i, j), p in found.items():
            p.identical = p.identical and (i == j or np.array_equal(columns[i], columns[j]))
            p.add(*centred[i], *centred[j])
            if p.blocks is not None:
                p.blocks.add(centred[i][1], threads)
            if gram and not kept:
                _core.add_matmul(centred[i][1], centred[j][1].T, p.gram[0], threads)
        for y, (_, deviations) in zip(kept, centred, strict=False):
            y[:, part] = deviations
    for i in numbers:
        if some[i] and found[i, i].diagonal.sum() + u * found[i, i].means < _TINY:
            raise ValueError("squares are below the range of float64; rescale the scores or the weights")
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


def dimension(p: Products) -> float:
    """Return V^2 / tr Sigma^2 of a sample with itself, from 1 to D; 1, the most cautious, if not known."""
    value = variance(p).value
    if p.blocks is None or not value > 0:
        return 1.0
    square = p.blocks.trace_of_square(value)
    if math.isnan(square):
        return 1.0
    return max(1.0, min(float(p.columns), 1 / square)) if square > 0 else float(p.columns)
