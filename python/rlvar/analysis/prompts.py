"""More prompts, or more completions of each?

One-way random effects of the rollouts' gradients: g[p,k] = mu + a[p] + e[p,k] with a prompt p drawn at
random and a completion k of it, Var(a) = between, E Var(e | p) = within, both summed over the D
coordinates. The mean over P prompts x K completions has the variance

    Var = between / P + within / (P K).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlvar import _check
from rlvar._types import Double, Importance
from rlvar.rollouts import Rollouts
from rlvar.stats.estimate import Estimate, Result
from rlvar.stats.intervals import jackknife
from rlvar.weights.batch import Batch
from rlvar.weights.estimators import EstimatorLike, estimators
from rlvar.weights.source import estimator_of

_MOST_COMPLETIONS = 1 << 20  # that `plan` looks through


@dataclass(frozen=True, eq=False, repr=False)
class PromptComponents(Result):
    """The variance of one rollout's gradient estimate, within prompts and between them.

    All variances are summed over coordinates, in squared units of the gradient.

    Attributes
    ----------
    within : Estimate
        Expected variance between completions of one prompt.
    between : Estimate
        Variance between the mean gradients of prompts. Unbiased, so it can come out negative where it is
        small, which is shown; resolved if its interval excludes 0.
    variance : Estimate
        Their sum: variance of one completion of a random prompt.
    estimator : str
        As asked for.
    groups : int
        Number of prompts: the independent units behind the intervals.
    sizes : ndarray of int, shape (groups,)
        Completions of each prompt, in the order of first appearance.
    dead_groups : int
        Prompts with two completions or more whose returns are all equal: grpo learns nothing from them.
        Here they count as any.
    """

    within: Estimate
    between: Estimate
    variance: Estimate
    estimator: str
    groups: int
    sizes: NDArray[np.int64]
    dead_groups: int
    # `within` and `between` without one group each, (2, groups) or (2, 0), for other sums of them.
    _left_out: Double = field(repr=False)

    @_check.quiet
    def batch_variance(self, prompts: int, completions: int) -> Estimate:
        """Return the variance of the mean gradient of P `prompts` with K `completions` each, both at least 1.

        It is between / P + within / (P K), with the jackknife's interval over groups; negative where
        `between` is and K is large.
        """
        p = _check.positive_integer("prompts", prompts)
        k = _check.positive_integer("completions", completions)
        value = (self.between.value + self.within.value / k) / p
        left_out = (self._left_out[1] + self._left_out[0] / k) / p
        return jackknife(value, left_out, self.variance.confidence, positive=True)

    def __repr__(self) -> str:
        low, high = self.sizes.min(), self.sizes.max()
        sizes = f"{low}" if low == high else f"{low} to {high}"
        lines = [
            f"within prompts   {self.within}",
            f"between prompts  {self.between}" + ("" if self.between.resolved else "  not resolved"),
            f"one rollout      {self.variance}",
            f"{self.groups} prompts of {sizes} completions, {self.dead_groups} with all returns equal",
        ]
        return "\n".join(lines)


@dataclass(frozen=True, eq=False, repr=False)
class Plan(Result):
    """The cheapest batch whose mean gradient has a variance of at most the target.

    Attributes
    ----------
    prompts, completions : int
        P prompts with K completions each.
    cost : float
        P (cost of a prompt + K times that of a completion), in the unit of those costs.
    variance : Estimate
        Variance of the batch's mean gradient, with its interval.
    target, max_completions
        As asked for.
    components : PromptComponents
        What it was planned from.
    """

    prompts: int
    completions: int
    cost: float
    variance: Estimate
    target: float
    max_completions: int
    components: PromptComponents

    def __repr__(self) -> str:
        between = self.components.between
        lines = [
            f"{self.prompts} prompts x {self.completions} completions, cost {self.cost:.6g}",
            f"variance {self.variance}, target {self.target:.4g}",
        ]
        if between.value <= 0:
            lines.append(
                f"The variance between prompts is not positive, {between}: it was taken as 0, so that "
                "many completions of few prompts look best. More prompts would tell."
            )
        elif not between.resolved:
            lines.append(
                f"The variance between prompts is not resolved, {between}: so neither is the number of "
                "completions. More prompts would tell."
            )
        if self.completions == self.max_completions:
            lines.append(f"More completions than max_completions = {self.max_completions} may be cheaper.")
        return "\n".join(lines)


def prompt_components(
    rollouts: Rollouts,
    estimator: EstimatorLike = "single",
    *,
    importance: Importance = "none",
    truncate: float | None = None,
    confidence: float = 0.95,
    num_threads: int | None = None,
) -> PromptComponents:
    r"""Split the variance of a policy gradient into that within prompts and that between them.

    Parameters
    ----------
    rollouts : Rollouts
        Rollouts with groups, the prompts, drawn independently; given the prompt its completions are
        independent.
    estimator : str or Estimator, default "single"
        One whose weights depend on each rollout alone: "single", "multi" or "gae". With weights from
        other rollouts (rloo, grpo, means over the batch) the gradients of a group's rollouts are dependent.
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
        For fewer than two groups, no group of two rollouts, an estimator that is unknown, whose needs are not
        met or whose weights use other rollouts, or scores that are not finite (the first is named). Fewer
        than ten groups are warned of.

    Notes
    -----
    The ANOVA estimators of unbalanced one-way random effects (Searle, Casella & McCulloch 1992,
    chapter 3). For U groups of sizes :math:`n_u`, N rollouts in all,

    .. math::

        \mathrm{within} &= \frac{1}{N - U} \sum_u \sum_k |g_{uk} - \bar g_u|^2, \\
        \mathrm{between} &= \frac{1}{n_0} \Big( \frac{1}{U - 1} \sum_u n_u |\bar g_u - \bar g|^2
            - \mathrm{within} \Big), \quad
        n_0 = \frac{1}{U - 1} \Big( N - \frac{1}{N} \sum_u n_u^2 \Big).

    Both are unbiased, whatever the distributions, if the sizes have nothing to do with the prompts.
    One pass over the scores, O(N T D).

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
    chosen = estimator_of(estimator)
    if not chosen.per_rollout:
        allowed = ", ".join(each.name for each in estimators() if each.per_rollout)
        raise ValueError(
            f"estimator must have weights that depend on each rollout alone ({allowed}), "
            f"got {chosen.name!r}: with weights from other rollouts the completions of a prompt are not "
            "independent draws, and the split is not that within and between prompts"
        )
    level = _check.confidence(confidence)
    units = _check.units(rollouts.groups, len(rollouts))
    if len(units) == len(rollouts):
        raise ValueError("groups must hold one of two rollouts or more, got singletons alone")
    _check.warn_few(len(units), grouped=True)
    g = batch.gradients({chosen.name: batch.weights(chosen)})[0].whole()
    (within, between), left_out = _components(g, rollouts.groups, units)
    returns = batch.returns
    first = returns[units.members[units.offsets[:-1]]]
    differ = units.sums((returns != first[rollouts.groups]).astype(np.float64)) > 0
    return PromptComponents(
        within=jackknife(within, left_out[0], level, positive=True),
        between=jackknife(between, left_out[1], level),
        variance=jackknife(within + between, left_out.sum(axis=0), level, positive=True),
        estimator=chosen.name,
        groups=len(units),
        sizes=units.sizes,
        dead_groups=int(np.count_nonzero(~differ & (units.sizes > 1))),
        _left_out=left_out,
    )


