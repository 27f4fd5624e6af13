"""What people read of a result: harmless text, numbers to three digits, a small table."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterable, Sequence
from html import escape

from rlvar.stats.estimate import Estimate

# A notebook's theme decides the colours. It would set numbers to the right, and some themes have no lines.
_CELL = "text-align: left; padding: .2em 1em .2em 0; border-bottom: 1px solid rgba(128, 128, 128, .4)"


def printable(text: str) -> str:
    """Return text on one line that a terminal shows as it is: what steers it or reorders is escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def columns(text: str) -> int:
    """Return how many columns of a terminal a text takes: two a Chinese character, none an accent alone."""
    return sum(map(_columns, text))


def _columns(character: str) -> int:
    if unicodedata.category(character) in ("Mn", "Me"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def padded(text: str, width: int) -> str:
    """Return text with blanks up to so many columns."""
    return text + " " * (width - columns(text))


def aligned(rows: Iterable[Sequence[str]]) -> list[str]:
    """Return a table for a terminal, a line a row; cells may hold anything."""
    cells = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(columns, column)) for column in zip(*cells, strict=True)]
    return ["  ".join(map(padded, row, widths)).rstrip() for row in cells]


def number(value: float) -> str:
    """Three significant digits, without an exponent where that is readable."""
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e6 else f"{value:.3g}"


def measured(x: Estimate, *, bounded: bool = False, most: float = math.inf) -> str:
    """Return value and interval to three digits; of what rests on a signal, `bounded`, what it tells.

    Without an interval a value that it cannot have, negative or above `most`, tells nothing.
    """
    if bounded and not x.resolved and not math.isnan(x.low):
        return f"above {number(x.low)}" if x.low > 0 else "not resolved"
    if math.isnan(x.low):
        if math.isnan(x.value):
            return "undefined"
        cannot = bounded and (math.copysign(1.0, x.value) < 0 or x.value > most)
        return "not resolved" if cannot else number(x.value)
    return f"{number(x.value)} ({number(x.low)} to {number(x.high)})"


def html_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return an HTML table whose first column names the rows; names may hold anything."""

    def line(cells: Sequence[str], tags: Iterable[str]) -> str:
        shown = (
            f'<{tag} style="{_CELL}">{html_text(cell)}</{tag}>' for cell, tag in zip(cells, tags, strict=True)
        )
        return f'<tr style="background: none">{"".join(shown)}</tr>'

    body = "".join(line(row, ["th", *["td"] * (len(row) - 1)]) for row in rows)
    table = f"<table><thead>{line(head, ['th'] * len(head))}</thead><tbody>{body}</tbody></table>"
    return f'<div style="overflow-x: auto">{table}</div>'  # what is too wide scrolls by itself


def html_lines(lines: Iterable[str]) -> str:
    """Return an HTML paragraph for each line."""
    return "".join(f"<p>{html_text(each)}</p>" for each in lines)


def html_list(title: str, items: Sequence[str]) -> str:
    """Return an HTML list under its title, if there is anything in it."""
    listed = "".join(f"<li>{html_text(each)}</li>" for each in items)
    return f"<p><b>{html_text(title)}</b></p><ul>{listed}</ul>" if items else ""


def html_text(text: str) -> str:
    """Return text for HTML, as it is but for control characters, which are shown."""
    return escape(printable(text))
