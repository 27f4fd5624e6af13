"""What came out of `studies/acting.py`, from its JSON: tables in Markdown and a picture.

Of an arm, its best learning rate is that of the least median of rollouts to the goal over seeds, runs that
never reach it counted as later than all; of equal medians that of the higher mean success at the end. Ratios
of rollouts are geometric means over seeds, paired, both arms at their best rate; a run that never reaches the
goal enters with all its rollouts, so that a ratio to it is at least that. Intervals are 95 % percentiles of
10,000 bootstraps of seeds, without the choice of the rate.

Noise is the variance of a step over its squared mean, and is shown over that of the batch in use. Arms whose
mean is the policy gradient share that mean; "grpo" and "otb" have another, estimated over all seeds together.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np

IN_USE = "rloo 4x16"
OTHER_MEAN = ("grpo", "otb")
RESAMPLES = 10_000
DRAWN = 0.5  # the level that most arms reach, beside the goal


class Row(NamedTuple):
    """An arm: what was predicted and realised, and what its runs did."""

    arm: str
    predicted: float  # median over seeds of variance over that in use, by rollouts of the start
    realised: float  # the same over repeated steps
    rate: float  # learning rate, the best
    reached: np.ndarray  # (S,) rollouts to the level at that rate, inf where it was not reached
    all_reached: list[int]  # runs that reached the level, by rate
    ratio: tuple[float, float, float]  # rollouts of the batch in use over this arm's, and its interval
    earlier: tuple[int, int]  # seeds in which it was earlier than the batch in use, and later
    curve: np.ndarray  # (steps,) median of success over seeds at the best rate


def reached(of_arm: dict, found: dict, level: int) -> np.ndarray:
    """Rollouts until the success was at a level, (rates, seeds)."""
    looks = np.array(of_arm["reached"], float)[..., level]  # None is NaN
    return np.where(np.isnan(looks), np.inf, looks * found["every"])


def median(values) -> float:
    """The median of numbers that may be infinite."""
    ordered = np.sort(np.asarray(values, float))
    return float((ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2)


def best_rate(rollouts: np.ndarray, last: np.ndarray) -> int:
    """Which learning rate is best, of rollouts to a level and success at the end, (rates, seeds)."""
    return min(range(len(last)), key=lambda i: (median(rollouts[i]), -np.mean(last[i])))


def paired_ratio(base: np.ndarray, other: np.ndarray, most: int):
    """Geometric mean over seeds of rollouts of one arm over another's, with an interval."""
    logs = np.log(np.minimum(base, most)) - np.log(np.minimum(other, most))
    drawn = np.random.default_rng(0).integers(len(logs), size=(RESAMPLES, len(logs)))
    low, high = np.quantile(logs[drawn].mean(axis=1), (0.025, 0.975))
    return tuple(np.exp([logs.mean(), low, high]).tolist())


def to_one_scale(realised: list[dict], arms) -> dict[str, list[float]]:
    """Realised variances of arms by seed, in units of the policy gradient's own mean."""
    plain = [arm for arm in arms if arm.split()[0] not in OTHER_MEAN]
    signal = np.mean([[seed[arm][1] for arm in plain] for seed in realised])
    scaled = {}
    for arm in arms:
        factor = 1.0 if arm in plain else np.divide(signal, np.mean([seed[arm][1] for seed in realised]))
        scaled[arm] = [factor * seed[arm][0] for seed in realised]
    return scaled


def over_in_use(by_seed: list[dict], arm: str) -> float:
    """Median over seeds of a predicted variance over that of the batch in use."""
    known = [seed["arms"] for seed in by_seed if seed and seed["arms"].get(arm) and seed["arms"].get(IN_USE)]
    ratios = [arms[arm] / arms[IN_USE] for arms in known]
    return float(np.median(ratios)) if ratios else np.nan


def rows_of(task: dict, found: dict, level: int) -> list[Row]:
    """All arms, the least predicted noise first."""
    arms = list(task["runs"])
    scaled = to_one_scale(task["realised"], arms)
    rollouts = {arm: reached(runs, found, level) for arm, runs in task["runs"].items()}
    best = {arm: best_rate(rollouts[arm], np.array(task["runs"][arm]["last"])) for arm in arms}
    theirs = rollouts[IN_USE][best[IN_USE]]
    rows = []
    for arm in arms:
        mine = rollouts[arm][best[arm]]
        rows.append(
            Row(
                arm,
                over_in_use(task["pooled"], arm),
                float(np.median(np.divide(scaled[arm], scaled[IN_USE]))),
                found["rates"][best[arm]],
                mine,
                np.isfinite(rollouts[arm]).sum(axis=1).tolist(),
                paired_ratio(theirs, mine, found["most"]),
                (int((mine < theirs).sum()), int((mine > theirs).sum())),
                np.array(task["runs"][arm]["median"][best[arm]]) / 1000,
            )
        )
    return sorted(rows, key=lambda row: (np.isnan(row.predicted), row.predicted))


