"""Were the rollouts sampled from the policy that scored them?

Under the policy that sampled them scores are martingale differences, E[S_t | what came before] = 0.
So E[S_i . S_j] = 0 for i != j, and

    E |sum_t S_t|^2 = sum_t E |S_t|^2:

of the second moments of the scores nothing but the trace is left. What is left beside it comes from
rollouts of another policy.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rlvar import _check, _core
from rlvar.estimate import Estimate, jackknife

Double = NDArray[np.float64]


@dataclass(frozen=True)
class OnPolicyTest:
    """Whether scores behave like those of the policy that sampled the rollouts.

    Attributes
    ----------
    ratio : Estimate
        `off_diagonal` over `trace`: 0 in expectation for rollouts of the policy that scored them,
        whatever the rewards; it has no unit. NaN if all scores are 0.
    off_diagonal : Estimate
        E[sum over i != j of S_i . S_j], for one rollout, in squared units of the scores.
    trace : Estimate
        E[sum over t of |S_t|^2], for one rollout, in squared units of the scores.
    on_policy : bool or None
        False if the interval of `ratio` excludes 0, True if it does not: then nothing speaks
        against it at this number of units. None if there is no interval.
    units : int
        Number of independent units (rollouts, or groups if given) behind the intervals.
    """

    ratio: Estimate
    off_diagonal: Estimate
    trace: Estimate
    on_policy: bool | None
    units: int

    def __str__(self) -> str:
        verdict = {
            True: "nothing speaks against it that the policy that scored these rollouts sampled them",
            False: "these rollouts were not sampled from the policy that scored them",
            None: "no interval, hence no verdict",
        }[self.on_policy]
        return "\n".join(
            [
                f"ratio         {self.ratio}  0 on policy",
                f"off-diagonal  {self.off_diagonal}",
                f"trace         {self.trace}",
                verdict,
            ]
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-ready values."""
        estimates = {key: getattr(self, key).to_dict() for key in ("ratio", "off_diagonal", "trace")}
        return {**estimates, "on_policy": self.on_policy, "units": self.units}


def on_policy_test(
    scores: ArrayLike,
    *,
    mask: ArrayLike | None = None,
    lengths: ArrayLike | None = None,
    groups: Sequence[Hashable] | NDArray[Any] | None = None,
    confidence: float = 0.95,
    num_threads: int | None = None,
) -> OnPolicyTest:
    r"""Test whether rollouts were sampled from the policy that scored them.

    Temperature, top-k or top-p, a stale copy of the policy, another inference engine, rollouts that
    were filtered by what came of them: each makes scores correlated from step to step.

    Parameters
    ----------
    scores : array_like, shape (N, T, D)
        Gradient of the log-probability of each step's action under the policy in question.
    mask, lengths
        Live steps, as in `covariance`: mask (N, T) or lengths (N,). Only steps whose action the
        policy chose may be live. An end that the past decides, such as an end token or a limit on
        the length, is no fault.
    groups : sequence of hashable, shape (N,), optional
        Label (prompt) of each rollout. The groups are then the independent units.
    confidence : float, default 0.95
        Nominal coverage of the intervals. On policy the verdict is wrong with probability
        1 - `confidence`.
    num_threads : int, optional
        Threads to use, by default what ``OMP_NUM_THREADS`` or the machine says.

    Returns
    -------
    OnPolicyTest

    Raises
    ------
    ValueError, TypeError
        For wrong shapes or dtypes, a score of a live step that is not finite (the first is named),
        fewer than two rollouts or groups.

    Notes
    -----
    With :math:`E[S_t \mid \text{past}] = 0` each :math:`E[S_i \cdot S_j]`, i < j, is 0: given the past
    of step j, :math:`S_i` is known. The statistic is a ratio of means over rollouts,

    .. math::

        \frac{\sum_n \left( |\sum_t S_{nt}|^2 - \sum_t |S_{nt}|^2 \right)}{\sum_n \sum_t |S_{nt}|^2},

    and its interval is that of the jackknife which leaves out one unit at a time from both sums.
    That scores have mean 0 given the past is the identity on which policy gradients and their
    baselines rest (Williams 1992); rewards have no part in it. One pass over the scores, O(N T D),
    and memory O(U T) for U units.

    A ratio away from 0, of either sign, tells of another policy; a ratio of 0 does not exclude one.
    What a mismatch adds is E[S_i . m_j] with :math:`m_j` the mean of :math:`S_j` given its past: it
    grows with the number of steps that share parameters, is 0 where none do, and contributions of
    opposite sign can cancel. With T = 1 the ratio is 0 always. The mean score, 0 too on policy, is
    not tested: its squared norm is degenerate there, so that a jackknife interval would not hold.

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
    array = _check.scores(scores)
    n, t, _ = array.shape
    live = _check.steps((n, t), mask, lengths)
    units = _check.units(groups, n)
    level = _check.confidence(confidence)
    sums, squares = _second_moments(array, live, units, _check.threads(num_threads))

    off = sums - squares
    sizes = units.sizes.astype(np.float64)
    off_diagonal, trace = (_ratio_of_sums(x, sizes, level) for x in (off, squares))
    # The interval of a ratio that can be 0 or negative is made on its own scale.
    ratio = _ratio_of_sums(off, squares, level)
    on_policy = None if np.isnan(ratio.low) else bool(ratio.low <= 0.0 <= ratio.high)
    return OnPolicyTest(ratio, off_diagonal, trace, on_policy, len(units))


def _second_moments(
    scores: NDArray[Any], live: _check.Steps, units: _check.Units, threads: int | None
) -> tuple[Double, Double]:
    """Return |sum_t S_t|^2 and sum_t |S_t|^2, summed over the rollouts of each unit (U,).

    Both come out of one pass: of terms with weight 1 about mean 0 the squared running sums at the
    last step, and the squared terms of all steps.
    """
    n, t, d = scores.shape
    ones = np.broadcast_to(np.float64(1.0), (n, t))
    steps, running = np.empty((len(units), t)), np.empty((len(units), t))
    _core.unit_squares(
        scores,
        ones,
        *live,
        None,
        np.zeros((t, d)),
        units.members,
        units.offsets,
        steps,
        running,
        None,
        None,
        threads,
    )
    sums, squares = running[:, -1], steps.sum(axis=1)
    if not (np.isfinite(sums.sum()) and np.isfinite(squares.sum())):
        _check.raise_not_finite(scores, live)
    return sums, squares


def _ratio_of_sums(above: Double, below: Double, confidence: float) -> Estimate:
    """Return sum(above) / sum(below) over units (U,), `below` >= 0, with its jackknife interval."""
    a, b = above.sum(), below.sum()
    with np.errstate(all="ignore"):  # 0 / 0 is NaN, an undefined ratio
        return jackknife(float(a / b), (a - above) / (b - below), confidence)
