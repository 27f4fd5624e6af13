r"""The variance of one prompt's mean gradient as a function of its K completions, V(K).

Weights that depend on each rollout alone: one-way random effects, V(K) = between + within / K, by ANOVA.

RLOO's gradient of a prompt is a U-statistic of its completions (s the summed scores, R the returns),

    g_K = mean over i < j of h_ij,    h_ij = (R_i - R_j) (s_i - s_j) / 2,

so that by Hoeffding (1948), with z1 = tr Cov(h_12, h_13) and z2 = tr Var(h_12) given the prompt,

    V(K) = between + within / K + pairs / (K (K - 1)),    within = 4 E z1,  pairs = 2 E z2 - 4 E z1.

E |h_12|^2, E h_12 . h_13 and E h_12 . h_34 are estimated without bias by their means over all different
completions of a group of four or more. With R and s centred in the group, all of them follow from four sums,

    A = sum R^2,  B = sum |s|^2,  Q = sum R^2 |s|^2,  C = sum R s:
    N2 = (K Q + A B) / 2 + |C|^2,  N3 = (K^2 Q + 3 K |C|^2) / 4 - N2,  N4 = K^2 |C|^2 - 4 N3 - 2 N2,

the sums of h . h over two, three and four different completions. O(N D).

Other weights of a group (GRPO): V(K') for K' up to the smallest group, from subsets of each group as if no
more had been sampled. The length of such a gradient changes with K'. The rewards say how: c = mean(A R),
which a gradient's length is proportional to if each prompt's goes as the variance of its rewards (see
`rlvar.analysis.reward_scale`), and V(K') is in units of the gradient at the completions in use.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlvar import _check, _core
from rlvar._types import Double
from rlvar.stats import moments
from rlvar.stats.estimate import Estimate, Moment
from rlvar.stats.intervals import correlation, jackknife
from rlvar.terms.passes import Gradients

LEAST = 4  # completions of a group that says how RLOO depends on K
_SUBSETS = 32  # of one size and group
_SIZES = 16  # of subsets
_CHUNK = 1 << 16  # numbers of one temporary


@dataclass(frozen=True, eq=False)
class Components:
    """V(K) = between + within / K + pairs / (K (K - 1)) of components in this order."""

    values: Double  # (3,)
    left_out: Double  # (3, U) or (3, 0)
    pivot: float  # completions at which V is close to a sum of squares, and so positive
    least: int = 1  # completions
    most: int | None = None

    def _sum(self, k: float, shared: float) -> Moment:
        pairs = 1 / (k * (k - 1)) if k > 1 else 0.0  # where there are none, there is no such component
        coefficients = np.array([shared, 1 / k, pairs])
        left_out = (coefficients[:, None] * self.left_out).sum(axis=0)
        return Moment(float((coefficients * self.values).sum()), left_out)

    def at(self, k: float) -> Moment:
        return self._sum(k, 1.0)

    def has(self, k: int) -> bool:
        return k >= self.least

    def interval(self, k: int, confidence: float) -> Estimate:
        """Beyond the pivot V is a difference, for which logarithms are no scale: by its two parts.

        Its upper end is at least that of the variance within prompts, which it includes.
        """
        whole = jackknife(*self.at(k), confidence, positive=True)
        if k <= self.pivot or math.isnan(whole.low):
            return whole
        base, within = self.at(self.pivot), self._sum(k, 0.0)
        shared = self._sum(self.pivot, 0.0)
        less = Moment(shared.value - within.value, shared.left_out - within.left_out)
        x, y, least = (jackknife(*each, confidence, positive=True) for each in (base, less, within))
        low, high = _difference(x, y, correlation(base.left_out, less.left_out))
        return Estimate(whole.value, whole.stderr, low, max(high, least.high), confidence)


@dataclass(frozen=True, eq=False)
class Subsets:
    """V(K) at some K, in units of the gradient at the last of them."""

    moments: dict[int, Moment]

    @property
    def least(self) -> int:
        return min(self.moments)

    @property
    def most(self) -> int:
        return max(self.moments)

    @property
    def pivot(self) -> float:
        return math.inf  # each is a variance itself

    def at(self, k: int) -> Moment:
        return self.moments[k]

    def has(self, k: int) -> bool:
        return k in self.moments

    def interval(self, k: int, confidence: float) -> Estimate:
        return jackknife(*self.at(k), confidence, positive=True)


Curve = Components | Subsets


@_check.quiet
def one_way(g: Double, labels: NDArray[np.int64], units: _check.Units) -> Components:
    """Return the curve of gradients (N, D) that are independent given the prompt.

    With y_u the group's mean minus the grand mean and A = sum n_u |y_u|^2: leaving out group u moves
    the grand mean by n_u y_u / (N - n_u) and takes n_u |y_u|^2 N / (N - n_u) from A. Nothing is left
    out, (3, 0), where that leaves one group or groups of one rollout only.
    """
    sizes = units.sizes.astype(np.float64)
    n, u, square = float(len(g)), float(len(units)), float(np.square(sizes).sum())
    within_squares, between_squares = squares_between(g, labels, units)

    def per_group(n: Any, u: float, square: Any) -> Any:
        return (n - square / n) / (u - 1)

    def anova(within: Any, between: Any, n: Any, u: float, square: Any) -> tuple[Any, Any, Any]:
        mean_square = within / (n - u)
        return (between / (u - 1) - mean_square) / per_group(n, u, square), mean_square, 0.0 * mean_square

    all_within, all_between = within_squares.sum(), between_squares.sum()
    values = np.array(anova(all_within, all_between, n, u, square), np.float64)
    rest, left_out = n - sizes, np.empty((3, 0))
    if u >= 3 and (rest > u - 1).all():
        less_within = np.maximum(all_within - within_squares, 0.0)
        less_between = np.maximum(all_between - between_squares * n / rest, 0.0)
        left_out = np.stack(anova(less_within, less_between, rest, u - 1, square - sizes**2))
    return Components(values, left_out, float(per_group(n, u, square)))


def squares_between(g: Double, labels: NDArray[np.int64], units: _check.Units) -> tuple[Double, Double]:
    """Return for each group (U,) the squares within it, and n_u |y_u|^2."""
    sizes = units.sizes.astype(np.float64)
    centred = g - g.mean(axis=0)  # sums over groups then lose no digits to a common mean
    means = units.sums(centred) / sizes[:, None]
    centred -= means[labels]
    within = units.sums(np.square(centred).sum(axis=1))
    means -= (sizes[:, None] * means).sum(axis=0) / len(g)
    return within, sizes * np.square(means).sum(axis=1)


def prompt_parts(
    s: Double, returns: Double, labels: NDArray[np.int64], units: _check.Units
) -> tuple[tuple[Double, Double, Double], Double]:
    """Return of each group, of four or more, the parts of a U-statistic's variance, and its mean (U, D).

    The parts: h . h over four different completions, which has E |mean|^2 in it, then `within` and `pairs`.
    """
    r, k = _centred(returns[:, None], labels, units)[:, 0], units.sizes.astype(np.float64)
    u, d = len(units), s.shape[1]
    norms, c = np.zeros(len(r)), np.empty((u, d))
    step = max(8, _CHUNK // len(r))
    for part in (slice(start, min(start + step, d)) for start in range(0, d, step)):
        columns = _centred(s[:, part], labels, units)
        norms += np.square(columns).sum(axis=1)
        c[:, part] = units.sums(r[:, None] * columns)
    a, b, q, of_c = units.sums(r**2), units.sums(norms), units.sums(r**2 * norms), np.square(c).sum(axis=1)
    two = (k * q + a * b) / 2 + of_c
    three = (k**2 * q + 3 * k * of_c) / 4 - two
    four = k**2 * of_c - 4 * three - 2 * two
    two = two / (k * (k - 1))
    three = three / (k * (k - 1) * (k - 2))
    four = four / (k * (k - 1) * (k - 2) * (k - 3))
    c /= k[:, None] - 1  # the mean gradients of the prompts
    return (four, 4 * (three - four), 2 * two - 4 * three + 2 * four), c


@_check.quiet
def leave_one_out(s: Double, returns: Double, labels: NDArray[np.int64], units: _check.Units) -> Components:
    """Return the curve of RLOO from summed scores (N, D) and returns (N,), of groups of four or more."""
    u, k = len(units), units.sizes.astype(np.float64)
    parts, c = prompt_parts(s, returns, labels, units)
    ((own, _),) = moments.products([moments.Sample(c)])
    signal = moments.signal(own)
    values = np.array([each.mean() for each in parts])
    values[0] -= signal.value
    left_out = np.empty((3, 0))
    if len(signal.left_out):
        left_out = np.stack([moments.without_each(each) / (u - 1) for each in parts])
        left_out[0] -= signal.left_out
    return Components(values, left_out, float(k.mean()), least=2)


@_check.quiet
def by_subsets(
    s: Double,
    returns: Double,
    labels: NDArray[np.int64],
    units: _check.Units,
    advantages: Callable[[Double, NDArray[np.int64]], Double],
    threads: int | None,
) -> Subsets:
    """Return the curve of weights that `advantages` gives to returns and groups: two or more of each."""
    u, most = len(units), int(units.sizes.min())
    classes = [_OfSize.of(s, units, size, threads) for size in np.unique(units.sizes).tolist()]
    centred = _centred(returns[:, None], labels, units)[:, 0]
    found: dict[int, Moment] = {}
    length = None
    for k in np.unique(np.rint(np.geomspace(2, most, _SIZES)).astype(int))[::-1].tolist():
        places = [_subsets(each.members.shape[1], k) for each in classes]
        rows = [each.members[:, place] for each, place in zip(classes, places, strict=True)]
        every = np.concatenate([each.ravel() for each in rows])
        weights = advantages(returns[every], np.repeat(np.arange(len(every) // k), k)) / k
        products, square, mean = weights * centred[every], np.empty(u), np.empty(len(s))
        scale, start = np.empty(u), 0
        for each, place, row in zip(classes, places, rows, strict=True):
            part = slice(start, start := start + row.size)
            scale[each.units] = products[part].reshape(len(row), -1).sum(axis=1) / len(place)
            square[each.units], mean[each.members] = each.moments(place, weights[part].reshape(row.shape))
        ((own, _),) = moments.products([moments.Sample(Gradients(mean, s), np.ones(u), units)])
        signal, whole, c = moments.signal(own), _mean(square), _mean(scale)
        length = c if length is None else length
        value = (whole.value - signal.value) * _square(length.value, c.value)
        left_out = np.empty(0)
        if len(signal.left_out):
            left_out = (whole.left_out - signal.left_out) * _square(length.left_out, c.left_out)
        found[k] = Moment(float(value), left_out)
    return Subsets(found)


@dataclass(frozen=True, eq=False)
class _OfSize:
    """Groups of one size n."""

    units: NDArray[np.int64]  # (G,)
    members: NDArray[np.int64]  # rollouts (G, n)
    grams: Double  # products of their summed scores (G, n, n)

    @classmethod
    def of(cls, s: Double, units: _check.Units, size: int, threads: int | None) -> _OfSize:
        these = np.flatnonzero(units.sizes == size)
        members = units.members[units.offsets[these][:, None] + np.arange(size)]
        grams = np.zeros((len(these), size, size))
        for rows, gram in zip(members, grams, strict=True):
            _core.add_matmul(s[rows], s[rows].T, gram, threads)
        return cls(these, members, grams)

    def moments(self, places: NDArray[np.int64], weights: Double) -> tuple[Double, Double]:
        """Mean of |sum w s|^2 over subsets (M, k) of weights (G, M, k), and of the weights (G, n)."""
        (count, k), size = places.shape, self.members.shape[1]
        square, mean = np.empty(len(self.units)), np.empty(self.members.shape)
        step = max(1, _CHUNK // (count * size))
        for part in (slice(start, start + step) for start in range(0, len(square), step)):
            some = weights[part]
            w = np.zeros((len(some), count, size))
            np.put_along_axis(w, np.broadcast_to(places, (len(some), count, k)), some, axis=2)
            # np.einsum without `optimize` never calls BLAS, whose bits depend on the number of threads.
            pairs = np.einsum("gmi,gmj->gij", w, w)
            square[part] = np.einsum("gij,gij->g", pairs, self.grams[part]) / count
            mean[part] = w.mean(axis=1)
        return square, mean


def _square(above: Any, below: Any) -> Any:
    """(above / below)^2, 1 where both are equal."""
    return np.where(np.equal(above, below), 1.0, np.square(np.asarray(above) / below))


def _mean(x: Double) -> Moment:
    return Moment(float(x.mean()), moments.without_each(x) / (len(x) - 1))


def _subsets(size: int, k: int) -> NDArray[np.int64]:
    """Places (M, k) of subsets of a group of this size: all of them, or some by a fixed seed."""
    if math.comb(size, k) <= _SUBSETS:
        return np.array(list(itertools.combinations(range(size), k)))
    order = np.random.default_rng([size, k]).permuted(np.tile(np.arange(size), (_SUBSETS, 1)), axis=1)
    return np.asarray(order[:, :k])


def _centred(x: Double, labels: NDArray[np.int64], units: _check.Units) -> Double:
    """Take off the mean of each group; what is equal in a group leaves exactly 0."""
    x = x - x[units.members[units.offsets[:-1]]][labels]
    return np.asarray(x - (units.sums(x) / units.sizes[:, None])[labels])


def _difference(x: Estimate, y: Estimate, correlated: float) -> tuple[float, float]:
    """Interval of x - y from those of both, skewed as they are (Zou 2008, "MOVER")."""
    below, above = (x.value - x.low, y.high - y.value), (x.high - x.value, y.value - y.low)
    margins = (math.sqrt(max(m * m + n * n - 2 * correlated * m * n, 0.0)) for m, n in (below, above))
    value = x.value - y.value
    return value - next(margins), value + next(margins)
