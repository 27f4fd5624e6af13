"""Sequence rewards and groups into advantages, and advantages into weights of steps.

An advantage is a reward minus a baseline, over a scale: A = (r - b) / s. The samples of a group, the
completions of one prompt, give each other's b and s. Rewards are centred before anything is squared,
and about one of the group's own: the mean of equal floats may differ from them in the last bit, and a
small eps, or none, would make an advantage of that residue.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rlvar import _check
from rlvar._types import Divergence, Double, Preset, Scale, Singleton

Groups = Sequence[Hashable] | NDArray[Any]

#: eps, ddof and singleton of `grpo`: ours, and those of the systems that it can stand in for.
PRESETS: dict[Preset | None, tuple[float, int, Singleton]] = {
    None: (1e-6, 1, "zero"),
    "trl": (1e-4, 1, "zero"),
    "verl": (1e-6, 1, "raw"),
    "openrlhf": (1e-9, 1, "raise"),
    "paper": (0.0, 0, "zero"),
}


class _Scored(NamedTuple):
    """The M of N rewards that are not NaN."""

    rewards: Double  # (M,)
    labels: NDArray[np.int64]  # (M,), of groups
    rows: NDArray[np.bool_]  # (N,), which they are

    def centred(self, weights: Double | None = None) -> Double:
        """Return the rewards minus the mean, or weighted mean, of their group; 0 in one without weight."""
        w = np.ones(len(self.rewards)) if weights is None else weights / _powers(weights, self.labels)
        # About the group's reward of most weight: one of weight 0 may lie anywhere.
        origin = np.zeros(self.labels.max(initial=-1) + 1)
        order = np.argsort(w, kind="stable")
        origin[self.labels[order]] = self.rewards[order]
        shifted = self.rewards - origin[self.labels]  # `finish` refuses what is out of range
        sums = np.bincount(self.labels, np.where(w > 0, shifted * w, 0.0))
        totals = np.bincount(self.labels, w)
        return np.where((totals > 0)[self.labels], shifted - (sums / totals)[self.labels], 0.0)

    def sizes(self) -> NDArray[np.int64]:
        """Return how many scored rewards the group of each one has."""
        return np.bincount(self.labels)[self.labels]

    def finish(self, advantages: Double, singleton: Singleton = "zero") -> Double:
        """Return advantages (N,), 0 where not scored; those of singletons come in as 0."""
        alone = self.sizes() == 1
        if singleton == "raise" and alone.any():
            row = np.flatnonzero(self.rows)[np.argmax(alone)]
            raise ValueError(f"groups must have two scored rewards each, got one in that of rewards[{row}]")
        _check.in_range(advantages, "rewards")
        result = np.zeros(len(self.rows))
        result[self.rows] = np.where(alone, self.rewards, advantages) if singleton == "raw" else advantages
        return result


def _scored(rewards: ArrayLike, groups: Groups | None) -> _Scored:
    values, rows = _check.sequence_rewards(rewards)
    n = len(values)
    labels = np.zeros(n, np.int64) if groups is None else _check.group_labels(groups, n)
    return _Scored(values[rows], labels[rows], rows)


def _powers(values: Double, labels: NDArray[np.int64]) -> Double:
    """Return for each value >= 0 a power of two near its group's largest: no square is out of range."""
    largest = np.zeros(labels.max(initial=-1) + 1)
    np.maximum.at(largest, labels, values)
    return np.asarray(np.ldexp(1.0, np.clip(np.frexp(largest)[1], -1022, 1000))[labels])


def _spread(centred: Double, labels: NDArray[np.int64], freedom: int | NDArray[np.int64]) -> Double:
    """Return the standard deviation of the group of each centred value."""
    unit = _powers(np.abs(centred), labels)
    return np.asarray(unit * np.sqrt(np.bincount(labels, np.square(centred / unit))[labels] / freedom))


