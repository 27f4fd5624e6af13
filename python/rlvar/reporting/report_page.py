"""The page of a report: its verdict, each sentence with the figure behind it, the figures and the tables.

There is a figure for what there is data of. The covariance is drawn in blocks of steps: what is T x T is
never made.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import NullFormatter

from rlvar._types import Double
from rlvar.analysis.comparison import below
from rlvar.analysis.deciders import decided
from rlvar.analysis.decompose import Decomposition
from rlvar.analysis.table import estimators_table
from rlvar.drawing.covariance import MOST_BLOCKS, colour_range, covariance_map
from rlvar.drawing.curves import Curve
from rlvar.drawing.growth import alive, growth
from rlvar.drawing.intervals import LONGEST
from rlvar.drawing.palette import DASHES
from rlvar.drawing.plan import plan_curve
from rlvar.drawing.steps import block_size, by_step, lag_profile, step_share
from rlvar.reporting.html import Key, Picture, alternative, page
from rlvar.reporting.planning import plan_rows, planned
from rlvar.reporting.plots import PAGE, dots, drawn
from rlvar.reporting.report import Report
from rlvar.reporting.report_text import distinct, reach
from rlvar.reporting.text import about
from rlvar.reporting.verdict import lengths_differ, quietest_of
from rlvar.reporting.words import capital, interval, joined, long_name, percent, power
from rlvar.stats.estimate import Estimate, inverse
from rlvar.stats.shown import measured, number, printable
from rlvar.weights.batch import Batch

_CURVES = 4  # estimators in one figure: the reference, the quietest and those that follow it
_POINTS = 256  # of a curve
_BAND = (10, 90)  # percentiles of the rollouts
_USED = "4 3"  # dashes of what is in use


class _Section(NamedTuple):
    title: str
    anchor: str
    rows: list[list[Picture]]
    tables: list[tuple[str, list[str], list[list[str]]]]  # anchor, head, rows
    lines: list[str]


class _Parts(NamedTuple):
    """The decomposition of an estimator, with what it is called and how it is drawn."""

    name: str
    label: str
    parts: Decomposition
    look: int


def report_page(report: Report) -> str:
    """Return the page of a report."""
    comparison = report.comparison
    looks = {row.name: i for i, row in enumerate(comparison)}
    several = _shown(report, looks)
    sections = [
        _estimators(report, looks),
        _sources(report, several),
        _plans(report, looks),
        _sampling(report),
    ]
    sections = [each for each in sections if each.rows or each.tables or each.lines]
    pictures = [picture for each in sections for row in each.rows for picture in row]
    where = {picture.anchor: f"Figure: {picture.title}" for picture in pictures}
    where |= {anchor: "Table" for each in sections for anchor, *_ in each.tables}
    where |= {each.anchor: each.title for each in sections}
    instead = {
        "noise-scale": "estimators",
        "headroom": "estimators",
        "length": "growth",
        "estimators": "table",
    }

    def linked(figure: str) -> tuple[str, str]:
        while figure not in where:
            figure = instead.get(figure, "table")
        return figure, where[figure]

    found = {
        kind: [(each.text, *linked(each.figure)) for each in report.findings if each.kind == kind]
        for kind in ("verdict", "note")
    }
    return page(
        "report.html",
        report=report,
        source=report.source.partition("\n")[0],
        facts=about(report.source, report.rollouts)[1:],
        found=found,
        sections=sections,
        provenance=_provenance(report),
    )


def _shown(report: Report, looks: dict[str, int]) -> list[_Parts]:
    """Return the decompositions to draw, each once: the quietest's, the reference's, and a few others'."""
    comparison = report.comparison
    same = {name: names for names, _ in distinct(report) for name in names}
    first = [quietest_of(comparison), comparison.reference, *(row.name for row in comparison.ranked)]
    found: dict[str, _Parts] = {}
    for name in first:
        names = same.get(name)
        if names is None or names[0] in found or len(found) == _CURVES:
            continue
        parts = report.decompositions[names[0]]
        if parts.variance.value > 0:
            found[names[0]] = _Parts(names[0], _name(names[0]), parts, looks[names[0]])
    return list(found.values())


def _name(name: str) -> str:
    return printable(long_name(name))


def _label(name: str) -> str:
    """Return the name in words for an axis or, where that has no room for them, as it is."""
    words = long_name(name)
    return words if len(words) <= LONGEST else name


# Estimators


