"""How much of the noise do reward-to-go, a baseline and the estimators in use remove, each by itself?

With the variances V of "single", "multi" and the best baseline b, reward-to-go removes 1 - V_multi / V_single
of the variance. A baseline over returns-to-go has that in it, and removes 1 - V_b / V_multi of what is left.
Baselines are fitted to all rollouts at hand, and also to batches of 64, as in a training step.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import numpy as np

from rlvar._check import quiet
from rlvar.analysis.comparison import Comparison
from rlvar.stats.estimate import Estimate, Moment, Result
from rlvar.stats.inference import quotient
from rlvar.stats.intervals import jackknife, ratio_of_variances
from rlvar.stats.shown import printable

# The best constant, and the best constants for each step, by what they assume.
BASELINES = ("single-optimal", "multi-optimal", "otb")
OVER_TO_GO = ("multi-optimal", "otb")
#: Rollouts of a batch as it is in use, to which a baseline is fitted too.
BATCH = 64
_FITTED = re.compile(r"\(batch_size=(\d+)\)")


@dataclass(frozen=True, repr=False)
class Headroom(Result):
    """What the best of the optimal baselines removes from the variance of the reference.

    Attributes
    ----------
    reference : str
        The estimator whose variance there is to remove.
    best : str
        The one of "single-optimal", "multi-optimal" and "otb" with the lowest variance here: they are
        cross-fitted, so that only the choice among the three can fit noise.
    removable : Estimate
        Share of the variance of the reference that `best` removes; negative if it adds to it.
    reward_to_go : Estimate
        Share of the variance of "single" that "multi" removes. NaN unless "single" is the reference and
        "multi" is compared and another estimator, which it is not with one terminal reward.
    on_top : Estimate
        Share of the variance of "multi" that `best` removes, if that is a baseline over returns-to-go: what
        the baseline adds to reward-to-go. NaN where `reward_to_go` is.
    in_batches : dict of int to Estimate
        The same share as `on_top`, or `removable` where that is NaN, of `best` fitted to batches of so many
        rollouts, for each such row compared, as ``rlvar.estimator("otb", batch_size=64)``. A batch in use is
        often smaller than the rollouts at hand, and a baseline fitted to it gains less.
    removed : dict of str to Estimate
        For each other estimator with the mean of the reference: the part of what is removable that it
        removes. It can be above 1 and negative. NaN unless the interval of `removable` is above 0.
    """

    reference: str
    best: str
    removable: Estimate
    reward_to_go: Estimate
    on_top: Estimate
    in_batches: dict[int, Estimate]
    removed: dict[str, Estimate]

    def __repr__(self) -> str:
        lines = [f"{self.best} removes {self.removable} of the variance of {self.reference}"]
        if not math.isnan(self.reward_to_go.value):
            lines.append(f"reward-to-go alone removes {self.reward_to_go}")
        if not math.isnan(self.on_top.value):
            lines.append(f"the baseline adds {self.on_top} of what reward-to-go leaves")
        lines += [f"fitted to batches of {size}: {share}" for size, share in self.in_batches.items()]
        lines += [f"{name} removes {part} of that" for name, part in self.removed.items()]
        return "\n".join(map(printable, lines))


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
        If the comparison has none of these baselines, or none with the mean of its reference.

    Notes
    -----
    With variances V of the reference, the best baseline and an estimator e: 1 - V_best / V is
    removable, and e removes (V - V_e) / (V - V_best) of it. Compare "multi" too: with a reward for each step
    most of what a baseline over returns-to-go removes may be due to those. ``docs/mathematics.md`` says what
    these baselines are the best of: one of the state or the prompt, such as that of "rloo", can remove more.
    With importance ratios "multi-optimal" need not be the best: see
    `rlvar.weights.baselines.multi_optimal`.

    Examples
    --------
    >>> import rlvar
    >>> names = ["single", "multi", "single-optimal", "otb"]
    >>> room = rlvar.headroom(rlvar.compare(rlvar.datasets.cartpole(), names))
    >>> print(f"{room.best}: {room.reward_to_go.value:.0%}, then {room.on_top.value:.0%} of what is left")
    otb: 80%, then 19% of what is left
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
                f"the baselines compared estimate another mean gradient than {comparison.reference}, because "
                "of importance ratios or the aggregation: their variances do not say what they would remove"
            )
        raise ValueError(f"comparison must have one of {known} too, got {', '.join(names)}")
    best = min(candidates, key=lambda name: rows[name].variance.value)
    whole, least = comparison._reference_variances, rows[best]._variances
    level = comparison.confidence
    removable, unknown = _share(least, whole, level), Estimate(math.nan, confidence=level)
    reward_to_go = on_top = unknown
    base, _, ratios = best.partition(":")
    multi = rows.get(":".join(filter(None, ("multi", ratios))))
    of_single = comparison.reference.partition(":")[0] == "single"
    if multi is not None and not multi.identical and of_single:
        reward_to_go = _share(multi._variances, whole, level)
        if base in OVER_TO_GO:
            on_top = _share(least, multi._variances, level)
    sizes = {
        int(size): name for name in rows for size in _FITTED.findall(name) if name == _fitted(best, size)
    }
    before = whole if math.isnan(on_top.value) or multi is None else multi._variances
    in_batches = {size: _share(rows[name]._variances, before, level) for size, name in sizes.items()}
    others = (name for name in rows if name not in (comparison.reference, best) and not _FITTED.search(name))
    removed = dict.fromkeys(others, unknown)
    if removable.low > 0:
        for name in removed:
            part = quotient(_less(whole, rows[name]._variances), _less(whole, least))
            removed[name] = jackknife(*part, level)
    return Headroom(comparison.reference, best, removable, reward_to_go, on_top, in_batches, removed)


def _fitted(best: str, size: str) -> str:
    """Name a baseline that is fitted to batches, with the ratios of `best` if that names some."""
    base, _, ratios = best.partition(":")
    return ":".join(filter(None, (f"{base}(batch_size={size})", ratios)))


def _share(left: Moment, whole: Moment, confidence: float) -> Estimate:
    """Return 1 - left / whole: what is removed."""
    ratio = ratio_of_variances(left, whole, confidence)
    return Estimate(1 - ratio.value, ratio.stderr, 1 - ratio.high, 1 - ratio.low, confidence)


def _less(a: Moment, b: Moment) -> Moment:
    return Moment(a.value - b.value, np.subtract(a.left_out, b.left_out))
