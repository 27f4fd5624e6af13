"""What other numbers of completions for a prompt would do with as many rollouts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from rlvar.drawing.axes import log_ticks, padded
from rlvar.drawing.curves import Curve, curves
from rlvar.drawing.palette import PLAIN, Palette
from rlvar.stats.estimate import Estimate


def plan_curve(
    axes: Axes,
    completions: Sequence[Sequence[int]],
    variances: Sequence[Sequence[Estimate]],
    *,
    in_use: int | None = None,
    looks: Sequence[int] | None = None,
    palette: Palette = PLAIN,
) -> None:
    """Draw variances over what is in use, a curve an estimator, by the completions of a prompt.

    Without a lower end there is a band alone. A dashed line marks what is in use.
    """
    drawn = []
    for i, (shapes, each) in enumerate(zip(completions, variances, strict=True)):
        order = np.argsort(shapes)
        x, y, low, high = (
            np.array(values, np.float64)[order]
            for values in (shapes, *zip(*[(v.value, v.low, v.high) for v in each], strict=True))
        )
        y = np.where(low <= 0, np.nan, y)  # bounded from above alone
        look = i if looks is None else looks[i]
        drawn.append(Curve(x, y, low, high, look, look))
    curves(axes, drawn, log=True, zero=1.0, palette=palette)
    axes.set_xscale("log")
    first, last = padded([float(x) for curve in drawn for x in curve.x], log=True)
    axes.set_xlim(first, last)
    log_ticks(axes.xaxis, first, last)
    if in_use is not None:
        axes.axvline(in_use, color=palette.ink, linewidth=1.2, dashes=(4, 3))
    axes.set_xlabel("completions of a prompt")
    axes.set_ylabel("variance over that in use")
