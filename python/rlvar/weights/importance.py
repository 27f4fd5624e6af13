r"""Rollouts of an older policy: importance ratios, what they cost and what they bias.

With d_t = logp_t - behavior_logp_t of the live steps:

    token      rho_t = exp(d_t)
    sequence   rho   = exp(sum_t d_t), one for the rollout
    geometric  rho   = exp(mean_t d_t), one for the rollout

each truncated to min(rho, c) if so wanted: all but the whole sequence's ratio trade bias for variance.

If the sampler can take all that the other policy can, E[rho_t | past] = 1 at each step, and so

    E sum_t rho_t = E sum_t 1,    E[rho of the sequence] = 1.

Where tokens are missing, such as those that top-p removes, both left sides fall short, and no ratio can make
up for that. The first is tested: ratios of steps have far lighter tails than their products.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rlvar import _check
from rlvar._types import Double, Importance
from rlvar.stats import moments
from rlvar.stats.estimate import Estimate, Moment, Result
from rlvar.stats.intervals import jackknife, ratio_of_variances

# Where sum (rho - 1)^2 over whole sequences is below this, so is N times the largest relative bias
# that leaving out ratios can have, squared: a tenth of the standard error of the mean.
_CLOSE = 0.01

# What theory says of the mean ratio is denied once in 1000 by chance on either side, and only if it makes
# more than this of the ratio of a whole sequence.
_SURE, _MATTERS = 0.998, 0.01

_LOWEST = -345.0  # log of the ratio whose square, as in a variance, is at the lower end of float64


@dataclass(frozen=True, eq=False, repr=False)
class ImportanceRatios(Result):
    """Importance ratios of rollouts that another policy sampled.

    Attributes
    ----------
    importance : str
        Which ratios: "none", "token", "sequence" or "geometric".
    truncate : float or None
        What ratios are cut off at.
    values : ndarray, shape (N, T)
        The ratios; 0 on steps that are not live.
    effective_size : float
        How many rollouts with a ratio of 1 would do as well (Kish): N mean(rho)^2 / mean(rho^2), over
        rollouts, or over live steps for "token".
    mean : Estimate
        Mean of the ratios before truncation, over rollouts, or over live steps for "token", where it is 1 in
        expectation as for "sequence". Far from 1, the rollouts do not represent the new policy.
    step_mean : Estimate
        Mean of the ratios of single steps, over live steps and before truncation, at a confidence of 0.998.
        It is 1 in expectation if the sampler can take all that the other policy can.
    consistent : bool
        Whether `step_mean` may be 1, or so close to it that ratios of whole sequences are within 1 % of what
        they should be. If not, either the policy takes actions that the sampler never or hardly ever takes,
        such as those that top-p, top-k or min-p removes, or the log-probabilities belong to other policies.
    largest : float
        The largest ratio before it is truncated; infinite if beyond the range of float64.
    truncated : float
        Share of the live rollouts, of the live steps for "token", whose ratio was cut off.
    unbiased : bool
        Whether estimators keep the mean that they have on policy. By theory they do if the sampler can draw
        all that the policy can, with "sequence" (and with "token" and "geometric" where rollouts have one
        token at most), not truncated, unless the data deny it (`consistent`); and with any ratios where both
        policies are `close`.
    close : bool
        Whether the two policies are so much alike on these rollouts, sum (rho - 1)^2 < 0.01 over whole
        sequences, that no choice of ratios matters: the bias without them is at most a tenth of the mean's
        standard error (``docs/mathematics.md``).
    sequence_size : float
        The effective sample size that ratios of whole sequences, not truncated, would leave.
    gap : float
        Mean distance between `logp` and `behavior_logp`, over the live steps where both are finite.
    impossible : int
        Live steps whose `logp` is minus infinity: the policy never takes these actions, their ratio is 0.
    sequences : ndarray, shape (N,)
        The ratio of each whole sequence, not truncated; 0 for rollouts without live steps.
    """

    importance: Importance
    truncate: float | None
    _large = ("values", "sequences")
    values: Double
    effective_size: float
    mean: Estimate
    step_mean: Estimate
    consistent: bool
    largest: float
    truncated: float
    unbiased: bool
    close: bool
    sequence_size: float
    gap: float
    impossible: int
    sequences: Double
    _log_largest: float  # minus infinity without live steps

    @property
    def misses(self) -> bool:
        """Whether the mean is 1 by theory, and its interval, or the mean over steps, denies that."""
        off = self.mean.low > 1.0 or self.mean.high < 1.0 or not self.consistent
        return self.importance in ("token", "sequence") and off

    @property
    def factors(self) -> Double:
        """The values, as factors of scores: an error if all of live steps are below the range of float64."""
        if self._log_largest == -math.inf and self.impossible:
            raise ValueError(
                f"all {self.importance} ratios are 0: with a logp of minus infinity, the policy never takes "
                "the actions of these rollouts"
            )
        if -math.inf < self._log_largest < _LOWEST:
            raise ValueError(
                f"all {self.importance} ratios are below the range of float64, the largest is "
                f"exp({self._log_largest:.6g}): the new policy hardly ever takes these actions, or the "
                "log-probabilities belong to other policies"
            )
        return self.values

    def __repr__(self) -> str:
        if self.close:
            return "importance ratios hardly matter: the policies agree on these rollouts"
        if self.importance == "none":
            return (
                "biased: off-policy rollouts without importance ratios (those of whole sequences would leave "
                f"an effective size of {self.sequence_size:.1f} of {len(self.values)})"
            )
        cut = f", {self.truncated:.1%} truncated at {self.truncate:g}" if self.truncated else ""
        size = f"{self.effective_size:.1f} of {len(self.values)}"
        bias = "unbiased if the sampler can draw all that the policy can" if self.unbiased else "biased"
        denied = "" if self.consistent else f", as ratios of steps average to {self.step_mean}, not 1"
        return (
            f"{self.importance} ratios: effective sample size {size}, mean {self.mean}, "
            f"largest {self.largest:.4g}{cut}, {bias}{denied}"
        )


@_check.quiet
def importance_ratios(
    logp: ArrayLike,
    behavior_logp: ArrayLike,
    *,
    importance: Importance = "sequence",
    truncate: float | None = None,
    lengths: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    tokens: ArrayLike | None = None,
) -> ImportanceRatios:
    r"""Importance ratios of rollouts, by token or by sequence.

    Parameters
    ----------
    logp, behavior_logp : array_like, shape (N, T)
        Log-probability of each step's action under the policy that is differentiated and under the
        one that sampled it, both as they sample: temperature and top-p included. `logp` may be minus
        infinity, where top-p leaves no probability: a ratio of 0.
    importance : {"sequence", "token", "geometric", "none"}
        Which ratios.
    truncate : float, optional
        Largest ratio: min(rho, truncate). Positive.
    lengths, mask
        Live steps, as in `covariance`: lengths (N,) or mask (N, T).
    tokens : array_like of int, shape (N,), optional
        Number of tokens of each rollout, where a step holds several, as in `Rollouts`: the log-probabilities
        are then sums over them, and "geometric" is the mean over tokens.

    Returns
    -------
    ImportanceRatios

    Raises
    ------
    ValueError, TypeError
        For wrong shapes or dtypes, a live log-probability that is not finite (except a `logp` of minus
        infinity), an unknown kind of ratio, a `truncate` that is not positive or comes with "none", "token"
        where steps hold several tokens, or a ratio beyond the range of float64 that is not truncated.

    Notes
    -----
    Weights w[n,t] times the ratios are the weights of the estimator on rollouts of the old policy mu:

    .. math:: E_\mu[\rho \sum_t w_t S_t] = E_\pi[\sum_t w_t S_t], \qquad
              \rho = \prod_t \frac{\pi(y_t)}{\mu(y_t)}

    is exact for the ratio of the whole sequence alone, if mu is positive wherever pi is; its variance grows
    exponentially with length.
    Truncation biases the mean towards the old policy. ``docs/mathematics.md`` compares the ratios.

    References
    ----------
    Kish, "Survey sampling" (1965); Ionides (2008), truncation; Zheng et al. (GSPO, 2025), arXiv 2507.18071.

    Examples
    --------
    >>> import numpy as np, rlvar
    >>> old, new = np.log([[0.5, 0.5], [0.5, 0.5]]), np.log([[0.6, 0.6], [0.4, 0.6]])
    >>> result = rlvar.importance_ratios(new, old)
    >>> result.values.round(2)
    array([[1.44, 1.44],
           [0.96, 0.96]])
    >>> print(result)  # doctest: +NORMALIZE_WHITESPACE
    sequence ratios: effective sample size 1.9 of 2, mean 1.2 (-1.849 to 4.249), largest 1.44,
    unbiased if the sampler can draw all that the policy can
    """
    new = _check.doubles("logp", logp)
    live = _check.live(new.shape, lengths, mask, "logp")
    old = _check.doubles("behavior_logp", behavior_logp, new.shape)
    for name, array in (("logp", new), ("behavior_logp", old)):
        _check.log_probabilities(name, array, live)
    logs = np.where(live, new, 0.0) - np.where(live, old, 0.0)
    _check.choice("importance", importance, Importance)
    bound = None if truncate is None else _check.positive_number("truncate", truncate)
    if bound is not None and importance == "none":
        raise ValueError("truncate needs importance ratios, got importance='none'")

    counts = np.count_nonzero(live, axis=1)
    words = counts if tokens is None else _check.token_counts(tokens, counts)
    if importance == "token" and (words > counts).any():
        raise ValueError(
            "importance='token' needs the log-probability of each token, and here a step has several; "
            "choose 'sequence' or 'geometric'"
        )
    whole = logs.sum(axis=1)[counts > 0]
    # Of whole sequences, and of tokens: theirs may differ where their product does not.
    close = all(bool(np.square(np.expm1(x)).sum() < _CLOSE) for x in (whole, logs[live]))
    # A rollout's one ratio counts once, those of its tokens one by one.
    counted = live if importance == "token" else counts[:, None] > 0
    steps = np.where(live, np.exp(logs), 0.0).sum(axis=1)
    impossible, finite = int(np.count_nonzero(np.isneginf(logs))), np.abs(logs[live & np.isfinite(logs)])
    sequences = np.where(counts > 0, np.exp(logs.sum(axis=1)), 0.0)
    if importance == "none":
        logs = np.zeros((len(logs), 1))
    elif importance == "sequence":
        logs = logs.sum(axis=1, keepdims=True)
    elif importance == "geometric":
        logs = (logs.sum(axis=1) / np.maximum(words, 1))[:, None]
    ratios = np.where(counted, np.exp(logs), 0.0)  # (N, T) or (N, 1)
    values = np.where(live, ratios, 0.0)
    single = logs[counted]
    log_largest = float(single.max(initial=-np.inf))
    largest = float(values.max(initial=0.0))
    of_all = _mean(ratios.sum(axis=1), counted.sum(axis=1))
    mean = jackknife(*of_all, 0.95)
    of_steps = _mean(steps, counts)
    ones = Moment(1.0, np.ones(len(of_steps.left_out)))
    # On the log scale, and longer to the side of a tail.
    step_mean = ratio_of_variances(of_steps, ones, _SURE)
    off = max(1.0 - step_mean.high, step_mean.low - 1.0) * counts.sum() / max(np.count_nonzero(counts), 1)
    truncated = 0.0
    if bound is not None:
        truncated = float(np.mean(single > math.log(bound))) if single.size else 0.0
        values, single = np.minimum(values, bound), np.minimum(single, math.log(bound))
    elif not np.isfinite(largest):
        i = int(np.argmax(np.isinf(values).any(axis=1)))
        raise ValueError(
            f"truncate is needed for {importance} ratios beyond the range of float64, got one of "
            f"exp({logs[i].max():.6g}) in rollout {i}"
        )
    consistent = not off > _MATTERS
    exact = bound is None and (
        importance == "sequence" or (importance != "none" and words.max(initial=0) <= 1)
    )
    return ImportanceRatios(
        importance=importance,
        truncate=bound,
        values=values,
        effective_size=len(values) * _kish(single),
        mean=mean,
        step_mean=step_mean,
        consistent=consistent,
        largest=largest,
        truncated=truncated,
        unbiased=bool((exact and consistent) or close),
        close=close,
        sequence_size=len(values) * _kish(whole),
        gap=float(finite.mean()) if finite.size else 0.0,
        impossible=impossible,
        sequences=sequences,
        _log_largest=log_largest,
    )


def _mean(sums: Double, counts: NDArray[np.int64]) -> Moment:
    """Return sum over count of rollouts (N,), which may be beyond float64, or of one rollout alone."""
    left_out = moments.without_each(sums) / moments.without_each(counts.astype(np.float64))
    return Moment(float(sums.sum() / counts.sum()), left_out)


def _kish(logs: Double) -> float:
    """Return mean(x)^2 / mean(x^2) of x = exp(logs), in range even where x is not; 0 if all are 0."""
    if not logs.size or logs.max() == -np.inf:
        return 0.0 if logs.size else 1.0
    x = np.exp(logs - logs.max())
    return float(x.mean()) ** 2 / float(np.square(x).mean())
