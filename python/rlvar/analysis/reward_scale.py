r"""A common scale for estimators whose mean gradients differ in length, from the rewards.

GRPO's mean gradient is about b times the policy gradient, and a ratio of variances says which of the two
needs more rollouts only after division by b^2. Gradients give b only where their signal is resolved; from
rewards, few rollouts are enough:

    c = sum over all rollouts of A R / sum over groups of n s^2,    s^2 = sum (R - mean R)^2 / (n - 1),

for advantages A that sum to 0 in each group, and a reference whose mean is the policy gradient. The ratio is
then (V_a / V_r) / c^2, paired, by the jackknife on the log scale.

Its model: the gradient of each prompt along the whole, g_u . g, is proportional to the variance of the
prompt's rewards, p (1 - p) for rewards 0 and 1. Then c = b. For rewards 0 and 1, whatever the model,
E[a | u] = w(p_u) g_u with w(p) = E[A R] / (p (1 - p)), so that b lies between the least and the largest w(p)
as long as no prompt's gradient opposes the whole: the bracket. With uniform p, if only prompts with p
below 0.2 or above 0.8 agree with the whole, the ratio is 5 % too high for groups of 4, 28 % for 8 and 54 %
for 16; 8, 48 and 107 % if these are below 0.1 or above 0.9 (``python studies/groups.py``).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from rlvar import _check
from rlvar._types import Double
from rlvar.rollouts import Rollouts
from rlvar.stats import moments
from rlvar.stats.estimate import Estimate, Moment
from rlvar.stats.intervals import jackknife
from rlvar.weights.batch import Batch
from rlvar.weights.estimators import Estimator

_ROUNDING = 1e-9


class RewardScaled(NamedTuple):
    """A ratio of variances at a common length of the mean gradients."""

    ratio: Estimate
    bracket: tuple[float, float] | None  # under any model, with the interval of the variances' ratio; or None


@_check.quiet
def reward_scaled(
    batch: Batch, estimator: Estimator, ratio: Estimate, variance: Moment, reference: Moment
) -> RewardScaled | None:
    """Scale the ratio of variances of an estimator and an unbiased reference by the rewards.

    None where that is not defined: without groups, with ratios of importance or other factors, for weights
    that differ from step to step or do not sum to 0 in each group, where rewards do not differ or sum to 0 in
    each group, as advantages do: they are no longer rewards of one rollout each.
    """
    labels = batch.rollouts.groups
    if labels is None or batch.factors is not None or batch.several.any():
        return None
    weights, live = batch.weights(estimator), batch.live
    first = np.where(live.any(axis=1), weights[np.arange(len(live)), np.argmax(live, axis=1)], 0.0)
    if not ((weights == first[:, None]) | ~live).all():
        return None
    units, r = _check.units(labels, len(labels)), batch.returns
    sums, sizes = units.sums(first), units.sizes
    if (np.abs(sums) > _ROUNDING * np.abs(first).max() * sizes).any() or sizes.min() < 2:
        return None
    means = units.sums(r) / sizes
    if not (np.abs(means) > _ROUNDING * np.abs(r).max()).any():
        return None
    centred = r - means[labels]
    products = units.sums(first * centred)
    squares = units.sums(np.square(centred)) * sizes / (sizes - 1)
    if not (products.sum() > 0 and squares.sum() > 0):
        return None
    c = products.sum() / squares.sum()
    left_out = np.empty(0)
    if len(variance.left_out):
        without = moments.without_each(products) / moments.without_each(squares)
        left_out = variance.left_out / reference.left_out / np.square(without)
    scaled = jackknife(
        float(variance.value / reference.value / c**2), left_out, ratio.confidence, positive=True
    )
    return RewardScaled(scaled, _bracket(estimator, batch, first, centred, ratio))


def _bracket(
    estimator: Estimator, batch: Batch, weights: Double, centred: Double, ratio: Estimate
) -> tuple[float, float] | None:
    """Return the interval of the ratio over the squares of the largest and the least w(p).

    None but for rewards of two values and groups of one size.
    """
    labels, r = batch.rollouts.groups, batch.returns
    assert labels is not None
    sizes, low, spread = np.bincount(labels), r.min(), np.ptp(r)
    success = r > low
    if math.isnan(ratio.low) or sizes.min() < sizes.max() or (r[success] < r.max()).any():
        return None
    n, wins = int(sizes[0]), np.bincount(labels[success], minlength=len(sizes))
    x = np.arange(1, n)
    # What the estimator gives to the successes of groups with 1 to n - 1 of them, and gave to these here.
    rewards = low + spread * (np.arange(n) < x[:, None])
    every = Rollouts(np.zeros((rewards.size, 1, 1)), rewards.ravel(), groups=np.repeat(x, n))
    of_success = np.concatenate([[0.0], estimator.weights(every)[::n, 0], [0.0]])
    if not np.allclose(weights[success], of_success[wins[labels[success]]], rtol=_ROUNDING, atol=0.0):
        # They rest on the whole batch too: then they may be a multiple of what a reward is above the mean.
        slope = weights[success][0] / centred[success][0]
        if not np.allclose(weights, slope * centred, rtol=_ROUNDING, atol=_ROUNDING * np.abs(weights).max()):
            return None
        of_success = slope * spread * np.concatenate([[0.0], 1 - x / n, [0.0]])
    p = np.concatenate([[1e-6], np.linspace(0.0, 1.0, 203)[1:-1], [1 - 1e-6]])[:, None]
    chance = np.array([math.comb(n, k) for k in x.tolist()]) * p**x * (1 - p) ** (n - x)
    w = (chance * (x / n) * of_success[1:-1]).sum(axis=1) / (p * (1 - p))[:, 0] / spread
    return float(ratio.low / w.max() ** 2), float(ratio.high / w.min() ** 2)
