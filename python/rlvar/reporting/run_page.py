"""The page of a monitored run: its findings, each with the figure it is about, and the tables below.

Parts of the parameters are sections; two runs share the figures of the parts that both have.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from rlvar._types import Double
from rlvar.drawing.curves import Curve
from rlvar.drawing.palette import DASHES
from rlvar.reporting.html import Key, Picture, alternative, page
from rlvar.reporting.plots import Panel, dots, over_steps
from rlvar.reporting.run import RunReport, basis
from rlvar.reporting.run_parts import RunPart
from rlvar.reporting.words import capital, long_name
from rlvar.stats.estimate import inverse
from rlvar.stats.shown import measured, number

_LINE = "4 3"  # of a value to compare with
_MOST_SHAPES = 16
_MOST_POINTS = 256  # of a curve: more than a figure has pixels for


@dataclass(frozen=True)
class _Member:
    """A part of one run, in a section."""

    run: int
    name: str  # of the run; empty if there is but one
    part: RunPart

    def label(self, of: str) -> str:
        return f"{of}, {self.name}" if self.name else of

    def curve(self, key: str, look: int, dashes: int) -> Curve | None:
        """Return a metric over the steps with its interval; None where it was never defined."""
        every = max(1, math.ceil(len(self.part.history) / _MOST_POINTS))
        history = self.part.history[::-1][::every][::-1]  # the last one among them
        x, y, low, high = (
            np.array([float(each.get(name, math.nan)) for each in history])
            for name in ("step", key, f"{key}/low", f"{key}/high")
        )
        low, high = np.where(np.isnan(low) & ~np.isnan(high), -np.inf, low), _open(low, high)
        if not (np.isfinite(y) | np.isfinite(low)).any():
            return None
        return Curve(x, y, low, high, look, dashes)


@dataclass(frozen=True)
class _Section:
    number: int
    title: str
    members: tuple[_Member, ...]
    looks: dict[str, int]  # of estimators, on the whole page

    @property
    def two(self) -> bool:
        return len(self.members) > 1

    @property
    def unit(self) -> tuple[str, list[float]]:
        """The unit that all members share, and how many of it are in one of each member's own."""
        sizes = {(member.part.unit, member.part.rollouts_per_unit) for member in self.members}
        each = [member.part.rollouts_per_unit for member in self.members]
        if len(sizes) == 1:
            return self.members[0].part.unit, [1.0] * len(each)
        known = [float(size) for size in each if size is not None]
        return ("rollout", known) if len(known) == len(each) else ("unit", [1.0] * len(each))

    def has(self, metric: str) -> bool:
        """Whether a metric was ever defined."""
        return any(metric in each for member in self.members for each in member.part.history)

    def key(self, kind: str) -> str:
        return f"{kind}-{self.number}"


def run_page(report: RunReport) -> str:
    """Return the page of a report."""
    several = len(report.runs) > 1
    titles = dict.fromkeys(part.title for run in report.runs for part in run.parts)
    parts = [part for run in report.runs for part in run.parts]
    compared = dict.fromkeys(row.name for part in parts for row in part.rows if row.name != part.reference)
    looks = {name: i for i, name in enumerate(compared)}
    sections = []
    for i, title in enumerate(titles, 1):
        members = [
            _Member(j, run.name if several else "", part)
            for j, run in enumerate(report.runs)
            for part in run.parts
            if part.title == title
        ]
        sections.append(_Section(i, title, tuple(members), looks))
    # Rewards are of no part of the parameters: one figure, of the first section that has them.
    rewarded = next((each.number for each in sections if each.has("reward")), None)
    drawn = {each.number: list(_pictures(each, rewarded == each.number)) for each in sections}
    where = {picture.anchor: picture.title for pictures in drawn.values() for picture in pictures}
    findings = []
    for finding in report.findings:
        section = next(each for each in sections if each.title == finding.part)
        anchor = section.key(finding.figure)
        if anchor not in where:
            anchor = section.key("table")
        title = f"Figure: {where[anchor]}" if anchor in where else "Table"
        findings.append((finding.text, anchor, title))
    return page(
        "run.html",
        report=report,
        findings=findings,
        sections=[(section, drawn[section.number]) for section in sections],
        steps=max(part.steps for part in parts),
        last=max((each["step"] for part in parts for each in part.history), default=None),
        basis=basis,
        estimators=_estimators,
        capital=capital,
        ratios=report.noise_scale_ratios,
        title=" and ".join(run.name for run in report.runs),
    )