def _estimators(report: Report, looks: dict[str, int]) -> _Section:
    comparison, reference = report.comparison, long_name(report.comparison.reference)
    rows, unit = comparison.ranked, comparison.unit
    order = [looks[row.name] for row in rows]
    apart = [row for row in rows if not comparison.same_mean(row) and row.factor != 1.0]
    labels = [f"{_label(row.name)}{' *' * (row in apart)}" for row in rows]
    aid = f"Left of the line an estimator is quieter than {reference}, where its interval excludes 1."
    if apart:
        aid += " * may have another mean gradient, in direction or length: noise scales compare then."
    pictures = [
        _dots(
            "estimators",
            f"Variance relative to {reference}",
            aid,
            labels,
            [row.ratio for row in rows],
            f"variance over that of {reference}",
            looks=order,
        )
    ]
    if any(0 < x < math.inf for row in rows for x in (row.noise_scale.value, row.noise_scale.low)):
        count = comparison.units
        aid = f"A batch of so many {unit}s has as much noise as signal; the line marks these {count:,}."
        if any(row.noise_scale.high == math.inf for row in rows):
            aid += " An arrow has no end, and without a dot the signal is not resolved."
        pictures.append(
            _dots(
                "noise-scale",
                "Noise scale",
                aid,
                [_label(row.name) for row in rows],
                [row.noise_scale for row in rows],
                f"noise scale ({unit}s)",
                line=float(count),
                signals=True,
                looks=order,
            )
        )
    if report.headroom is not None and math.isfinite(report.headroom.removable.value):
        pictures.append(_headroom(report))
    head, body = estimators_table(rows, comparison.reference, unit)
    head = [capital(each) for each in (*head, "decided by")]
    for row, cells in zip(rows, body, strict=True):
        words = long_name(row.name)
        cells[0] = row.name if words == row.name else f"{capital(words)} ({row.name})"
        cells.append(decided(row.variance_units, row.ratio_units, comparison.units))
    basis = f"{comparison.confidence:.0%} intervals: {comparison.interval} over {comparison.units:,} {unit}s."
    lines = [basis, *(f"{capital(line)}." for line in below(comparison))]
    if comparison.units < len(report.rollouts):
        lines.append(
            "Figures and table of estimators are of groups, because rollouts of a group are dependent; where "
            "the variance comes from is of single rollouts."
        )
    return _Section("Estimators", "part-estimators", [pictures], [("table", head, body)], lines)


def _dots(
    anchor: str,
    title: str,
    aid: str,
    labels: Sequence[str],
    estimates: Sequence[Estimate],
    xlabel: str,
    **options: Any,
) -> Picture:
    bounded = options.get("signals", False)
    told = [f"{label} {measured(x, bounded=bounded)}" for label, x in zip(labels, estimates, strict=True)]
    svg = dots(anchor, alternative(title, told), labels, estimates, xlabel, **options)
    return Picture(anchor, title, aid, svg)


def _headroom(report: Report) -> Picture:
    room = report.headroom
    assert room is not None
    rest = ", of what is left" if math.isfinite(room.on_top.value) else ""
    shares = {
        "reward-to-go": room.reward_to_go,
        f"{room.best}{rest}": room.on_top if rest else room.removable,
    }
    shares |= {f"same, batches of {size}": share for size, share in room.in_batches.items()}
    shares |= {"both together": room.removable} if rest else {}
    known = {label: x for label, x in shares.items() if math.isfinite(x.value)}
    reference = long_name(room.reference)
    aid = f"Right of the line {reference} gets quieter. Baselines are cross-fitted, one for all groups."
    aid = aid if report.comparison.grouped else aid.replace(", one for all groups", "")
    return _dots(
        "headroom",
        "What a baseline would remove",
        aid,
        list(known),
        list(known.values()),
        "share of the variance removed",
        line=0.0,
        log=False,
        looks=[0] * len(known),
    )


# Where the variance comes from


def _sources(report: Report, several: list[_Parts]) -> _Section:
    steps = reach(report.rollouts)
    rows: list[list[Picture | None]] = [[], []]
    if several and steps > 1:
        quietest = several[0]
        rows[0] += [_growth(several, steps), _share(several[:2], steps), _length(quietest)]
        rows[1] += [_map(quietest, steps), _lags(quietest, steps)]
    rows[1].append(_rewards(report))
    found = [[each for each in row if each is not None] for row in rows]
    return _Section("Where the variance comes from", "part-sources", [row for row in found if row], [], [])


