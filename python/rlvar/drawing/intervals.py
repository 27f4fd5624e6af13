"""Estimates side by side: a dot and an interval each, on a common axis, log or linear.

An end that is infinite, 0 or beyond the axis is an arrow at its edge. What a log axis cannot hold, or the
data do not tell, has words in place of a dot.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator

from rlvar.drawing.axes import frame, linear_ticks, log_ticks, padded, tick
from rlvar.drawing.palette import PLAIN, Palette, marker
from rlvar.stats.estimate import Estimate
from rlvar.stats.shown import printable

_FAR = 20.0  # times beyond the values: so wide an interval would leave no room for the rest
LONGEST = 22  # characters of a label


def intervals(
    axes: Axes,
    labels: Sequence[str],
    estimates: Sequence[Estimate],
    *,
    xlabel: str,
    line: float | None = 1.0,
    log: bool = True,
    signals: bool = False,
    looks: Sequence[int] | None = None,
    palette: Palette = PLAIN,
) -> None:
    """Draw estimates from top to bottom, and a line at what they compare with.

    `signals` is for what rests on a signal, such as noise scales: without one that is resolved there is no
    dot, but how far the value is bounded.
    """
    frame(axes, palette)
    if log:
        axes.set_xscale("log")
    low, high = _limits(estimates, line, log=log)
    axes.set_xlim(low, high)
    if line is not None:
        axes.axvline(line, color=palette.ink, linewidth=1)
    for y, x in enumerate(estimates):
        look = y if looks is None else looks[y]
        colour = palette.colour(look)
        words = _words(x, signals, log=log)
        if words:
            axes.annotate(
                words, (0, y), (6, 0), xycoords=("axes fraction", "data"), textcoords="offset points",
                va="center", color=palette.ink,
            )  # fmt: skip
        elif not math.isnan(x.low):
            ends = np.clip([x.low, x.high], low, high)
            axes.plot(ends, [y, y], color=colour, linewidth=2.2, solid_capstyle="butt")
            for beyond, end, arrow in ((x.low < low, low, "<"), (x.high > high, high, ">")):
                if beyond:
                    axes.plot([end], [y], arrow, color=colour, markersize=7, clip_on=False)
        if _has_dot(x, signals, log=log):
            axes.plot([x.value], [y], marker(look), color=colour, markersize=7)
    axes.set_ylim(len(estimates) - 0.4, -0.6)
    axes.yaxis.set_major_locator(FixedLocator(range(len(labels))))
    axes.set_yticklabels([shortened(label) for label in labels], parse_math=False)
    axes.tick_params(axis="y", length=0, pad=7)
    if log:
        log_ticks(axes.xaxis, low, high)
    else:
        linear_ticks(axes.xaxis)
    axes.set_xlabel(xlabel, parse_math=False)


def shortened(label: str) -> str:
    """Return a label that leaves room for a drawing: its start and its end, and nothing that steers text."""
    label = printable(label)
    if len(label) <= LONGEST:
        return label
    half = LONGEST // 2
    return f"{label[: half + 1]}…{label[2 - half :]}"


def _has_dot(x: Estimate, signals: bool, *, log: bool) -> bool:
    drawable = math.isfinite(x.value) and (x.value > 0 or not log)
    return drawable and (x.resolved or math.isnan(x.low) or not signals)


def _words(x: Estimate, signals: bool, *, log: bool) -> str:
    """Say what the axis does not show."""
    if _has_dot(x, signals, log=log) or (signals and 0 < x.low < math.inf):
        return ""
    if math.isnan(x.value) and not (signals and not math.isnan(x.low)):
        return "undefined"
    if signals:
        return "not resolved"
    return "infinite" if x.value == math.inf else tick(float(f"{x.value:.3g}"))


def _limits(estimates: Sequence[Estimate], line: float | None, *, log: bool) -> tuple[float, float]:
    """Return ends of the axis: all values, and the intervals as far as they leave room."""
    least = 0.0 if log else -math.inf
    points = [x.value for x in estimates if least < x.value < math.inf] + ([] if line is None else [line])
    ends = [end for x in estimates for end in x.interval if least < end < math.inf]
    if log and points:
        bottom, top = min(points) / _FAR, max(points) * _FAR
        ends = [min(max(end, bottom), top) for end in ends]
    return padded([*points, *ends], log=log)