_RESULTS = """Returns
    -------
    ndarray, shape (N,), float64
        Advantages; exactly 0 where the reward is NaN, and in a group of equal rewards.

    Raises
    ------
    ValueError, TypeError
        For wrong shapes or dtypes, an infinite reward (the first is named), labels that are not hashable,
        an option outside its values, a singleton that is to raise, or a length that is negative or not
        finite.

    Warns
    -----
    UserWarning
        If rewards are NaN, with their number."""

_STEPS = """lengths : array_like of int, shape (N,), optional
        Live steps are the first ``lengths[n]``.
    mask : array_like of bool, shape (N, T), optional
        Live steps; what lies elsewhere is never read. Not together with `lengths`."""

_RAISES = """Raises
    ------
    ValueError, TypeError
        For wrong shapes or dtypes, an option outside its values, a number of a live step or a reward that is
        not finite (the first is named), fewer than ddof + 1 live entries to whiten, or a reward other than 0
        without a live step to hold it."""

_documented = _check.documented(results=_RESULTS, steps=_STEPS, raises=_RAISES)


@_documented
def rloo(rewards: ArrayLike, groups: Groups, *, singleton: Singleton = "zero") -> Double:
    r"""Leave-one-out advantages: each reward minus the mean of the others in its group.

    .. math:: A_i = r_i - \frac{1}{n-1} \sum_{j \ne i} r_j = \frac{n}{n-1} (r_i - \bar r)

    The baseline does not depend on the sample that it serves, so the gradient stays unbiased.

    Parameters
    ----------
    rewards : array_like, shape (N,)
        Reward of each sequence, computed in float64 for any dtype (bfloat16 too). NaN marks an
        unscorable one: it is left out of all statistics, and a warning counts them.
    groups : sequence of hashable, length N
        Label of each sequence's group, such as its prompt, in any order, groups of any sizes.
    singleton : {"zero", "raw", "raise"}, default "zero"
        Advantage of the only scored reward of its group, which has no baseline: 0, as in TRL and SkyRL,
        which drops the sample and shrinks the gradient's mean; the reward as it is, as in verl, which is
        unbiased, but with a variance far above that of samples with a baseline; or an error.

    %(results)s

    References
    ----------
    Kool et al., "Buy 4 REINFORCE samples, get a baseline for free!" (2019); Ahmadian et al. (2024),
    arXiv 2402.14740.

    Examples
    --------
    >>> import rlvar
    >>> rlvar.rloo([1.0, 0.0, 5.0, 2.0, 4.0], ["a", "a", "b", "a", "b"])
    array([ 0. , -1.5,  1. ,  1.5, -1. ])
    """
    _check.choice("singleton", singleton, Singleton)
    scored = _scored(rewards, groups)
    sizes = scored.sizes()
    return scored.finish(scored.centred() * (sizes / np.maximum(sizes - 1, 1)), singleton)


