r"""Two sets of rollouts side by side: two checkpoints, two temperatures, two models.

Of each set of N rollouts `compare` has, for every estimator, U Var(m) of the batch's gradient m, with U
independent units, and the signal S = |E m|^2. Groups of different sizes have a common unit in the rollout:

    variance of a rollout   v = N Var(m) ,        noise scale   n = v / S   in rollouts,

so that a batch of M rollouts, in groups as they are here, has the variance v / M, and as much signal as noise
at M = n. All ratios are those of the second set over the first. Units that are in both sets (prompts by
their labels) are left out of both together, the others of the one that has them: `rlvar.stats.matched`.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from rlvar import _check
from rlvar._types import Aggregation, Double, Importance
from rlvar.analysis.compare import compare_batches
from rlvar.analysis.comparison import Comparison, ComparisonRow
from rlvar.analysis.deciders import few_decide
from rlvar.analysis.measured import part_of
from rlvar.analysis.rows import ByName
from rlvar.analysis.sampling import at_the_ends
from rlvar.rollouts import Rollouts
from rlvar.stats.estimate import Estimate, Moment, Result, bounded
from rlvar.stats.inference import scaled
from rlvar.stats.intervals import correlation, deciding_units, jackknife, ratio_of_variances
from rlvar.stats.matched import Matched
from rlvar.stats.moments import without_each
from rlvar.stats.shown import aligned, printable
from rlvar.stats.unpaired import unpaired_ratio
from rlvar.weights.batch import Batch
from rlvar.weights.estimators import Estimator, EstimatorLike, default_estimators, resolve

Coordinates = Literal["same", "assumed", "different"]
Matching = Literal["labels", "positions", "none"]
# Equal rollouts of two sets, neither of which repeats any, are no chance if they are more than these.
_CHANCE = 6
_NUMBERED = re.compile(r"(.*?)(\d{1,18})(\D*)", re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class RolloutsComparisonRow(Result):
    """One estimator on two sets of rollouts, A and B: pairs are in this order, ratios are B over A.

    Attributes
    ----------
    name : str
        Name of the estimator.
    variance : (Estimate, Estimate)
        Number of rollouts times the variance of the batch's gradient, summed over coordinates: a batch of n
        rollouts, in groups of the same sizes, has this over n.
    signal : (Estimate, Estimate)
        Squared norm of the mean gradient, as in `ComparisonRow`.
    noise_scale : (Estimate, Estimate)
        Variance over signal: the number of rollouts in a batch at which the two are equal.
    ratio : Estimate
        Variance of B over that of A. Undefined where the `coordinates` are different.
    signal_ratio : Estimate
        Signal of B over that of A. Undefined in the same case, and where an estimate is not positive; without
        an end where an interval reaches 0.
    noise_scale_ratio : Estimate
        Noise scale of B over that of A: how many times as large a batch B needs for the same ratio of
        signal to noise. Undefined, or without an end, where a signal is.
    ratio_units : float
        How many units decide `ratio`; few mean that its interval may be far too narrow.
    sketch_stderr : float or None
        Relative standard error of `ratio` that random directions of sketched scores add, if those of the two
        sets are independent; the intervals leave it out.
    unbiased : (bool or None, bool or None)
        Whether its mean is the policy gradient by theory.
    """

    name: str
    variance: tuple[Estimate, Estimate]
    signal: tuple[Estimate, Estimate]
    noise_scale: tuple[Estimate, Estimate]
    ratio: Estimate
    signal_ratio: Estimate
    noise_scale_ratio: Estimate
    ratio_units: float
    sketch_stderr: float | None
    unbiased: tuple[bool | None, bool | None]


@dataclass(frozen=True, repr=False)
class RolloutsComparison(ByName, Result):
    """Two sets of rollouts side by side, A and B: iterate over the estimators, or index by their names.

    Attributes
    ----------
    names : (str, str)
        What the two are called. Pairs are in this order, ratios and differences are those of B to A.
    rows : tuple of RolloutsComparisonRow
        One row an estimator, of those that both sets allow.
    rollouts, units : (int, int)
        Numbers of rollouts, and of independent units behind the intervals.
    unit : (str, str)
        What a unit is: "rollout" or "group".
    paired : bool
        Whether any unit of A is one of B.
    shared : int
        How many are. The others count as well, each in its own set.
    matched_by : {"labels", "positions", "none"}
        What says which are the same.
    pairing : str
        A sentence on that.
    identical : bool
        Whether the two are the same rollouts to the bit: every ratio is 1 then.
    coordinates : {"same", "assumed", "different"}
        Whether the scores are gradients with respect to the same parameters: by `scores_of` and the number
        of coordinates, or assumed for want of a name. Variances and signals of different parameters are
        not compared, but noise scales are.
    reward, length : (Estimate, Estimate)
        Mean of a rollout's whole reward, without a discount, and of its number of tokens (steps).
    reward_difference, length_difference : Estimate
        Mean of B less that of A.
    reference : str
        The estimator to look at first: "rloo" if it is compared, or "multi", else the first.
    aggregation : str
        As asked for.
    confidence : float
        Nominal coverage of the intervals.
    notes : tuple of str
        What limits the numbers.
    """

    names: tuple[str, str]
    rows: tuple[RolloutsComparisonRow, ...]
    rollouts: tuple[int, int]
    units: tuple[int, int]
    unit: tuple[str, str]
    paired: bool
    shared: int
    matched_by: Matching
    pairing: str
    identical: bool
    coordinates: Coordinates
    reward: tuple[Estimate, Estimate]
    reward_difference: Estimate
    length: tuple[Estimate, Estimate]
    length_difference: Estimate
    reference: str
    aggregation: str
    confidence: float
    notes: tuple[str, ...]

    def __repr__(self) -> str:
        a, b = self.names
        lines: list[tuple[str, ...]] = [("", a, b, f"{b} / {a}")]
        for row in self:
            lines += [
                (f"{row.name}: variance of a rollout", *map(str, row.variance), str(row.ratio)),
                ("  signal |E g|^2", *map(str, row.signal), bounded(row.signal_ratio)),
                ("  noise scale, rollouts", *map(bounded, row.noise_scale), bounded(row.noise_scale_ratio)),
            ]
        lines.append(("mean reward", *map(str, self.reward), f"difference {self.reward_difference}"))
        lines.append(("mean length", *map(str, self.length), f"difference {self.length_difference}"))
        return "\n".join([*aligned(lines), *map(printable, (self.pairing, *self.notes))])


def compare_rollouts(
    a: Rollouts,
    b: Rollouts,
    estimators: EstimatorLike | Sequence[EstimatorLike] | None = None,
    *,
    names: tuple[str, str] = ("A", "B"),
    paired: bool | None = None,
    importance: Importance = "none",
    truncate: float | None = None,
    aggregation: Aggregation = "sum",
    confidence: float = 0.95,
    num_threads: int | None = None,
) -> RolloutsComparison:
    r"""Set two sets of rollouts side by side: two checkpoints, two temperatures, two models.

    Parameters
    ----------
    a, b : Rollouts
        Ratios are those of `b` over `a`, and differences `b` minus `a`.
    estimators : sequence, optional
        As in `compare`, of what both sets have; by default what `compare` takes for both.
    names : (str, str), default ("A", "B")
        What to call the two.
    paired : bool, optional
        Whether groups of one label are the same prompt in both sets (without groups: whether rollouts of one
        position belong together, by a seed, say). By default they are if labels are in both, unless the
        labels of one set are consecutive numbers ("0", "prompt-1", ...): those may number the prompts of
        each file by themselves.
    importance, truncate, aggregation, confidence, num_threads
        As in `compare`.

    Returns
    -------
    RolloutsComparison

    Raises
    ------
    ValueError, TypeError
        As `compare`, with the name of the set; for scores of different parts of a model, of which nothing
        compares; with ``paired=True`` if no label, or not the number of rollouts, is that of both sets.

    Notes
    -----
    A variance alone does not say which policy needs the larger batch, as the mean gradients of two policies
    differ. Noise scales do, for as much signal as noise.

    Intervals of ratios of variances are those of `compare`, of both sets' units together: a unit in both is
    left out of both at a time, so that what prompts have in common cancels, and one that is in one set alone
    counts in that one. So a few unshared prompts are no reason to drop any. Those of noise scales and
    signals recover the variance from their own intervals (Zou & Donner 2008), with the correlation that the
    shared units show. To match prompts that are not the same changes no interval on average; to
    miss those that are makes intervals wider than they need be.

    Examples
    --------
    >>> import rlvar
    >>> whole = rlvar.datasets.cartpole()
    >>> rlvar.compare_rollouts(whole[:128], whole[128:])["multi"].noise_scale_ratio.low < 1
    True
    """
    names = check_pair(a, b, names, paired)
    batches = []
    for each, name in zip((a, b), names, strict=True):
        with of_set(name):
            options: dict[str, Any] = {"truncate": truncate, "aggregation": aggregation}
            batches.append(Batch.of(each, importance=importance, threads=num_threads, **options))
    asked = resolve(estimators) if estimators is not None else common(map(default_estimators, batches))
    found = []
    for batch, name in zip(batches, names, strict=True):
        with of_set(name):
            found.append(
                compare_batches({importance: batch}, asked, None, aggregation, "jackknife", confidence)
            )
            _check.warn_few(found[-1].units, found[-1].unit)
    return beside(a, b, (found[0], found[1]), names=names, paired=paired)


def check_pair(a: Rollouts, b: Rollouts, names: tuple[str, str], paired: bool | None) -> tuple[str, str]:
    """Refuse what does not compare, before the work; return names that differ."""
    pair = _Pair.of(a, b, names)
    pair.coordinates()
    pair.matched(paired)
    return pair.names


def common(several: Any) -> list[Estimator]:
    """Return the estimators that are in both of two lists."""
    a, b = several
    return [each for each in a if each.name in {other.name for other in b}]


def beside(
    a: Rollouts,
    b: Rollouts,
    found: tuple[Comparison, Comparison],
    *,
    names: tuple[str, str] = ("A", "B"),
    paired: bool | None = None,
) -> RolloutsComparison:
    """Set two comparisons side by side that `compare` made, of the estimators that are in both."""
    pair = _Pair.of(a, b, names)
    coordinates, identical = pair.coordinates(), pair.identical()
    matched, by, pairing = pair.matched(paired)
    if identical:
        pairing = f"{pair.names[0]} and {pair.names[1]} are the same rollouts."
    level, kept = found[0].confidence, [row.name for row in found[0] if row.name in found[1]]
    rows = tuple(
        _row((found[0][name], found[1][name]), pair, matched, coordinates, identical) for name in kept
    )
    measures: list[tuple[tuple[Estimate, Estimate], Estimate]] = []
    for measure in (_rewards, lambda x: x.token_counts.astype(np.float64)):
        means = _mean(measure(a), pair.units[0]), _mean(measure(b), pair.units[1])
        difference = _difference(matched, means, level)
        if identical:
            difference = Estimate(0.0, 0.0, 0.0, 0.0, level)
        measures.append(((jackknife(*means[0], level), jackknife(*means[1], level)), difference))
    (reward, reward_difference), (length, length_difference) = measures
    return RolloutsComparison(
        names=pair.names,
        rows=rows,
        rollouts=(len(a), len(b)),
        units=(found[0].units, found[1].units),
        unit=pair.unit,
        paired=matched.shared > 0,
        shared=matched.shared,
        matched_by=by,
        pairing=pairing,
        identical=identical,
        coordinates=coordinates,
        reward=reward,
        reward_difference=reward_difference,
        length=length,
        length_difference=length_difference,
        reference=next((name for name in ("rloo", "multi") if name in kept), kept[0]),
        aggregation=str(found[0].aggregation),
        confidence=level,
        notes=() if identical else tuple(_notes(pair, found, rows, matched, coordinates)),
    )


@contextmanager
def of_set(name: str) -> Iterator[None]:
    """Name the set in errors and warnings."""
    name = printable(name)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            yield
        except (TypeError, ValueError) as error:
            raise type(error)(f"{name}: {error}") from error
    for each in caught:
        text = f"{name}: {each.message}" if each.category is UserWarning else each.message
        warnings.warn(text, each.category, stacklevel=4)


class _Pair(NamedTuple):
    """Two sets of rollouts, checked."""

    a: Rollouts
    b: Rollouts
    names: tuple[str, str]
    units: tuple[_check.Units, _check.Units]

    @classmethod
    def of(cls, a: Rollouts, b: Rollouts, names: tuple[str, str]) -> _Pair:
        for argument, each in (("a", a), ("b", b)):
            if not isinstance(each, Rollouts):
                raise TypeError(f"{argument} must be a Rollouts, got {type(each).__name__}")
        if isinstance(names, str) or len(names) != 2 or not all(isinstance(each, str) for each in names):
            raise TypeError(f"names must be two strings, got {names!r}")
        first, second = names
        if first == second:
            first, second = f"{first} (first)", f"{second} (second)"
        units = []
        for each, name in ((a, first), (b, second)):
            with of_set(name):
                units.append(_check.units(each.groups, len(each)))
        return cls(a, b, (first, second), (units[0], units[1]))

    @property
    def rollouts(self) -> tuple[Rollouts, Rollouts]:
        return self.a, self.b

    @property
    def unit(self) -> tuple[str, str]:
        kinds = ["rollout" if each.groups is None else "group" for each in self.rollouts]
        return kinds[0], kinds[1]

    @property
    def sizes(self) -> tuple[float, float]:
        """Rollouts in a unit, on average."""
        return len(self.a) / len(self.units[0]), len(self.b) / len(self.units[1])

    def coordinates(self) -> Coordinates:
        """Return whether the scores are of the same parameters; refuse those of different parts."""
        of_a, of_b = self.a.scores_of, self.b.scores_of
        as_wide = self.a.shape[2] == self.b.shape[2]
        sketched = self.a.sketched or self.b.sketched
        if of_a is not None and of_b is not None:
            if part_of(of_a) != part_of(of_b):
                raise ValueError(
                    f"{self.names[0]} has scores of {of_a}, {self.names[1]} of {of_b}: neither variances nor "
                    "noise scales compare; score both with the same choice of parameters"
                )
            return "same" if of_a == of_b and (as_wide or sketched) else "different"
        both = self.a.sketched and self.b.sketched
        return "assumed" if both or (as_wide and not sketched) else "different"

    def identical(self) -> bool:
        """Whether the two are the same to the bit."""
        if self.a is self.b:
            return True
        x, y = self.a.__getstate__(), self.b.__getstate__()
        stored = x.pop("_stored"), y.pop("_stored")
        labels = x.pop("_labels"), y.pop("_labels")
        del labels
        if stored[0].shape != stored[1].shape or not all(_equal(x[name], y[name]) for name in x):
            return False
        step = max(1, (1 << 20) // max(1, stored[0][:1].size))
        starts = range(0, len(stored[0]), step)
        return all(_equal(stored[0][i : i + step], stored[1][i : i + step]) for i in starts)

    def matched(self, paired: bool | None) -> tuple[Matched, Matching, str]:
        """Return which units are the same, by what that is known, and a sentence on it."""
        if paired is not None:
            paired = _check.boolean("paired", paired)
        (a, b), (u, v), (kind, other) = self.names, map(len, self.units), self.unit
        alone = Matched.none(u, v)
        labels = self.a.group_labels, self.b.group_labels
        shared = len(set(labels[0]) & set(labels[1]))
        independent = f"The rollouts of {a} and {b} are taken as independent"
        if paired is False:
            return alone, "none", f"{independent}, as asked."
        if kind == other == "rollout":
            if not paired:
                return alone, "none", f"{independent}: there are no groups to match."
            if u != v:
                raise ValueError(
                    "paired=True without groups takes equal numbers of rollouts, "
                    f"got {u} in {a} and {v} in {b}"
                )
            found = Matched.of(range(u), range(v))
            return found, "positions", f"Rollout n of {a} is compared with rollout n of {b}, as asked."
        if kind != other:
            if paired:
                raise ValueError(
                    f"paired=True takes groups in both, but {a if kind != 'group' else b} has none"
                )
            return alone, "none", f"{independent}: only {a if kind == 'group' else b} has groups."
        if not shared:
            if paired:
                raise ValueError(
                    f"paired=True takes labels of groups that are in both, but {a} and {b} share none"
                )
            return alone, "none", f"{independent}: no label of a group is in both."
        numbers = any(map(numbering, labels))
        if paired is None and numbers:
            return (
                alone,
                "none",
                f"{independent}: the labels of their groups are consecutive numbers, which each may have "
                "given to its own prompts. If equal numbers are the same prompt, pair them (--paired, "
                "paired=True): that makes the intervals narrower.",
            )
        found = Matched.of(*labels)
        why = ", as asked" if paired else ""
        if shared == u == v:
            return found, "labels", f"The {u:,} groups of {a} and {b} are matched by their labels{why}."
        text = (
            f"{shared:,} groups are matched by their labels{why}; {u - shared:,} of {a} and {v - shared:,} "
            f"of {b} have no match, and count in their own set alone."
        )
        return found, "labels", text


def numbering(labels: Sequence[Hashable]) -> bool:
    """Whether labels are consecutive numbers, maybe with the same text around each: a mere numbering."""
    if all(type(each) is int for each in labels):
        numbers = [each for each in labels if isinstance(each, int)]
    else:
        parts = [_NUMBERED.fullmatch(each) if isinstance(each, str) else None for each in labels]
        if len({None if each is None else (each[1], each[3]) for each in parts}) != 1:
            return False
        numbers = [int(each[2]) for each in parts if each is not None]
    return len(numbers) > 0 and max(numbers) - min(numbers) == len(labels) - 1


def _equal(x: Any, y: Any) -> bool:
    if isinstance(x, np.ndarray) and isinstance(y, np.ndarray):
        return np.array_equal(x, y, equal_nan=x.dtype.kind == y.dtype.kind == "f")
    return type(x) is type(y) and bool(x == y)


@_check.quiet
def _row(
    rows: tuple[ComparisonRow, ComparisonRow],
    pair: _Pair,
    matched: Matched,
    coordinates: Coordinates,
    identical: bool,
) -> RolloutsComparisonRow:
    a, b = rows
    level = a.variance.confidence
    sizes = pair.sizes
    variance = scaled(a.variance, sizes[0]), scaled(b.variance, sizes[1])
    noise_scale = scaled(a.noise_scale, sizes[0]), scaled(b.noise_scale, sizes[1])
    below, above = matched.spread((_times(a._variances, sizes[0]), _times(b._variances, sizes[1])))
    ratio = ratio_of_variances(above, below, level)
    ratio_units = deciding_units(above.left_out / below.left_out) if np.isfinite(ratio.low) else np.nan
    signals = matched.spread((a._signals, b._signals))
    signal_ratio = unpaired_ratio(b.signal, a.signal, correlation(signals[1].left_out, signals[0].left_out))
    relative = matched.spread((_log_noise_scale(a), _log_noise_scale(b)))
    together = correlation(relative[1].left_out, relative[0].left_out)
    noise_scale_ratio = unpaired_ratio(noise_scale[1], noise_scale[0], together)
    if identical:
        one = Estimate(1.0, 0.0, 1.0, 1.0, level)
        ratio = one if a.variance.value > 0 else ratio
        signal_ratio = one if a.signal.value > 0 else signal_ratio
        noise_scale_ratio = one if a.variance.value > 0 and a.signal.value > 0 else noise_scale_ratio
    if coordinates == "different":
        ratio = signal_ratio = Estimate(np.nan, confidence=level, resolved=False)
        ratio_units = np.nan
    noise = [each.sketch.variance / each.variance.value for each in rows if each.sketch is not None]
    return RolloutsComparisonRow(
        name=a.name,
        variance=variance,
        signal=(a.signal, b.signal),
        noise_scale=noise_scale,
        ratio=ratio,
        signal_ratio=signal_ratio,
        noise_scale_ratio=noise_scale_ratio,
        ratio_units=ratio_units,
        sketch_stderr=math.hypot(*noise) if noise and not identical else None,
        unbiased=(a.unbiased, b.unbiased),
    )


def _times(moment: Moment, factor: float) -> Moment:
    return Moment(moment.value * factor, moment.left_out * factor)


def _log_noise_scale(row: ComparisonRow) -> Moment:
    """Return what each unit left out changes in the logarithm of the noise scale, to first order."""
    (v, of_v), (s, of_s) = row._variances, row._signals
    return Moment(0.0, of_v / v - of_s / s)


def _rewards(rollouts: Rollouts) -> Double:
    """Return the whole reward of each rollout (N,)."""
    rewards = rollouts.rewards
    return rewards if rewards.ndim == 1 else np.where(rollouts.live, rewards, 0.0).sum(axis=1)


@_check.quiet
def _mean(values: Double, units: _check.Units) -> Moment:
    """Return the mean of values (N,) with each unit left out."""
    sums, sizes = units.sums(values), units.sizes.astype(np.float64)
    left_out = without_each(sums) / without_each(sizes) if len(units) > 2 else np.empty(0)
    return Moment(float(values.mean()), left_out)


def _difference(matched: Matched, means: tuple[Moment, Moment], confidence: float) -> Estimate:
    a, b = matched.spread(means)
    return jackknife(b.value - a.value, b.left_out - a.left_out, confidence)


def _notes(
    pair: _Pair,
    found: tuple[Comparison, Comparison],
    rows: Sequence[RolloutsComparisonRow],
    matched: Matched,
    coordinates: Coordinates,
) -> Iterator[str]:
    """Say what limits the numbers."""
    (a, b), kept = pair.names, {row.name for row in rows}
    if coordinates == "different":
        named = [
            f"{each.shape[2]} coordinates" if each.scores_of is None else each.scores_of
            for each in pair.rollouts
        ]
        yield (
            f"{a} has scores of {named[0]}, {b} of {named[1]}: variances and signals of different parameters "
            "are not compared; each policy's noise scale is its own."
        )
    elif coordinates == "assumed":
        yield (
            f"The scores of {a} and {b} are taken to be gradients with respect to the same parameters: "
            "scores_of does not say."
        )
    few = [
        (name, each)
        for name, of, unit in zip(pair.names, found, pair.unit, strict=True)
        if (
            each := _check.few(of.units, unit)
            or few_decide(
                ((row.name, row.variance_units, np.nan) for row in of if row.name in kept),
                of.units,
                unit,
            )
        )
    ]
    for name, each in few:
        yield f"Of {name}: {each}."
    if not few:
        unit = pair.unit[0] if pair.unit[0] == pair.unit[1] else "unit"
        of_ratios = few_decide(((row.name, np.inf, row.ratio_units) for row in rows), matched.units, unit)
        if of_ratios is not None:
            yield f"{of_ratios[0].upper()}{of_ratios[1:]}."
    sizes = pair.sizes
    if not 0.99 < sizes[1] / sizes[0] < 1.01:
        yield (
            f"A group holds {sizes[0]:.3g} rollouts in {a} and {sizes[1]:.3g} in {b}: the variance of a "
            "rollout depends on that, so part of a ratio may be the shape of the batch."
        )
    if not matched.shared and (copies := _copies(pair)):
        yield f"{copies:,} rollouts of {b} are in {a} as well, so the two are not independent."
    wide = [
        row
        for row in rows
        if row.sketch_stderr and row.sketch_stderr > 0.5 * row.ratio.stderr / row.ratio.value
    ]
    if wide:
        errors = ", ".join(f"{row.name} {row.sketch_stderr:.0%}" for row in wide)
        yield (
            "The sketches add standard errors to the ratios of variances, of more than half of those of "
            f"sampling, which the intervals leave out: {errors}. Larger sketches narrow this."
        )


def _copies(pair: _Pair) -> int:
    """Count the rollouts of B that are in A: if more than a few, and neither set repeats any, no chance."""
    a, b = (list(_keys(each)) for each in pair.rollouts)
    if len(set(a)) < len(a) or len(set(b)) < len(b):
        return 0
    both = len(set(a) & set(b))
    return both if both > _CHANCE else 0


def _keys(rollouts: Rollouts) -> Iterator[tuple[Hashable, ...]]:
    ends = [np.ascontiguousarray(each) for each in at_the_ends(rollouts)]
    for n, count in enumerate(rollouts.token_counts.tolist()):
        parts = (each[n].tobytes() for each in ends)
        yield (count, _rewards_key(rollouts, n), *parts) if count else (n, id(rollouts))


def _rewards_key(rollouts: Rollouts, n: int) -> bytes:
    rewards = rollouts.rewards
    of_one: bytes = (rewards[n] if rewards.ndim == 1 else rewards[n][rollouts.live[n]]).tobytes()
    return of_one
