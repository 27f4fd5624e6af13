r"""Baselines that need the scores, cross-fitted: what they gain is not made up on the same rollouts.

A baseline that does not depend on a rollout leaves the mean of its gradient estimate alone, as
E[S_t] = 0. The best ones are ratios of expectations,

    b = E[numerator] / E[denominator],

and one estimated from the rollouts that it serves would fit their noise: it would claim a gain where
there is none and bias the mean by O(1/N). So the units (groups, or rollouts without groups) are dealt
into F = min(10, units) folds, unit u, by order of first appearance, into fold u modulo F; the baseline
of a fold is the ratio of the sums over the rollouts of all other folds, of any group. Given the other
folds it is a constant, and the fold's gradient estimates are unbiased; so they are without that
condition, exactly, for any N. What is left is a weak dependence of rollouts of different folds, each
being in the other's baseline: their covariance is O(1/N^2), and O(1/N) of the variance of the batch's
mean.

The functions take a batch, rollouts with factors of their scores, and give weights: from the whole
returns R (N,), or from the returns-to-go G (N, T) and 0 where not live. ValueError is raised for fewer than
two groups, or scores that are not finite. The scores S below hold those factors, such as
importance ratios: the baseline is the best for the estimator in use. Where a denominator is 0, as at a
step that no rollout of the other folds reaches, the baseline is 0.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rlvar import _check
from rlvar._types import Double
from rlvar.weights.batch import Batch

FOLDS = 10


def single_optimal(batch: Batch) -> Double:
    r"""Whole return less the best constant baseline.

    .. math:: w = R - b, \qquad b = \frac{E[R |s|^2]}{E[|s|^2]}, \qquad s = \sum_t S_t

    Notes
    -----
    As E[s] = 0, the variance of (R - b) s is E[(R - b)^2 |s|^2] less what does not depend on b: a
    parabola in b, least where its derivative -2 E[(R - b) |s|^2] is 0. The mean return is as good
    only if R and |s|^2 are uncorrelated.

    References
    ----------
    Weaver & Tao, "The optimal reward baseline for gradient-based reinforcement learning" (2001);
    Greensmith, Bartlett & Baxter, "Variance reduction techniques for gradient estimates in
    reinforcement learning" (2004): both that this constant minimises the variance.
    """
    squares = batch.squares / (batch.squares.max() or 1.0)
    return batch.returns - _cross_fitted(batch, batch.returns * squares, squares)


def multi_optimal(batch: Batch, gamma: float = 1.0) -> Double:
    r"""Return-to-go less one constant a step, the best where scores are uncorrelated.

    .. math:: w_t = G_t - b_t, \qquad b_t = \frac{E[S_t \cdot g]}{E[|S_t|^2]}, \qquad
              g = \sum_j G_j S_j

    Notes
    -----
    As E[S_t] = 0, the mean of :math:`g - \sum_j b_j S_j` does not depend on b, so its variance is
    least where its mean square is. The derivative by b_t is 0 where

    .. math:: E[S_t \cdot g] = \sum_j b_j E[S_t \cdot S_j] .

    On policy, scores are martingale differences: E[S_i . S_j] = 0 for i != j, padded steps included, and
    of the sum b_t E[|S_t|^2] is left. This is the exact optimum only then; off policy (stale rollouts,
    another temperature) the T equations are coupled, and these constants need not be the best.

    It is not the b_t = E[G_t |S_t|^2] / E[|S_t|^2] that minimises the variance terms one by one:
    S_t . g also holds the covariance terms G_j S_t . S_j. They make it noisy: unlike a weighted mean of
    returns, S_t . g / |S_t|^2 has no bounds. Where few rollouts reach a step, T constants cost more than
    they gain, and cross-fitting shows it: on the embedded CartPole rollouts (256 of up to 208 steps, 16 of
    them alive at step 100) the variance is five times that of "multi", and that of `token_baseline` 0.8
    times.

    References
    ----------
    Peters & Schaal, "Reinforcement learning of motor skills with policy gradients" (2008),
    has one baseline for each coordinate and each step's reward; here one for each step's score is
    shared by all coordinates.
    """
    to_go = batch.to_go(gamma)
    name = "multi" if gamma == 1.0 else f"multi(gamma={gamma!r})"
    projections = batch.projections(batch.gradients({name: to_go})[0].whole())
    return np.where(batch.live, to_go - _cross_fitted(batch, projections, batch.step_squares), 0.0)


def token_baseline(batch: Batch, gamma: float = 1.0) -> Double:
    r"""Return-to-go less the optimal token baseline (OTB).

    .. math:: w_t = G_t - B_t, \qquad B_t = \frac{E[G_t W_t]}{E[W_t]}, \qquad
              W_t = \sum_{j \le t} |S_j|^2

    over the rollouts that are alive at step t and their live steps j.

    Notes
    -----
    The paper derives it as the baseline that accounts for the noise which the score norms have
    accumulated up to a token, and claims that it keeps gradient norms and training stable and matches
    groups of 32 samples with 4. It, and verl, estimate |S_j|^2 from the probabilities alone,
    1 - 2 pi_j + sum pi^2, the squared norm of the score by the logits; here it is that of the scores
    themselves. Both take the expectations over the samples of one prompt, the rollout itself
    included, which biases the mean; here they are over all prompts of the other folds. It need not
    have the least variance of all baselines with one constant a step: on policy, that is
    `multi_optimal`.

    References
    ----------
    Li et al., "The optimal token baseline: variance reduction for long-horizon LLM-RL" (2026), arXiv
    2602.07078; verl, docs/algo/otb.md.
    """
    energy = np.where(batch.live, batch.step_squares.cumsum(axis=1), 0.0)
    energy /= energy.max() or 1.0
    to_go = batch.to_go(gamma)
    return np.where(batch.live, to_go - _cross_fitted(batch, to_go * energy, energy), 0.0)


def length_baseline(batch: Batch) -> Double:
    r"""Whole return less its mean weighted by length.

    .. math:: w = R - b, \qquad b = \frac{E[L R]}{E[L]}

    Notes
    -----
    The paper claims it as the best constant baseline if the gradients of tokens are uncorrelated and
    alike, so that |s|^2 is proportional to L. It takes the mean over the samples of one prompt, the
    rollout itself included, as `rlvar.opo` does; here it is over all prompts of the other folds.

    References
    ----------
    Hao et al., "On-policy RL with optimal reward baseline" (OPO, 2025), arXiv 2505.23585.
    """
    lengths = batch.rollouts.live_steps.astype(np.float64)
    return batch.returns - _cross_fitted(batch, lengths * batch.returns, lengths)


def alpha_baseline(batch: Batch) -> Double:
    r"""Whole return less its mean weighted by a power of the length, fitted to the scores.

    .. math:: w = R - b, \qquad b = \frac{E[L^{2\alpha} R]}{E[L^{2\alpha}]}

    with 2 alpha the least-squares slope of log |sum_t S_t|^2 on log L, over the rollouts of the other
    folds in which both exist; 0 if those are all of one length.

    Notes
    -----
    It stands between two views of a sequence: with uncorrelated scores |s|^2 grows like L, alpha is
    1/2 and the baseline is `length_baseline`; with perfectly correlated ones it grows like L^2, alpha
    is 1. The source claims that it is the best constant if |s|^2 depends on the length alone, as
    such a power, and that the pessimistic bias which it induces keeps training stable.
    `single_optimal` needs no such law.

    References
    ----------
    https://faabian.github.io/blog/alpha.html ("alpha-weighted" reward baseline).
    """
    squares, lengths = batch.squares, batch.rollouts.live_steps.astype(np.float64)
    folds = _folds(batch)
    baselines = np.zeros(len(folds))
    for fold in range(folds.max() + 1):
        others = (folds != fold) & (lengths > 0)
        if not others.any():
            continue
        alpha = _alpha(squares[others], lengths[others])
        # Only ratios of lengths count, and those to the longest overflow for no alpha >= 0.
        relative = np.log(lengths[others] / lengths[others].max()) * (2.0 * alpha)
        power = np.exp(relative - relative.max())
        baselines[folds == fold] = (power * batch.returns[others]).sum() / power.sum()
    return batch.returns - baselines


def _alpha(squares: Double, lengths: Double) -> float:
    """Half the slope of the logarithm of squared norms on that of lengths > 0."""
    both = squares > 0
    x, y = np.log(lengths[both]), np.log(squares[both])
    if not both.any() or x.min() == x.max():
        return 0.0
    x -= x.mean()
    return float((x * (y - y.mean())).sum() / np.square(x).sum()) / 2.0


def _folds(batch: Batch) -> NDArray[np.int64]:
    """Return the fold of each rollout (N,)."""
    n, labels = len(batch.rollouts), batch.rollouts.groups
    units = _check.units(labels, n)  # refuses a single group
    # Groups are numbered by first appearance already.
    return (np.arange(n) if labels is None else labels) % min(FOLDS, len(units))


def _cross_fitted(batch: Batch, numerators: Double, denominators: Double) -> Double:
    """Return for each rollout the ratio of sums over the other folds, (N,) or (N, T); 0 for 0 / 0."""
    folds = _folds(batch)
    sums = np.stack(
        [
            np.stack([x[folds == fold].sum(axis=0) for fold in range(folds.max() + 1)])
            for x in (numerators, denominators)
        ]
    )
    # All less one's own would leave rounding errors, hence a ratio, where the others are all 0.
    above, below = np.stack(
        [np.delete(sums, fold, axis=1).sum(axis=1) for fold in range(sums.shape[1])], axis=1
    )
    ratios: Double = np.divide(above, below, out=np.zeros_like(above), where=below > 0)
    return ratios[folds]
