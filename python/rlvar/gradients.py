"""Gradient estimates of rollouts, g[n] = sum_t w[n,t] a[n,t] S[n,t], and what several of them share.

w are an estimator's weights; the factors a, which no estimator chooses, make importance ratios and
lengths count: a S is what a score is for every estimator.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from rlvar import _check, _core
from rlvar.importance import RATIOS, ImportanceRatios, importance_ratios
from rlvar.rollouts import Rollouts

Double = NDArray[np.float64]

AGGREGATIONS = ("sum", "sequence-mean", "token-mean")


@dataclass(frozen=True, eq=False)
class Batch:
    """Rollouts with the factors of their scores; each moment takes one pass over them, once."""

    rollouts: Rollouts
    factors: Double | None = None  # (N, T); 1 if None
    threads: int | None = None
    importance: ImportanceRatios | None = None  # of rollouts that carry behavior_logp

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
        importance, factors = None, None
        if rollouts.logp is not None and rollouts.behavior_logp is not None:
            importance = importance_ratios(
                rollouts.logp,
                rollouts.behavior_logp,
                ratio=ratio,
                truncate=truncate,
                mask=rollouts.mask,
                lengths=rollouts.lengths,
            )
            factors = None if ratio == "none" else importance.values
        elif ratio != "none" or truncate is not None:
            given = f"ratio = {ratio!r}" if truncate is None else "truncate"
            raise ValueError(f"{given} must have rollouts with logp and behavior_logp")
        if aggregation == "sequence-mean":
            each = np.broadcast_to(1.0 / np.maximum(rollouts.live_steps, 1)[:, None], rollouts.shape[:2])
            factors = each if factors is None else factors * each
        return cls(rollouts, factors, threads, importance)

    @property
    def on_policy(self) -> bool:
        """Whether, by theory, means are those under the policy that is differentiated."""
        return self.importance is None or self.importance.unbiased

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

    def gradients(self, weights: Double, *, below: float = 1e150) -> Double:
        """Return the gradients (E, N, D) of weights (E, N, T), in one pass.

        Raises, naming the first bad score, unless all are `below`: by default so that their squares
        are finite too.
        """
        n, _, d = self.rollouts.shape
        if self.factors is not None:
            weights = weights * self.factors
        result = np.empty((len(weights), n, d))
        _core.gradients(
            self.rollouts.scores, np.ascontiguousarray(weights), *self.steps, result, self.threads
        )
        if not np.abs(result).max() < below:
            _check.raise_not_finite(self.rollouts.scores, self.steps)
        return result

    def projections(self, vectors: Double) -> Double:
        """Return a[n,t] S[n,t] . v[n] (N, T) for vectors (N, D); 0 where not live."""
        result = np.empty(self.rollouts.shape[:2])
        _core.projections(self.rollouts.scores, *self.steps, vectors, result, self.threads)
        if self.factors is not None:
            result *= self.factors
        return self._finite(result)

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
        n, t, d = self.rollouts.shape
        steps, running = np.empty((n, t)), np.empty((n, t))
        _core.unit_squares(
            self.rollouts.scores,
            self.step_factors,
            *self.steps,
            None,
            np.broadcast_to(np.zeros(d), (t, d)),
            *_check.units(None, n),
            steps,
            running,
            None,
            None,
            self.threads,
        )
        return self._finite(steps), self._finite(running[:, -1].copy())

    def _finite(self, result: Double) -> Double:
        if not np.isfinite(result).all():
            _check.raise_not_finite(self.rollouts.scores, self.steps)
        return result
