"""More prompts, or more completions of each?

The mean gradient over P prompts, each drawn at random with K completions of its own, has the variance
V(K) / P, and how V depends on K depends on the estimator (`rlvar.analysis.prompt_curves`):

    single, multi, gae    V(K) = between + within / K
    rloo, dr-grpo         V(K) = between + within / K + pairs / (K (K - 1))
    grpo, reinforce++     V(K) of subsets of the groups, for K up to the smallest group

all summed over the D coordinates: the variance between the mean gradients of prompts, that of a completion
given its prompt and, of RLOO, what the noise of the leave-one-out mean adds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from numpy.typing import NDArray

from rlvar import _check
from rlvar._types import Double, Importance
from rlvar.analysis.prompt_curves import LEAST, Components, Curve, by_subsets, leave_one_out, one_way
from rlvar.analysis.sampling import dead_groups
from rlvar.rollouts import Rollouts
from rlvar.stats.estimate import Estimate, Result
from rlvar.stats.intervals import jackknife
from rlvar.weights import advantages
from rlvar.weights.batch import Batch
from rlvar.weights.estimators import Estimator, EstimatorLike, estimators
from rlvar.weights.source import estimator_of

_LEAVE_ONE_OUT = ("rloo", "dr-grpo")
_BY_SUBSETS: Mapping[str, Callable[..., Double]] = {
    "grpo": advantages.grpo,
    "reinforce++": lambda returns, labels: advantages.whiten(advantages.reinforce_pp(returns, labels)),
}


@dataclass(frozen=True, eq=False, repr=False)
class PromptComponents(Result):
    """The variance of a policy gradient, within prompts and between them.

    All variances are summed over coordinates, in squared units of the gradient. Those that can come out
    negative are unbiased and shown so, and resolved if their interval excludes 0.

    Attributes
    ----------
    variance : Estimate
        Of weights that depend on each rollout alone, the variance of one completion of a random prompt; else
        that of the mean gradient of a prompt with the `completions` in use.
    within : Estimate or None
        Expected variance that a completion adds given its prompt. None where V(K) comes from subsets.
    pairs : Estimate or None
        What the noise of RLOO's baselines adds, over K (K - 1); None for other estimators.
    between : Estimate or None
        Variance between the mean gradients of prompts. None where V(K) comes from subsets.
    estimator : str
        As asked for. Of "dr-grpo" everything is that of "rloo", which it is 1 - 1/K times.
    completions : int
        Completions of a prompt in use: the mean size of the groups, rounded; of subsets the smallest size.
    groups : int
        Number of prompts: the independent units behind the intervals.
    sizes : ndarray of int, shape (groups,)
        Completions of each prompt, in the order of first appearance. For "rloo" groups of fewer than four are
        left out.
    dead_groups : int
        Prompts with two completions or more whose returns are all equal: grpo and rloo learn nothing from
        them. Here they count like the others.
    """

    variance: Estimate
    within: Estimate | None
    pairs: Estimate | None
    between: Estimate | None
    estimator: str
    completions: int
    groups: int
    sizes: NDArray[np.int64]
    dead_groups: int
    _curve: Curve = field(repr=False)

    @_check.quiet
    def batch_variance(self, prompts: int, completions: int) -> Estimate:
        """Return the variance of the mean gradient of P `prompts` with K `completions` each, V(K) / P.

        P is at least 1, and so is K, or 2 of estimators that need a group. It is negative where `between` is
        and K is large; the interval then still reaches the variance within prompts.
        """
        p = _check.positive_integer("prompts", prompts)
        k = _check.positive_integer("completions", completions, self._curve.least)
        if not self._curve.has(k):
            raise ValueError(
                f"completions must be at most {self._curve.most} for {self.estimator!r}, whose variance "
                f"comes from subsets of these groups, and one of the sizes tried, got {k}"
            )
        return batch_variance(self._curve, p, k, self.variance.confidence)

    def __repr__(self) -> str:
        parts = (("within prompts", self.within), ("of pairs", self.pairs), ("between prompts", self.between))
        lines = [
            f"{name:<15}  {part}" + ("" if part.resolved else "  not resolved")
            for name, part in parts
            if part is not None
        ]
        one = "one rollout" if self._curve.least == 1 else f"one prompt x {self.completions}"
        low, high = self.sizes.min(), self.sizes.max()
        sizes = f"{low}" if low == high else f"{low} to {high}"
        lines += [
            f"{one:<15}  {self.variance}",
            f"{self.groups} prompts of {sizes} completions, {self.dead_groups} with all returns equal",
        ]
        return "\n".join(lines)


def batch_variance(curve: Curve, prompts: int, completions: int, confidence: float) -> Estimate:
    """Return V(K) / P."""
    one = curve.interval(completions, confidence)
    value, stderr, low, high = (x / prompts for x in (one.value, one.stderr, one.low, one.high))
    return Estimate(value, stderr, low, high, one.confidence, one.resolved)


def prompt_components(
    rollouts: Rollouts,
    estimator: EstimatorLike = "single",
    *,
    importance: Importance = "none",
    truncate: float | None = None,
    confidence: float = 0.95,
    num_threads: int | None = None,
) -> PromptComponents:
    r"""Say how the variance of a policy gradient depends on the number of prompts and of completions.

    Parameters
    ----------
    rollouts : Rollouts
        Rollouts with groups, the prompts, drawn independently; given the prompt its completions are
        independent.
    estimator : str or Estimator, default "single"
        "single", "multi" or "gae", whose weights depend on each rollout alone; "rloo" or "dr-grpo", from
        groups of four or more; "grpo" or "reinforce++", from subsets of the groups.
    importance, truncate, num_threads
        As in `compare`.
    confidence : float, default 0.95
        Nominal coverage of the intervals, the jackknife's over groups: NaN for two groups, or where one group
        holds all that tells completions apart.

    Returns
    -------
    PromptComponents

    Raises
    ------
    ValueError, TypeError
        For fewer than two groups, groups that are too small for the estimator, another estimator than those
        above or one whose needs are not met, or scores that are not finite (the first is named).

    Warns
    -----
    UserWarning
        For fewer than ten groups.

    Notes
    -----
    With weights of each rollout alone, the ANOVA estimators of unbalanced one-way random effects (Searle,
    Casella & McCulloch 1992, chapter 3). For U groups of sizes :math:`n_u`, N rollouts in all,

    .. math::

        \mathrm{within} &= \frac{1}{N - U} \sum_u \sum_k |g_{uk} - \bar g_u|^2, \\
        \mathrm{between} &= \frac{1}{n_0} \Big( \frac{1}{U - 1} \sum_u n_u |\bar g_u - \bar g|^2
            - \mathrm{within} \Big), \quad
        n_0 = \frac{1}{U - 1} \Big( N - \frac{1}{N} \sum_u n_u^2 \Big).

    The completions of RLOO share their baselines, which costs the third term: given the prompt its gradient
    is a U-statistic of order two, with :math:`h_{ij} = (R_i - R_j)(s_i - s_j) / 2` and

    .. math:: V(K) = \mathrm{between} + \frac{\mathrm{within}}{K} + \frac{\mathrm{pairs}}{K (K - 1)}, \quad
        \mathrm{within} = 4\, E\,\mathrm{tr\,Cov}(h_{12}, h_{13}), \quad
        \mathrm{pairs} = 2\, E\,\mathrm{tr\,Var}(h_{12}) - \mathrm{within},

    each a mean over the groups of an unbiased estimate in each (which takes four completions), for any
    sampling policy. All are unbiased for any distributions, if the sizes have nothing to do with the prompts.

    GRPO's deviation is of no such form. Its V(K) for K up to the smallest group is that of subsets of the
    groups, all of them or 32 of each group by a fixed seed, divided by the square of how its mean grows with
    K, c(K) / c(`completions`), where c is the mean of advantage times return. That is the growth of the mean
    if the gradient of each prompt, along the whole, is proportional to the variance of its rewards.

    One pass over the scores, O(N T D), and with subsets O(N D K) more for groups of K.

    Examples
    --------
    >>> import numpy as np, rlvar
    >>> rng = np.random.default_rng(0)
    >>> prompts = np.repeat(np.arange(50), 8)
    >>> rewards = 2 * rng.standard_normal(50)[prompts] + rng.standard_normal(400)
    >>> rollouts = rlvar.Rollouts(np.ones((400, 1, 1)), rewards, groups=prompts)
    >>> parts = rlvar.prompt_components(rollouts)  # variances 1 and 4
    >>> parts.within.low < 1 < parts.within.high, parts.between.low < 4 < parts.between.high
    (True, True)
    """
    batch = Batch.of(rollouts, importance=importance, truncate=truncate, threads=num_threads)
    if rollouts.groups is None:
        raise ValueError("rollouts need groups, the prompts: pass groups= to Rollouts")
    chosen, level = estimator_of(estimator), _check.confidence(confidence)
    if (reason := why_not(chosen, rollouts.groups)) is not None:
        raise ValueError(reason)
    parts = components_of(batch, chosen, level)
    _check.warn_few(parts.groups, "group")
    return parts


def components_of(batch: Batch, chosen: Estimator, level: float) -> PromptComponents:
    """Return the components of an estimator that `why_not` does not refuse."""
    groups = batch.rollouts.groups
    assert groups is not None
    kept = np.arange(len(groups))
    if chosen.base in _LEAVE_ONE_OUT:
        kept = np.flatnonzero(np.bincount(groups)[groups] >= LEAST)
    labels = _check.group_labels(groups[kept], len(kept))
    units, returns = _check.units(labels, len(labels)), batch.returns[kept]
    curve = _curve_of(chosen, batch, kept, labels, units, returns)
    between = within = pairs = None
    if isinstance(curve, Components):
        between, within, pairs = (
            jackknife(value, left_out, level, positive=positive)
            for value, left_out, positive in zip(
                curve.values.tolist(), curve.left_out, (False, True, True), strict=True
            )
        )
    one_rollout, average = curve.least == 1, len(labels) / len(units)
    completions = max(round(average), curve.least) if curve.most is None else curve.most
    return PromptComponents(
        variance=curve.interval(1 if one_rollout else completions, level),
        within=within,
        pairs=None if one_rollout else pairs,
        between=between,
        estimator=chosen.name,
        completions=completions,
        groups=len(units),
        sizes=units.sizes,
        dead_groups=int(np.count_nonzero(dead_groups(returns, labels, units) & (units.sizes > 1))),
        _curve=curve,
    )


def why_not(chosen: Estimator, groups: NDArray[np.int64]) -> str | None:
    """Say why these groups do not tell how the variance of an estimator depends on their size, if so."""
    sizes, name = np.bincount(groups), chosen.name
    if chosen.base in _LEAVE_ONE_OUT and np.count_nonzero(sizes >= LEAST) < 2:
        low, high = sizes.min(), sizes.max()
        got = f"groups of {low}" + (f" to {high}" if high > low else "")
        return (
            f"{name!r} needs two groups of {LEAST} rollouts or more to say how its variance depends on "
            f"their number, got {'groups of one' if high == 1 else got}"
        )
    if chosen.base in _BY_SUBSETS and sizes.min() < 2:
        return f"{name!r} needs two rollouts or more in each group, got a group of one"
    if not (chosen.per_rollout or chosen.base in (*_LEAVE_ONE_OUT, *_BY_SUBSETS)):
        alone = [each.name for each in estimators() if each.per_rollout]
        known = ", ".join((*alone, *_LEAVE_ONE_OUT, *_BY_SUBSETS))
        return (
            f"estimator must be one of {known}, got {name!r}, whose variance depends on the number of "
            "completions in a way that is not known"
        )
    if sizes.max() < 2:
        return "groups must have one of two rollouts or more, got groups of one only"
    return None


def _curve_of(
    chosen: Estimator,
    batch: Batch,
    kept: NDArray[np.int64],
    labels: NDArray[np.int64],
    units: _check.Units,
    returns: Double,
) -> Curve:
    if chosen.per_rollout:
        g = batch.gradients({chosen.name: batch.weights(chosen)})[0].whole()
        return one_way(g, labels, units)
    s = batch.summed_scores()
    if chosen.base in _LEAVE_ONE_OUT:
        return leave_one_out(s if len(kept) == len(s) else s[kept], returns, labels, units)
    weights = partial(_BY_SUBSETS[chosen.base], **chosen.parameters)
    return by_subsets(s, returns, labels, units, weights, batch.threads)
