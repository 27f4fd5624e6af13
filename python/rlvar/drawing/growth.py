"""How the variance grows with length, on log axes, and how many rollouts that rests on."""

from __future__ import annotations

import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike, NDArray

from rlvar._types import Double
from rlvar.drawing.axes import frame, log_ticks, padded, ticks_of
from rlvar.drawing.palette import PLAIN, Palette, dashes, marker
from rlvar.stats.estimate import Estimate

_GUIDES = (1, 2, 3)
_POINTS = 256  # of a curve
_AUXILIARY = "_auxiliary"  # lines that the limits need not hold


def growth(
    axes: Axes,
    variance: ArrayLike,
    *,
    exponent: Estimate | None = None,
    span: tuple[float, float] | None = None,
    steps: ArrayLike | None = None,
    look: int = 0,
    guides: bool = True,
    xlabel: str = "number of steps summed",
    ylabel: str = "variance",
    palette: Palette = PLAIN,
) -> None:
    """Draw variances (K,) over the numbers of steps (K,), by default 1 to K, and their power law over `span`.

    Dashed guides of slope 1, 2 and 3 start at the first point. Values that are not positive leave a gap.
    """
    y = np.asarray(variance, np.float64)
    x = np.arange(1.0, len(y) + 1) if steps is None else np.asarray(steps, np.float64)
    shown = np.isfinite(y) & (y > 0)
    frame(axes, palette)
    axes.set_xscale("log")
    axes.set_yscale("log")
    if shown.any():
        few = steps is not None
        kept = np.arange(len(x)) if few else _spread(len(x))
        colour = palette.colour(look)
        (line,) = axes.plot(x[kept], np.where(shown, y, np.nan)[kept], color=colour, linewidth=1.8)
        if dashes(look):
            line.set_dashes(dashes(look))
        marked = np.flatnonzero(shown) if few else _spread(len(x), 8)
        marked = marked[shown[marked]]
        axes.plot(x[marked], y[marked], marker(look), color=colour, markersize=4.5)
        _set_limits(axes)
        inside = shown if span is None else shown & (x >= span[0]) & (x <= span[1])
        if guides:
            _guides(axes, (float(x[shown][0]), float(y[shown][0])), palette)
        if inside.any() and exponent is not None and math.isfinite(exponent.value):
            _fitted(axes, x[inside], y[inside], exponent.value, colour)
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)


def alive(axes: Axes, counts: ArrayLike, *, log: bool = True, palette: Palette = PLAIN) -> None:
    """Draw how many rollouts (T,) reach each step."""
    y = np.asarray(counts, np.float64)
    x = np.arange(1.0, len(y) + 1)
    frame(axes, palette)
    if log:
        axes.set_xscale("log")
    kept = np.unique(np.concatenate([_spread(len(x)), np.flatnonzero(np.diff(y))]))[:: max(1, len(x) // 2048)]
    axes.fill_between(x[kept], y[kept], step="mid", color=palette.ink, alpha=0.25, linewidth=0)
    low, high = padded([float(x[0]), float(x[-1])], log=log)
    axes.set_xlim(low, high)
    axes.set_ylim(0, 1.08 * float(y.max()) or 1.0)
    ticks_of(axes.yaxis, MaxNLocator(3, integer=True))
    if log:
        log_ticks(axes.xaxis, low, high)
    axes.set_ylabel("rollouts")


def _spread(length: int, points: int = _POINTS) -> NDArray[np.int64]:
    """Return places of a curve, evenly on a log axis, with both ends."""
    return np.asarray(np.unique(np.rint(np.geomspace(1, length, points)).astype(np.int64)) - 1)


def _set_limits(axes: Axes) -> None:
    """Hold all curves drawn so far."""
    drawn = [line.get_xydata() for line in axes.lines if line.get_label() != _AUXILIARY]
    points = np.concatenate([np.asarray(each, np.float64) for each in drawn])
    points = points[np.isfinite(points).all(axis=1)]
    for axis, values, set_ in (
        (axes.xaxis, points[:, 0], axes.set_xlim),
        (axes.yaxis, points[:, 1], axes.set_ylim),
    ):
        low, high = padded([float(values.min()), float(values.max())], log=True)
        set_(low, high)
        log_ticks(axis, low, high)


def _guides(axes: Axes, start: tuple[float, float], palette: Palette) -> None:
    """Draw lines of some slopes from a point to the edge, each with its slope where it ends."""
    (_, right), (_, top) = axes.get_xlim(), axes.get_ylim()
    for slope in _GUIDES:
        end = min(right, start[0] * (top / start[1]) ** (1 / slope))
        height = start[1] * (end / start[0]) ** slope
        line = Line2D([start[0], end], [start[1], height], color=palette.ink, linewidth=1, alpha=0.7)
        line.set_dashes((3, 3))
        line.set_label(_AUXILIARY)
        axes.add_artist(line)
        va, offset = ("bottom", (-4, 3)) if end == right else ("top", (-4, -1))
        text = axes.annotate(str(slope), (end, height), offset, textcoords="offset points", color=palette.ink)
        text.set(ha="right", va=va)


def _fitted(axes: Axes, x: Double, y: Double, exponent: float, colour: str) -> None:
    """Draw the power law through the middle of the points that it was fitted to."""
    middle = float(np.log(x).mean()), float(np.log(y).mean())
    law = np.exp(middle[1] + exponent * (np.log(x[[0, -1]]) - middle[0]))
    line = Line2D(x[[0, -1]], law, color=colour, linewidth=6, alpha=0.3, solid_capstyle="butt")
    line.set_label(_AUXILIARY)
    axes.add_artist(line)
