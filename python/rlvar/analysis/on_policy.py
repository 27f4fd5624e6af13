"""Were the rollouts sampled from the policy that scored them?

Under the policy that sampled them scores are martingale differences, E[S_t | what came before] = 0.
So E[S_i . S_j] = 0 for i != j, and

    E |sum_t S_t|^2 = sum_t E |S_t|^2:

only the trace is left of the second moments of the scores, and their sum has mean 0. Anything beyond the
trace, and any mean, come from rollouts of another policy.

Or from rows of one backward pass through a causal network. Position j takes part in all tokens from j on,
in log p(y_t) by c_jt: the score is S_t = sum_j c_jt, the row is P_j = sum_t c_jt, and both have one sum. Each
c_jt has mean 0 given the past of t, so E P_j = 0 too, and E[c_is . c_jt] = 0 for s != t; but

    E[P_i . P_j] = sum_{t >= i, j} E[c_it . c_jt],    E |sum_j P_j|^2 = sum_t E |S_t|^2 :

steps without a mean that correlate, positively or negatively. Another policy gives scores a mean, which shows
far sooner than correlations do.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rlvar import _check
from rlvar._types import Double
from rlvar.rollouts import Rollouts
from rlvar.stats import moments
from rlvar.stats.estimate import Estimate, Moment, Result
from rlvar.stats.intervals import jackknife, ratio_of_variances, signal_interval
from rlvar.weights.batch import Batch
from rlvar.weights.source import batch_of, groups_of

_SURE = 0.9998


@dataclass(frozen=True, repr=False)
class OnPolicyTest(Result):
    """Whether scores behave like those of the policy that sampled the rollouts.

    Attributes
    ----------
    ratio : Estimate
        `off_diagonal` over `trace`: 0 in expectation for rollouts of the policy that scored them,
        for any rewards; it has no unit. NaN if all scores are 0.
    mean_score : Estimate
        ``|E sum_t S_t|^2`` over `trace`, what the mean of a rollout's summed scores adds to `ratio`: 0 on
        policy. Free of the bias of a plug-in, it can be negative.
    off_diagonal, trace : Estimate
        ``E[sum over i != j of S_i . S_j]`` and ``E[sum over t of |S_t|^2]``, for one rollout, in squared
        units of the scores.
    units : int
        Number of independent units (rollouts, or groups if given) behind the intervals.
    """

    _also = ("against", "on_policy", "unseen_share", "positions")
    ratio: Estimate
    mean_score: Estimate
    off_diagonal: Estimate
    trace: Estimate
    units: int
    # E |sum_t S_t|^2 over E sum_t |S_t|^2, 1 on policy, as a ratio of two variances, surer than the rest.
    _sum_ratio: Estimate = field(repr=False, compare=False)

    @property
    def positions(self) -> bool:
        """Whether these look like rows of one backward pass, contributions of positions, not scores.

        Steps correlate, positively or negatively, at a confidence of 0.9998, while their sum is consistent
        with a mean of 0, and any mean that it may have accounts for at most half of `ratio`.
        """
        apart = self._sum_ratio.low > 1 or self._sum_ratio.high < 1
        return apart and not self.mean_score.low > 0 and self.mean_score.high < abs(self.ratio.value) / 2

    @property
    def against(self) -> tuple[str, ...]:
        """Which of "ratio" and "mean_score" have intervals above 0."""
        return tuple(name for name in ("ratio", "mean_score") if getattr(self, name).low > 0)

    @property
    def on_policy(self) -> bool | None:
        """False if an interval is `against` it, True if none is, at this number of units.

        None if one of the two has no interval, or if these look like rows of `positions`, where the test does
        not apply.
        """
        if np.isnan(self.ratio.low) or np.isnan(self.mean_score.low) or self.positions:
            return None
        return not self.against

    @property
    def unseen_share(self) -> float:
        """Share of the trace that an unseen action must have to explain a verdict against the policy.

        An action that no unit of U shows has a probability of at most q = 3 / U, but in 5 % of cases. On
        policy it must make up for the mean score m, with scores of m / q: that adds m^2 / q to the trace.
        For steps that correlate by c it must add c at least. Both are taken at the lower ends of the
        intervals; 0 if neither is against the policy.
        """
        least = max(
            self.mean_score.low * self.units / 3 if "mean_score" in self.against else 0.0,
            self.ratio.low if "ratio" in self.against else 0.0,
        )
        return least / (1 + least)

    def __repr__(self) -> str:
        verdict = {
            True: "consistent with on-policy sampling",
            False: "the scores do not average to 0 given the past, though the sampling policy's would",
            None: "no verdict, because there is no interval",
        }[self.on_policy]
        if self.positions:
            verdict = "these look like rows of one backward pass, not token scores: their sum has mean 0"
        lines = [
            f"ratio         {self.ratio}  (0 on policy)",
            f"mean score    {self.mean_score}  (0 on policy)",
            f"off-diagonal  {self.off_diagonal}",
            f"trace         {self.trace}",
            verdict,
        ]
        return "\n".join(lines)


def on_policy_test(
    rollouts: Rollouts | ArrayLike,
    *,
    lengths: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    groups: Sequence[Hashable] | NDArray[Any] | None = None,
    confidence: float = 0.95,
    num_threads: int | None = None,
) -> OnPolicyTest:
    r"""Test whether rollouts were sampled from the policy that scored them.

    Temperature, top-k or top-p, a stale copy of the policy, another inference engine, rollouts that were
    filtered by outcome, repeated rollouts, rows of one backward pass in place of scores: each gives scores a
    mean, or correlates those of different steps. So does, by chance, an action that is too rare to be seen
    and carries most of the variance (`OnPolicyTest.unseen_share`).

    Parameters
    ----------
    rollouts : Rollouts, or array_like of shape (N, T, D)
        As in `covariance`, with scores of the policy in question.
    lengths, mask, groups
        With scores: as in `decompose`. Only steps whose action the policy chose may be live. An end that the
        past decides, such as an end token or a limit on the length, is allowed.
    confidence : float, default 0.95
        Nominal coverage of each interval. The verdict looks at the lower ends of two, each of which
        is above 0 on policy with probability (1 - `confidence`) / 2: together at most 1 - `confidence`.
    num_threads
        As in `covariance`.

    Returns
    -------
    OnPolicyTest

    Raises
    ------
    ValueError, TypeError
        For wrong shapes or dtypes, a score of a live step that is not finite (the first is named),
        fewer than two rollouts or groups.

    Warns
    -----
    UserWarning
        For fewer than ten units.

    Notes
    -----
    Given the past of step j, :math:`S_i` is known for i < j, so each :math:`E[S_i \cdot S_j]` is 0; and
    :math:`s_n = \sum_t S_{nt}` has mean 0. With N rollouts,

    .. math::

        \text{ratio} = \frac{\sum_n \left( |s_n|^2 - \sum_t |S_{nt}|^2 \right)}{\sum_n \sum_t |S_{nt}|^2},
        \qquad
        \text{mean score} = \frac{|\bar s|^2 - V / U}{\sum_n \sum_t |S_{nt}|^2 / N},

    where V / U is the variance of the mean :math:`\bar s` by the U units: above is the signal of `compare`
    with every weight 1. That scores have mean 0 given the past is the identity on which policy gradients and
    their baselines rest (Williams 1992); rewards have no part in it.

    The interval of the ratio is that of the jackknife; that of the mean score inverts Box's (1954) test of a
    mean: for D = 1 low > 0 if a t-test rejects. An interval of the ratio below 0 is no verdict:
    :math:`|s_n|^2` has a long right tail, what its mean is at most depends on few rollouts, perhaps not yet
    seen, and such an interval comes too easily on policy (in 5 to 20 % of the data sets of ``python
    studies/on_policy_power.py``).

    Of rows of one backward pass steps correlate and their sum has mean 0 (`OnPolicyTest.positions`).

    ``docs/mathematics.md`` says which mismatches either number finds, what neither sees, and where an alarm
    is wrong. With T = 1, or where no two steps share a parameter, the ratio is always 0, and only the mean
    score can show a mismatch.

    Two passes over the scores, O(N T D), and memory O(N T + N D).

    Examples
    --------
    Coin tosses of one logit, p = 1/2, and tosses of a coin with p = 0.8 that are scored by it:

    >>> import numpy as np, rlvar
    >>> uniform = np.random.default_rng(0).random((500, 8, 1))
    >>> rlvar.on_policy_test((uniform < 0.5) - 0.5).on_policy
    True
    >>> rlvar.on_policy_test((uniform < 0.8) - 0.5).on_policy
    False
    """
    groups = groups_of(rollouts, groups)
    if isinstance(rollouts, Rollouts):
        batch = batch_of(rollouts, lengths=lengths, mask=mask, threads=num_threads)
    else:
        array = _check.scores(rollouts)
        own = Rollouts(array, np.zeros(len(array)), lengths=lengths, mask=mask, groups=groups)
        batch = Batch.of(own, threads=num_threads)
    result = test_scores(batch, confidence)
    _check.warn_few(result.units, "rollout" if groups is None else "group")
    return result


@_check.quiet
def test_scores(batch: Batch, confidence: float) -> OnPolicyTest:
    """Test the scores of a batch, without its factors."""
    batch, rollouts, level = batch.plain, batch.rollouts, _check.confidence(confidence)
    units = _check.units(rollouts.groups, len(rollouts))
    _, t, d = rollouts.shape
    norms, squares = units.sums(batch.squares), units.sums(batch.step_squares.sum(axis=1))
    if not (np.isfinite(norms.sum()) and np.isfinite(squares.sum())):
        _check.raise_not_finite(rollouts.kernel_scores, batch.steps)
    off = norms - squares
    # Where no two steps share a coordinate this is 0, and rounding must not pass for a sign.
    off[np.abs(off) <= t * d * np.finfo(np.float64).eps * squares] = 0.0
    sizes = units.sizes.astype(np.float64)
    # The interval of a ratio that can be 0 or negative is made on its own scale.
    pairs = ((off, squares), (off, sizes), (squares, sizes))
    ratio, off_diagonal, trace = (_ratio_of_sums(above, below, level) for above, below in pairs)
    mean_score = _mean_score(units.sums(batch.summed_scores()), squares, sizes, level)
    whole, parts = (Moment(float(x.sum()), moments.without_each(x)) for x in (off + squares, squares))
    sum_ratio = ratio_of_variances(whole, parts, _SURE)
    return OnPolicyTest(ratio, mean_score, off_diagonal, trace, len(units), sum_ratio)


def _ratio_of_sums(above: Double, below: Double, confidence: float) -> Estimate:
    """Return sum(above) / sum(below) over units (U,), `below` >= 0, with its jackknife interval."""
    left_out = moments.without_each(above) / moments.without_each(below)
    return jackknife(float(above.sum() / below.sum()), left_out, confidence)  # 0 / 0: NaN, undefined


def _mean_score(sums: Double, squares: Double, sizes: Double, confidence: float) -> Estimate:
    """Return |E sum_t S_t|^2 / E sum_t |S_t|^2 from sums of scores (U, D) and of squares (U,) of units."""
    ((p, _),) = moments.products([moments.Sample(sums, sizes)])
    trace = squares.sum() / sizes.sum()
    left_out = moments.without_each(squares) / moments.without_each(sizes)
    (s, s_left_out), (v, v_left_out) = moments.signal(p), moments.variance(p)
    signal = Moment(float(s / trace), s_left_out / left_out[: len(s_left_out)])
    # Its left-out values say how well the variance is known: the trace would hide that, which for
    # T = 1 is the same, except for the mean.
    variance = Moment(float(v / trace), v_left_out / trace)
    return signal_interval(signal, variance, moments.dimension(p), confidence)
