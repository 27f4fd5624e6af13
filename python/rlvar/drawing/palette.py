"""Colours and marks of drawings: safe for colour-blind readers; lines differ by dashes and markers too."""

from __future__ import annotations

from dataclasses import dataclass

DASHES = ("", "6 2", "2 2", "7 2 2 2", "9 2 2 2 2 2")
MARKERS = ("o", "s", "^", "D", "v")


@dataclass(frozen=True)
class Palette:
    """Colours of text and axes, of their grid, of what is drawn, and of the two ends about zero."""

    ink: str
    grid: str
    series: tuple[str, ...]
    negative: str = "#1f83c4"
    positive: str = "#d9601a"

    def colour(self, look: int) -> str:
        return self.series[look % len(self.series)]


#: Okabe & Ito's (2008) colours, dark enough for lines on white.
PLAIN = Palette("#1a1d21", "#dfe3e8", ("#0072b2", "#c04f00", "#008560", "#a8508d", "#8a6a00", "#555c66"))


def marker(look: int) -> str:
    return MARKERS[look % len(MARKERS)]


def dashes(look: int) -> list[float]:
    """Return lengths of strokes and gaps; none for a solid line."""
    return [float(each) for each in DASHES[look % len(DASHES)].split()]
