"""Curves over steps, with their bands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from rlvar._types import Double
from rlvar.drawing.axes import frame, linear_ticks, log_ticks, padded, ticks_of
from rlvar.drawing.palette import PLAIN, Palette, dashes, marker


@dataclass(frozen=True, eq=False)
class Curve:
    """Values over steps, NaN where there are none, with their band (infinite ends reach the edge)."""

    x: Double
    y: Double
    low: Double
    high: Double
    look: int = 0  # which colour and marker
    dashes: int = 0

    @classmethod
    def bare(cls, x: Double, y: Double, look: int = 0) -> Curve:
        """Return a curve without a band."""
        nothing = np.full(len(x), np.nan)
        return cls(x, y, nothing, nothing, look, look)


def curves(
    axes: Axes,
    drawn: Sequence[Curve],
    *,
    log: bool = False,
    zero: float | None = None,
    guides: Sequence[float] = (),
    palette: Palette = PLAIN,
) -> None:
    """Draw curves on common axes, and horizontal lines: a solid one at `zero`, dashed ones at `guides`."""
    frame(axes, palette)
    lines = [*guides, *([] if zero is None else [zero])]
    values, lows, highs = (
        np.concatenate([getattr(curve, name) for curve in drawn]) for name in ("y", "low", "high")
    )
    low, high = _limits(values, lows, highs, lines, log=log)
    if log:
        axes.set_yscale("log")
    axes.set_ylim(low, high)
    if zero is not None:
        axes.axhline(zero, color=palette.ink, linewidth=1)
    for value in guides:
        axes.axhline(value, color=palette.ink, linewidth=1.2, dashes=(4, 3))
    for curve in drawn:
        colour = palette.colour(curve.look)
        # What is beyond the edge ends there, but for its slope: a band may end at infinity.
        below, above = (np.clip(end, low, high) for end in (curve.low, curve.high))
        axes.fill_between(curve.x, below, above, color=colour, alpha=0.16, linewidth=0)
        y = np.where(curve.y > 0, curve.y, np.nan) if log else curve.y
        (line,) = axes.plot(curve.x, y, color=colour, linewidth=1.8)
        if strokes := dashes(curve.dashes):
            line.set_dashes(strokes)
        shown = np.flatnonzero(np.isfinite(y))
        every = max(1, len(shown) // 10)
        some = shown[::-every] if len(shown) else shown  # the last one among them
        axes.plot(curve.x[some], y[some], marker(curve.look), color=colour, markersize=4.5)
    if log:
        log_ticks(axes.yaxis, low, high)
    else:
        linear_ticks(axes.yaxis)
    steps = np.concatenate([curve.x for curve in drawn])
    first, last = float(steps.min()), float(steps.max())
    pad = 0.02 * (last - first) or 0.5
    axes.set_xlim(first - pad, last + pad)
    ticks_of(axes.xaxis, MaxNLocator(6, integer=True))


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
    return padded([*map(float, kept), *lines, *ends], log=log)
