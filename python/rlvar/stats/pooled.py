r"""Pooled over steps: means of numbers that are unbiased at each step, and functions of these means.

A training step t gives unbiased estimates x_t of what is true of the policy then: variances, signals, the
products behind them. Each step samples anew: given the policy and all that came before, the error of x_t has
mean 0. So errors of different steps are uncorrelated, although each policy comes from the steps before; the
weighted mean x = sum w_t x_t estimates that of the truths, and its variance is the sum of w_t^2 Var x_t. The
scatter of x_t over steps would count a drift of the policy as noise. So the steps go in pairs of neighbours,
counted from the newest: with a_i, b_i the newer and the older,

    e_i = sqrt((w_a^2 + w_b^2) / 2) (a_i - b_i - D),   D the mean of a_j - b_j, by the pairs' weights

has in sum e_i^2 the variance of x where the policy does not move. A linear drift is in D, and of any other
only what changes from one step to the next is left in e_i, which makes the intervals longer, not shorter.
A pair with the share W_i of the weight is left out as x - e_i / (1 - W_i): so pairs are units, for the
jackknife and all that rests on it, and what is left of a ratio is that of the sums with a pair left out.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from rlvar._check import quiet
from rlvar._types import Double
from rlvar.stats.estimate import Estimate, Moment
from rlvar.stats.inference import means_of, scaled, times
from rlvar.stats.intervals import (
    alignment,
    correlation,
    fieller,
    jackknife,
    noise_scale_ratio,
    ratio_of_variances,
    skewed,
)

LEAST = 4  # pairs that have an interval
_SAME = 2.0**-20  # relative: as in `moments`
_SURE = 0.998  # as in `inference`: theory is denied once in 1000 by chance


@dataclass(frozen=True, eq=False)
class Pooled:
    """Weighted means (K,) of numbers over steps, and what they are without each of M pairs (K, M)."""

    values: Double
    left_out: Double

    @classmethod
    @quiet
    def of(cls, x: Double, weights: Double) -> Pooled:
        """Pool numbers (n, K) of n steps, the oldest first, with weights (n,), positive."""
        w = weights / weights.sum()
        values = np.einsum("t,tk->k", w, x)
        count = len(x) // 2
        if count < LEAST:
            return cls(values, np.empty((x.shape[1], 0)))
        newer, older = slice(len(x) % 2 + 1, None, 2), slice(len(x) % 2, None, 2)
        of_pair = w[newer] + w[older]
        share = of_pair / of_pair.sum()
        apart = x[newer] - x[older]
        apart = apart - np.einsum("i,ik->k", share, apart)
        apart *= np.sqrt((np.square(w[newer]) + np.square(w[older])) / 2)[:, None]
        return cls(values, values[:, None] - (apart / (1 - share)[:, None]).T)

    def moment(self, k: int) -> Moment:
        return Moment(float(self.values[k]), self.left_out[k])


class PooledRow(NamedTuple):
    """What the steps say of an estimator, beside a reference."""

    variance: Estimate
    ratio: Estimate
    signal: Estimate
    noise_scale: Estimate
    noise_scale_ratio: Estimate
    alignment: Estimate
    factor: float | None
    differs: bool


@quiet
def infer_pooled(
    covariances: Double,
    signals: Double,
    weights: Double,
    classes: Sequence[Hashable | None],
    reference: int,
    confidence: float,
) -> list[PooledRow]:
    """Compare E estimators with one of them, number `reference`, as `infer` does of the units of one batch.

    From covariances tr Cov(y_a, y_b) and cross signals E m_a . E m_b of each step (n, E, E), both unbiased.
    """
    n, e, _ = covariances.shape
    v, s = (Pooled.of(x.reshape(n, -1), weights) for x in (covariances, signals))

    def of(pooled: Pooled, a: int, b: int) -> Moment:
        return pooled.moment(a * e + b)

    variance, signal = ([of(x, a, a) for a in range(e)] for x in (v, s))
    likes = [_like(a, covariances, signals, weights) for a in range(e)]
    apart = [
        a != reference and likes[a] != likes[reference] and _differ(v, s, e, a, reference) for a in range(e)
    ]
    denied = {own for own, differs in zip(classes, apart, strict=True) if differs}
    known = [None if own in denied else own for own in classes]
    means = means_of(likes, variance, known, reference)
    of_mean = {q: jackknife(*signal[q], confidence) for q in {mean.quietest for mean in means}}
    found = []
    base_mean = means[reference]
    for a, mean in enumerate(means):
        own = scaled(of_mean[mean.quietest], mean.scale**2)
        base = scaled(of_mean[base_mean.quietest], base_mean.scale**2)
        moment, base_moment = (times(signal[m.quietest], m.scale**2) for m in (mean, base_mean))
        whole = skewed(variance[a], confidence)
        ratio = ratio_of_variances(variance[a], variance[reference], confidence)
        resolved = own.resolved and base.resolved
        same = mean.quietest == base_mean.quietest
        factor = mean.scale / base_mean.scale if same and variance[a].value > 0 else None
        if factor is None:
            of_scale = noise_scale_ratio(
                variance[a],
                moment,
                variance[reference],
                base_moment,
                resolved=resolved,
                confidence=confidence,
            )
            cosine = alignment(
                of(s, a, reference), moment, base_moment, resolved=resolved, confidence=confidence
            )
        else:
            if likes[a][0] == likes[reference][0]:  # proportional: the same noise
                ratio = Estimate(factor**2, 0.0, factor**2, factor**2, confidence)
            of_scale = scaled(ratio, 1 / factor**2)
            sign = float(np.copysign(1.0, factor))
            cosine = Estimate(sign, 0.0, sign, sign, confidence)
        noise = fieller(whole, own, correlation(variance[a].left_out, moment.left_out))
        found.append(PooledRow(whole, ratio, own, noise, of_scale, cosine, factor, apart[a]))
    return found


def _like(a: int, covariances: Double, signals: Double, weights: Double) -> tuple[int, float]:
    """Return the first estimator that this is proportional to at all steps, maybe itself, and the factor."""
    for b in range(a):
        cross, other = (float(np.einsum("t,t->", weights, covariances[:, i, b])) for i in (a, b))
        f = cross / other if other else 0.0
        f = 1.0 if abs(f - 1.0) < _SAME else f
        # What the mean of the difference has less than this of its noise is rounding.
        most = _SAME**2 * (covariances[:, a, a] + f * f * covariances[:, b, b])
        rest = (x[:, a, a] - 2 * f * x[:, a, b] + f * f * x[:, b, b] for x in (covariances, signals))
        if f and all((np.abs(each) <= most).all() for each in rest):
            return b, f
    return a, 1.0


def _differ(v: Pooled, s: Pooled, e: int, a: int, b: int) -> bool:
    """Whether two means differ beyond doubt: the pooled signal of the difference of their gradients."""

    def of_difference(x: Pooled) -> Moment:
        values, left_out = (y[a * e + a] - 2 * y[a * e + b] + y[b * e + b] for y in (x.values, x.left_out))
        return Moment(float(values), left_out)

    variance = of_difference(v).value
    if not variance > 1e-9 * (v.values[a * e + a] + v.values[b * e + b]):  # else it is rounding
        return False
    return jackknife(*of_difference(s), _SURE).low > 0
