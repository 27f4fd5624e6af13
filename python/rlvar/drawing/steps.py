"""What each step has: its share of the variance, the covariance at each distance, rewards.

Long rollouts are drawn in blocks of steps, whose values are added.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

from rlvar._types import Double
from rlvar.drawing.axes import frame, linear_ticks, ticks_of
from rlvar.drawing.curves import Curve, curves
from rlvar.drawing.palette import PLAIN, Palette, dashes

_MOST_BLOCKS = 32  # single steps of long rollouts are mostly chance


def block_size(steps: int, most: int = _MOST_BLOCKS) -> int:
    """Return the size of blocks of steps of which there are at most so many."""
    return max(1, -(-steps // most))


def step_share(axes: Axes, share: ArrayLike, *, look: int = 0, palette: Palette = PLAIN) -> None:
    """Draw which steps carry the variance: the share (T,) of each, in blocks."""
    _stairs(axes, np.asarray(share, np.float64), look, palette)
    axes.set_xlabel("step")
    axes.set_ylabel("share of the variance")


def lag_profile(axes: Axes, lags: ArrayLike, *, look: int = 0, palette: Palette = PLAIN) -> None:
    """Draw what pairs of steps add to the variance by their distance, from the covariance at lags (T,).

    It is 2 c(k) at distance k from 1 on, in blocks: together the covariance terms.
    """
    _stairs(axes, 2 * np.asarray(lags, np.float64)[1:], look, palette)
    axes.set_xlabel("distance of two steps")
    axes.set_ylabel("covariance terms")


def by_step(axes: Axes, drawn: Sequence[Curve], *, palette: Palette = PLAIN) -> None:
    """Draw what steps have on average, with its spread, about a line at zero."""
    curves(axes, drawn, zero=0.0, palette=palette)
    axes.set_xlabel("step")


def _stairs(axes: Axes, values: Double, look: int, palette: Palette) -> None:
    """Draw values (T,) of steps from 1 on, in blocks, about a line at zero."""
    frame(axes, palette)
    axes.axhline(0.0, color=palette.ink, linewidth=1)
    size = block_size(len(values))
    starts = np.arange(0, len(values), size)
    sums = np.add.reduceat(values, starts) if len(values) else values
    colour, edges = palette.colour(look), np.append(starts, len(values)) + 0.5
    axes.stairs(sums, edges, fill=True, color=colour, alpha=0.16)
    line = axes.stairs(sums, edges, color=colour, linewidth=1.6, baseline=None)
    if strokes := dashes(look):
        line.set_linestyle((0, tuple(strokes)))
    ticks_of(axes.xaxis, MaxNLocator(6, integer=True))
    linear_ticks(axes.yaxis)
