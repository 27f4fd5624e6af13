"""Gradient estimates of rollouts, g[n] = sum_t w[n,t] a[n,t] S[n,t], and what several of them share.

w are an estimator's weights; the factors a, which no estimator chooses, make importance ratios and
lengths count: a S is what a score is for every estimator.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from rlvar import _check, _core
from rlvar._types import Double
from rlvar.rollouts import Rollouts
from rlvar.stats.moments import Rows
from rlvar.terms.passes import Terms
from rlvar.weights.importance import RATIOS, ImportanceRatios, importance_ratios
from rlvar.weights.returns import reward_to_go

AGGREGATIONS = ("sum", "sequence-mean", "token-mean")


@dataclass(frozen=True, eq=False)
class Batch:
    """Rollouts with the factors of their scores; what several estimators need is computed once."""

    rollouts: Rollouts
    factors: Double | None = None  # (N, T); 1 if None
    threads: int | None = None
    importance: ImportanceRatios | None = None  # of rollouts that carry behavior_logp
    # Whether, by theory, an unbiased estimator is that with these factors too.
    unbiased: bool = True

    @classmethod
    def of(
        cls,
        rollouts: Rollouts,
        *,
        ratio: str = "none",
        truncate: float | None = None,
        aggregation: str = "sum",
        threads: int | None = None,
    ) -> Batch:
        """Make the factors: importance ratios, and one over the length for a mean over each sequence.

        A token mean divides the sum over the batch, no single score.
        """
        _check.choice("ratio", ratio, RATIOS)
        _check.choice("aggregation", aggregation, AGGREGATIONS)
        importance, factors, unbiased = None, None, True
        if rollouts.logp is not None and rollouts.behavior_logp is not None:
            importance = importance_ratios(
                rollouts.logp,
                rollouts.behavior_logp,
                ratio=ratio,
                truncate=truncate,
                mask=rollouts.mask,
                lengths=rollouts.lengths,
            )
            unbiased = importance.unbiased
            factors = None if ratio == "none" else importance.values
        elif ratio != "none" or truncate is not None:
            given = f"ratio = {ratio!r}" if truncate is None else "truncate"
            raise ValueError(f"{given} must have rollouts with logp and behavior_logp")
        if aggregation == "sequence-mean":
            lengths = rollouts.live_steps[:, None]
            each = np.broadcast_to(1.0 / np.maximum(lengths, 1), rollouts.shape[:2])
            factors = each if factors is None else factors * each
            # Lengths that actions decide let baselines and past rewards into the mean.
            unbiased = unbiased and bool((lengths == lengths[0]).all())
        return cls(rollouts, factors, threads, importance, unbiased)

    @cached_property
    def live(self) -> NDArray[np.bool_]:
        """Which steps are live (N, T)."""
        return self.rollouts.live

    @cached_property
    def returns(self) -> Double:
        """Whole return R of each rollout (N,)."""
        rewards = self.rollouts.rewards
        if rewards.ndim == 1:
            return rewards
        totals: Double = np.where(self.live, rewards, 0.0).sum(axis=1)
        return totals

    @cached_property
    def to_go(self) -> Double:
        """Return-to-go G of each step (N, T); 0 where not live."""
        rewards = self.rollouts.rewards
        if rewards.ndim == 1:
            return np.where(self.live, rewards[:, None], 0.0)
        result = reward_to_go(rewards, mask=self.rollouts.mask, lengths=self.rollouts.lengths)
        return result.astype(np.float64, copy=False)

    @property
    def steps(self) -> _check.Steps:
        """Which steps are live, for the kernels."""
        return _check.steps(self.rollouts.shape[:2], self.rollouts.mask, self.rollouts.lengths)

    @property
    def step_factors(self) -> Double:
        """Factors (N, T), read-only where they are all 1."""
        if self.factors is None:
            return np.broadcast_to(np.float64(1.0), self.rollouts.shape[:2])
        return self.factors

    def gradients(self, weights: Sequence[Double]) -> list[Rows]:
        """Return the gradients (N, D) of each weights (N, T), in one pass.

        Weights which are the same at all live steps of a rollout are a number times the sum of its
        scores: all of them together cost one set of weights, and equal ones give equal bits. Raises,
        naming the first bad score, unless the squares of the gradients are finite too.
        """
        n, t, d = self.rollouts.shape
        constants = [_constant(each, self.live) for each in weights]
        varying = [each for each, constant in zip(weights, constants, strict=True) if constant is None]
        sets = np.empty((len(varying) + (len(varying) < len(weights)), n, t))
        with np.errstate(invalid="ignore"):  # what is not live is not read
            for row, each in zip(sets, varying, strict=False):
                np.multiply(each, self.step_factors, out=row)
        if len(varying) < len(weights):
            sets[-1] = self.step_factors
        result = np.empty((len(sets), n, d))
        _core.gradients(self.rollouts.scores, sets, *self.steps, result, self.threads)
        own = iter(result)
        found = [Rows(next(own)) if each is None else Rows(result[-1], each) for each in constants]
        if not all(rows.largest() < 1e150 for rows in found):
            _check.raise_not_finite(self.rollouts.scores, self.steps)
        return found

    @property
    def _terms(self) -> Terms:
        """The scores with their factors."""
        return Terms(self.rollouts.scores, self.step_factors, self.steps, self.threads)

    def projections(self, vectors: Double) -> Double:
        """Return a[n,t] S[n,t] . v[n] (N, T) for vectors (N, D); 0 where not live."""
        return self._finite(self._terms.projections(vectors))

    @property
    def step_squares(self) -> Double:
        """|a[n,t] S[n,t]|^2 (N, T); 0 where not live."""
        return self._squares[0]

    @property
    def squares(self) -> Double:
        """|sum_t a[n,t] S[n,t]|^2 (N,)."""
        return self._squares[1]

    @cached_property
    def _squares(self) -> tuple[Double, Double]:
        steps, whole = self._terms.second_moments()
        return self._finite(steps), self._finite(whole)

    def _finite(self, result: Double) -> Double:
        if not np.isfinite(result).all():
            _check.raise_not_finite(self.rollouts.scores, self.steps)
        return result


def _constant(weights: Double, live: NDArray[np.bool_]) -> Double | None:
    """Return the one weight (N,) of the live steps of each rollout, if there is only one."""
    if weights.strides[1] == 0:
        return np.where(live.any(axis=1), weights[:, 0], 0.0)
    first = weights[np.arange(len(weights)), np.argmax(live, axis=1)]
    if ((weights == first[:, None]) | ~live).all():
        return np.where(live.any(axis=1), first, 0.0)
    return None
