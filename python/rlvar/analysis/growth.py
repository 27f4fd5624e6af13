r"""How the variance of a sum of k steps grows with k: the exponent b of V(k) ~ k^b.

It is the slope of log V(k) on log k by least squares over a range of k. Where lengths differ, V(k) over
all rollouts mixes in two things: rollouts that have ended add nothing, so that it flattens, and rollouts
of different length differ in their rewards, hence in the means of their terms, which adds a part that
grows as k^2. Strata of similar length free the slope of both: about the means of its own stratum s,

    V_s(k) = sum_{n in s} |h_n(k) - mean h(k)|^2 over its rollouts, h_n(k) the sum of the first k terms,

over steps that all of s reach. The slopes of the strata are averaged by their numbers of rollouts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rlvar import _check
from rlvar._types import Double
from rlvar.stats.estimate import Moment
from rlvar.terms.passes import Terms


class Stratum(NamedTuple):
    """What the slope of one stratum is made of: sums over the part of each of U_s units in it."""

    present: NDArray[np.int64]  # (U_s,), which units have a part
    sizes: NDArray[np.int64]  # (U_s,), its rollouts
    squares: Double  # (U_s, K), sum of p |h|^2 about the mean of the stratum
    sums: Double  # (U_s, K), |sum of h|^2
    total: Double  # (K,), squares over all units
    weight: float  # sum of p
    first: int  # first of the K steps


def upper_half(last: int) -> tuple[int, int]:
    """First and last step (both included) of the upper half of `last` steps."""
    return (last + 1) // 2, last


@_check.quiet
def slope(values: Double, first: int) -> Double:
    """Slope of the logarithm of values (..., K) at k = first, first + 1, ... on log k.

    NaN for a single k, and where not all values are positive.
    """
    log_k = np.log(np.arange(first, first + values.shape[-1]))
    log_k -= log_k.mean()
    logs = np.log(np.where(values > 0, values, np.nan))
    return np.asarray((logs * log_k).sum(axis=-1) / np.square(log_k).sum())


def strata_of(lengths: NDArray[np.int64], p: Double, strata: int) -> NDArray[np.int64]:
    """Number the strata of similar length (N,): quantiles of the lengths, each of about the same sum of p.

    Equal lengths stay together, so there may be fewer than `strata`; -1 where p is 0.
    """
    result = np.full(len(lengths), -1)
    present = np.flatnonzero(p)
    values, place = np.unique(lengths[present], return_inverse=True)
    own = np.bincount(place, weights=p[present], minlength=len(values))
    middle = np.cumsum(own) - 0.5 * own
    quantiles = np.floor(strata * middle / own.sum())
    result[present] = np.unique(quantiles, return_inverse=True)[1][place]
    return result


def stratified(
    terms: Terms, p: Double | None, units: _check.Units, weights: Double, overall: Double, strata: int
) -> Iterator[Stratum]:
    """Yield the strata that have a slope: more than one step to fit, and some variance at all of them.

    Rollouts count `weights` (N,), of any common factor, in means and quantiles, and p in the squares
    of a unit; the `overall` squares (T,), about the mean of all, say what is rounding.
    """
    lengths = terms.ends()
    labels = strata_of(lengths, weights, strata)
    for label in range(labels.max() + 1):
        inside = labels == label
        first, last = upper_half(int(lengths[inside].min()))
        if last < 2:
            continue
        present, part = units.among(inside)
        mean = terms.mean(np.where(inside, weights, 0.0))
        _, growths, _, growth_sums = terms.squares(p, mean, part)
        squares, sums = (x[:, first - 1 : last].copy() for x in (growths, growth_sums))
        total = squares.sum(axis=0)
        if (total > 1e-24 * overall[first - 1 : last]).all():
            yield Stratum(present, part.sizes, squares, sums, total, float(weights[inside].sum()), first)


def pooled(strata: Sequence[Stratum], units: _check.Units) -> Moment:
    """Mean slope of the strata, and with each unit left out; NaN without any."""
    if not strata:
        return Moment(np.nan, np.full(len(units), np.nan))
    value = _average([slope(s.total, s.first) for s in strata], [s.weight for s in strata])
    slopes, sizes = [], []
    for s in strata:
        size = s.sizes.sum()
        each, rest = np.full(len(units), slope(s.total, s.first)), np.full(len(units), float(size))
        rest[s.present] -= s.sizes
        # As in `summaries.without_each`; what is left of a stratum by rounding alone is none.
        left = s.total - s.squares - s.sums / np.maximum(rest[s.present], 1.0)[:, None]
        each[s.present] = slope(np.where(left > 1e-12 * s.total, left, 0.0), s.first)
        slopes.append(each)
        sizes.append(rest)
    return Moment(float(value), _average(slopes, sizes))


@_check.quiet
def _average(slopes: Sequence[Double], weights: Sequence[Double] | Sequence[float]) -> Double:
    """Weighted mean over strata, without those that have no slope."""
    w = np.where(np.isnan(slopes), 0.0, weights)
    return np.asarray((w * np.nan_to_num(slopes)).sum(axis=0) / w.sum(axis=0))