@_check.quiet
def plan(
    components: PromptComponents,
    target: float,
    *,
    cost_prompt: float,
    cost_completion: float,
    max_completions: int = 256,
) -> Plan:
    r"""Find the cheapest prompts x completions for a variance of the mean gradient.

    Parameters
    ----------
    components : PromptComponents
        The variances within and between prompts.
    target : float
        Largest variance that the batch's mean gradient may have, in squared units of the gradient: for a
        signal-to-noise ratio of 1 the signal |E g|^2.
    cost_prompt, cost_completion : float
        Cost of a prompt (its prefill, its place in the data) and of one completion, in any unit.
    max_completions : int, default 256
        Largest number of completions of one prompt, at most 2^20.

    Returns
    -------
    Plan

    Raises
    ------
    ValueError, TypeError
        For a target that is not positive or out of reach of float64, a negative cost, two costs of 0,
        or `max_completions` out of range.

    Notes
    -----
    The cost P (cost_prompt + K cost_completion) is to be least while between / P + within / (P K) is at most
    the target. For real numbers it is so, whatever the target, at K with K^2 = (within / between)
    (cost_prompt / cost_completion). For integers P is rounded up, which moves the best K where P is small:
    every K up to `max_completions` is tried with the smallest P that reaches the target. Of equal costs the
    one with the lower variance is taken. A variance between prompts that came out negative counts as 0 here,
    and the plan says so.

    Examples
    --------
    >>> import numpy as np, rlvar
    >>> rng = np.random.default_rng(0)
    >>> prompts = np.repeat(np.arange(50), 8)
    >>> rewards = 2 * rng.standard_normal(50)[prompts] + rng.standard_normal(400)
    >>> rollouts = rlvar.Rollouts(np.ones((400, 1, 1)), rewards, groups=prompts)
    >>> parts = rlvar.prompt_components(rollouts)
    >>> best = rlvar.plan(parts, 0.01, cost_prompt=16, cost_completion=1)  # K = 2 for real numbers
    >>> best.completions, best.variance.value <= 0.01
    (2, True)
    """
    if not isinstance(components, PromptComponents):
        raise TypeError(f"components must be a PromptComponents, got {type(components).__name__}")
    wanted = _check.positive_number("target", target)
    each_prompt = _check.non_negative_number("cost_prompt", cost_prompt)
    each_completion = _check.non_negative_number("cost_completion", cost_completion)
    if each_prompt == each_completion == 0:
        raise ValueError("cost_prompt and cost_completion must not both be 0")
    most = _check.positive_integer("max_completions", max_completions)
    if most > _MOST_COMPLETIONS:
        raise ValueError(f"max_completions must be at most {_MOST_COMPLETIONS}, got {most}")

    k = np.arange(1, most + 1)
    one_prompt = max(components.between.value, 0.0) + components.within.value / k
    # Rounding must not cost a prompt where the target is met exactly.
    p = np.maximum(np.ceil(one_prompt / wanted * (1 - 1e-12)), 1.0)
    cost = np.where(p < 2.0**53, p * (each_prompt + k * each_completion), np.inf)
    if not np.isfinite(cost).any():
        raise ValueError(f"target must be within reach of 2^53 prompts, got {target!r}")
    best = np.lexsort((one_prompt / p, cost))[0]
    prompts, completions = int(p[best]), int(k[best])
    return Plan(
        prompts=prompts,
        completions=completions,
        cost=float(cost[best]),
        variance=components.batch_variance(prompts, completions),
        target=wanted,
        max_completions=most,
        components=components,
    )


