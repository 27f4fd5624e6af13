"""Text for the terminal, at most 80 columns of it: sentences, tables, sparklines, colours.

Widths are those of a terminal: a Chinese character takes two columns, an accent that combines none. Names
that users give are escaped (`rlvar.stats.shown.printable`) wherever they come in here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from rlvar.analysis.measured import scores_line
from rlvar.reporting.words import long_name
from rlvar.rollouts import Rollouts
from rlvar.stats.shown import columns, number, padded, printable

WIDTH = 80
#: What the terminal understands as colours: for `painted`, and nothing else is let through.
STYLES = {
    "plain": "\x1b[0m", "bold": "\x1b[1m", "dim": "\x1b[2m", "green": "\x1b[32m", "yellow": "\x1b[33m",
}  # fmt: skip
_BARS = " ▁▂▃▄▅▆▇█"
_CHART_WIDTH, _CHART_HEIGHT = 64, 6
_NAME, _LEAST_NAME = 24, 8  # columns of an estimator's name, and of one beside many digits
_SPARK = 40
_GAP = "  "


def clipped(text: str, width: int) -> str:
    """Return text in at most so many columns, with dots for what is cut."""
    return text if columns(text) <= width else _split(text, max(width - 3, 0))[0] + "..."[:width]


def _split(text: str, width: int) -> tuple[str, str]:
    """Cut a text after so many columns."""
    taken = 0
    for i, character in enumerate(text):
        taken += columns(character)
        if taken > width:
            return text[:i], text[i:]
    return text, ""


def wrapped(sentence: str, *, indent: int = 2) -> str:
    """Return a sentence on lines of at most 80 columns; words that are longer are broken."""
    lines, room = [""], WIDTH - indent
    for word in printable(sentence).split(" "):
        if lines[-1] and columns(lines[-1]) + 1 + columns(word) <= room:
            lines[-1] += f" {word}"
            continue
        if lines[-1]:
            lines.append("")
            room = WIDTH - indent - 2
        while columns(word) > room:
            part, _ = _split(word, room)
            part = part[: part.rfind("/") + 1] or part  # a path is broken between its folders
            word = word[len(part) :]
            lines[-1] = part
            lines.append("")
            room = WIDTH - indent - 2
        lines[-1] = word
    return ("\n" + " " * (indent + 2)).join([" " * indent + lines[0], *lines[1:]]).rstrip()


def painted(text: str, style: str, colour: bool) -> str:
    return f"{STYLES[style]}{text}{STYLES['plain']}" if colour and style != "plain" else text


def titled(title: str, sentences: Sequence[str], colour: bool) -> list[str]:
    """Return sentences under their title."""
    return [painted(title, "bold", colour), *map(wrapped, sentences)]


def table(
    head: Sequence[str], rows: Sequence[Sequence[str]], *, styles: Sequence[str] = (), colour: bool = False
) -> list[str]:
    """Return the lines of a table whose first column are names, which are cut where they are too long."""
    lines = [[printable(cell) for cell in line] for line in (head, *rows)]
    widths = [max(map(columns, column)) for column in zip(*(line[1:] for line in lines), strict=True)]
    room = WIDTH - len(_GAP) * (1 + len(widths)) - sum(widths)
    names = [clipped(line[0], max(min(room, _NAME), _LEAST_NAME)) for line in lines]
    shown = []
    for name, line, style in zip(names, lines, ["plain", *(styles or ["plain"] * len(rows))], strict=True):
        cells = [padded(name, max(map(columns, names)))]
        cells += [padded(cell, width) for cell, width in zip(line[1:], widths, strict=True)]
        shown.append(painted(_GAP + _GAP.join(cells).rstrip(), style, colour))
    return shown


def about(source: str, rollouts: Rollouts) -> list[str]:
    """Say what the rollouts are; what `source` has after its first line are notes on it."""
    n, t, d = rollouts.shape
    counts = rollouts.token_counts
    measure = (
        "tokens" if rollouts.tokens is not None else "lengths" if rollouts.mask is None else "live steps"
    )
    terminal = rollouts.rewards.ndim == 1
    ignored = 0 if terminal else np.count_nonzero(np.nan_to_num(rollouts.rewards[~rollouts.live]))
    note = f"{ignored} non-zero rewards lie on steps that are not live and are ignored" if ignored else ""
    rewards = "one terminal reward each" if terminal else "a reward for each step"
    groups = "" if rollouts.groups is None else f", in {len(np.unique(rollouts.groups))} groups"
    of = scores_line(rollouts.scores_of, d if rollouts.sketched else None)
    name, *notes = source.split("\n")
    return [
        f"Rollouts: {name}",
        f"N = {n} rollouts{groups}, T = {t} steps, D = {d} coordinates, {rewards}",
        f"{measure} {counts.min()} to {counts.max()}, median {np.median(counts):g}, mean {counts.mean():.1f}",
        *([note] if note else []),
        *([] if of is None else [of]),
        *notes,
    ]


def rollouts_lines(source: str, rollouts: Rollouts) -> list[str]:
    """Return `about` as the terminal shows it."""
    first, *others = about(source, rollouts)
    return [wrapped(first, indent=0), *map(wrapped, others)]


def sparklines(growth: Mapping[str, NDArray[np.float64]]) -> list[str]:
    """Draw growth curves, the variance of the first k terms' sum, each in a line of its own height."""
    names = {name: clipped(printable(name), _NAME) for name in growth}
    width = max(map(columns, names.values()))
    lines = []
    for name, curve in growth.items():
        at = _sampled(curve, _SPARK)
        eighths = np.clip(np.ceil(at / at.max() * 8), 0, 8).astype(int)
        bars = "".join(_BARS[eighth] for eighth in eighths)
        lines.append(f"  {padded(names[name], width)}  {bars}  up to {number(float(curve.max()))}")
    return lines


def _sampled(curve: NDArray[np.float64], width: int) -> NDArray[np.float64]:
    """Return a curve at so many places, its end among them, or all of it if it has fewer."""
    width = min(width, len(curve))
    at: NDArray[np.float64] = curve[np.ceil(np.arange(1, width + 1) * len(curve) / width).astype(int) - 1]
    return at


def chart(name: str, growth: NDArray[np.float64]) -> str:
    """Draw the growth curve: the share of the variance that the first k steps have."""
    steps = len(growth)
    at = _sampled(growth, _CHART_WIDTH)
    top, width = float(growth.max()), len(at)
    eighths = np.rint(at / top * _CHART_HEIGHT * 8).astype(int)
    lines = [
        wrapped(f"Growth of the variance of {long_name(name)} with the number of steps summed", indent=0)
    ]
    for row in reversed(range(_CHART_HEIGHT)):
        bar = "".join(_BARS[min(8, max(0, e - 8 * row))] for e in eighths)
        label = f"{top:.3g}" if row == _CHART_HEIGHT - 1 else ""
        lines.append(f"  {label:>9} │{bar}".rstrip())
    lines.append(f"  {'0':>9} └" + "─" * width)
    lines.append(" " * 13 + "1" + f"{steps} steps".rjust(max(width - 1, len(str(steps)) + 9)))
    return "\n".join(lines)