def _growth(several: list[_Parts], steps: int) -> Picture:
    """Draw V(k), of the quietest also that of rollouts cut after k steps, with the rollouts alive below."""
    first = several[0]
    keys, told, curves = [], [], list[tuple[Double, dict[str, Any]]]()
    for each in several:
        exponent, span = each.parts.growth_exponent, each.parts.growth_range
        law = _law(exponent, f"k = {span[0]} to {span[1]}")
        keys.append(Key(f"{each.label}{law}", each.look, DASHES[each.look % len(DASHES)]))
        told.append(f"{each.label} {number(each.parts.growth[steps - 1])} after {steps:,} steps{law}")
        options: dict[str, Any] = {
            "exponent": exponent,
            "span": span,
            "look": each.look,
            "guides": each is first,
        }
        curves.append((each.parts.growth[:steps], options))
    horizon = first.parts.horizon_growth
    if len(horizon.steps) > 1 and (horizon.variance > 0).any():
        look = max(each.look for each in several) + 1
        law = _law(first.parts.horizon_exponent, f"k = {horizon.steps[0]} to {horizon.steps[-1]}")
        label = f"{first.label}, rollouts cut after k steps{law}"
        keys.append(Key(label, look, DASHES[look % len(DASHES)]))
        told.append(f"{label}, {number(horizon.variance[-1])} at k = {horizon.steps[-1]}")
        options = {"exponent": first.parts.horizon_exponent, "steps": horizon.steps, "look": look}
        curves.append((horizon.variance, options | {"guides": False}))
    keys.append(Key("slopes 1, 2 and 3", None, "3 3"))

    def above_(axes: Axes) -> None:
        for variance, options in reversed(curves):  # the first one last, for its guides end at the limits
            growth(axes, variance, palette=PAGE, **options)
        axes.set_xlabel("")
        axes.xaxis.set_major_formatter(NullFormatter())
        limits.append(axes.get_xlim())

    def below_(axes: Axes) -> None:
        alive(axes, first.parts.alive[:steps], palette=PAGE)
        axes.set_xlim(*limits[0])
        axes.set_xlabel("number of steps summed, k")

    limits: list[tuple[float, float]] = []
    told.append(
        f"{first.parts.alive[0]:,} rollouts reach step 1 and {first.parts.alive[steps - 1]:,} step {steps:,}"
    )
    aid = "Variance of the sum over the first k steps: linear growth is as steep as guide 1, quadratic as 2."
    hidden = any((each.parts.growth[:steps] <= 0).any() for each in several)
    aid += " Where it is 0 there is no curve." * hidden + " Below: rollouts that reach step k."
    svg = drawn("growth", alternative("Growth of the variance", told), above_, below_, heights=(3.1, 1.3))
    return Picture("growth", "Growth of the variance with length", aid, svg, tuple(keys))


def _law(exponent: Estimate, over: str) -> str:
    if math.isnan(exponent.value):
        return ""
    return f": k^{power(exponent.value)} ({interval(exponent)}) over {over}"


def _length(each: _Parts) -> Picture | None:
    strata, exponent = each.parts.length_growth, each.parts.length_exponent
    if not lengths_differ(each.parts):
        return None
    measure = strata.measure
    law = f": length^{power(exponent.value)} ({interval(exponent)})"
    points = [
        f"{number(v)} at {number(x)} {measure}" for x, v in zip(strata.lengths, strata.variance, strict=True)
    ]

    def draw(axes: Axes) -> None:
        options: dict[str, Any] = {
            "exponent": exponent,
            "look": each.look,
            "xlabel": f"mean length ({measure})",
        }
        growth(axes, strata.variance, steps=strata.lengths, palette=PAGE, **options)

    title = "Variance by the length of rollouts"
    aid = "A point for each quarter of the rollouts by length; guides have slope 1, 2 and 3."
    key = Key(f"{each.label}{law}", each.look, DASHES[each.look % len(DASHES)])
    return Picture(
        "length", title, aid, drawn("length", alternative(title, [each.label, *points]), draw), (key,)
    )


