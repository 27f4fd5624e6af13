"""Figures of a page: matplotlib's, as SVG that takes its colours and its type from the page around it.

A drawing has no text but numbers and the names of its axes; what users name is in the page, as its legend.
Colours are those of the page's palette (Okabe & Ito's), one for light and one for dark.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from rlvar.drawing.axes import above
from rlvar.drawing.curves import Curve, curves
from rlvar.drawing.intervals import intervals, shortened
from rlvar.drawing.palette import Palette
from rlvar.stats.estimate import Estimate

COLOURS = 6

_SIZE = (5.0, 3.1)  # inches of 72 units: on a phone a unit is a pixel
_TYPE = 11.0
# Stand-ins for what the page decides.
PAGE = Palette("#0a0b0c", "#0a0b0d", tuple(f"#0a0c{i:02x}" for i in range(COLOURS)))
_RC: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.family": ["sans-serif"],
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": _TYPE,
    "axes.unicode_minus": True,
    "text.color": PAGE.ink,
    "path.simplify": True,
}


@dataclass(frozen=True, eq=False)
class Panel:
    """Curves on common axes, and the values of horizontal lines: `zero` is drawn, `guides` are dashed."""

    curves: Sequence[Curve]
    ylabel: str
    log: bool = False
    zero: float | None = None
    guides: Sequence[float] = ()


def over_steps(key: str, alt: str, panels: Sequence[Panel], xlabel: str = "training step") -> str:
    """Draw panels one below the other; `key` keeps the names within the SVG apart from those of others."""
    width, height = _SIZE
    with _style(key):
        height = height if len(panels) == 1 else 1.8 * len(panels) + 0.5
        figure = Figure(figsize=(width, height))
        for i, panel in enumerate(panels):
            axes = figure.add_subplot(len(panels), 1, i + 1)
            curves(axes, panel.curves, log=panel.log, zero=panel.zero, guides=panel.guides, palette=PAGE)
            above(axes, panel.ylabel, PAGE, left=0.15 * width * 72)
            if i < len(panels) - 1:
                axes.xaxis.set_major_formatter(NullFormatter())
        figure.axes[-1].set_xlabel(xlabel)
        figure.subplots_adjust(0.155, 0.56 / height, 0.985, 1 - 0.3 / height, hspace=0.3)
        return _svg(figure, key, alt)


def dots(
    key: str, alt: str, labels: Sequence[str], estimates: Sequence[Estimate], xlabel: str, **options: Any
) -> str:
    """Draw estimates with their intervals (`rlvar.drawing.intervals`), the first on top."""
    with _style(key):
        height = 0.9 + 0.3 * max(len(labels), 3)
        figure = Figure(figsize=(_SIZE[0], height))
        intervals(figure.add_subplot(), labels, estimates, xlabel=xlabel, palette=PAGE, **options)
        widest = max(len(shortened(label)) for label in labels)
        figure.subplots_adjust(min(0.45, 0.06 + 0.019 * widest), 0.56 / height, 0.965, 1 - 0.1 / height)
        return _svg(figure, key, alt)


def drawn(
    key: str,
    alt: str,
    *draw: Callable[[Axes], object],
    heights: Sequence[float] = (_SIZE[1],),
    left: float = 0.165,
    right: float = 0.965,
) -> str:
    """Draw on axes one below the other, of these heights in inches."""
    with _style(key):
        total = sum(heights)
        figure = Figure(figsize=(_SIZE[0], total))
        ratios = {"height_ratios": heights}
        each = figure.subplots(len(draw), 1, squeeze=False, gridspec_kw=ratios)[:, 0]
        figure.subplots_adjust(left, 0.56 / total, right, 1 - 0.3 / total, hspace=0.45)
        for axes, on in zip(each, draw, strict=True):
            on(axes)
            above(axes, axes.get_ylabel(), PAGE, left=left * _SIZE[0] * 72 - 2)
            axes.set_ylabel("")
        return _svg(figure, key, alt)


@contextmanager
def _style(key: str) -> Iterator[None]:
    """Draw alike whatever style the caller has set, and leave that as it is."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_RC | {"svg.hashsalt": key})
        yield


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
    text = text.replace(PAGE.ink, "currentColor").replace(PAGE.grid, "var(--grid)")
    for i, ink in enumerate(PAGE.series):
        text = text.replace(ink, f"var(--c{i})")
    text = re.sub(r' (?:d|x|y)="[^"]*"', lambda found: re.sub(r"(\.\d\d)\d+", r"\1", found[0]), text)
    text = re.sub(r"\s*\n\s*", "\n", text)
    return f'<svg viewBox="{box}" role="img" aria-label="{escape(alt)}">{text}'
