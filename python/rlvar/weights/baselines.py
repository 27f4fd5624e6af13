r"""Baselines that need the scores, cross-fitted: what they gain is not made up on the same rollouts.

The best baselines are ratios of expectations, b = E[numerator] / E[denominator]. The units (groups, or
rollouts without groups) are dealt into F = min(10, units) folds, unit u, by order of first appearance, into
fold u modulo F; the baseline of a fold is the ratio of the sums over the rollouts of all other folds. Given
those it is a constant, so the mean is exact for any N (docs/statistics.md). Rollouts of different folds are
each in the other's baseline: their covariance is O(1/N^2), O(1/N) of the variance of the batch's mean.

The functions take a batch and give weights: from the whole returns R (N,), or from the returns-to-go G
(N, T) and 0 where not live. The scores S below hold the batch's factors, such as importance ratios: the
baseline is the best for the estimator in use. Where a denominator is 0, as at a step that no rollout of the
other folds reaches, the baseline is 0.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rlvar import _check
from rlvar._types import Double
from rlvar.weights.batch import Batch

FOLDS = 10


def single_optimal(batch: Batch) -> Double:
    r"""Whole return minus the best constant baseline.

    .. math:: w = R - b, \qquad b = \frac{E[R |s|^2]}{E[|s|^2]}, \qquad s = \sum_t S_t

    Notes
    -----
    As E[s] = 0, the variance of (R - b) s is E[(R - b)^2 |s|^2] minus what does not depend on b: a
    parabola in b. The mean return is as good only if R and |s|^2 are uncorrelated.

    References
    ----------
    Weaver & Tao (2001); Greensmith, Bartlett & Baxter (2004): that this constant minimises the variance.
    """
    squares = batch.squares / (batch.squares.max() or 1.0)
    return batch.returns - _cross_fitted(batch, batch.returns * squares, squares)


def multi_optimal(batch: Batch, gamma: float = 1.0) -> Double:
    r"""Return-to-go minus one constant a step, the best where scores are uncorrelated.

    .. math:: w_t = G_t - b_t, \qquad b_t = \frac{E[S_t \cdot g]}{E[|S_t|^2]}, \qquad
              g = \sum_j G_j S_j

    Notes
    -----
    As E[S_t] = 0, the mean of :math:`g - \sum_j b_j S_j` does not depend on b, so its variance is
    least where its mean square is. The derivative by b_t is 0 where

    .. math:: E[S_t \cdot g] = \sum_j b_j E[S_t \cdot S_j] .

    On policy, scores are martingale differences: E[S_i . S_j] = 0 for i != j, padded steps included, and
    of the sum b_t E[|S_t|^2] is left. Off policy the T equations are coupled, and these constants need not
    be the best.

    S_t . g also holds the covariance terms G_j S_t . S_j, unlike the weighted mean of returns that minimises
    the variance terms one by one, and so it is noisy. Where few rollouts reach a step, T constants cost more
    than they gain: on the embedded CartPole rollouts the variance is five times that of "multi", and that
    of `token_baseline` 0.8 times.

    References
    ----------
    Peters & Schaal (2008) have one baseline for each coordinate; here all coordinates share it.
    """
    to_go = batch.to_go(gamma)
    name = "multi" if gamma == 1.0 else f"multi(gamma={gamma!r})"
    projections = batch.projections(batch.gradients({name: to_go})[0].whole())
    return np.where(batch.live, to_go - _cross_fitted(batch, projections, batch.step_squares), 0.0)


def token_baseline(batch: Batch, gamma: float = 1.0) -> Double:
    r"""Return-to-go minus the optimal token baseline (OTB).

    .. math:: w_t = G_t - B_t, \qquad B_t = \frac{E[G_t W_t]}{E[W_t]}, \qquad
              W_t = \sum_{j \le t} |S_j|^2

    over the rollouts that are alive at step t and their live steps j.

    Notes
    -----
    The paper and verl estimate |S_j|^2 from the probabilities alone, 1 - 2 pi_j + sum pi^2, the squared norm
    of the score by the logits; here it is that of the scores themselves. Both take the expectations over the
    samples of one prompt, the rollout itself included, which biases the mean; here they are over all prompts
    of the other folds. On policy, `multi_optimal` is the best of all with one constant a step.

    References
    ----------
    Li et al., "The optimal token baseline" (2026), arXiv 2602.07078; verl, docs/algo/otb.md.
    """
    energy = np.where(batch.live, batch.step_squares.cumsum(axis=1), 0.0)
    energy /= energy.max() or 1.0
    to_go = batch.to_go(gamma)
    return np.where(batch.live, to_go - _cross_fitted(batch, to_go * energy, energy), 0.0)


def folds_of(batch: Batch) -> NDArray[np.int64]:
    """Return the fold of each rollout (N,)."""
    n, labels = len(batch.rollouts), batch.rollouts.groups
    units = _check.units(labels, n)  # refuses a single group
    # Groups are numbered by first appearance already.
    return (np.arange(n) if labels is None else labels) % min(FOLDS, len(units))


def _cross_fitted(batch: Batch, numerators: Double, denominators: Double) -> Double:
    """Return for each rollout the ratio of sums over the other folds, (N,) or (N, T); 0 for 0 / 0."""
    folds = folds_of(batch)

    def of_others(x: Double) -> Double:
        sums = np.stack([x[folds == fold].sum(axis=0) for fold in range(folds.max() + 1)])
        # All minus one's own would leave rounding errors, hence a ratio, where the others are all 0.
        return np.stack([np.delete(sums, fold, axis=0).sum(axis=0) for fold in range(len(sums))])

    above, below = of_others(numerators), of_others(denominators)
    ratios: Double = np.divide(above, below, out=np.zeros_like(above), where=below > 0)
    return ratios[folds]