@_documented
def grpo(
    rewards: ArrayLike,
    groups: Groups,
    *,
    scale: Scale = "group",
    eps: float | None = None,
    ddof: int | None = None,
    singleton: Singleton | None = None,
    preset: Preset | None = None,
) -> Double:
    r"""Group-relative advantages: each reward minus its group's mean, over a standard deviation.

    .. math:: A_i = \frac{r_i - \bar r}{s + \epsilon}, \qquad
              s^2 = \frac{1}{n - \mathrm{ddof}} \sum_j (r_j - \bar r)^2

    and 0 where ``s = 0``, also with ``eps = 0``.

    Parameters
    ----------
    rewards, groups : shape (N,), as for `rloo`
    scale : {"group", "batch", "none"}, default "group"
        Which rewards `s` is the standard deviation of: the group's, as in the paper; all of the batch,
        about their mean; or none, which leaves A = r - mean (Dr. GRPO).
    eps : float, optional
        Added to `s`, once the root is taken.
    ddof : {0, 1}, optional
        Delta degrees of freedom.
    singleton : {"zero", "raw", "raise"}, optional
        As for `rloo`; "raw" is neither centred nor scaled.
    preset : {None, "trl", "verl", "openrlhf", "paper"}, optional
        What `eps`, `ddof` and `singleton` are where they are not given:

        ========== ===== ==== =========
        preset     eps   ddof singleton
        ========== ===== ==== =========
        None       1e-6  1    "zero"
        "trl"      1e-4  1    "zero"
        "verl"     1e-6  1    "raw"
        "openrlhf" 1e-9  1    "raise"
        "paper"    0     0    "zero"
        ========== ===== ==== =========

    %(results)s

    Notes
    -----
    Division by the group's own standard deviation gives prompts with little spread more weight: the mean
    gradient differs from that of `rloo`; ``scale="none"`` gives (n-1)/n of the latter.

    The presets are read from TRL 1.16.0 (``GRPOTrainer``), verl 0.9.1 (``compute_grpo_outcome_advantage``,
    which also divides a singleton by 1 + eps) and OpenRLHF 0.11.2 ("group_norm"). The paper writes the
    standard deviation of the group's rewards without eps or correction: that is ddof 0.

    References
    ----------
    Shao et al., "DeepSeekMath" (2024), 4.1.2, arXiv 2402.03300; Liu et al. (Dr. GRPO), arXiv 2503.20783.

    Examples
    --------
    >>> import rlvar
    >>> rlvar.grpo([1.0, 0.0, 3.0, 3.0, 2.0], [7, 7, 8, 8, 7], eps=0.0)
    array([ 0., -1.,  0.,  0.,  1.])
    """
    _check.choice("scale", scale, Scale)
    _check.choice("preset", preset, tuple(PRESETS))
    preset_eps, preset_ddof, preset_singleton = PRESETS[preset]
    eps = _check.non_negative_number("eps", preset_eps if eps is None else eps)
    ddof = _check.choice("ddof", preset_ddof if ddof is None else ddof, (0, 1))
    singleton = _check.choice("singleton", preset_singleton if singleton is None else singleton, Singleton)
    scored = _scored(rewards, groups)
    advantages = scored.centred()
    if scale != "none":
        whole = scored if scale == "group" else scored._replace(labels=np.zeros_like(scored.labels))
        s = _spread(whole.centred(), whole.labels, np.maximum(whole.sizes() - ddof, 1))
        advantages = np.divide(advantages, s + eps, out=np.zeros_like(s), where=s > 0)
    return scored.finish(advantages, singleton)


@_documented
def reinforce_pp(rewards: ArrayLike, groups: Groups | None = None) -> Double:
    r"""REINFORCE++ advantages: each reward minus the mean of the batch or, with groups, of its group.

    .. math:: A_i = r_i - \bar r

    Parameters
    ----------
    rewards, groups : shape (N,), as for `rloo`
        By default the batch is one group; with groups it is REINFORCE++-baseline, and a singleton gets 0.

    %(results)s

    Notes
    -----
    They are meant to be whitened: by ``whiten(a)``, which counts each sequence once, or, as in verl, by
    ``whiten(to_steps(a, mask=mask), mask=mask)``, which counts each step once.

    References
    ----------
    Hu et al., "REINFORCE++" (2025), arXiv 2501.03262.

    Examples
    --------
    >>> import rlvar
    >>> rlvar.reinforce_pp([1.0, 2.0, 6.0])
    array([-2., -1.,  3.])
    >>> rlvar.whiten(rlvar.reinforce_pp([1.0, 3.0, 6.0, 8.0], [0, 0, 1, 1]), eps=0.0, ddof=0)
    array([-1.,  1., -1.,  1.])
    """
    scored = _scored(rewards, groups)
    return scored.finish(scored.centred())


