"""The answer of a comparison: a row for each estimator, the table, and what limits its numbers."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from rlvar import _check
from rlvar.analysis.blocks import BlockRow, table_of_blocks
from rlvar.analysis.deciders import decided, few_decide
from rlvar.analysis.measured import part_note, part_of, scores_line, sketch_line, sketch_note
from rlvar.analysis.ratio_bias import NEGLIGIBLE, small
from rlvar.analysis.rows import ByName
from rlvar.analysis.table import estimator_columns, estimators_html, ranked
from rlvar.drawing.canvas import canvas
from rlvar.stats.batch_noise import BatchNoise, batch_noise
from rlvar.stats.estimate import Estimate, Moment, Result, bounded
from rlvar.stats.frame import frame
from rlvar.stats.inference import Inference
from rlvar.stats.intervals import Null
from rlvar.stats.shown import aligned, html_lines, printable
from rlvar.stats.sketch_noise import SketchNoise
from rlvar.weights.importance import ImportanceRatios

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Plotted = Literal["ratio", "noise_scale_ratio", "noise_scale", "variance"]

_NOT_CROSSED = (
    "Only each estimator's own inner products were given: without those between two estimators, their "
    "alignment is not known, nor whether their means differ."
)

_OF_SEQUENCES = (
    "Each rollout is a single step here, so multi-step is single-step: the effect of reward-to-go, token by "
    "token, needs token scores."
)

# What a row can be drawn by, and the label of its axis.
_PLOTTED = {
    "ratio": "variance, ratio to {0.reference}",
    "noise_scale_ratio": "noise scale, ratio to {0.reference}",
    "noise_scale": "noise scale ({0.unit}s)",
    "variance": "variance of one {0.unit}",
}

# Of a row in a data frame, beside what all tables of estimators have.
_IN_FRAME = ("factor", "unbiased", "identical", "variance_units", "ratio_units")

# Trainers have a discount of their own, and it decides the variance.
_GAE = (
    "The row gae has gamma = 1 and lambda = 0.95. If your trainer uses others, compare "
    'rlvar.estimator("gae", gamma=..., lam=...).'
)


@dataclass(frozen=True, kw_only=True)
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
        Variance over that of the reference: for two unbiased estimators, how many times as many rollouts it
        needs for the same precision.
    signal : Estimate
        Unbiased estimate of the squared norm of the mean gradient; it can be negative. Unbiased estimators
        with the same importance ratios have one mean, and so one signal: that of the quietest of them, by
        two standard errors. An estimator that is c times one of them has c^2 times this signal.
    noise_scale : Estimate
        Variance over signal: the number of rollouts (groups) in a batch at which the two are equal
        (McCandlish et al. 2018). ``high`` is infinite where the signal's interval reaches zero.
    noise_scale_ratio : Estimate
        Noise scale over that of the reference: the number to compare where means differ. With a known
        `factor` it is ``ratio / factor**2``, and exactly 1 for gradients proportional to the reference's.
        Otherwise undefined, from 0 to infinity, where a signal is not resolved.
    alignment : Estimate
        Cosine between its mean gradient and the reference's: 1 with a known `factor`, or -1 if that is
        negative. Otherwise without the bias of a plug-in, and 1 where that passes 1 by chance. From -1 to 1
        where a signal is not resolved.
    variance_units, ratio_units : float
        How many units (rollouts, or groups) decide the variance and the ratio: :math:`(\sum c)^2 / \sum c^2`
        over the squares c of what each unit changes in it. With few of them an interval may cover far too
        rarely, and the `notes` say so; with many it may still miss, because a heavy tail that no rollout has
        shown leaves no trace. NaN where nothing changes, as in the ratio of the reference to itself.
    factor : float or None
        Its mean gradient over that of the reference, where that is known: 1 for two unbiased estimators with
        the same importance ratios and for the same gradients; for gradients that are proportional to
        rounding, or that are so to those of an unbiased estimator compared, their factor, as 1 - 1/K for
        "dr-grpo" beside "rloo" with groups of K.
    unbiased : bool or None
        Whether by theory its mean is the policy gradient, up to a common factor: by its weights (see
        `estimators`), ratios and aggregation. None for weights of the caller's own.
    importance : ImportanceRatios or None
        The ratios in its weights; None if the rollouts have no `behavior_logp`.
    bias : Estimate or None
        Where ratios are not those of whole sequences, or there are none, though another policy sampled: the
        squared bias of the mean gradient over V / U, the squared standard error, by the rollouts themselves.
        One whose interval ends below 0.05 counts as none. None where the mean is unbiased as it is, or biased
        by more than its ratios, or where these rollouts do not tell (see `rlvar.analysis.ratio_bias`).
    clipped : float or None
        Share of the live steps, each by its tokens, that `clip` leaves without gradient; None without it.
    reward_scaled_ratio : Estimate or None
        Beside an unbiased reference, of an estimator that scales the advantages of groups and so is not, such
        as "grpo": ``ratio`` over the square of how much longer its mean gradient is by the rewards. It needs
        no resolved signal, but that each prompt's gradient along the whole goes as the variance of its
        rewards (see `rlvar.analysis.reward_scale`). None where it is not defined.
    reward_scaled_bracket : tuple of float or None
        Where the ratio lies without that model, if no prompt's gradient opposes the whole; for rewards of two
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
    sketch : SketchNoise or None
        What the random directions of sketched scores add to the uncertainty of sampling; the intervals cover
        sampling alone.
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
    importance: ImportanceRatios | None = None
    bias: Estimate | None = None
    clipped: float | None = None
    reward_scaled_ratio: Estimate | None = None
    reward_scaled_bracket: tuple[float, float] | None = None
    differs: bool
    identical: bool
    batch_noise: BatchNoise
    blocks: dict[str | int, BlockRow] = field(default_factory=dict)
    sketch: SketchNoise | None = None
    # Variance and signal with each unit left out, for what compares them with others.
    _variances: Moment = field(repr=False, compare=False)
    _signals: Moment = field(repr=False, compare=False)
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
class Comparison(ByName, Result):
    """Estimators side by side: iterate over the rows, or index by an estimator's name.

    Attributes
    ----------
    rows : tuple of ComparisonRow
        One row an estimator, in the order asked for.
    reference, confidence, aggregation, interval
        As asked for; the interval as "jackknife" or "bootstrap". There is no aggregation of gradients already
        at hand.
    units : int
        Number of independent units (rollouts, or groups if given) behind the intervals.
    unit : str
        What a unit is: "rollout", "group" or, of gradients already at hand, "unit".
    grouped : bool
        Whether the units are groups.
    reference_unbiased : bool or None
        `ComparisonRow.unbiased` of the reference.
    notes : tuple of str
        What limits the numbers: that the units are few, or that few of them decide some variances or ratios;
        that "multi" is "single" because each rollout is a single step; which gamma and lambda "gae" has if
        none were given; that the scores are of a part of the parameters, or a small sketch.
    of_sequences : bool
        Whether one step has all tokens of each rollout, by the `tokens` of the rollouts.
    scaled : bool
        Whether coordinates are scaled.
    scores_of : str or None
        What the scores are gradients with respect to.
    crossed : bool
        Whether inner products of the gradients of two estimators are known: without them no alignment is.
    """

    _also = ("grouped", "notes")
    rows: tuple[ComparisonRow, ...]
    reference: str
    confidence: float
    units: int
    unit: str
    aggregation: str | None
    interval: str
    reference_unbiased: bool | None
    scaled: bool
    scores_of: str | None
    of_sequences: bool
    crossed: bool
    _reference_variances: Moment = field(repr=False, compare=False)

    @classmethod
    def of(
        cls,
        found: Mapping[str, Inference],
        asked: Sequence[str],
        unbiased: Mapping[str, bool | None],
        others: Mapping[str, Mapping[str, Any]],
        *,
        reference: str,
        units: int,
        unit: str,
        **options: Any,
    ) -> Comparison:
        """Make rows of what was inferred of some names, the reference among them, and what else is known."""
        rows = []
        for name in asked:
            of_row = found[name]._asdict()
            noise = of_row.pop("dimension"), of_row.pop("along"), units, unit
            rows.append(
                ComparisonRow(
                    name=name,
                    unbiased=unbiased[name],
                    batch_noise=batch_noise(found[name].noise_scale, *noise),
                    _variances=of_row.pop("variances"),
                    _signals=of_row.pop("signals"),
                    _null=of_row.pop("null"),
                    **of_row,
                    **others.get(name, {}),
                )
            )
        return cls(
            rows=tuple(rows),
            reference=reference,
            units=units,
            unit=unit,
            confidence=found[reference].ratio.confidence,
            reference_unbiased=unbiased[reference],
            _reference_variances=found[reference].variances,
            **options,
        )

    @property
    def grouped(self) -> bool:
        return self.unit == "group"

    @property
    def notes(self) -> tuple[str, ...]:
        few = _check.few(self.units, self.unit)
        if few is None:
            # What does not vary at all is decided by none.
            behind = (
                (row.name, row.variance_units if row.variance.value else 0.0, row.ratio_units) for row in self
            )
            few = few_decide(behind, self.units, self.unit)
        part = part_of(self.scores_of)
        named = {row.name.partition(":")[0] for row in self}
        found = (
            None if few is None else f"{few[0].upper()}{few[1:]}.",
            _OF_SEQUENCES if self.of_sequences and "multi" in named else None,
            _GAE if "gae" in named else None,
            None if part is None else part_note(part),
            None if self.crossed else _NOT_CROSSED,
            sketch_note((row.name, _sketched(row)) for row in self if row.sketch is not None),
        )
        return tuple(each for each in found if each is not None)

    def same_mean(self, row: ComparisonRow) -> bool:
        """Whether an estimator has the mean of the reference by theory, and the data do not deny it."""
        return row.identical or bool(row.unbiased and self.reference_unbiased and not row.differs)

    @property
    def policies_agree(self) -> bool:
        """Whether it does not matter here that another policy sampled: to no row, by its `bias`."""
        ratios = [row.importance for row in self if row.importance is not None]
        return all(each.close for each in ratios) or all(small(row.bias) for row in self)

    @property
    def bias_share(self) -> float:
        """How much of the standard error the bias of any row is at most; NaN where it is not known."""
        most = [math.nan if row.bias is None else max(row.bias.high, 0.0) for row in self]
        return float(np.sqrt(np.max(most)))

    def only(self, names: Sequence[str]) -> Comparison:
        """Return some of the rows, in the order of `names`."""
        return replace(self, rows=tuple(self[name] for name in names))

    @property
    def ranked(self) -> tuple[ComparisonRow, ...]:
        """The rows, the quietest first by `noise_scale_ratio`; where that is not resolved, last."""
        return tuple(ranked(self))

    def plot(self, ax: Axes | None = None, *, of: Plotted | None = None) -> Axes:
        """Draw a dot and an interval for each estimator, the quietest on top.

        Parameters
        ----------
        ax : matplotlib Axes, optional
            Where to draw; by default on a new figure.
        of : {"ratio", "noise_scale_ratio", "noise_scale", "variance"}, optional
            What is drawn: by default the ratio of variances, or of noise scales if means may differ.

        Returns
        -------
        matplotlib Axes

        Raises
        ------
        ImportError
            Without matplotlib: ``pip install 'rlvar[report]'``.
        """
        same = all(row.factor == 1.0 for row in self)
        of = _check.choice("of", of or ("ratio" if same else "noise_scale_ratio"), _PLOTTED)
        rows = self.ranked
        axes, palette = canvas(ax, rows=len(rows))
        from rlvar.drawing.intervals import intervals

        intervals(
            axes,
            [row.name for row in rows],
            [getattr(row, of) for row in rows],
            xlabel=printable(_PLOTTED[of].format(self)),
            line=1.0 if "ratio" in of else None,
            signals="noise_scale" in of,
            palette=palette,
        )
        return axes

    def to_frame(self) -> Any:
        """Return a data frame with a row for each estimator: pandas', or polars' where that alone is there.

        Of each `Estimate` there are three columns, as "ratio", "ratio_low" and "ratio_high".

        Raises
        ------
        ImportError
            Without pandas and polars.
        """
        return frame(estimator_columns(self.rows, *_IN_FRAME))

    def html_table(self) -> str:
        """Return the table of a notebook, without notes."""
        level = f"{self.confidence:.0%} intervals ({self.interval})"
        basis = f"Quietest first, with {level} over {self.units:,} {self.unit}s."
        return estimators_html(self.rows, self.reference, self.unit) + html_lines([basis])

    def _scores_line(self) -> str | None:
        return scores_line(self.scores_of, next((row.sketch.coordinates for row in self if row.sketch), None))

    def __repr__(self) -> str:
        of = self._scores_line()
        notes = (textwrap.fill(printable(each), 110) for each in self.notes)
        return "\n".join([*([] if of is None else [of]), side_by_side(self), *notes])

    def _repr_html_(self) -> str:
        return self.html_table() + html_lines(filter(None, [self._scores_line(), *self.notes]))


def _of_ratios(row: ComparisonRow) -> str:
    if row.importance is None or not small(row.bias):
        return str(row.importance)
    return (
        f"{row.importance.importance} importance ratios: the policies are so close that the bias is below "
        f"{math.sqrt(NEGLIGIBLE):.0%} of the standard error"
    )


def side_by_side(comparison: Comparison) -> str:
    """Return the tables, without notes."""
    of_unit = {"group": "a group's mean", "rollout": "one rollout", "unit": "one unit"}[comparison.unit]
    tokens = "a group's tokens" if comparison.grouped else "one rollout's tokens"
    what: dict[str | None, str] = {"sequence-mean": f"{of_unit}, over lengths", "token-mean": tokens}
    head = (
        "estimator",
        f"variance of {what.get(comparison.aggregation, of_unit)}{', scaled' * comparison.scaled}",
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
    text = "\n".join(aligned([head, *rows]))
    if not all(comparison.same_mean(row) for row in comparison):
        # Variances alone do not compare then: the quietest is the one of the lowest noise scale.
        columns = (
            "by noise scale",
            f"its ratio to {comparison.reference}",
            f"alignment with {comparison.reference}",
        )
        cosines = {row.name: bounded(row.alignment) for row in comparison.ranked}
        if not comparison.crossed:
            cosines.update((row.name, "not known") for row in comparison if row.factor is None)
        lines = [(row.name, bounded(row.noise_scale_ratio), cosines[row.name]) for row in comparison.ranked]
        text += "\nThe estimators may have different means; ranked by noise scale:\n"
        text += "\n".join(aligned([columns, *lines]))
    if blocks := {row.name: row.blocks for row in comparison if row.blocks}:
        text += "\nBlocks of coordinates, the noisiest first\n"
        text += "\n".join(aligned(table_of_blocks(blocks, comparison.reference)))
    beneath = (textwrap.fill(printable(line), 110, subsequent_indent="  ") for line in below(comparison))
    return "\n".join([text, *beneath])


def below(comparison: Comparison) -> list[str]:
    """Say what a column of the table means, and which ratios, clips and sketches are in its numbers."""
    ratios = dict.fromkeys(_of_ratios(row) for row in comparison if row.importance is not None)
    clipped = [f"{row.name} {row.clipped:.1%}" for row in comparison if row.clipped is not None]
    shares = [f"share of the steps clipped, which biases the mean: {', '.join(clipped)}"] if clipped else []
    legend = f"decided by: how many {comparison.unit}s are behind the variance, and behind the ratio; "
    legend += "large numbers do not rule out heavy tails"
    sketches = [(row.name, row.variance, row.ratio, row.sketch) for row in comparison if row.sketch]
    return [legend, *ratios, *shares, *([sketch_line(sketches)] if sketches else [])]


def _sketched(row: ComparisonRow) -> dict[str, tuple[Estimate, float]]:
    """Return estimates with standard errors of sampling beside those of their sketch."""
    names = ("variance", "ratio", "noise_scale")
    return {name.replace("_", " "): (getattr(row, name), getattr(row.sketch, name)) for name in names}
