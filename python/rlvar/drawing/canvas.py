"""Axes to draw on: those given, else those of a new figure of pyplot, with colours that suit its ground.

matplotlib is imported when it is asked for: without it results have no drawings, and all else they have.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rlvar.drawing.palette import PLAIN, Palette

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SIZE = (6.4, 4.0)  # inches
# As PLAIN, light enough for lines on black.
_ON_DARK = Palette("#e8eaed", "#31373d", ("#56b4e9", "#f28c4e", "#2cc295", "#dda0c8", "#e3c03a", "#a9b0b9"))


def canvas(ax: Axes | None, *, rows: int | None = None) -> tuple[Axes, Palette]:
    """Return axes and their colours; a new figure is as high as `rows` with one interval each need."""
    try:
        from matplotlib import colors, pyplot, rcParams
        from matplotlib.axes import Axes
    except ImportError as error:
        raise ImportError(f"plot needs matplotlib: pip install 'rlvar[report]' ({error})") from None
    if ax is None:
        height = _SIZE[1] if rows is None else 0.9 + 0.3 * max(rows, 3)
        ax = pyplot.subplots(figsize=(_SIZE[0], height), layout="constrained")[1]
    elif not isinstance(ax, Axes):
        raise TypeError(f"ax must be matplotlib Axes, got {type(ax).__name__}")
    if sum(colors.to_rgb(rcParams["text.color"])) < 1.5:
        return ax, PLAIN
    return ax, _ON_DARK