@_documented
def opo(rewards: ArrayLike, lengths: ArrayLike, groups: Groups | None = None) -> Double:
    r"""Advantages about the optimal reward baseline, the mean of the rewards weighted by length.

    .. math:: A_i = r_i - b, \qquad b = \frac{\sum_j L_j r_j}{\sum_j L_j}

    The constant baseline of least variance weighs rewards by squared score norms; the length stands in for
    that, as if steps had orthogonal scores of equal norm.

    Parameters
    ----------
    rewards, groups : shape (N,), as for `rloo`
        By default the batch is one group. A singleton gets 0.
    lengths : array_like, shape (N,)
        Steps of each sequence, or the squared norm of its score itself: any weights >= 0. In a group
        without any weight all advantages are 0.

    %(results)s

    References
    ----------
    Hao et al., "On-policy RL with optimal reward baseline" (2025), arXiv 2505.23585.

    Examples
    --------
    >>> import rlvar
    >>> rlvar.opo([1.0, 0.0, 4.0], [10, 20, 10])
    array([-0.25, -1.25,  2.75])
    """
    scored = _scored(rewards, groups)
    weights = _check.non_negative("lengths", lengths, len(scored.rows))[scored.rows]
    return scored.finish(scored.centred(weights))


@_documented
def whiten(
    x: ArrayLike,
    *,
    lengths: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    shift_mean: bool = True,
    eps: float = 1e-8,
    ddof: int = 1,
) -> Double:
    r"""Whitened values: minus their mean, over their standard deviation, both over live entries.

    .. math:: y = \frac{x - \bar x}{\sqrt{v + \epsilon}}, \qquad
              v = \frac{1}{n - \mathrm{ddof}} \sum (x - \bar x)^2

    Parameters
    ----------
    x : array_like, any shape
        Values, computed in float64 for any dtype (bfloat16 too).
    %(steps)s The mask of an `x` of any shape has its shape.
    shift_mean : bool, default True
        Whether the result has mean 0; if not, the mean of `x` is added back.
    eps : float, default 1e-8
        Added to the variance under the root, as in verl. Equal values give 0 with ``eps=0`` too.
    ddof : {0, 1}, default 1
        Delta degrees of freedom.

    Returns
    -------
    ndarray, shape of `x`, float64
        Whitened values; exactly 0 at entries that are not live.

    %(raises)s

    Examples
    --------
    >>> import rlvar
    >>> rlvar.whiten([[1.0, 3.0], [5.0, 99.0]], lengths=[2, 1], eps=0.0)
    array([[-1.,  0.],
           [ 1.,  0.]])
    """
    eps = _check.non_negative_number("eps", eps)
    _check.choice("ddof", ddof, (0, 1))
    array = _check.doubles("x", x)
    if lengths is not None:
        live = _check.live(array.shape, lengths, mask)
    else:
        live = np.ones(array.shape, np.bool_) if mask is None else _check.flags(mask, array.shape)
    values = _check.alive("x", array, live)[live]
    n = len(values)
    if n <= ddof:
        raise ValueError(f"x must have at least ddof + 1 = {ddof + 1} live entries, got {n}")
    shifted = values - values[0]
    mean = shifted.mean()
    centred = _check.in_range(shifted - mean, "values")
    deviation = np.hypot(_spread(centred, np.zeros(n, np.int64), n - ddof), math.sqrt(eps))
    whitened = np.divide(centred, deviation, out=np.zeros(n), where=deviation > 0)
    result = np.zeros(array.shape)
    result[live] = whitened if _check.boolean("shift_mean", shift_mean) else whitened + (values[0] + mean)
    return result


