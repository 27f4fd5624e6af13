"""Figures of a page: matplotlib's, as SVG that takes its colours and its type from the page around it.

A drawing has no text but numbers and the names of its axes; what users name is in the page, as its legend.
Colours are indices of the page's palette (Okabe & Ito's), one for light and one for dark, and lines differ by
dashes and markers too.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullFormatter, NullLocator

from rlvar._types import Double

DASHES = ("", "6 2", "2 2", "7 2 2 2", "9 2 2 2 2 2")
MARKERS = ("o", "s", "^", "D", "v")
COLOURS = 6

_SIZE = (5.0, 3.1)  # inches of 72 units: on a phone a unit is a pixel
_TYPE = 11.0
# Stand-ins for what the page decides.
_INK, _GRID = "#0a0b0c", "#0a0b0d"
_INKS = [f"#0a0c{i:02x}" for i in range(COLOURS)]
_RC: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.family": ["sans-serif"],
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": _TYPE,
    "axes.unicode_minus": True,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "path.simplify": True,
}


@dataclass(frozen=True, eq=False)
class Curve:
    """Values over steps, NaN where there are none, with their band (infinite ends reach the edge)."""

    x: Double
    y: Double
    low: Double
    high: Double
    look: int = 0  # which colour and marker
    dashes: int = 0


@dataclass(frozen=True, eq=False)
class Panel:
    """Curves on common axes, and the values of horizontal lines: `zero` is drawn, `guides` are dashed."""

    curves: Sequence[Curve]
    ylabel: str
    log: bool = False
    zero: float | None = None
    guides: Sequence[float] = ()


@dataclass(frozen=True, eq=False)
class Dot:
    """A value with its interval on a line of its own."""

    label: str
    value: float
    low: float
    high: float
    look: int = 0


def over_steps(key: str, alt: str, panels: Sequence[Panel], xlabel: str = "training step") -> str:
    """Draw panels one below the other; `key` keeps the names within the SVG apart from those of others."""
    width, height = _SIZE
    with _style(key):
        height = height if len(panels) == 1 else 1.8 * len(panels) + 0.5
        figure = Figure(figsize=(width, height))
        for i, panel in enumerate(panels):
            axes = figure.add_subplot(len(panels), 1, i + 1)
            _draw(axes, panel)
            if i < len(panels) - 1:
                axes.xaxis.set_major_formatter(NullFormatter())
        figure.axes[-1].set_xlabel(xlabel)
        figure.subplots_adjust(0.155, 0.56 / height, 0.985, 1 - 0.3 / height, hspace=0.3)
        return _svg(figure, key, alt)


def dots(key: str, alt: str, rows: Sequence[Dot], xlabel: str, *, line: float) -> str:
    """Draw values with intervals on a log axis, the first on top, and a line at what they compare with."""
    with _style(key):
        height = 0.9 + 0.3 * max(len(rows), 3)
        figure = Figure(figsize=(_SIZE[0], height))
        axes = figure.add_subplot()
        _frame(axes)
        axes.set_xscale("log")
        values = np.array([[row.value, row.low, row.high] for row in rows])
        low, high = _limits(values[:, 0], values[:, 1], values[:, 2], [line], log=True)
        axes.set_xlim(low, high)
        axes.axvline(line, color=_INK, linewidth=1)
        for y, row in enumerate(rows):
            colour, ends = _INKS[row.look % COLOURS], np.clip([row.low, row.high], low, high)
            axes.plot(ends, [y, y], color=colour, linewidth=2.2, solid_capstyle="butt")
            axes.plot([row.value], [y], MARKERS[row.look % len(MARKERS)], color=colour, markersize=7)
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.yaxis.set_major_locator(FixedLocator(range(len(rows))))
        axes.set_yticklabels([row.label for row in rows])
        axes.tick_params(axis="y", length=0)
        _log_ticks(axes.xaxis, low, high)
        axes.set_xlabel(xlabel)
        widest = max(len(row.label) for row in rows)
        figure.subplots_adjust(min(0.45, 0.05 + 0.021 * widest), 0.56 / height, 0.965, 1 - 0.1 / height)
        return _svg(figure, key, alt)


@contextmanager
def _style(key: str) -> Iterator[None]:
    """Draw alike whatever style the caller has set, and leave that as it is."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_RC | {"svg.hashsalt": key})
        yield


