r"""Moments of the gradients of independent units, each with one unit left out.

The batch's gradient is m = sum g_u / sum L_u over U units with gradients g_u (D,) and sizes L_u: all
1 for single rollouts, their numbers of rollouts or tokens for groups. With s_u = L_u / mean L and the
deviations y_u = g_u / mean L - s_u m, which sum to 0, and Q = sum |y_u|^2,

    variance       V = Q / (U - 1), so that Var(m) = V / U; exact for equal sizes, else the delta method
    signal         S = |m|^2 - V / U: for equal sizes the mean of g_u . g_v over u != v, unbiased
    cross signal   X = m_a . m_b - C / U with C = sum y_a . y_b / (U - 1), for E m_a . E m_b

    dimension      V^2 / tr Sigma^2, Sigma the covariance of one y: how many coordinates, equally noisy,
                   would make the signal as uncertain where it is weak. From 1 to D

Leaving out unit u moves m by -y_u / (U - s_u), and with it what every other unit deviates: in closed
form from Q, sum s y and sum s^2. All that is needed of the D coordinates are sums over them, `Products`:
they are added up a few columns at a time, each centred before anything is multiplied. O(U D).

For tr Sigma^2 the products y_u . y_v of all pairs would take O(U^2 D). Up to 48 units they are taken; of more
units those within blocks of b <= 32, O(U b D). The U-statistic of a block is unbiased for any b >= 4, and
so is the mean over blocks. The part of its variance that single units make, a constant over U, is that of all
pairs; only the part that pairs make grows, from order 1 / U^2 to 1 / (U b).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np

from rlvar import _check, _core
from rlvar._check import quiet
from rlvar._types import Double, Float
from rlvar.stats.estimate import Moment

_CHUNK = 1 << 16  # numbers of one temporary, or twice as many if a row would be a few columns
_SAME = 2.0**-20  # relative: gradients of float32 scores are not known better


def without_each(x: Double) -> Double:
    """Sum of the others for each of x (U,), without a difference that would cancel."""
    zero = np.zeros(1)
    before = np.concatenate([zero, np.cumsum(x[:-1])])
    after = np.concatenate([np.cumsum(x[:0:-1])[::-1], zero])
    return np.asarray(before + after)


def column_parts(units: int, columns: int) -> Iterator[slice]:
    """Yield a few columns at a time, so that no bit depends on more than the shape."""
    step = max(8, min(64, 2 * _CHUNK // units), _CHUNK // units)
    return (slice(start, min(start + step, columns)) for start in range(0, columns, step))


class Rows(Protocol):
    """Rows (N, D) that are made a few columns at a time, each of them a number times a row of `base`."""

    @property
    def base(self) -> Float: ...
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
    spans: int | None = None  # how many coordinates the gradients had, if they were turned into fewer
    # What chance that is not in the rows adds to |y|^2 of each unit (U,).
    added: Double | None = None

    @property
    def _base(self) -> Float:
        return self.rows if isinstance(self.rows, np.ndarray) else self.rows.base

    @cached_property
    def sizes(self) -> Sizes:
        return Sizes(np.ones(len(self._base)) if self.given is None else self.given)

    @property
    def width(self) -> int:
        return int(self._base.shape[1])

    @property
    def dimension(self) -> int:
        return self.width if self.spans is None else self.spans

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
        # In rows, as the kernel of products takes them, for any layout of the gradients.
        y = np.subtract(gradients, mean if s is None else s * mean, order="C")
        rest = y.mean(axis=0)  # rounding of the mean
        y -= rest if s is None else s * rest
        return mean + rest, y


class Blocks:
    """Inner products y_u . y_v of the units of one block, for blocks that differ by at most one unit.

    One block of up to 48 units, else blocks of at most 32, with 2^21 numbers in all as long as that leaves 8
    to a block: by U alone.
    """

    def __init__(self, units: int) -> None:
        size = units if units <= 48 else max(8, min(32, (1 << 21) // units))
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


def _ratio(a: Double, b: Double, place: tuple[int, int]) -> float:
    """Return f if a = f b to rounding, b being largest at this `place`; 0 if there is none."""
    f = float(a[place]) / float(b[place])
    close = _SAME * abs(float(a[place]))
    for part in (place[0], slice(None)):  # most differ in the first unit already
        if not np.abs(a[part] - f * b[part]).max() <= close:
            return 0.0
    return f


class Proportions:
    """Which samples are proportional to an earlier one, by columns seen so far."""

    def __init__(self, count: int) -> None:
        self._factors: list[dict[int, float | None]] = [dict.fromkeys(range(i)) for i in range(count)]

    def add(self, columns: Sequence[Double]) -> None:
        """Keep the pairs that stay proportional, with their factor; columns of zeros say nothing of it."""
        places: dict[int, tuple[int, int]] = {}
        for a, factors in zip(columns, self._factors, strict=True):
            for j, known in list(factors.items()):
                b = columns[j]
                if j not in places:
                    row, column = np.unravel_index(int(np.abs(b).argmax()), b.shape)
                    places[j] = int(row), int(column)
                if not b[places[j]]:
                    if a.any():
                        del factors[j]
                    continue
                f = _ratio(a, b, places[j])
                if f and (known is None or abs(f - known) <= _SAME * abs(known)):
                    factors[j] = f if known is None else known
                else:
                    del factors[j]

    def of(self, i: int) -> tuple[int, float]:
        """Return the first sample that this one is proportional to, maybe itself, and the factor."""
        return next(((j, f) for j, f in self._factors[i].items() if f is not None), (i, 1.0))


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
    refitted: Double | float = 0.0  # what refits without each unit add to V (U,)
    added: Double | None = None  # to |y|^2 of each unit (U,)
    # Of a sample with itself: products within blocks, and the first sample it is a number times.
    blocks: Blocks | None = None
    like: tuple[int, float] = (0, 1.0)

    def add(self, mean_a: Double, y_a: Double, mean_b: Double, y_b: Double) -> None:
        """Add what some columns give."""
        # np.einsum without `optimize` never calls BLAS, whose bits depend on the number of threads.
        self.means += float((mean_a * mean_b).sum())
        self.diagonal += np.einsum("ud,ud->u", y_a, y_b)
        pairs = [(mean_a, y_a, y_b)] + [(mean_b, y_b, y_a)] * (y_a is not y_b)
        twice = 3 - len(pairs)
        for mean, y, z in pairs:
            self.linear += twice * np.einsum("ud,d->u", z, mean)
            if not self.sizes.even:  # else the sum of all y, which is 0
                weighted = np.einsum("u,ud->d", self.sizes.relative, y)
                self.crossed += twice * np.einsum("ud,d->u", z, weighted)


@quiet
def products(
    samples: Sequence[Sample], reference: int = 0, *, gram: bool = False, threads: int | None = None
) -> list[tuple[Products, Products]]:
    """Return the products of each sample with itself, and with the reference.

    Raises ValueError for gradients so small that their squares vanish in float64.
    """
    sizes, numbers = samples[reference].sizes, range(len(samples))
    u, d = len(sizes.given), samples[reference].width
    found = {(i, j): Products(sizes, *np.zeros((3, u))) for i in numbers for j in (i, reference)}
    for i in numbers:
        found[i, i].blocks, found[i, i].columns = Blocks(u), samples[i].dimension
    proportions = Proportions(len(samples))
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
    for part in column_parts(u, d):
        columns = [each.columns(part) for each in samples]
        some |= [bool(x.any()) for x in columns]
        proportions.add(columns)
        centred = [each.centred(x) for each, x in zip(samples, columns, strict=True)]
        for i, each in enumerate(samples):
            if each.refit is not None:
                slopes[i] += each.slopes(part, centred[i][1])
        for (i, j), p in found.items():
            p.identical = p.identical and (i == j or np.array_equal(columns[i], columns[j]))
            p.add(*centred[i], *centred[j])
            if p.blocks is not None:
                p.blocks.add(centred[i][1], threads)
            if gram and not kept:
                _core.add_matmul(centred[i][1], centred[j][1].T, p.gram[0], threads)
        for y, (_, deviations) in zip(kept, centred, strict=False):
            y[:, part] = deviations
    for i, each in enumerate(samples):
        if each.refit is not None:
            found[i, i].refitted = each.refit(2 * slopes[i] / (u - 1))
    for i in numbers:
        _check.refuse_underflow(found[i, i].diagonal.sum() + u * found[i, i].means, some[i].any)
        found[i, i].added = samples[i].added
        found[i, i].like = proportions.of(i)
    return [(found[i, i], found[i, reference]) for i in numbers]


def unknown(p: Products) -> Products:
    """Return the products of a sample with another one of which only its own are known."""
    nothing = np.full(len(p.linear), math.nan)
    return Products(p.sizes, nothing, nothing, nothing, p.gram, math.nan, identical=False)


@quiet
def covariance(p: Products) -> Moment:
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
    """Trace of the covariance of one unit's part in the mean; what rounding leaves of it counts as 0."""
    value, left_out = covariance(p)
    u = len(p.diagonal)
    if len(left_out):
        left_out = left_out + p.refitted
    if p.added is not None:
        each = p.added / p.sizes.mean**2
        value += float(each.sum() / u)
        left_out = left_out + without_each(each) / (u - 1) if len(left_out) else left_out
    return Moment(value, np.where(left_out < 1e-12 * value, 0.0, left_out))


@quiet
def signal(p: Products) -> Moment:
    """Estimate E m_a . E m_b, |E m|^2 of one sample, without the bias of a plug-in; it can be negative."""
    u = len(p.diagonal)
    value, left_out = covariance(p)
    if u < 3:
        return Moment(p.means - value / u, np.empty(0))
    room = p.sizes.room
    means = p.means - p.linear / room + p.diagonal / room**2
    return Moment(p.means - value / u, means - left_out / (u - 1))


def dimension(p: Products) -> float:
    """Return V^2 / tr Sigma^2 of a sample with itself, from 1 to D; 1, the most cautious, if not known."""
    value = variance(p).value
    if p.blocks is None or not value > 0:
        return 1.0
    square = p.blocks.trace_of_square(value)
    if math.isnan(square):
        return 1.0
    return max(1.0, min(float(p.columns), 1 / square)) if square > 0 else float(p.columns)