@_documented
def kl_rewards(
    rewards: ArrayLike,
    logp: ArrayLike,
    ref_logp: ArrayLike,
    coef: float,
    *,
    estimator: Divergence = "k1",
    lengths: ArrayLike | None = None,
    mask: ArrayLike | None = None,
) -> Double:
    r"""Per-step rewards with a penalty on the divergence from a reference policy.

    .. math:: r'_{n,t} = r_{n,t} - c\, k(d_{n,t}), \qquad d = \log \pi_{\mathrm{ref}} - \log \pi

    with an estimate k of the step's Kullback-Leibler divergence KL(π ‖ π_ref):

    .. math:: k_1 = -d, \qquad k_2 = d^2 / 2, \qquad k_3 = e^d - 1 - d

    k1 and k3 are unbiased, k2 is not; k2 and k3 are never negative. Nothing is clipped.

    Parameters
    ----------
    rewards : array_like, shape (N,) or (N, T)
        Reward of each sequence, which lands on its last live step, or of each step.
    logp, ref_logp : array_like, shape (N, T)
        Log-probability of each step's action under the policy that took it and under the reference.
    coef : float
        Weight c >= 0 of the penalty. With 0 no log-probability is read.
    estimator : {"k1", "k2", "k3"}, default "k1"
        Which estimate of the divergence.
    %(steps)s

    Returns
    -------
    ndarray, shape (N, T), float64
        Rewards minus penalties; exactly 0 on steps that are not live.

    %(raises)s

    References
    ----------
    Schulman, "Approximating KL divergence" (2020), http://joschu.net/blog/kl-approx.html.

    Examples
    --------
    >>> import rlvar
    >>> rlvar.kl_rewards([1.0], [[-1.0, -2.0, 0.0]], [[-2.0, -2.5, 0.0]], 0.1, lengths=[2])
    array([[-0.1 ,  0.95,  0.  ]])
    """
    coef = _check.non_negative_number("coef", coef)
    _check.choice("estimator", estimator, Divergence)
    policy = _check.doubles("logp", logp)
    shape = policy.shape
    live = _check.live(shape, lengths, mask, "logp")
    reference = _check.doubles("ref_logp", ref_logp, shape)
    given = _check.doubles("rewards", rewards, shape, shape[:1])
    if given.ndim == 2:
        result = _check.alive("rewards", given, live)
    else:
        alive = live.any(axis=1)
        _check.finite("rewards", np.where(alive, given, 0.0))
        lost = ~alive & (given != 0) & ~np.isnan(given)
        _check.refuse("rewards", given, lost, "be 0 without a live step to hold them")
        result = _check.at_the_end(given, live)
    if coef == 0.0:
        return result
    d = _check.alive("ref_logp", reference, live) - _check.alive("logp", policy, live)
    penalty = -d if estimator == "k1" else np.square(d) / 2
    if estimator == "k3":
        # About 0 its Taylor series, d^2/2 (1 + d/3 (1 + d/4 (...))): the difference would lose all digits.
        near, series = np.abs(d) < 0.25, np.ones(shape)
        for k in range(14, 2, -1):
            series = 1.0 + d / k * series
        penalty = np.where(near, penalty * series, np.expm1(d) - d)
    _check.finite(estimator, penalty)
    result -= coef * penalty
    return result


@_documented
def to_steps(
    per_sequence: ArrayLike,
    *,
    lengths: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    steps: int | None = None,
) -> Double:
    """Per-step weights from one number per sequence: w[n,t] = a[n] on live steps, 0 elsewhere.

    Parameters
    ----------
    per_sequence : array_like, shape (N,)
        One number for each sequence, such as its advantage.
    %(steps)s One is needed.
    steps : int, optional
        Number of steps T; by default that of the mask, or the greatest length.

    Returns
    -------
    ndarray, shape (N, T), float64
        The sequence's number on its live steps, exactly 0 on the rest.

    %(raises)s

    Examples
    --------
    >>> import rlvar
    >>> rlvar.to_steps([2.0, -1.0], mask=[[1, 1, 1], [0, 1, 0]])
    array([[ 2.,  2.,  2.],
           [ 0., -1.,  0.]])
    """
    values = _check.doubles("per_sequence", per_sequence)
    if values.ndim != 1:
        raise ValueError(f"per_sequence must have shape (N,), got {values.shape}")
    if steps is not None:
        t = _check.positive_integer("steps", steps)
    elif mask is not None:
        t = _check.flags(mask).shape[1]
    elif lengths is not None:
        t = int(np.max(_check.doubles("lengths", lengths), initial=0))
    else:
        raise ValueError("to_steps needs lengths or mask")
    live = _check.live((len(values), t), lengths, mask)
    # One number may be NaN where there is no step to take it.
    return _check.alive("per_sequence", np.broadcast_to(values[:, None], live.shape), live)