def _draw(axes: Axes, panel: Panel) -> None:
    _frame(axes)
    lines = [*panel.guides, *([] if panel.zero is None else [panel.zero])]
    values, lows, highs = (
        np.concatenate([getattr(curve, name) for curve in panel.curves]) for name in ("y", "low", "high")
    )
    low, high = _limits(values, lows, highs, lines, log=panel.log)
    if panel.log:
        axes.set_yscale("log")
    axes.set_ylim(low, high)
    if panel.zero is not None:
        axes.axhline(panel.zero, color=_INK, linewidth=1)
    for value in panel.guides:
        axes.axhline(value, color=_INK, linewidth=1.2, dashes=(4, 3))
    for curve in panel.curves:
        colour = _INKS[curve.look % COLOURS]
        # What is beyond the edge ends there, but for its slope: a band may end at infinity.
        below, above = (np.clip(end, low, high) for end in (curve.low, curve.high))
        axes.fill_between(curve.x, below, above, color=colour, alpha=0.16, linewidth=0)
        y = np.where(curve.y > 0, curve.y, np.nan) if panel.log else curve.y
        dashes = [float(each) for each in DASHES[curve.dashes % len(DASHES)].split()]
        (drawn,) = axes.plot(curve.x, y, color=colour, linewidth=1.8)
        if dashes:
            drawn.set_dashes(dashes)
        shown = np.flatnonzero(np.isfinite(y))
        every = max(1, len(shown) // 10)
        some = shown[::-every] if len(shown) else shown  # the last one among them
        axes.plot(curve.x[some], y[some], MARKERS[curve.look % len(MARKERS)], color=colour, markersize=4.5)
    if panel.log:
        _log_ticks(axes.yaxis, low, high)
    else:
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
        axes.yaxis.set_major_formatter(FuncFormatter(_tick))
    steps = np.concatenate([curve.x for curve in panel.curves])
    first, last = float(steps.min()), float(steps.max())
    pad = 0.02 * (last - first) or 0.5
    axes.set_xlim(first - pad, last + pad)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(_tick))
    axes.annotate(
        panel.ylabel,
        (0, 1),
        (-0.15 * _SIZE[0] * 72, 5),
        xycoords="axes fraction",
        textcoords="offset points",
        annotation_clip=False,
    )


def _frame(axes: Axes) -> None:
    axes.patch.set_visible(False)
    axes.grid(color=_GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _limits(
    values: Double, low: Double, high: Double, lines: Sequence[float], *, log: bool
) -> tuple[float, float]:
    """Return ends of an axis that hold the values, the lines and most of the intervals."""
    kept = values[np.isfinite(values) & ((values > 0) | (not log))]
    ends = []
    for each, q in ((low, 10), (high, 90)):
        fine = each[np.isfinite(each) & ((each > 0) | (not log))]
        if len(fine):  # the first steps' may be wide beyond use
            ends += [float(np.percentile(fine, q)), float(fine[-1])]
    points = np.array([*kept, *lines, *ends], float)
    if not len(points):
        return (0.1, 10.0) if log else (-1.0, 1.0)
    first, last = float(points.min()), float(points.max())
    if log:
        pad = max((last / first) ** 0.06, 1.03)
        return first / pad, last * pad
    pad = 0.06 * (last - first) or abs(first) or 1.0
    return first - pad, last + pad


def _log_ticks(axis: matplotlib.axis.Axis, low: float, high: float, *, most: int = 6) -> None:
    """Set ticks of a log axis, of one that is short too: the most of some series that are not too many."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    series = (
        (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8),
        (1, 1.5, 2, 3, 5, 7),
        (1, 2, 3, 5),
        (1, 2, 5),
        (1, 3),
        (1,),
    )
    choices = [[m * 10.0**k for k in decades for m in each] for each in series]
    choices += [[10.0**k for k in decades if k % by == 0] for by in (2, 3, 5, 10, 20, 50)]
    inside = [[x for x in ticks if low <= x <= high] for ticks in choices]
    ticks = next((each for each in inside if len(each) <= most), inside[-1])
    if len(inside[0]) < 3:
        ticks = [x for x in MaxNLocator(most - 1).tick_values(low, high) if low <= x <= high and x > 0]
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(_tick))


def _tick(x: float, _: object = None) -> str:
    text = f"{x:,.0f}" if 1000 <= abs(x) < 1e5 and x == round(x) else f"{x:.4g}"
    return text.replace("e+0", "e").replace("e+", "e").replace("e-0", "e-").replace("-", "−")


def _svg(figure: Figure, key: str, alt: str) -> str:
    """Return the drawing as an element of a page, with its names made its own and its colours the page's."""
    file = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(file, format="svg", transparent=True, metadata=nothing)
    head, _, text = file.getvalue().partition("<svg ")[2].partition(">")
    box = head.partition('viewBox="')[2].partition('"')[0]
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", text, flags=re.S)
    text = re.sub(r" font-family: [^;\"]*;| transform=\"rotate\(-0 [^\"]*\"|<defs>\s*</defs>", "", text)
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{key}-", text.replace("xlink:href", "href"))
    text = text.replace(_INK, "currentColor").replace(_GRID, "var(--grid)")
    for i, ink in enumerate(_INKS):
        text = text.replace(ink, f"var(--c{i})")
    text = re.sub(r' (?:d|x|y)="[^"]*"', lambda found: re.sub(r"(\.\d\d)\d+", r"\1", found[0]), text)
    text = re.sub(r"\s*\n\s*", "\n", text)
    return f'<svg viewBox="{box}" role="img" aria-label="{escape(alt)}">{text}'
