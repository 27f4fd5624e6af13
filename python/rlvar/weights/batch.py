"""Gradient estimates of rollouts, g[n] = sum_t w[n,t] a[n,t] S[n,t], and what several of them share.

w are an estimator's weights; the factors a, which no estimator chooses, make importance ratios and
lengths count: a S is what a score is for every estimator.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rlvar import _check, _core
from rlvar._types import Aggregation, Double, Importance
from rlvar.rollouts import Rollouts
from rlvar.terms.passes import Gradients, Terms, for_kernels
from rlvar.weights.importance import ImportanceRatios, importance_ratios
from rlvar.weights.returns import reward_to_go

if TYPE_CHECKING:
    from rlvar.weights.estimators import Estimator


@dataclass(frozen=True, eq=False)
class Batch:
    """Rollouts with the factors of their scores; what several estimators need is computed once."""

    rollouts: Rollouts
    factors: Double | None = None  # (N, T); 1 if None
    threads: int | None = None
    importance: ImportanceRatios | None = None  # of rollouts with behavior_logp
    # Whether, by theory, an unbiased estimator is that with these factors too.
    unbiased: bool = True
    unbiased_but_for_ratios: bool = True
    aggregation: Aggregation = "sum"
    # Live steps (N, T) whose ratio PPO's clip finds too large, and those too small.
    outside: tuple[NDArray[np.bool_], NDArray[np.bool_]] | None = None
    # What has been computed, by the name of the estimator.
    _weights: dict[str, Double] = field(default_factory=dict, repr=False)
    _gradients: dict[str, tuple[Double, Gradients]] = field(default_factory=dict, repr=False)
    _clipped: dict[str, float] = field(default_factory=dict, repr=False)
    _to_go: dict[float, Double] = field(default_factory=dict, repr=False)  # by its gamma
    _projections: dict[float, Double] = field(default_factory=dict, repr=False)
    # What chance in the fit of a baseline to few rollouts adds to |g|^2 of each rollout (N,), by name, gamma
    # and size of the batches it is fitted to.
    spreads: dict[tuple[str, float, int | None], Double] = field(default_factory=dict, repr=False)

    @classmethod
    def of(
        cls,
        rollouts: Rollouts,
        *,
        importance: Importance = "none",
        truncate: float | None = None,
        clip: float | tuple[float, float] | None = None,
        aggregation: Aggregation = "sum",
        threads: int | None = None,
    ) -> Batch:
        """Make the factors: importance ratios, and one over the tokens for a mean over each sequence.

        A token mean divides the sum over the batch, no single score.
        """
        if not isinstance(rollouts, Rollouts):
            raise TypeError(f"rollouts must be a Rollouts, got {type(rollouts).__name__}")
        _check.choice("importance", importance, Importance)
        _check.choice("aggregation", aggregation, Aggregation)
        threads = _check.threads(threads)
        ratios, factors, unbiased = None, None, True  # by all but the ratios
        if rollouts.logp is not None and rollouts.behavior_logp is not None:
            ratios = importance_ratios(
                rollouts.logp,
                rollouts.behavior_logp,
                importance=importance,
                truncate=truncate,
                lengths=rollouts.lengths,
                mask=rollouts.mask,
                tokens=rollouts.tokens,
            )
            factors = None if importance == "none" else ratios.factors
        elif importance != "none" or truncate is not None:
            given = f"importance={importance!r}" if truncate is None else "truncate"
            raise ValueError(f"{given} needs rollouts with logp and behavior_logp")
        outside = None
        if clip is not None:
            if ratios is None or importance == "none" or truncate is not None:
                raise ValueError(
                    "clip needs importance ratios without truncate: importance='token' as in PPO"
                )
            below, above = _check.clip(clip)
            large, small = ratios.values > 1.0 + above, rollouts.live & (ratios.values < 1.0 - below)
            outside = large, small
            # What is clipped depends on actions and on rewards, unless nothing ever is.
            unbiased = ratios.close and not (large.any() or small.any())
        if aggregation == "sequence-mean":
            lengths = rollouts.token_counts[:, None]
            each = np.broadcast_to(1.0 / np.maximum(lengths, 1), rollouts.shape[:2])
            factors = each if factors is None else factors * each
            # Lengths that actions decide let baselines and past rewards into the mean.
            unbiased = unbiased and bool((lengths == lengths[0]).all())
        of_ratios = ratios is None or ratios.unbiased
        return cls(rollouts, factors, threads, ratios, unbiased and of_ratios, unbiased, aggregation, outside)

    def cut(self, steps: int) -> Batch:
        """Return the batch, without scores, as if the rollouts had been cut after so many steps.

        Rewards, ratios and lengths end there too; no value replaces what is cut off.
        """
        state = self.rollouts._options()
        if state["tokens"] is not None and self.aggregation == "sequence-mean":
            raise ValueError("the tokens of a part of the steps are not known")
        state["tokens"] = None
        n, t = self.live.shape
        scores, before = np.broadcast_to(np.float32(0.0), (n, t, 1)), np.arange(t) < steps
        if state["mask"] is not None:
            state["mask"] = state["mask"] & before
        else:
            lengths = np.full(n, t) if state["lengths"] is None else state["lengths"]
            state["lengths"] = np.minimum(lengths, steps)
        if state["bootstrap_value"] is not None:
            state["bootstrap_value"] = np.where(self.live[:, steps:].any(axis=1), 0, state["bootstrap_value"])
        ratios = self.importance
        return Batch.of(
            Rollouts(scores, **state),
            importance="none" if ratios is None else ratios.importance,
            truncate=None if ratios is None else ratios.truncate,
            aggregation=self.aggregation,
            threads=self.threads,
        )

    @cached_property
    def of_sequences(self) -> bool:
        """Whether one step has all tokens of each rollout, so that they cannot be told apart."""
        steps, tokens = self.rollouts.live_steps, self.rollouts.token_counts
        return bool(steps.max() <= 1 < tokens.max())

    @cached_property
    def rewarded_at_the_end(self) -> bool:
        """Whether most of the reward, sign aside, comes with the last live step of each rollout."""
        if self.rollouts.rewards.ndim == 1:
            return True
        sizes = np.where(self.live, np.abs(self.rollouts.rewards), 0.0)
        last = self.live & (self.live[:, ::-1].cumsum(axis=1)[:, ::-1] == 1)
        return bool(2 * sizes[last].sum() > sizes.sum())

    @cached_property
    def one_reward(self) -> bool:
        """Whether no reward comes before the end of an episode, so that "multi" is "single"."""
        return bool(np.array_equal(self.to_go(), self.episode_returns()))

    @cached_property
    def plain(self) -> Batch:
        """The same rollouts without factors."""
        return self if self.factors is None else Batch(self.rollouts, threads=self.threads)

    @property
    def live(self) -> NDArray[np.bool_]:
        """Which steps are live (N, T)."""
        return self.rollouts.live

    @property
    def steps(self) -> _check.Steps:
        """Which steps are live, for the kernels."""
        return self.rollouts.steps

    @cached_property
    def step_rewards(self) -> Double:
        """Rewards (N, T): a terminal reward lands on the last live step."""
        rewards = self.rollouts.rewards
        return rewards if rewards.ndim == 2 else _check.at_the_end(rewards, self.live)

    @property
    def tails(self) -> dict[str, Any]:
        """Live steps, and where and how episodes end: what a scan over the rewards takes."""
        names = ("lengths", "mask", "terminated", "truncated", "next_values", "bootstrap_value")
        return {name: getattr(self.rollouts, name) for name in names}

    def to_go(self, gamma: float = 1.0) -> Double:
        """Return-to-go G of each step (N, T), to the end of its episode; 0 where not live."""
        if gamma not in self._to_go:
            found = reward_to_go(self.step_rewards, gamma, **self.tails)
            self._to_go[gamma] = found.astype(np.float64, copy=False)
        return self._to_go[gamma]

    def episode_returns(self, gamma: float = 1.0) -> Double:
        """Return of the whole episode that each step is in (N, T): G of its first step."""
        steps = np.broadcast_to(np.arange(self.live.shape[1]), self.live.shape)
        first = np.maximum.accumulate(np.where(self._starts, steps, 0), axis=1)
        return np.where(self.live, np.take_along_axis(self.to_go(gamma), first, axis=1), 0.0)

    @cached_property
    def several(self) -> NDArray[np.bool_]:
        """Which rollouts hold several episodes (N,)."""
        result: NDArray[np.bool_] = np.count_nonzero(self._starts, axis=1) > 1
        return result

    @cached_property
    def returns(self) -> Double:
        """Return R of each rollout (N,), if it is one episode."""
        if self.several.any():
            raise ValueError(
                f"rollout {np.argmax(self.several)} has several episodes, so no single return; "
                "split it where it is terminated or truncated"
            )
        rewards = self.rollouts.rewards
        first = np.argmax(self.live, axis=1)[:, None]
        whole = np.take_along_axis(self.to_go(), first, axis=1)[:, 0]
        return np.where(self.live.any(axis=1), whole, rewards if rewards.ndim == 1 else 0.0)

    @cached_property
    def _starts(self) -> NDArray[np.bool_]:
        """Live steps that an episode starts with (N, T)."""
        ends = np.zeros(self.live.shape, np.int64)
        for marks in (self.rollouts.terminated, self.rollouts.truncated):
            if marks is not None:
                ends |= marks & self.live
        episode = np.where(self.live, ends.cumsum(axis=1) - ends, -1)
        before = np.maximum.accumulate(episode, axis=1)[:, :-1]  # of the live step before
        result: NDArray[np.bool_] = self.live.copy()
        result[:, 1:] &= episode[:, 1:] > before
        return result

    @property
    def _ones(self) -> Double:
        return np.broadcast_to(np.float64(1.0), self.rollouts.shape[:2])

    def weights(self, estimator: Estimator) -> Double:
        """Return the weights (N, T) of one estimator, without factors; 0 where clipped."""
        if estimator.name not in self._weights:
            weights = estimator.weights(self)
            if self.outside is not None:
                # PPO maximises min(rho A, clip(rho) A), which is constant where A pushes rho further out.
                large, small = self.outside
                cut = np.where(weights > 0, large, (weights < 0) & small)
                tokens, steps = self.rollouts.token_counts, np.maximum(self.rollouts.live_steps, 1)
                share = (np.count_nonzero(cut, axis=1) * (tokens / steps)).sum() / max(tokens.sum(), 1)
                self._clipped[estimator.name] = float(share)
                weights = np.where(cut, 0.0, weights)
            self._weights[estimator.name] = weights
        return self._weights[estimator.name]

    def spread(self, estimator: Estimator) -> Double | None:
        """Return the `spreads` of an estimator."""
        parameters = estimator.parameters
        self.weights(estimator)
        size = parameters.get("batch_size")
        return self.spreads[estimator.base, parameters.get("gamma", 1.0), size] if size else None

    def clipped(self, estimator: Estimator) -> float | None:
        """Return the share of the tokens whose weight the clip has made 0; None without one."""
        self.weights(estimator)
        return self._clipped.get(estimator.name)

    def weighed(self, weights: Double) -> Double:
        """Return weights (N, T) times the factors."""
        if self.factors is None:
            return weights
        with np.errstate(all="ignore"):  # what is not live is not read
            return weights * self.factors

    def _terms(self, weights: Double, known: Gradients | None = None) -> Terms:
        return Terms(self.rollouts.kernel_scores, self.weighed(weights), self.steps, self.threads, known)

    def terms(self, estimator: Estimator) -> Terms:
        """Return the terms of one estimator, factors in their weights."""
        weights = self.weights(estimator)
        known, found = self._gradients.get(estimator.name, (None, None))
        return self._terms(weights, found if known is weights else None)

    def summed_scores(self) -> Double:
        """Return sum_t a[n,t] S[n,t] (N, D)."""
        return self.gradients({"": self._ones})[0].whole()

    def gradients(self, named: Mapping[str, Double]) -> list[Gradients]:
        """Return the gradients of some weights (N, T), those not known by their names yet in one pass.

        Weights which are the same at all live steps of a rollout are a number times the sum of its
        scores: all of them together cost one set of weights, and equal ones give equal bits. Raises,
        naming the first bad score, unless the squares of the gradients are finite too.
        """
        known = self._gradients
        new = {name: w for name, w in named.items() if name not in known or known[name][0] is not w}
        constants = {name: _constant(weights, self.live) for name, weights in new.items()}
        varying = [name for name, constant in constants.items() if constant is None]
        base = next((g.base for _, g in known.values() if g.constant is not None), None)
        shared = base is None and len(varying) < len(new)
        if varying or shared:
            n, t, d = self.rollouts.shape
            sets, found = np.empty((len(varying) + shared, n, t)), np.empty((len(varying) + shared, n, d))
            for row, name in zip(sets, varying, strict=False):
                row[...] = self.weighed(new[name])
            if shared:
                sets[-1], base = self.weighed(self._ones), found[-1]
            terms = for_kernels(self.rollouts.kernel_scores, None, self.steps)
            _core.gradients(terms, sets, found, self.threads)
            own = iter(found)
        for name, constant in constants.items():
            own_base = next(own) if constant is None else base
            assert own_base is not None
            g = Gradients(constant, own_base)
            scale = 1.0 if constant is None else max(constant.max(), -constant.min())
            with np.errstate(all="ignore"):
                largest = max(g.base.max(), -g.base.min())
                small, square = largest * max(scale, 1.0) < 1e150, np.square(largest * scale)
            if not small:
                _check.raise_not_finite(self.rollouts.kernel_scores, self.steps)
            _check.refuse_underflow(square, self._terms(new[name]).moves)
            known[name] = new[name], g
        return [known[name][1] for name in named]

    def projections(self, vectors: Double) -> Double:
        """Return a[n,t] S[n,t] . v[n] (N, T) for vectors (N, D); 0 where not live."""
        return self._finite(self._terms(self._ones).projections(vectors))

    def own_projections(self, gamma: float = 1.0) -> Double:
        """Return a[n,t] S[n,t] . g[n] (N, T), g the gradients of returns-to-go."""
        if gamma not in self._projections:
            name = "multi" if gamma == 1.0 else f"multi(gamma={gamma!r})"
            g = self.gradients({name: self.to_go(gamma)})[0].whole()
            self._projections[gamma] = self.projections(g)
        return self._projections[gamma]

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
        terms = self._terms(self._ones)
        steps, whole = terms.second_moments()
        _check.refuse_underflow(steps.max(), lambda: terms.rescaled.second_moments()[0].any())
        return self._finite(steps), self._finite(whole)

    def _finite(self, result: Double) -> Double:
        if not np.isfinite(result).all():
            _check.raise_not_finite(self.rollouts.kernel_scores, self.steps)
        return result


def _constant(weights: Double, live: NDArray[np.bool_]) -> Double | None:
    """Return the one weight (N,) of the live steps of each rollout, if there is only one."""
    if weights.strides[1] == 0:
        return np.where(live.any(axis=1), weights[:, 0], 0.0)
    first = weights[np.arange(len(weights)), np.argmax(live, axis=1)]
    if ((weights == first[:, None]) | ~live).all():
        return np.where(live.any(axis=1), first, 0.0)
    return None
