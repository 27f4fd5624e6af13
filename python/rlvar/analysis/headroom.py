"""How much of the noise could a baseline remove, and how much of that do the estimators in use?"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from rlvar._check import quiet
from rlvar.analysis.compare import Comparison
from rlvar.stats.estimate import Estimate, Moment, Result
from rlvar.stats.inference import quotient
from rlvar.stats.intervals import jackknife, ratio_of_variances

# The best constant, and the best constants for each step, by what they assume.
BASELINES = ("single-optimal", "multi-optimal", "otb")


@dataclass(frozen=True, repr=False)
class Headroom(Result):
    """What the best of the optimal baselines removes from the variance of the reference.

    Attributes
    ----------
    reference : str
        The estimator whose variance there is to remove.
    best : str
        The one of "single-optimal", "multi-optimal" and "otb" with the lowest variance here: they are
        cross-fitted, so that none of it is fitted noise but for the choice among the three.
    removable : Estimate
        Share of the variance of the reference that `best` removes; negative if it adds to it.
    removed : dict of str to Estimate
        For each other estimator with the mean of the reference: the part of what is removable that it
        removes. It can be above 1 and negative. NaN unless `removable` is positive beyond doubt.
    """

    reference: str
    best: str
    removable: Estimate
    removed: dict[str, Estimate]

    def __repr__(self) -> str:
        lines = [f"{self.best} removes {self.removable} of the variance of {self.reference}"]
        lines += [f"{name} removes {part} of that" for name, part in self.removed.items()]
        return "\n".join(lines)


@quiet
def headroom(comparison: Comparison) -> Headroom:
    """Say what a baseline could remove from the variance of a policy gradient, and what is removed.

    Parameters
    ----------
    comparison : Comparison
        A comparison with at least one of "single-optimal", "multi-optimal" and "otb", and the
        estimators in use. All compare with its reference.

    Returns
    -------
    Headroom
        Its intervals are those of the jackknife: all variances leave out the same unit.

    Raises
    ------
    TypeError
        For anything but a Comparison.
    ValueError
        If the comparison holds none of these baselines, or none with the mean of its reference.

    Notes
    -----
    With variances V of the reference, the best baseline and an estimator e: 1 - V_best / V is
    removable, and e removes (V - V_e) / (V - V_best) of it. ``docs/statistics.md`` says what these baselines
    are the best of: one of the state or the prompt, such as that of "rloo", can remove more. With importance
    ratios "multi-optimal" need not be the best: see `rlvar.weights.baselines.multi_optimal`.

    Examples
    --------
    >>> import rlvar
    >>> names = ["single", "multi", "single-optimal", "otb"]
    >>> room = rlvar.headroom(rlvar.compare(rlvar.datasets.cartpole(), names))
    >>> room.best, room.removable.low > 0.5
    ('otb', True)
    """
    if not isinstance(comparison, Comparison):
        raise TypeError(f"comparison must be a Comparison, got {type(comparison).__name__}")
    rows = {row.name: row for row in comparison if comparison.same_mean(row)}
    # With several kinds of ratios names are as in "otb:sequence".
    candidates = [name for name in rows if name.partition(":")[0] in BASELINES]
    if not candidates:
        names, known = [row.name for row in comparison], ", ".join(BASELINES)
        if any(name.partition(":")[0] in BASELINES for name in names):
            raise ValueError(
                f"the baselines compared have not the mean of {comparison.reference}, by their importance "
                "ratios or the aggregation: variances alone do not say what they would remove"
            )
        raise ValueError(f"compare one of {known} too, got {', '.join(names)}")
    best = min(candidates, key=lambda name: rows[name].variance.value)
    whole, least = comparison._reference_variances, rows[best]._variances
    ratio = ratio_of_variances(least, whole, comparison.confidence)
    removable = Estimate(1 - ratio.value, ratio.stderr, 1 - ratio.high, 1 - ratio.low, ratio.confidence)
    unknown = Estimate(math.nan, confidence=comparison.confidence)
    removed = {name: unknown for name in rows if name not in (comparison.reference, best)}
    if removable.low > 0:
        for name in removed:
            part = quotient(_less(whole, rows[name]._variances), _less(whole, least))
            removed[name] = jackknife(*part, comparison.confidence)
    return Headroom(comparison.reference, best, removable, removed)


def _less(a: Moment, b: Moment) -> Moment:
    return Moment(a.value - b.value, np.subtract(a.left_out, b.left_out))