def rank_correlation(x, y) -> float:
    """Spearman's, with ties at their mean rank."""

    def ranks(values):
        values = np.asarray(values, float)
        return (values[:, None] > values).sum(1) + ((values[:, None] == values).sum(1) - 1) / 2

    return float(np.corrcoef(ranks(x), ranks(y))[0, 1])


def count(rollouts: float) -> str:
    return f"{rollouts:,.0f}" if np.isfinite(rollouts) else "never"


def shown_range(rollouts: np.ndarray) -> str:
    if np.isinf(rollouts).all():
        return "never"
    return f"{count(median(rollouts))} ({count(rollouts.min())} to {count(rollouts.max())})"


def shown_ratio(row: Row, in_use: Row) -> str:
    """A ratio with its interval; "≥" if runs of the batch in use never arrive, "~" if some of both do not."""
    if row.arm == IN_USE or np.isinf(row.reached).all():
        return ""
    late = np.isinf(in_use.reached).any(), np.isinf(row.reached).any()
    sign = {(True, True): "~ ", (True, False): "≥ ", (False, True): "≤ ", (False, False): ""}[late]
    value, low, high = row.ratio
    return f"{sign}{value:.2f} ({low:.2f} to {high:.2f})"


def table(task: dict, found: dict, level: int) -> list[str]:
    """What arms took to a level of success, beside their noise; how the orders agree."""
    rows = rows_of(task, found, level)
    (in_use,) = (row for row in rows if row.arm == IN_USE)
    seeds = len(in_use.reached)
    rates = ", ".join(f"{rate:g}" for rate in found["rates"])
    lines = [
        f"| arm | noise predicted | realised | rollouts to {found['levels'][level]:.2f}: median (range) "
        f"| reached | rate | times fewer than {IN_USE} | seeds earlier, later | reached at {rates} |",
        "|---" * 9 + "|",
    ]
    for row in rows:
        predicted = "" if np.isnan(row.predicted) else f"{row.predicted:.2f}"
        lines.append(
            f"| {row.arm} | {predicted} | {row.realised:.2f} | {shown_range(row.reached)} "
            f"| {np.isfinite(row.reached).sum()} of {seeds} | {row.rate:g} | {shown_ratio(row, in_use)} "
            f"| {row.earlier[0]}, {row.earlier[1]} | {', '.join(map(str, row.all_reached))} |"
        )
    known = [row for row in rows if np.isfinite(row.predicted)]
    trained = {row.arm: median(row.reached) for row in rows}
    return [
        *lines,
        "",
        "Rank correlation over arms: predicted with realised noise "
        f"{rank_correlation([r.predicted for r in known], [r.realised for r in known]):.2f}, "
        "predicted noise with rollouts "
        f"{rank_correlation([r.predicted for r in known], [trained[r.arm] for r in known]):.2f}, "
        f"realised noise with rollouts "
        f"{rank_correlation([r.realised for r in rows], list(trained.values())):.2f}.",
    ]


def shown_levels(found: dict) -> list[int]:
    """The places of the level that is drawn and of the goal."""
    return [i for i, level in enumerate(found["levels"][:-1]) if level == DRAWN] + [len(found["levels"]) - 1]


def plans(task: dict) -> list[str]:
    lines = []
    for key in ("one batch", "pooled"):
        for name in ("single", "rloo"):
            shapes = ["{}x{}".format(*seed["plans"][name]) for seed in task[key] if seed]
            counted = ", ".join(f"{shape} in {shapes.count(shape)}" for shape in sorted(set(shapes)))
            lines.append(f"- plan for {name}, {key}, by seeds: {counted}")
    least = [min(known, key=known.get) for known in (positive(seed) for seed in task["pooled"]) if known]
    counted = ", ".join(f"{arm} in {least.count(arm)}" for arm in sorted(set(least)))
    return [*lines, f"- least predicted noise of all arms, pooled, by seeds: {counted}"]


def positive(seed: dict | None) -> dict[str, float]:
    return {arm: x for arm, x in seed["arms"].items() if x is not None and x > 0} if seed else {}