def _estimators(part: RunPart) -> tuple[list[str], list[list[str]]]:
    """Return the head and the rows of the table of a part."""
    relative, scale = f"Variance relative to {long_name(part.reference)}", f"Noise scale ({part.unit}s)"
    rows = [
        [
            f"{row.name} (in use)" if row.name == part.reference else row.name,
            measured(row.ratio),
            measured(row.noise_scale, bounded=True),
            measured(row.variance),
            measured(row.signal),
            measured(row.alignment, bounded=True, most=1),
        ]
        for row in part.ranked
    ]
    return ["Estimator", relative, scale, "Variance", "Signal", "Alignment"], rows


def _pictures(section: _Section, rewards: bool) -> Iterator[Picture]:
    makers: list[Callable[[_Section], Picture | None]] = [_noise_scale, _ratios, _shapes, _signal]
    for make in [*makers, _on_policy, *[_reward] * rewards, _growth]:
        picture = make(section)
        if picture is not None:
            yield picture


def _noise_scale(section: _Section) -> Picture | None:
    curves, keys, alts, batches = [], [], [], []
    unit, factors = section.unit
    for member, factor in zip(section.members, factors, strict=True):
        part = member.part
        curve = member.curve("noise_scale", member.run, member.run)
        if curve is None:
            continue
        curve = replace(curve, y=curve.y * factor, low=curve.low * factor, high=curve.high * factor)
        curves.append(curve)
        keys.append(Key(member.label(long_name(part.reference)), member.run, DASHES[member.run]))
        alts.append(member.label(f"noise scale of {long_name(part.reference)}") + _course(curve))
        if part.batch_units > 0:
            batches.append(part.batch_units * factor)
    if not curves:
        return None
    for batch in dict.fromkeys(batches):
        keys.append(Key(f"batch: {number(batch)} {unit}s", None, _LINE))
        alts.append(f"a dashed line marks the batch of {number(batch)} {unit}s")
    panel = Panel(curves, f"noise scale ({unit}s)", log=True, guides=list(dict.fromkeys(batches)))
    aid = "Below the dashed line the signal of a batch exceeds its noise; above it noise dominates."
    return _picture(section, "noise-scale", "Noise scale and batch", aid, [panel], keys, alts)


def _ratios(section: _Section) -> Picture | None:
    """Draw ratios of variances and, of estimators with another mean gradient, of noise scales."""
    keys: dict[Key, None] = {}
    panels, alts = [], []
    kinds = {"ratio": "ratio of variances", "noise_scale_ratio": "ratio of noise scales"}
    for metric, ylabel in kinds.items():
        curves = []
        for member in section.members:
            for row in member.part.rows:
                look = section.looks.get(row.name, 0)
                dashes = member.run if section.two else look
                curve = member.curve(f"{metric}/{row.name}", look, dashes)
                if curve is not None:
                    curves.append(curve)
                    keys[Key(member.label(long_name(row.name)), look, DASHES[dashes % len(DASHES)])] = None
                    alts.append(f"{ylabel}, {member.label(long_name(row.name))}{_course(curve)}")
        if curves:
            panels.append(Panel(curves, ylabel, log=True, zero=1.0))
    if not panels:
        return None
    that = long_name(section.members[0].part.reference)
    aid = f"Below 1 an estimator is quieter than {that}; where the band excludes 1, the steps tell which."
    if len(panels) > 1:
        aid += " Where mean gradients may differ, noise scales compare and variances alone do not."
    return _picture(section, "ratios", f"Estimators relative to {that}", aid, panels, list(keys), alts)


def _signal(section: _Section) -> Picture | None:
    curves, keys, alts = [], [], []
    for look, what in enumerate(("variance", "signal")):
        for member in section.members:
            dashes = member.run if section.two else look
            curve = member.curve(what, look, dashes)
            if curve is not None:
                curves.append(curve)
                keys.append(Key(member.label(what), look, DASHES[dashes]))
                alts.append(member.label(what) + _course(curve))
    if not curves:
        return None
    units = {(member.part.unit, member.part.rollouts_per_unit) for member in section.members}
    unit = section.members[0].part.unit if len(units) == 1 else "unit"
    panel = Panel(curves, "squared gradient", log=True)
    aid = (
        f"Variance of one {unit}'s gradient and squared norm of the mean gradient: their distance is the "
        "noise scale. A gap is an estimate that is not positive."
    )
    return _picture(section, "signal", "Signal and variance", aid, [panel], keys, alts)


