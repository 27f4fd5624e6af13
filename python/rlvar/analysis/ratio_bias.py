r"""How much do other ratios than those of whole sequences, or none, bias the mean gradient?

With rho the ratio of a whole sequence and a_t those in use (1 without any), the mean lacks

    E_pi[sum_t w_t S_t] - E_mu[sum_t a_t w_t S_t] = E_mu[h],    h = sum_t (rho - a_t) w_t S_t,

which the same rollouts estimate. As E_mu[rho] = 1, the mean gradient m may be subtracted, with less noise:

    x = h - (rho - 1) L m,    |bias|^2 = |E x|^2 / (E L)^2,

with the size L of a rollout, 1 or its number of tokens: a U-statistic, as the signal is. It is compared with
V / U, the squared standard error of the batch's gradient: their ratio is the share by which the squared error
grows. Rounding, as in an inference engine in bfloat16, makes ratios that do not depend on the gradients: x is
then small and has mean 0. Another temperature or an old copy moves the policy to one side, and E x with it.

All this rests on the ratios that the rollouts show, so there is no answer where they have more spread than
E (rho - 1)^2 = 1/4, or where their mean denies that the sampler draws all that the policy can.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from rlvar import _check
from rlvar._types import Double
from rlvar.stats import moments
from rlvar.stats.estimate import Estimate
from rlvar.stats.intervals import signal_interval
from rlvar.stats.moments import Sample
from rlvar.terms.passes import Gradients
from rlvar.weights.batch import Batch
from rlvar.weights.importance import ImportanceRatios

#: A squared bias of at most this share of the squared standard error counts as none.
NEGLIGIBLE = 0.05
_NEAR = 0.25


def small(bias: Estimate | None) -> bool:
    """Whether a bias is negligible, up to the upper end of its interval."""
    return bias is not None and bias.high <= NEGLIGIBLE


@_check.quiet
def measurable(batch: Batch) -> bool:
    """Whether ratios alone bias the batch, and its rollouts show by how much."""
    ratios = batch.importance
    if ratios is None or batch.unbiased or not batch.unbiased_but_for_ratios:
        return False
    spread = np.square(surplus_of(batch)).sum() / max(np.count_nonzero(batch.live.any(axis=1)), 1)
    return bool(ratios.consistent and spread <= _NEAR)


@_check.quiet
def lacking_weights(batch: Batch, weights: Double) -> Double:
    """Return weights (N, T) which, times the factors of the batch, have the gradients h."""
    assert batch.importance is not None
    return np.asarray(weights * _over(batch.importance))


@_check.quiet
def lacking(batch: Batch, gradients: Gradients) -> Gradients:
    """Return the gradients h where each rollout has one ratio a: (rho / a - 1) times those in use."""
    assert batch.importance is not None
    factors, live = _over(batch.importance), batch.live
    each = factors[np.arange(len(live)), np.argmax(live, axis=1)]
    constant, base = gradients
    return Gradients(each if constant is None else each * constant, base)


def _over(ratios: ImportanceRatios) -> Double:
    """Return rho / a - 1 (N, T), 0 where a is."""
    rho, a = ratios.sequences[:, None], ratios.values
    return np.asarray(np.where(a > 0, rho / a - 1.0, 0.0))


def surplus_of(batch: Batch) -> Double:
    """Return rho - 1 (N,), 0 for rollouts without live steps."""
    assert batch.importance is not None
    return np.asarray(np.where(batch.live.any(axis=1), batch.importance.sequences - 1.0, 0.0))


@dataclass(frozen=True, eq=False)
class _Lacking:
    """x of each unit (U, D), a few columns at a time."""

    lacking: Sample
    own: Sample
    surplus: Double  # sum of (rho - 1) L over the rollouts of each unit (U,)

    @property
    def base(self) -> Double:
        return np.broadcast_to(np.float64(0.0), (len(self.surplus), self.own.dimension))

    def whole(self, coordinates: slice = slice(None)) -> Double:
        mean = self.own.columns(coordinates).mean(axis=0) / self.own.sizes.mean
        return np.asarray(self.lacking.columns(coordinates) - self.surplus[:, None] * mean)


@_check.quiet
def bias_of_ratios(
    lacking: Sample, own: Sample, surplus: Double, confidence: float, threads: int | None
) -> Estimate:
    """Return |bias|^2 over V / U from samples of h and of the gradients in use, with the `surplus` (U,)."""
    x = Sample(_Lacking(lacking, own, surplus), own.given)
    (p, _), (of_own, _) = (moments.products([each], threads=threads)[0] for each in (x, own))
    variance = moments.variance(of_own).value
    found = signal_interval(moments.signal(p), moments.variance(p), moments.dimension(p), confidence)
    unit = len(surplus) / variance if variance > 0 else math.nan
    value, stderr, low, high = (x * unit for x in (found.value, found.stderr, *found.interval))
    return Estimate(value, stderr, low, high, confidence, found.resolved)
