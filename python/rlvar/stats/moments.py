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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Protocol

import numpy as np

from rlvar import _check, _core
from rlvar._check import quiet
from rlvar._types import Double
from rlvar.stats.estimate import Moment

# Where so small a part of the units carries more than such a share of the squares, the tail has not
# been seen: no interval of a variance can be trusted.
TOP, HEAVY = 0.01, 0.2
TINY = 2.0**-1000  # squares of this size have lost digits, or all
_CHUNK = 1 << 17  # numbers of one temporary


def without_each(x: Double) -> Double:
    """Sum of the others for each of x (U,), without a difference that would cancel."""
    zero = np.zeros(1)
    before = np.concatenate([zero, np.cumsum(x[:-1])])
    after = np.concatenate([np.cumsum(x[:0:-1])[::-1], zero])
    return np.asarray(before + after)


def refuse_underflow(some: bool) -> None:
    """Raise if squares that are `TINY` are those of `some` numbers other than 0."""
    if some:
        raise ValueError("squares are below the range of float64; rescale the scores or the weights")


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
    """The gradients of units: rows, or sums of them over each of `units`, and what the units' sizes are."""

    rows: Rows | Double
    sizes: Sizes
    units: _check.Units | None = None

    @property
    def dimension(self) -> int:
        return int((self.rows if isinstance(self.rows, np.ndarray) else self.rows.base).shape[1])

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
        y = gradients - (mean if s is None else s * mean)
        rest = y.mean(axis=0)  # rounding of the mean
        y -= rest if s is None else s * rest
        return mean + rest, y


def sample(
    gradients: Rows | Double, sizes: Double | None = None, units: _check.Units | None = None
) -> Sample:
    """Make a sample of gradients (U, D) whose mean is sum of gradients / sum of sizes (U,), by default ones.

    With `units` the gradients are of rollouts (N, D), and their sums over each unit count.
    """
    if sizes is None:
        sizes = np.ones(len(gradients if isinstance(gradients, np.ndarray) else gradients.base))
    return Sample(gradients, Sizes(sizes), units)


class Products(NamedTuple):
    """All that is needed of the coordinates of two samples a and b of the same units: sums over them."""

    sizes: Sizes
    identical: bool  # whether the two are the same to the bit
    means: float  # m_a . m_b
    linear: Double  # m_a . y_b + m_b . y_a of each unit (U,)
    diagonal: Double  # y_a . y_b of each unit (U,)
    crossed: Double  # y_a . (sum s y_b) + y_b . (sum s y_a) of each unit (U,)
    # The matrix (U, U) of all y_a . y_b, if asked for, as a product of the fewest numbers.
    gram: tuple[Double, ...] = ()


@quiet
def products(
    samples: Sequence[Sample], reference: int = 0, *, gram: bool = False, threads: int | None = None
) -> list[tuple[Products, Products]]:
    """Return the products of each sample with itself, and with the reference.

    Raises ValueError for gradients so small that their squares are none in float64.
    """
    base, sizes, count = samples[reference], samples[reference].sizes, len(samples)
    u, d = len(sizes.given), base.dimension
    means, sums, identical = np.zeros((count, 2)), np.zeros((count, 2, 3, u)), [True] * count
    wide = u < d
    kept = np.zeros((count, 2, u, u) if wide else (count, u, d)) if gram else None
    for part in _parts(u, d):
        of_base = base.columns(part)
        centred_base = base.centred(of_base)
        for i, each in enumerate(samples):
            own, centred = of_base, centred_base
            if each is not base:
                own = each.columns(part)
                identical[i] = identical[i] and np.array_equal(own, of_base)
                centred = each.centred(own)
            if kept is not None and not wide:
                kept[i, :, part] = centred[1]
            for k, other in enumerate((centred, centred_base)):
                _add(means[i, k : k + 1], sums[i, k], sizes, *centred, *other)
                if kept is not None and wide:
                    _core.add_matmul(centred[1], other[1].T, kept[i, k], threads)
                if each is base:  # the second is the first
                    break
    for array in (means, sums) if kept is None or not wide else (means, sums, kept):
        array[reference, 1] = array[reference, 0]
    result = []
    for i, each in enumerate(samples):
        if sums[i, 0, 1].sum() + u * means[i, 0] < TINY:
            refuse_underflow(any(each.columns(part).any() for part in _parts(u, d)))
        matrices: list[tuple[Double, ...]] = [(), ()]
        if kept is not None:
            matrices = [(kept[i, k],) if wide else (kept[i], kept[j].T) for k, j in enumerate((i, reference))]
        pair = [
            Products(sizes, same, float(mean), linear, diagonal, crossed, matrix)
            for same, mean, (linear, diagonal, crossed), matrix in zip(
                (True, identical[i]), means[i], sums[i], matrices, strict=True
            )
        ]
        result.append((pair[0], pair[1]))
    return result


def _parts(units: int, coordinates: int) -> Iterator[slice]:
    """Yield the columns of a chunk: it depends on nothing but the shape."""
    step = max(8, _CHUNK // units)
    return (slice(start, min(start + step, coordinates)) for start in range(0, coordinates, step))


def _add(
    means: Double, sums: Double, sizes: Sizes, mean_a: Double, y_a: Double, mean_b: Double, y_b: Double
) -> None:
    """Add what some columns give to m_a . m_b (1,) and to `Products.linear`, `diagonal`, `crossed` (3, U)."""
    # np.einsum without `optimize` never calls BLAS, whose bits depend on the number of threads.
    means += (mean_a * mean_b).sum()
    for (mean, y), (_, z) in (((mean_a, y_a), (mean_b, y_b)), ((mean_b, y_b), (mean_a, y_a))):
        sums[0] += np.einsum("ud,d->u", z, mean)
        if not sizes.even:  # else the sum of all y, which is 0
            sums[2] += np.einsum("ud,d->u", z, np.einsum("u,ud->d", sizes.relative, y))
    sums[1] += np.einsum("ud,ud->u", y_a, y_b)


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
