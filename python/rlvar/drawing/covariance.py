"""The covariance between steps: as a map, and by the distance of the steps."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize, to_rgb
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

from rlvar._types import Double
from rlvar.drawing.axes import frame, linear_ticks, ticks_of
from rlvar.drawing.palette import PLAIN, Palette

MOST_BLOCKS = 64  # of a map, in either direction: single entries of long rollouts are mostly chance
_BULK = 98.0  # percentile of the sizes at which colours end
_TAIL = 1.5  # times beyond that: where the largest is no more, nothing is cut off


def covariance_map(
    axes: Axes, blocks: ArrayLike, *, steps: int | None = None, palette: Palette = PLAIN
) -> float:
    """Draw the sums (B, B) of a covariance over equal blocks of the `steps`, the last of which may be short.

    Colours diverge about zero, which is transparent. Returns at which size they end: what few blocks have
    beyond it looks the same.
    """
    values = np.asarray(blocks, np.float64)
    count = len(values)
    last = count if steps is None else count * -(-steps // count)
    most = colour_range(values)
    colours, scale = _colours(palette), Normalize(-most, most)
    extent = (0.5, last + 0.5, last + 0.5, 0.5)
    axes.imshow(values, colours, scale, extent=extent, interpolation="none", aspect="equal")
    axes.set_xlim(0.5, (steps or last) + 0.5)
    axes.set_ylim((steps or last) + 0.5, 0.5)
    frame(axes, palette)
    axes.grid(visible=False)
    for axis in (axes.xaxis, axes.yaxis):
        ticks_of(axis, MaxNLocator(5, integer=True))
    axes.set_xlabel("step")
    axes.set_ylabel("step")
    beyond = [bool((values * sign).max() > most) for sign in (-1, 1)]
    names = {(False, False): "neither", (True, False): "min", (False, True): "max", (True, True): "both"}
    extend = names[beyond[0], beyond[1]]
    colourable = ScalarMappable(scale, colours)
    bar = axes.figure.colorbar(colourable, ax=axes, extend=extend, fraction=0.05, pad=0.04)
    if bar.solids is not None:  # one picture, and no path for each colour
        bar.solids.set_rasterized(True)
    bar.outline.set_visible(False)
    bar.ax.tick_params(colors=palette.ink)
    linear_ticks(bar.ax.yaxis)
    return most


def colour_range(values: Double) -> float:
    """Return the size at which colours end: the largest or, where few are far beyond the rest, theirs."""
    sizes = np.abs(values[np.isfinite(values) & (values != 0)])
    if not len(sizes):
        return 1.0
    bulk, most = float(np.percentile(sizes, _BULK)), float(sizes.max())
    return most if most <= _TAIL * bulk else bulk


def _colours(palette: Palette) -> LinearSegmentedColormap:
    """Return colours that fade to nothing at zero, so that they suit any ground."""
    negative, positive = to_rgb(palette.negative), to_rgb(palette.positive)
    stops = [(*negative, 1.0), (*negative, 0.0), (*positive, 0.0), (*positive, 1.0)]
    return LinearSegmentedColormap.from_list(
        "about zero", list(zip((0.0, 0.5, 0.5, 1.0), stops, strict=True))
    )