def _map(each: _Parts, steps: int) -> Picture:
    size = block_size(steps, MOST_BLOCKS)
    blocks = each.parts.block_covariance(size)
    count = -(-steps // size)
    blocks = blocks[:count, :count]
    most = colour_range(blocks)
    beyond = float((np.abs(blocks) > most).mean())
    title = f"Covariance between steps of {each.label}"
    cell = "pair of steps" if size == 1 else f"{size} × {size} block of steps"
    aid = (
        f"Each cell is the covariance of a {cell}: orange adds to the variance, blue takes from it; the "
        "diagonal holds the variance terms."
    )
    if beyond:
        aid += f" Colours end at ±{number(most)}; {percent(beyond)} of the cells lie beyond."
    parts = each.parts
    told = [
        f"variance terms {measured(parts.variance_terms)}",
        f"covariance terms {measured(parts.covariance_terms)}",
        f"{percent(float((blocks < 0).mean()))} of the cells are negative",
    ]
    svg = drawn(
        "covariance",
        alternative(title, told),
        lambda axes: covariance_map(axes, blocks, steps=steps, palette=PAGE),
        heights=(4.3,),
        right=0.84,
    )
    return Picture("covariance", title, aid, svg)


def _lags(each: _Parts, steps: int) -> Picture:
    lags = each.parts.lag_profile[:steps]
    title = f"Covariance by distance, {each.label}"
    size = block_size(steps - 1)
    blocks = "" if size == 1 else f", in blocks of {size} distances"
    aid = (
        f"What pairs of steps so far apart add to the variance{blocks}: together the covariance terms, "
        f"{number(each.parts.covariance_terms.value)}, beside variance terms of "
        f"{number(each.parts.variance_terms.value)}."
    )
    told = [f"{number(2 * lags[k])} at distance {k}" for k in range(1, min(4, len(lags)))]
    svg = drawn(
        "lags",
        alternative(title, told),
        lambda axes: lag_profile(axes, lags, look=each.look, palette=PAGE),
        heights=(4.3,),
        left=0.19,
    )
    return Picture("lags", title, aid, svg)


def _share(several: list[_Parts], steps: int) -> Picture:
    title, told, keys = "Which steps carry the variance", [], []
    size = block_size(steps)
    for each in several:
        share = np.add.reduceat(each.parts.step_share[:steps], np.arange(0, steps, size))
        i = int(np.argmax(share))
        which = f"steps {i * size + 1} to {min((i + 1) * size, steps)}" if size > 1 else f"step {i + 1}"
        told.append(f"of {each.label} most, {percent(float(share[i]))}, lies on {which}")
        keys.append(Key(each.label, each.look, DASHES[each.look % len(DASHES)]))

    def draw(axes: Axes) -> None:
        for each in several:
            step_share(axes, each.parts.step_share[:steps], look=each.look, palette=PAGE)

    blocks = "" if size == 1 else f" of blocks of {size} steps"
    aid = (
        f"Shares{blocks} with their covariances: they add up to 1, and below 0 steps cancel noise of others."
    )
    return Picture("steps", title, aid, drawn("steps", alternative(title, told), draw), tuple(keys))


# Rewards, plans, sampling


def _rewards(report: Report) -> Picture | None:
    """Draw mean reward and return-to-go of the rollouts that reach a step, with the spread between them."""
    rollouts, title = report.rollouts, "Reward and return-to-go by step"
    steps = reach(rollouts)
    if rollouts.rewards.ndim == 1 or steps < 2 or not rollouts.live.any():
        return None
    batch = Batch.of(rollouts)
    places = np.unique(np.rint(np.linspace(0, steps - 1, _POINTS)).astype(int))
    places = places[rollouts.live[:, places].any(axis=0)]
    draws, told = [], []
    for look, (what, values) in enumerate(
        {"reward": batch.step_rewards, "return-to-go": batch.to_go()}.items()
    ):
        curve = _over_rollouts(places, values, rollouts.live, look)
        told.append(
            f"mean {what} {number(curve.y[0])} at step {places[0] + 1} and {number(curve.y[-1])} at step "
            f"{places[-1] + 1}"
        )
        draws.append(partial(_of_step, curve=curve, ylabel=what, last=what != "reward"))
    aid = (
        f"Means of the rollouts that reach a step, with the {_BAND[0]}th to {_BAND[1]}th percentile; what "
        "differs between rollouts is what weights carry into the variance."
    )
    svg = drawn("rewards", alternative(title, told), *draws, heights=(1.9, 2.2))
    return Picture("rewards", title, aid, svg)


def _over_rollouts(places: Any, values: Double, live: Any, look: int) -> Curve:
    y, low, high = np.empty((3, len(places)))
    for i, place in enumerate(places):
        each = values[live[:, place], place]
        y[i] = each.mean()
        low[i], high[i] = np.percentile(each, _BAND)
    return Curve(places + 1.0, y, low, high, look, look)


def _of_step(axes: Axes, *, curve: Curve, ylabel: str, last: bool) -> None:
    by_step(axes, [curve], palette=PAGE)
    axes.set_ylabel(ylabel)
    if not last:
        axes.set_xlabel("")
        axes.xaxis.set_major_formatter(NullFormatter())


def _plans(report: Report, looks: dict[str, int]) -> _Section:
    section = _Section("Prompts and completions", "part-plan", [], [], [])
    if not report.plans:
        return section
    reference = report.comparison.reference
    title, ((first, *names), *body) = plan_rows(report.plans, reference)
    section.tables.append(("plan-table", [capital(first), *names], body))
    section.lines.append(f"{title}.")
    shown = planned(report.plans, reference)
    curves, keys, told, hidden = {}, [], [], False
    for name, plan in shown.items():
        options = [each for each in plan.options if each.gain.value > 0]
        hidden = hidden or len(options) < len(plan.options)
        if not options:
            continue
        curves[name] = options
        own = name != reference and not plan.beside
        keys.append(
            Key(_name(name) + ", over itself now" * own, looks[name], DASHES[looks[name] % len(DASHES)])
        )
        best = min(options, key=lambda option: inverse(option.gain).high)
        told.append(
            f"{_name(name)} surest, {measured(inverse(best.gain))}, with {best.prompts:,} prompts × "
            f"{best.completions:,} completions"
        )
    in_use = next(iter(shown.values())).in_use
    if not curves or max(len(each) for each in curves.values()) < 2:
        return section
    keys.append(Key(f"{in_use} completions in use", None, _USED))

    def draw(axes: Axes) -> None:
        plan_curve(
            axes,
            [[each.completions for each in options] for options in curves.values()],
            [[inverse(each.gain) for each in options] for options in curves.values()],
            in_use=in_use,
            looks=[looks[name] for name in curves],
            palette=PAGE,
        )

    aid = (
        "As many rollouts in other shapes: below 1 the mean gradient gets quieter, where the band excludes 1."
    )
    bounded = any(math.isinf(each.gain.high) for options in curves.values() for each in options)
    aid += " Without a line a variance is only bounded, by the top of its band." * bounded
    aid += " What is not resolved is in the table alone." * hidden
    name = "Variance by completions of a prompt"
    section.rows.append(
        [Picture("plan", name, aid, drawn("plan", alternative(name, told), draw), tuple(keys))]
    )
    return section


def _sampling(report: Report) -> _Section:
    test, sampling = report.on_policy, report.sampling
    pictures = []
    shares = {"steps correlate": test.ratio, "squared mean score": test.mean_score}
    known = {label: x for label, x in shares.items() if math.isfinite(x.value)}
    if known:
        aid = "On policy both are 0: an interval that lies right of the line is an alarm."
        xlabel = "share of the scores' variance"
        options: dict[str, Any] = {"line": 0.0, "log": False, "looks": [0] * len(known)}
        pictures.append(
            _dots("on-policy", "On-policy test", aid, list(known), list(known.values()), xlabel, **options)
        )
    rows = [["Rollouts", f"{sampling.rollouts:,}"], ["Equal to an earlier one", f"{sampling.repeated:,}"]]
    if sampling.groups is not None:
        rows.append(["Groups of two or more", f"{sampling.groups:,}"])
        rows.append(["Of these with equal returns", f"{sampling.dead_groups:,}"])
    return _Section(
        "Sampling",
        "part-sampling",
        [pictures] if pictures else [],
        [("sampling", ["What", "Count"], rows)],
        [],
    )


# What was computed


def _provenance(report: Report) -> list[tuple[str, str]]:
    rollouts = report.rollouts
    shapes = [f"scores {rollouts.shape} {rollouts.stored_scores.dtype}"]
    for name in ("rewards", "lengths", "mask", "values", "groups", "logp", "behavior_logp"):
        array = getattr(rollouts, name)
        if array is not None:
            shapes.append(f"{name} {array.shape} {array.dtype}")
    options = [f"{key} {_option(value)}" for key, value in report.options.items() if value is not None]
    return [
        ("Rollouts", report.source.replace("\n", "; ")),
        *((f"SHA-256 of {name}", digest) for name, digest in report.sha256.items()),
        ("Arrays", "; ".join(shapes)),
        ("Options", "; ".join(options)),
        (
            "Computed",
            "comparison, headroom, decompositions, on-policy test, sampling" + ", plans" * bool(report.plans),
        ),
        ("With", f"rlvar {report.version}, numpy {np.__version__}, {report.made}"),
    ]


def _option(value: Any) -> str:
    return joined(value) if isinstance(value, list) else f"{value}"
