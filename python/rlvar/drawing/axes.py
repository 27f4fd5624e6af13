"""What all drawings have in common: the frame of the axes, their limits and ticks."""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.ticker import FixedLocator, FuncFormatter, Locator, MaxNLocator, NullFormatter, NullLocator

from rlvar.drawing.palette import Palette


def frame(axes: Axes, palette: Palette) -> None:
    axes.patch.set_visible(False)
    axes.grid(color=palette.grid, linewidth=0.7)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side not in ("top", "right"))
        spine.set_color(palette.ink)
    axes.tick_params(colors=palette.ink)
    axes.xaxis.label.set_color(palette.ink)
    axes.yaxis.label.set_color(palette.ink)


def above(axes: Axes, ylabel: str, palette: Palette, *, left: float) -> None:
    """Write what the y axis counts above it, where it takes no width: `left` points beside the axis."""
    axes.annotate(
        ylabel,
        (0, 1),
        (-left, 5),
        xycoords="axes fraction",
        textcoords="offset points",
        annotation_clip=False,
        color=palette.ink,
        parse_math=False,
    )


def padded(points: Sequence[float], *, log: bool) -> tuple[float, float]:
    """Return ends of an axis that holds the points, with room at both."""
    if not points:
        return (0.1, 10.0) if log else (-1.0, 1.0)
    first, last = min(points), max(points)
    if log:
        pad = max((last / first) ** 0.06, 1.03)
        return first / pad, last * pad
    pad = 0.06 * (last - first) or 1.1 * abs(first) or 1.1
    return first - pad, last + pad


def linear_ticks(axis: Axis, most: int = 5) -> None:
    ticks_of(axis, MaxNLocator(most, steps=[1, 2, 2.5, 5, 10]))


def ticks_of(axis: Axis, locator: Locator) -> None:
    axis.set_major_locator(locator)
    axis.set_major_formatter(FuncFormatter(tick))


def log_ticks(axis: Axis, low: float, high: float, *, most: int = 6) -> None:
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
    ticks_of(axis, FixedLocator(ticks))
    axis.set_minor_locator(NullLocator())
    axis.set_minor_formatter(NullFormatter())


def tick(x: float, _: object = None) -> str:
    text = f"{x:,.0f}" if 1000 <= abs(x) < 1e5 and x == round(x) else f"{x:.4g}"
    return text.replace("e+0", "e").replace("e+", "e").replace("e-0", "e-").replace("-", "−")