@_check.quiet
def _components(
    g: Double, labels: NDArray[np.int64], units: _check.Units
) -> tuple[tuple[float, float], Double]:
    """Return within and between of gradients (N, D), and both with each group left out (2, U).

    With y_u the group's mean less the grand mean and A = sum n_u |y_u|^2: leaving out group u moves
    the grand mean by n_u y_u / (N - n_u) and takes n_u |y_u|^2 N / (N - n_u) from A. Nothing is left
    out, (2, 0), where that leaves one group or groups of one rollout only.
    """
    sizes = units.sizes.astype(np.float64)
    n, u, square = float(len(g)), float(len(units)), float(np.square(sizes).sum())
    centred = g - g.mean(axis=0)  # sums over groups then lose no digits to a common mean
    means = units.sums(centred) / sizes[:, None]
    centred -= means[labels]
    within_squares = units.sums(np.square(centred).sum(axis=1))
    means -= (sizes[:, None] * means).sum(axis=0) / n
    between_squares = sizes * np.square(means).sum(axis=1)

    def anova(within: Any, between: Any, n: Any, u: float, square: Any) -> tuple[Any, Any]:
        mean_square = within / (n - u)
        return mean_square, (between / (u - 1) - mean_square) / ((n - square / n) / (u - 1))

    all_within, all_between = within_squares.sum(), between_squares.sum()
    within, between = anova(all_within, all_between, n, u, square)
    rest = n - sizes
    if u < 3 or (rest <= u - 1).any():
        return (float(within), float(between)), np.empty((2, 0))
    left_out = anova(
        np.maximum(all_within - within_squares, 0.0),
        np.maximum(all_between - between_squares * n / rest, 0.0),
        rest,
        u - 1,
        square - sizes**2,
    )
    return (float(within), float(between)), np.stack(left_out)
