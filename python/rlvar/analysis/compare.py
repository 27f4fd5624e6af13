"""Estimators of the policy gradient side by side, on the same rollouts.

An estimator is a choice of weights: g[n] = sum_t w[n,t] S[n,t]. Everything here is computed from
these gradients (N, D), which one pass over the scores gives for all estimators at once.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rlvar import _check
from rlvar._types import Aggregation, Importance
from rlvar.analysis.blocks import BlockRow, Metric, table_of_blocks
from rlvar.analysis.deciders import decided, few_decide
from rlvar.analysis.reward_scale import reward_scaled
from rlvar.analysis.sampling import FILTER_PROOF, filtered_groups
from rlvar.rollouts import Rollouts
from rlvar.stats import moments
from rlvar.stats.batch_noise import BatchNoise, batch_noise
from rlvar.stats.estimate import Estimate, Moment, Result, bounded
from rlvar.stats.inference import Inference, infer
from rlvar.stats.intervals import Null
from rlvar.stats.resampling import Bootstrap
from rlvar.terms.passes import Gradients
from rlvar.weights.batch import Batch
from rlvar.weights.estimators import Estimator, EstimatorLike, resolve
from rlvar.weights.importance import ImportanceRatios
from rlvar.weights.refit import refit_of
from rlvar.weights.source import estimator_of

_OF_SEQUENCES = (
    "One step holds all tokens of a rollout here, so multi-step is single-step: what reward-to-go would do "
    "token by token takes the scores of tokens."
)


@dataclass(frozen=True)
class ComparisonRow(Result):
    r"""One estimator in a `Comparison`.

    Attributes
    ----------
    name : str
        Name of the estimator.
    variance : Estimate
        U times the variance of the batch's gradient, the mean over its rollouts, summed over
        coordinates, for U independent units: the variance of one rollout's gradient estimate or, with
        groups of one size, of the mean of one group's rollouts.
    ratio : Estimate
        Variance over that of the reference: for two unbiased estimators that of the rollouts needed for the
        same precision.
    signal : Estimate
        Unbiased estimate of the squared norm of the mean gradient; it can be negative. Unbiased estimators
        with the same importance ratios have one mean, and so one signal for all: that of the quietest of
        them, by two standard errors. What is a number times one of them has the square of that number times
        this signal.
    noise_scale : Estimate
        Variance over signal: the number of rollouts (groups) in a batch at which the two are equal
        (McCandlish et al. 2018). ``high`` is infinite where the signal's interval reaches zero.
    noise_scale_ratio : Estimate
        Noise scale over that of the reference: what to go by where means differ. With a known `factor` it is
        ``ratio / factor**2``, and 1 without doubt for gradients that are proportional to the reference's.
        Otherwise undefined, from 0 to infinity, where a signal is not resolved.
    alignment : Estimate
        Cosine between its mean gradient and the reference's: 1 with a known `factor`, or -1 if that is
        negative. Otherwise without the bias of a plug-in, and 1 where that passes 1 by chance. From -1 to 1
        where a signal is not resolved.
    variance_units, ratio_units : float
        How many units (rollouts, or groups) decide the variance and the ratio: :math:`(\sum c)^2 / \sum c^2`
        over the squares c of what each unit changes in it. With few of them an interval may cover far too
        rarely, and the `notes` say so; with many it may still miss: a tail that no rollout has shown leaves
        no trace. NaN where nothing changes, as in the ratio of the reference to itself.
    factor : float or None
        Its mean gradient over that of the reference, where that is known: 1 for two unbiased estimators with
        the same importance ratios and for the same gradients; for gradients that are proportional to
        rounding, or that are so to those of an unbiased estimator compared, their factor, as 1 - 1/K for
        "dr-grpo" beside "rloo" with groups of K.
    unbiased : bool or None
        Whether its mean is the policy gradient by theory, but for a common factor: by its weights (see
        `estimators`), ratios and aggregation. None for weights of the caller's own.
    importance : ImportanceRatios or None
        The ratios in its weights; None if the rollouts do not carry `behavior_logp`.
    clipped : float or None
        Share of the live steps, each by its tokens, that `clip` leaves without gradient; None without it.
    reward_scaled_ratio : Estimate or None
        Beside an unbiased reference, of an estimator that scales the advantages of groups and so is not, such
        as "grpo": ``ratio`` over the square of how much longer its mean gradient is by the rewards. It needs
        no resolved signal, but that each prompt's gradient along the whole goes as the variance of its
        rewards (see `rlvar.analysis.reward_scale`). None where it is not defined.
    reward_scaled_bracket : tuple of float or None
        Where the ratio lies whatever the model, if no prompt's gradient opposes the whole; for rewards of two
        values and groups of one size.
    differs : bool
        Whether the data deny that its mean is that of the reference, at 1 in 1000. Where theory says that it
        is (both are unbiased), its assumptions fail: rewards that depend on later actions, rollouts of
        another policy or kept by their outcome, discounted returns-to-go.
    identical : bool
        Whether its gradients are those of the reference to the bit, as for single-step and multi-step with
        one terminal reward.
    batch_noise : BatchNoise
        What two batches of this size differ by in norm and direction, by chance alone; ``batch_noise.at(64)``
        for batches of 64 units.
    blocks : dict of BlockRow
        Its blocks of coordinates by their labels, if there are any.
    """

    _also = ("units_to_resolve",)
    name: str
    variance: Estimate
    ratio: Estimate
    signal: Estimate
    noise_scale: Estimate
    noise_scale_ratio: Estimate
    alignment: Estimate
    variance_units: float
    ratio_units: float
    factor: float | None
    unbiased: bool | None
    importance: ImportanceRatios | None
    clipped: float | None
    reward_scaled_ratio: Estimate | None
    reward_scaled_bracket: tuple[float, float] | None
    differs: bool
    identical: bool
    batch_noise: BatchNoise
    blocks: dict[str | int, BlockRow]
    # Variance with each unit left out, for what compares it with other rows.
    _variances: Moment = field(repr=False, compare=False)
    _null: Null = field(repr=False, compare=False)

    @property
    def units_to_resolve(self) -> Estimate:
        """Return the number of units that would just resolve a signal of this size.

        An estimate that excludes 0 must pass a margin that goes as 1/U, and a little faster where units are
        few. Half of the batches of that size would resolve it. The interval comes from that of the signal: if
        it is as large as its upper end, ``low`` units would, and ``high`` is infinite if it is not resolved.
        So is the value if the estimate is not positive.
        """
        signal = self.signal
        value, low, high = (
            self._null.units_for(size, signal.confidence) for size in (signal.value, signal.high, signal.low)
        )
        return Estimate(value, math.nan, low, high, signal.confidence, signal.resolved)


@dataclass(frozen=True, repr=False)
class Comparison(Result):
    """Estimators side by side: iterate over the rows, or index by an estimator's name.

    Attributes
    ----------
    rows : tuple of ComparisonRow
        One row an estimator, in the order asked for.
    reference, confidence, aggregation, interval
        As asked for; the interval as "jackknife" or "bootstrap".
    units : int
        Number of independent units (rollouts, or groups if given) behind the intervals.
    grouped : bool
        Whether the units are groups.
    reference_unbiased : bool or None
        `ComparisonRow.unbiased` of the reference.
    notes : tuple of str
        What limits the numbers: that the units are few, that few of them decide some variances or ratios, or
        that "multi" is "single" because one step holds all tokens of a rollout.
    of_sequences : bool
        Whether one step holds all tokens of each rollout, by the `tokens` of the rollouts.
    scaled : bool
        Whether coordinates are scaled.
    """

    _also = ("notes",)
    rows: tuple[ComparisonRow, ...]
    reference: str
    confidence: float
    units: int
    grouped: bool
    aggregation: str
    interval: str
    reference_unbiased: bool | None
    scaled: bool
    of_sequences: bool
    _reference_variances: Moment = field(repr=False, compare=False)

    @property
    def notes(self) -> tuple[str, ...]:
        few = _check.few(self.units, grouped=self.grouped)
        if few is None:
            # What does not vary at all is decided by none.
            behind = (
                (row.name, row.variance_units if row.variance.value else 0.0, row.ratio_units) for row in self
            )
            few = few_decide(behind, self.units, grouped=self.grouped)
        notes = () if few is None else (f"{few[0].upper()}{few[1:]}.",)
        apart = self.of_sequences and any(row.name.partition(":")[0] == "multi" for row in self)
        return (*notes, _OF_SEQUENCES) if apart else notes

    def __getitem__(self, name: str) -> ComparisonRow:
        for row in self.rows:
            if row.name == name:
                return row
        raise KeyError(f"{name!r} was not compared; these were: {', '.join(row.name for row in self)}")

    def __iter__(self) -> Iterator[ComparisonRow]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __contains__(self, name: object) -> bool:
        return any(row.name == name for row in self.rows)

    def same_mean(self, row: ComparisonRow) -> bool:
        """Whether an estimator has the mean of the reference by theory, and the data do not deny it."""
        return row.identical or bool(row.unbiased and self.reference_unbiased and not row.differs)

    def only(self, names: Sequence[str]) -> Comparison:
        """Return some of the rows, in the order of `names`."""
        return replace(self, rows=tuple(self[name] for name in names))

    def __repr__(self) -> str:
        return "\n".join([side_by_side(self), *(textwrap.fill(each, 110) for each in self.notes)])


def side_by_side(comparison: Comparison) -> str:
    """Return the tables, without notes."""
    unit = "a group's mean" if comparison.grouped else "one rollout"
    tokens = "a group's tokens" if comparison.grouped else "one rollout's tokens"
    what = {"sum": unit, "sequence-mean": f"{unit}, over lengths", "token-mean": tokens}
    head = (
        "estimator",
        f"variance of {what[comparison.aggregation]}{', scaled' if comparison.scaled else ''}",
        f"ratio to {comparison.reference}",
        "signal |E g|^2",
        "noise scale",
        "decided by",
    )
    rows = [
        (
            row.name,
            str(row.variance),
            str(row.ratio),
            str(row.signal),
            bounded(row.noise_scale),
            decided(row.variance_units, row.ratio_units, comparison.units),
        )
        for row in comparison
    ]
    text = _table([head, *rows])
    if not all(comparison.same_mean(row) for row in comparison):
        # Variances alone do not compare then: the quietest is the one of the lowest noise scale.
        # One that is negative or undefined, for want of a signal, comes last.
        scales = {row.name: row.noise_scale.value for row in comparison}
        ranked = sorted(comparison, key=lambda row: scales[row.name] if scales[row.name] >= 0 else math.inf)
        columns = (
            "by noise scale",
            f"its ratio to {comparison.reference}",
            f"alignment with {comparison.reference}",
        )
        lines = [(row.name, bounded(row.noise_scale_ratio), bounded(row.alignment)) for row in ranked]
        text += "\nThe estimators may have different means; ranked by noise scale:\n" + _table(
            [columns, *lines]
        )
    if blocks := {row.name: row.blocks for row in comparison if row.blocks}:
        text += "\nBlocks of coordinates, the noisiest first\n"
        text += _table(table_of_blocks(blocks, comparison.reference))
    ratios = dict.fromkeys(str(row.importance) for row in comparison if row.importance is not None)
    clipped = [f"{row.name} {row.clipped:.1%}" for row in comparison if row.clipped is not None]
    shares = [f"share of the steps clipped, which biases the mean: {', '.join(clipped)}"] if clipped else []
    units = "groups" if comparison.grouped else "rollouts"
    legend = f"decided by: how many {units} are behind the variance, and behind the ratio; "
    legend += "many are no proof of light tails"
    return "\n".join([text, legend, *ratios, *shares])


def compare(
    rollouts: Rollouts,
    estimators: EstimatorLike | Sequence[EstimatorLike] = ("single", "multi"),
    *,
    reference: str | Estimator = "single",
    importance: Importance | Sequence[Importance] = "none",
    truncate: float | None = None,
    clip: float | tuple[float, float] | None = None,
    aggregation: Aggregation = "sum",
    scale: ArrayLike | None = None,
    blocks: Sequence[str | int] | NDArray[Any] | None = None,
    interval: Literal["jackknife"] | Bootstrap = "jackknife",
    confidence: float = 0.95,
    num_threads: int | None = None,
) -> Comparison:
    r"""Compare estimators of the policy gradient on the same rollouts.

    Parameters
    ----------
    rollouts : Rollouts
        Without groups they are independent; with groups only the groups are.
    estimators : sequence, default ("single", "multi")
        Names out of `estimators`, an `Estimator` with parameters (``rlvar.estimator("gae", lam=0.9)``), or
        pairs ``("mine", weights)`` with weights of your own, (N,) or (N, T), or a function from the rollouts
        to them; all of them mix.
    reference : str or Estimator, default "single"
        The estimator whose variance is the denominator of each ratio.
    importance : {"none", "token", "sequence", "geometric"} or a sequence of them, default "none"
        Ratios that multiply the weights, as in `importance_ratios`, for rollouts with `logp` and
        `behavior_logp`. With a sequence there is a row for each estimator and ratio, named as in
        "multi:token"; the reference is then such a name, or an estimator: with the first ratio that
        leaves its mean alone, if any does.
    truncate : float, optional
        Largest importance ratio.
    clip : float or (float, float), optional
        PPO's clip: how far below and above 1 a ratio may lie, one number for both. A step has no gradient
        where its weight is positive and its ratio above 1 + clip[1], or negative and below 1 - clip[0]. With
        ``importance="token"`` it is that of PPO and GRPO, with "geometric" and the aggregation
        "sequence-mean" that of GSPO. Each row has its share of clipped steps; a clip biases the mean.
    aggregation : {"sum", "sequence-mean", "token-mean"}, default "sum"
        How gradients are divided by lengths. "sum": not; the mean over rollouts of their sums.
        "sequence-mean": each rollout's sum over its number of live steps. "token-mean": the sum over
        the batch over its number of live steps.
    scale : array_like, shape (D,), optional
        What each coordinate's gradient is multiplied by before its moments are taken: what the optimiser
        does to it. For Adam ``1 / (np.sqrt(v) + eps)`` with its second moments v of a step before these
        rollouts. The coordinates of the scores must then be those of the optimiser, not a sketch of them.
    blocks : sequence of str or int, shape (D,), optional
        The block (layer, module) of each coordinate: every row then also has the numbers of each block.
    interval : "jackknife" or Bootstrap, default "jackknife"
        Where the intervals come from: ``rlvar.Bootstrap(2000, seed=1)`` draws whole units.
    confidence : float, default 0.95
        Nominal coverage of the intervals.
    num_threads : int, optional
        Threads to use, by default what ``OMP_NUM_THREADS`` or the machine says.

    Returns
    -------
    Comparison

    Raises
    ------
    ValueError, TypeError
        For an unknown estimator or one whose needs the rollouts do not meet, weights of a wrong
        shape or not finite, a function of the caller's that raises (the estimator is named, the error
        is the cause), scores that are not finite, fewer than two groups, ratios of rollouts without
        `logp` and `behavior_logp` or beyond the range of float64, or a token mean without tokens. Fewer than
        ten units are warned of.

    Notes
    -----
    The unit u is the rollout or, with groups, the group, so that the dependence of its rollouts is inside.
    The batch's gradient is a ratio of sums, :math:`m = \sum_u g_u / \sum_u L_u`, with the gradients of each
    unit summed and :math:`L_u` its number of rollouts, or of tokens. By the delta method its variance is that
    of the mean over U units of :math:`y_u = (g_u - L_u m) / \bar L`, and

    .. math::

        \hat V = \frac{1}{U - 1} \sum_u |y_u|^2, \qquad
        \widehat{|E m|^2} = |m|^2 - \hat V / U .

    Intervals are the jackknife's, paired and on the log scale for ratios, a test's for the signal, Fieller's
    for the noise scale, or the bootstrap's: O(resamples U min(U, D)) for each estimator.
    ``docs/statistics.md`` says why, how often they cover, and which estimators and aggregations leave the
    mean alone. Baselines that the estimators fit, and means over the whole batch, tie all units together;
    that effect, of order 1/U, is left out.

    Examples
    --------
    >>> import rlvar
    >>> result = rlvar.compare(rlvar.datasets.cartpole())
    >>> result["multi"].ratio.high < 1  # reward-to-go is quieter, beyond doubt
    True
    """
    kinds = _check.names("importance", importance)
    batches = {
        kind: Batch.of(
            rollouts,
            importance=kind,  # type: ignore[arg-type]
            truncate=None if kind == "none" and len(kinds) > 1 else truncate,
            clip=None if kind == "none" and len(kinds) > 1 else clip,
            aggregation=aggregation,
            threads=num_threads,
        )
        for kind in kinds
    }
    metric = Metric.of(scale, blocks, batches[kinds[0]].rollouts.shape[2])
    result = compare_batches(batches, estimators, reference, aggregation, interval, confidence, metric)
    _check.warn_few(result.units, grouped=result.grouped)
    return result


@_check.quiet
def compare_batches(
    batches: Mapping[str, Batch],
    estimators: EstimatorLike | Sequence[EstimatorLike],
    reference: str | Estimator,
    aggregation: Aggregation,
    interval: Literal["jackknife"] | Bootstrap,
    confidence: float,
    metric: Metric | None = None,
) -> Comparison:
    """Compare estimators on batches of the same rollouts, one for each kind of importance ratio."""
    kinds, any_batch = list(batches), next(iter(batches.values()))
    rollouts, level = any_batch.rollouts, _check.confidence(confidence)
    bootstrap = interval if isinstance(interval, Bootstrap) else None
    if bootstrap is None and interval != "jackknife":
        raise ValueError(f"interval must be 'jackknife' or an rlvar.Bootstrap, got {interval!r}")
    units = _check.units(rollouts.groups, len(rollouts))
    # Beside an estimator whose mean is biased by its ratios the others would look at fault.
    first = next((kind for kind in kinds if batches[kind].unbiased), kinds[0])
    asked, label, rows = _rows(resolve(estimators), kinds, reference, first)
    gradients: dict[str, Gradients] = {}
    for kind, batch in batches.items():
        of_kind = {row: each for row, (each, own) in rows.items() if own == kind}
        weights = {each.name: batch.weights(each) for each in of_kind.values()}
        gradients.update(zip(of_kind, batch.gradients(weights), strict=True))
    # The batch's gradient is made of sums over units, to be divided by rollouts or tokens.
    sizes = units.sizes.astype(np.float64)
    if aggregation == "token-mean":
        sizes = units.sums(rollouts.token_counts.astype(np.float64))
        if not sizes.any():
            raise ValueError("aggregation = 'token-mean' must have a live step, got none")
    summed = units if len(units) < len(rollouts) else None
    metric = Metric() if metric is None else metric
    samples = []
    for row, g in gradients.items():
        each, kind = rows[row]
        refit = None if g.constant is None else refit_of(batches[kind], each, units)
        samples.append(metric.sample(g, sizes, summed, refit))
    number = list(gradients).index(label)
    unbiased = {
        row: None if each.unbiased is None else each.unbiased and batches[kind].unbiased
        for row, (each, kind) in rows.items()
    }
    if filtered_groups(any_batch):  # what is common to groups is then in the mean
        kept = {row: each.base in FILTER_PROOF for row, (each, _) in rows.items()}
        unbiased = {row: known and kept[row] for row, known in unbiased.items()}
    # Unbiased estimators with the same importance ratios have one mean.
    classes = [rows[row][1] if unbiased[row] else None for row in gradients]

    def inferred(samples: list[moments.Sample]) -> list[Inference]:
        return infer(samples, number, level, bootstrap, any_batch.threads, classes)

    found = dict(zip(gradients, inferred(samples), strict=True))
    if metric.scale is not None and not all(np.isfinite(each.variance.value) for each in found.values()):
        raise ValueError("scale makes squares of the gradients that are beyond the range of float64")
    blocks = metric.by_block(gradients, sizes, summed, inferred)
    made, grouped = [], rollouts.groups is not None
    for row in asked:
        of_row = found[row]._asdict()
        each, kind = rows[row]
        scaled = None
        if unbiased[label] and not unbiased[row] and of_row["factor"] is None:
            variances = of_row["variances"], found[label].variances
            scaled = reward_scaled(batches[kind], each, of_row["ratio"], *variances)
        made.append(
            ComparisonRow(
                name=row,
                unbiased=unbiased[row],
                importance=batches[kind].importance,
                clipped=batches[kind].clipped(each),
                batch_noise=batch_noise(
                    found[row].noise_scale, of_row.pop("dimension"), of_row.pop("along"), len(units), grouped
                ),
                blocks=blocks[row],
                reward_scaled_ratio=None if scaled is None else scaled.ratio,
                reward_scaled_bracket=None if scaled is None else scaled.bracket,
                _variances=of_row.pop("variances"),
                _null=of_row.pop("null"),
                **of_row,
            )
        )
    return Comparison(
        rows=tuple(made),
        reference=label,
        confidence=level,
        units=len(units),
        grouped=grouped,
        aggregation=aggregation,
        interval="jackknife" if bootstrap is None else "bootstrap",
        reference_unbiased=unbiased[label],
        scaled=metric.scale is not None,
        of_sequences=any_batch.of_sequences,
        _reference_variances=found[label].variances,
    )


def _rows(
    estimators: Sequence[Estimator],
    kinds: Sequence[str],
    reference: str | Estimator,
    first: str,
) -> tuple[list[str], str, dict[str, tuple[Estimator, str]]]:
    """Return the labels asked for, the reference's, and what they stand for: estimator, kind of ratio.

    A label is the estimator's name alone where there is one kind. The reference may be a label, or an
    estimator: then with the kind `first`.
    """

    def label(name: str, kind: str) -> str:
        return name if len(kinds) == 1 else f"{name}:{kind}"

    rows = {label(each.name, kind): (each, kind) for each in estimators for kind in kinds}
    if isinstance(reference, str) and reference in rows:
        return list(rows), reference, rows
    named = {each.name: each for each in estimators}
    other, kind = None, ""
    if isinstance(reference, str):
        name, _, kind = reference.partition(":")
        other, reference = named.get(reference, named.get(name)), name
    other = estimator_of(reference, "reference") if other is None else other
    kind = kind if kind in kinds else first
    return list(rows), label(other.name, kind), {**rows, label(other.name, kind): (other, kind)}


def _table(lines: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )
