"""Text for the terminal: the line on the rollouts, wrapped sentences, the chart."""

from __future__ import annotations

import textwrap

import numpy as np
from numpy.typing import NDArray

from rlvar.analysis.measured import scores_line
from rlvar.reporting.words import long_name
from rlvar.rollouts import Rollouts

_BARS = " ▁▂▃▄▅▆▇█"
_CHART_WIDTH, _CHART_HEIGHT = 64, 6
_TEXT_WIDTH = 110


def wrapped(sentence: str) -> str:
    return textwrap.fill(
        sentence,
        _TEXT_WIDTH,
        initial_indent="  ",
        subsequent_indent="    ",
        break_long_words=False,
        break_on_hyphens=False,
    )


def rollouts_line(source: str, rollouts: Rollouts) -> str:
    n, t, d = rollouts.shape
    counts = rollouts.token_counts
    measure = (
        "tokens" if rollouts.tokens is not None else "lengths" if rollouts.mask is None else "live steps"
    )
    terminal = rollouts.rewards.ndim == 1
    ignored = 0 if terminal else np.count_nonzero(np.nan_to_num(rollouts.rewards[~rollouts.live]))
    note = f"\n  {ignored} non-zero rewards lie on steps that are not live and are ignored" if ignored else ""
    rewards = "one terminal reward each" if terminal else "a reward for each step"
    groups = "" if rollouts.groups is None else f", in {len(np.unique(rollouts.groups))} groups"
    of = scores_line(rollouts.scores_of, d if rollouts.sketched else None)
    return (
        f"Rollouts: {source}\n"
        f"  N = {n} rollouts{groups}, T = {t} steps, D = {d} coordinates, {rewards}\n"
        f"  {measure} {counts.min()} to {counts.max()}, median {np.median(counts):g}, "
        f"mean {counts.mean():.1f}{note}" + ("" if of is None else f"\n{wrapped(of)}")
    )


def chart(name: str, growth: NDArray[np.float64]) -> str:
    """Draw the growth curve: the share of the variance that the first k steps have."""
    steps = len(growth)
    width = min(_CHART_WIDTH, steps)
    columns = growth[np.ceil(np.arange(1, width + 1) * steps / width).astype(int) - 1]
    top = float(growth.max())
    eighths = np.rint(columns / top * _CHART_HEIGHT * 8).astype(int)
    lines = [f"Growth of the variance of {long_name(name)} with the number of steps summed"]
    for row in reversed(range(_CHART_HEIGHT)):
        bar = "".join(_BARS[min(8, max(0, e - 8 * row))] for e in eighths)
        label = f"{top:.3g}" if row == _CHART_HEIGHT - 1 else ""
        lines.append(f"  {label:>9} │{bar}".rstrip())
    lines.append(f"  {'0':>9} └" + "─" * width)
    lines.append(" " * 13 + "1" + f"{steps} steps".rjust(max(width - 1, len(str(steps)) + 9)))
    return "\n".join(lines)
