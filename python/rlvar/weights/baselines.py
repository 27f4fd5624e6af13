r"""Baselines that need the scores, cross-fitted: no rollout is in the fit of its own baseline.

The best baselines are ratios of expectations, b = E[numerator] / E[denominator]. The units (groups, or
rollouts without groups) are dealt into F = min(10, units) folds, unit u, by order of first appearance, into
fold u modulo F; the baseline of a fold is the ratio of the sums over the rollouts of all other folds. Given
those it is a constant, so the mean is exact for any N (docs/mathematics.md). Rollouts of different folds are
each in the other's baseline: their covariance is O(1/N^2), O(1/N) of the variance of the batch's mean.

With `batch_size` the units are first dealt at random into batches of about that many rollouts, and a baseline
comes from the other folds of its batch: it shows what a fit to as few rollouts gains. Which rollouts meet is
chance, so where there are few batches they are dealt several times, always in the same way. The weights are
the mean over deals, and

    E |g|^2 = |sum_t E[w_t] S_t|^2 + sum_t Var(w_t) |S_t|^2

over deals, on policy, as a baseline that knows nothing of the rollout leaves E[S_i . S_j] = 0: the second
part is kept by the batch (`Batch.spreads`).

The functions take a batch and give weights: from the whole returns R (N,), or from the returns-to-go G
(N, T) and 0 where not live. The scores S below include the batch's factors, such as importance ratios: the
baseline is the best for the estimator in use. Where a denominator is 0, as at a step that no rollout of the
other folds reaches, the baseline is 0.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rlvar import _check
from rlvar._types import Double
from rlvar.weights.batch import Batch

FOLDS = 10
_DEALS = 16


def single_optimal(batch: Batch, batch_size: int | None = None) -> Double:
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
    numerators = batch.returns * squares
    fitted, spread = _over_deals(batch, batch_size, lambda folds: _cross_fitted(folds, numerators, squares))
    batch.spreads["single-optimal", 1.0, batch_size] = spread * batch.squares
    return batch.returns - fitted


def multi_optimal(batch: Batch, gamma: float = 1.0, batch_size: int | None = None) -> Double:
    r"""Return-to-go minus one constant a step, the best where scores are uncorrelated.

    .. math:: w_t = G_t - b_t, \qquad b_t = \frac{E[S_t \cdot g]}{E[|S_t|^2]}, \qquad
              g = \sum_j G_j S_j

    with :math:`b_t` clipped to the range that :math:`G_t` has in the other folds.

    Notes
    -----
    As E[S_t] = 0, the mean of :math:`g - \sum_j b_j S_j` does not depend on b, so its variance is
    least where its mean square is. The derivative by b_t is 0 where

    .. math:: E[S_t \cdot g] = \sum_j b_j E[S_t \cdot S_j] .

    On policy, scores are martingale differences: E[S_i . S_j] = 0 for i != j, padded steps included, and
    of the sum b_t E[|S_t|^2] is left. Off policy the T equations are coupled, and these constants need not
    be the best.

    S_t . g also includes the covariance terms G_j S_t . S_j, unlike the weighted mean of returns that
    minimises the variance terms one by one, and so it is noisy: where few rollouts reach a step, constants
    lay far outside of all returns. A baseline stands for a return, so it is clipped to the range of those.
    That can keep it from the best constant, which lies outside where covariance terms outweigh the variance
    term. On the embedded CartPole rollouts the variance is 0.98 times that of "multi" (5 times without the
    clip), and that of `token_baseline` 0.81 times.

    References
    ----------
    Peters & Schaal (2008) have one baseline for each coordinate; here all coordinates share it.
    """
    to_go, projections = batch.to_go(gamma), batch.own_projections(gamma)
    above, below = (np.where(batch.live, to_go, infinity) for infinity in (np.inf, -np.inf))

    def clipped(folds: Folds) -> Double:
        fitted = _cross_fitted(folds, projections, batch.step_squares)
        least, most = folds.of_others(above, np.minimum), folds.of_others(below, np.maximum)
        # Where no other fold has the step, nothing is fitted.
        return np.where(least <= most, np.clip(fitted, least, most), 0.0)

    return _by_step(batch, to_go, clipped, ("multi-optimal", gamma, batch_size))


def token_baseline(batch: Batch, gamma: float = 1.0, batch_size: int | None = None) -> Double:
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
    numerators = to_go * energy
    key = "otb", gamma, batch_size
    return _by_step(batch, to_go, lambda folds: _cross_fitted(folds, numerators, energy), key)


class Folds(NamedTuple):
    """Folds of N rollouts: none is in two batches, and all batches have as many folds."""

    per_batch: int
    batches: NDArray[np.int64]  # of each rollout (N,)
    folds: NDArray[np.int64]  # of each rollout, within its batch (N,)

    @property
    def cells(self) -> NDArray[np.int64]:
        """Number the folds of all batches, for each rollout (N,)."""
        return self.batches * self.per_batch + self.folds

    def of_others(self, x: Double, combine: np.ufunc = np.add) -> Double:
        """Combine x (N, ...) over the other folds of a rollout's batch, for each rollout (N, ...)."""
        cells = self.cells
        order = np.argsort(cells, kind="stable")
        starts = np.searchsorted(cells[order], np.arange(cells.max() + 1))
        each = combine.reduceat(x[order], starts, axis=0).reshape(-1, self.per_batch, *x.shape[1:])
        # All minus one's own would leave rounding errors, hence a ratio, where the others are all 0.
        kept = (np.delete(each, fold, axis=1) for fold in range(self.per_batch))
        others = np.stack([combine.reduce(rest, axis=1) for rest in kept], axis=1)
        return np.asarray(others[self.batches, self.folds])