def variances(task: dict) -> list[str]:
    """Predicted over realised variance of a step, for arms whose mean is the policy gradient."""
    lines = ["| arm | from one batch: median (range) | pooled: median (range) |", "|---|---|---|"]
    for arm in task["runs"]:
        if arm.split()[0] in OTHER_MEAN:
            continue
        cells = []
        for key in ("one batch", "pooled"):
            ratios = [
                np.divide(said["arms"][arm], seen[arm][0])
                for said, seen in zip(task[key], task["realised"], strict=True)
                if said and said["arms"].get(arm) is not None
            ]
            low, middle, high = np.quantile(ratios, (0, 0.5, 1)) if ratios else (np.nan,) * 3
            cells.append(f"{middle:.2f} ({low:.2f} to {high:.2f})" if ratios else "")
        lines.append(f"| {arm} | {cells[0]} | {cells[1]} |")
    return lines


def draw(found: dict, file: str) -> None:
    """Success along training above, rollouts to a level over predicted noise below."""
    from matplotlib import pyplot, ticker

    pyplot.rcParams.update({"svg.hashsalt": "rlvar", "svg.fonttype": "none", "font.size": 9})
    figure, panels = pyplot.subplots(2, len(found["tasks"]), figsize=(10, 8), squeeze=False)
    most = found["most"]
    for (name, task), (above, below) in zip(found["tasks"].items(), panels.T, strict=True):
        rows = rows_of(task, found, -1)
        bold = {row.arm for row in rows[:2]} | {IN_USE, "grpo 4x16", "rloo 16x4"}
        for row in rows:
            x = np.arange(len(row.curve)) * found["every"]
            style = {"label": row.arm, "zorder": 2} if row.arm in bold else {"color": "0.8", "zorder": 1}
            above.plot(x, row.curve, **style)
        above.axhline(found["levels"][-1], color="0.5", linewidth=0.8, linestyle=":")
        above.set(title=f"{name}: right on held-out pairs", xlabel="rollouts", ylabel="median over seeds")
        above.legend(frameon=False)
        level = shown_levels(found)[0]
        for place, row in enumerate(rows_of(task, found, level)):
            if np.isnan(row.predicted):
                continue
            y, middle = np.minimum(row.reached, most), min(median(row.reached), most)
            below.plot([row.predicted] * 2, [y.min(), y.max()], color="0.75", linewidth=1, zorder=1)
            below.plot(row.predicted, middle, "o", color="C3" if row.arm == IN_USE else "C0", zorder=2)
            beside = {"xytext": (5, -2.5)} if place % 2 else {"xytext": (-5, -2.5), "ha": "right"}
            at = {"xy": (row.predicted, middle), "textcoords": "offset points", "fontsize": 7}
            below.annotate(row.arm, **at, **beside)
        below.set(
            xscale="log",
            yscale="log",
            xlabel=f"noise of a step over {IN_USE}'s, predicted before training",
            ylabel="rollouts, median and range",
            title=f"{name}: rollouts to {found['levels'][level]:.2f}, dotted: not within {most:,}",
        )
        below.axhline(most, color="0.5", linewidth=0.8, linestyle=":")
        below.set_xlim(0.12, 1.6)
        for axis, ticks in (
            (below.xaxis, (0.2, 0.3, 0.5, 1)),
            (below.yaxis, (10_000, 20_000, 40_000, 80_000)),
        ):
            axis.set_major_locator(ticker.FixedLocator(ticks))
            axis.set_major_formatter(ticker.FuncFormatter(lambda x, _: f"{x:,g}"))
            axis.set_minor_locator(ticker.NullLocator())
    figure.tight_layout()
    figure.savefig(file, metadata={"Date": None} if file.endswith("svg") else None)


@np.errstate(divide="ignore", invalid="ignore")  # where nothing was right, nothing varies
def show(file: str, picture: str | None = None) -> None:
    found = json.loads(Path(file).read_text())
    seeds = len(next(iter(found["tasks"].values()))["started"])
    runs = sum(len(task["runs"]) for task in found["tasks"].values()) * len(found["rates"]) * seeds
    print(f"{runs:,} runs, {seeds} seeds, at most {found['most']:,} rollouts each, on {found['device']}.")
    for name, task in found["tasks"].items():
        began = task["started"]
        print(f"\n## {name}\n\nRight at the start: {min(began):.2f} to {max(began):.2f}.")
        for level in shown_levels(found):
            print("\n" + "\n".join(table(task, found, level)))
        print("\n" + "\n".join(plans(task)))
        print("\nPredicted over realised variance of a step:\n")
        print("\n".join(variances(task)))
    if picture:
        draw(found, picture)