def _on_policy(section: _Section) -> Picture | None:
    panels, alts, keys = [], [], []
    names = {"on_policy_ratio": "correlation between steps", "mean_score": "squared mean score"}
    for key, ylabel in names.items():
        curves = []
        for member in section.members:
            curve = member.curve(key, member.run, member.run)
            if curve is not None:
                curves.append(curve)
                alts.append(member.label(ylabel) + _course(curve))
        if curves:
            panels.append(Panel(curves, ylabel, zero=0.0))
    if not panels:
        return None
    if section.two:
        keys = [Key(member.name, member.run, DASHES[member.run]) for member in section.members]
    aid = (
        "Shares of the scores' variance; on policy both are 0. The bands hold for the whole run at once, and "
        "one above 0 is an alarm."
    )
    return _picture(section, "on-policy", "On-policy test", aid, panels, keys, alts)


def _shapes(section: _Section) -> Picture | None:
    found, keys = [], []
    for member in section.members:
        options = () if member.part.plan is None else member.part.plan.options[:_MOST_SHAPES]
        found += [(member, each) for each in options if each.gain.value > 0]
        if section.two:
            keys.append(Key(member.name, member.run))
    labels, ratios, looks, alts = [], [], [], []
    for member, option in sorted(found, key=lambda pair: (pair[1].completions, pair[0].run)):
        ratio, shape = inverse(option.gain), f"{option.prompts} × {option.completions}"
        now = " (now)" if option.completions == member.part.plan.in_use else ""
        labels.append(f"{shape}{now}")
        ratios.append(ratio)
        looks.append(member.run)
        alts.append(member.label(shape) + f" {number(ratio.value)}")
    if not ratios:
        return None
    anchor = section.key("plan")
    alt = alternative("Variance relative to the shape in use", alts)
    svg = dots(anchor, alt, labels, ratios, "variance relative to the shape in use", looks=looks)
    aid = "Prompts × completions for the same rollouts: the further left, the quieter the gradient."
    return Picture(anchor, "Prompts and completions", aid, svg, tuple(keys))


def _reward(section: _Section) -> Picture | None:
    return _one_curve(
        section,
        "reward",
        "Reward",
        "mean reward",
        "Mean reward of the rollouts, over the same steps as the rest.",
    )


def _growth(section: _Section) -> Picture | None:
    title, ylabel = "Growth of the variance with length", "exponent b"
    aid = "The variance of the first k steps' terms grows as k^b: 1 is linear, 2 quadratic (dashed)."
    return _one_curve(section, "growth_exponent", title, ylabel, aid, "growth", guides=(1.0, 2.0))


def _one_curve(
    section: _Section,
    metric: str,
    title: str,
    ylabel: str,
    aid: str,
    kind: str | None = None,
    guides: Sequence[float] = (),
) -> Picture | None:
    found = [(member, member.curve(metric, member.run, member.run)) for member in section.members]
    curves = [curve for _, curve in found if curve is not None]
    if not curves:
        return None
    keys = [Key(member.name, member.run, DASHES[member.run]) for member in section.members if member.name]
    alts = [member.label(ylabel) + _course(curve) for member, curve in found if curve is not None]
    return _picture(section, kind or metric, title, aid, [Panel(curves, ylabel, guides=guides)], keys, alts)


def _picture(
    section: _Section,
    kind: str,
    title: str,
    aid: str,
    panels: Sequence[Panel],
    keys: Sequence[Key],
    alts: Sequence[str],
) -> Picture:
    anchor = section.key(kind)
    svg = over_steps(anchor, alternative(f"{title} over training steps", alts), panels)
    return Picture(anchor, title, aid, svg, tuple(keys))


def _course(curve: Curve) -> str:
    """Say where a curve starts and ends."""
    known = np.flatnonzero(np.isfinite(curve.y))
    if not len(known):
        return " is not resolved"
    first, last = known[0], known[-1]
    ends = curve.low[last], curve.high[last]
    interval = "" if np.isnan(ends[0]) else f" (interval {number(ends[0])} to {number(ends[1])})"
    end = f"{number(curve.y[last])}{interval} at step {curve.x[last]:g}"
    return (
        f" {end}" if first == last else f" from {number(curve.y[first])} at step {curve.x[first]:g} to {end}"
    )


def _open(low: Double, high: Double) -> Any:
    """Return upper ends, infinite where there is a lower one alone."""
    return np.where(np.isnan(high) & ~np.isnan(low), np.inf, high)