def folds_of(batch: Batch, batch_size: int | None = None, deal: int = 0) -> Folds:
    """Deal the units of a batch into folds; into batches of about so many rollouts first, if asked for."""
    n, labels = len(batch.rollouts), batch.rollouts.groups
    units = _check.units(labels, n)  # refuses a single group
    unit, u = np.arange(n) if labels is None else labels, len(units)  # numbered by first appearance already
    if batch_size is None:
        count = min(FOLDS, u)
        return Folds(count, np.zeros(n, np.int64), unit % count)
    batches = _batches(n, u, batch_size)
    places = np.random.default_rng(deal).permutation(u)[unit]
    own = places * batches // u
    starts = -(-own * u // batches)
    count = min(FOLDS, u // batches)
    return Folds(count, own, (places - starts) % count)


def _batches(n: int, units: int, batch_size: int) -> int:
    return max(1, min(round(n / batch_size), units // 2))


def _over_deals(
    batch: Batch, batch_size: int | None, fit: Callable[[Folds], Double]
) -> tuple[Double, Double]:
    """Return the mean of what is fitted over deals into batches, some 64 batches in all, and its variance."""
    first = fit(folds_of(batch, batch_size))
    if batch_size is None:
        return first, np.zeros(first.shape)
    n, labels = len(batch.rollouts), batch.rollouts.groups
    deals = max(1, min(_DEALS, round(64 / _batches(n, len(_check.units(labels, n)), batch_size))))
    mean, squares = first, np.zeros(first.shape)
    for deal in range(1, deals):  # Welford 1962
        step = fit(folds_of(batch, batch_size, deal)) - mean
        mean = mean + step / (deal + 1)
        squares += np.square(step) * (deal / (deal + 1))
    return mean, squares / deals


def _by_step(
    batch: Batch,
    to_go: Double,
    fit: Callable[[Folds], Double],
    key: tuple[str, float, int | None],
) -> Double:
    """Return returns-to-go (N, T) minus what is fitted to them."""
    fitted, spread = _over_deals(batch, key[2], fit)
    batch.spreads[key] = np.where(batch.live, spread * batch.step_squares, 0.0).sum(axis=1)
    return np.where(batch.live, to_go - fitted, 0.0)


def _cross_fitted(folds: Folds, numerators: Double, denominators: Double) -> Double:
    """Return for each rollout the ratio of sums over the other folds, (N,) or (N, T); 0 for 0 / 0."""
    above, below = folds.of_others(numerators), folds.of_others(denominators)
    return np.divide(above, below, out=np.zeros_like(above), where=below > 0)
