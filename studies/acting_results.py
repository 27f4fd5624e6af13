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


class Row(NamedTuple):
    """An arm: what was predicted and realised, and what its runs did."""

    arm: str
    predicted: float  # median over seeds of variance over that in use, by rollouts of the start
    realised: float  # the same over repeated steps
    rate: float  # learning rate, the best
    reached: np.ndarray  # (S,) rollouts to the goal at that rate, inf where it was not reached
    all_reached: list[int]  # runs that reached the goal, by rate
    ratio: tuple[float, float, float]  # rollouts of the batch in use over this arm's, and its interval
    earlier: tuple[int, int]  # seeds in which it was earlier than the batch in use, and later
    curve: np.ndarray  # (steps,) median of success over seeds at the best rate


def reached(curve: list[int], found: dict) -> float:
    """Rollouts until a run's success was at the goal."""
    return (len(curve) - 1) * found["every"] if curve[-1] >= 1000 * found["goal"] else np.inf


def median(values) -> float:
    """The median of numbers that may be infinite."""
    ordered = np.sort(np.asarray(values, float))
    return float((ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2)


def best_rate(by_rate: list, found: dict) -> int:
    """Which learning rate of an arm is best."""

    def rank(curves):
        return median([reached(curve, found) for curve in curves]), -np.mean([curve[-1] for curve in curves])

    return min(range(len(by_rate)), key=lambda i: rank(by_rate[i]))


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


def rows_of(task: dict, found: dict) -> list[Row]:
    """All arms, the least predicted noise first."""
    rates, arms = found["rates"], list(task["curves"])
    scaled = to_one_scale(task["realised"], arms)
    best = {arm: best_rate(task["curves"][arm], found) for arm in arms}
    rollouts = {
        arm: np.array([reached(curve, found) for curve in task["curves"][arm][best[arm]]]) for arm in arms
    }
    rows = []
    for arm in arms:
        runs = task["curves"][arm][best[arm]]
        length = max(map(len, runs))
        held = np.array([curve + curve[-1:] * (length - len(curve)) for curve in runs]) / 1000
        mine, theirs = rollouts[arm], rollouts[IN_USE]
        rows.append(
            Row(
                arm,
                over_in_use(task["pooled"], arm),
                float(np.median(np.divide(scaled[arm], scaled[IN_USE]))),
                rates[best[arm]],
                mine,
                [sum(np.isfinite(reached(c, found)) for c in curves) for curves in task["curves"][arm]],
                paired_ratio(theirs, mine, found["most"]),
                (int((mine < theirs).sum()), int((mine > theirs).sum())),
                np.median(held, axis=0),
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


def shown_ratio(row: Row, in_use: Row) -> str:
    value, low, high = row.ratio
    if row.arm == IN_USE:
        return "1"
    at_least = "≥ " if np.isinf(in_use.reached).any() else ""
    at_most = "≤ " if np.isinf(row.reached).any() and not at_least else ""
    if np.isinf(row.reached).any() and at_least:
        at_least = "about "
    return f"{at_least}{at_most}{value:.2f} ({low:.2f} to {high:.2f})"


def table(task: dict, found: dict) -> list[str]:
    rows = rows_of(task, found)
    (in_use,) = (row for row in rows if row.arm == IN_USE)
    seeds = len(in_use.reached)
    rates = ", ".join(f"{rate:g}" for rate in found["rates"])
    lines = [
        f"| arm | noise predicted | realised | rollouts to {found['goal']:.2f}: median (range) | reached | "
        f"rate | times fewer than {IN_USE} | seeds earlier, later | reached at {rates} |",
        "|---" * 9 + "|",
    ]
    for row in rows:
        predicted = "" if np.isnan(row.predicted) else f"{row.predicted:.2f}"
        spread = f"{count(median(row.reached))} ({count(row.reached.min())} to {count(row.reached.max())})"
        lines.append(
            f"| {row.arm} | {predicted} | {row.realised:.2f} | {spread} "
            f"| {np.isfinite(row.reached).sum()} of {seeds} | {row.rate:g} | {shown_ratio(row, in_use)} "
            f"| {row.earlier[0]}, {row.earlier[1]} | {', '.join(map(str, row.all_reached))} |"
        )
    known = [row for row in rows if np.isfinite(row.predicted)]
    trained = [median(np.minimum(row.reached, 2 * found["most"])) for row in rows]
    trained_known = [value for row, value in zip(rows, trained, strict=True) if row in known]
    lines += [
        "",
        "Rank correlation over arms: predicted with realised noise "
        f"{rank_correlation([r.predicted for r in known], [r.realised for r in known]):.2f}, "
        "predicted noise with rollouts to the goal "
        f"{rank_correlation([r.predicted for r in known], trained_known):.2f}, "
        f"realised noise with them {rank_correlation([r.realised for r in rows], trained):.2f}.",
    ]
    for key in ("one batch", "pooled"):
        plans = [seed["plans"] for seed in task[key] if seed]
        for name in ("single", "rloo"):
            shapes = [f"{p}x{k}" for p, k, *_ in (plan[name] for plan in plans)]
            counted = ", ".join(f"{shape} {shapes.count(shape)}" for shape in sorted(set(shapes)))
            lines.append(f"Planned shape for {name}, {key}, seeds: {counted}.")
    return lines


def variances(task: dict) -> list[str]:
    """Predicted over realised variance of a step, for arms whose mean is the policy gradient."""
    lines = ["| arm | from one batch: median (range) | pooled: median (range) |", "|---|---|---|"]
    for arm in task["curves"]:
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
    """Success along training above, rollouts to the goal over predicted noise below."""
    from matplotlib import pyplot

    pyplot.rcParams.update({"svg.hashsalt": "rlvar", "svg.fonttype": "none", "font.size": 9})
    figure, panels = pyplot.subplots(2, len(found["tasks"]), figsize=(10, 8), squeeze=False)
    for (name, task), (above, below) in zip(found["tasks"].items(), panels.T, strict=True):
        rows = rows_of(task, found)
        bold = {row.arm for row in rows[:2]} | {IN_USE, "grpo 4x16", "single 4x16"}
        for row in rows:
            x = np.arange(len(row.curve)) * found["every"]
            one = (
                {"linewidth": 1.8, "label": row.arm} if row.arm in bold else {"color": "0.8", "linewidth": 1}
            )
            above.plot(x, row.curve, zorder=2 if row.arm in bold else 1, **one)
        above.axhline(found["goal"], color="0.5", linewidth=0.8, linestyle=":")
        above.set(title=f"{name}: right on held-out pairs", xlabel="rollouts", ylabel="median over seeds")
        above.legend(frameon=False)
        most = found["most"]
        for row in rows:
            if np.isnan(row.predicted):
                continue
            y = np.minimum(row.reached, most)
            middle = min(median(row.reached), most)
            below.plot([row.predicted] * 2, [y.min(), y.max()], color="0.75", linewidth=1, zorder=1)
            below.plot(row.predicted, middle, "o", color="C3" if row.arm == IN_USE else "C0", zorder=2)
            below.annotate(row.arm, (row.predicted, middle), (4, 3), textcoords="offset points", fontsize=7)
        below.set(
            xscale="log",
            yscale="log",
            xlabel=f"predicted noise of a step over {IN_USE}'s",
            ylabel=f"rollouts to {found['goal']:.2f}, median and range",
            title=f"{name}: predicted before training, and realised",
        )
        if any(np.isinf(row.reached).any() for row in rows):
            below.axhline(most, color="0.5", linewidth=0.8, linestyle=":")
            below.annotate("never", (0.01, most), (0, 3), ("axes fraction", "data"), "offset points")
    figure.tight_layout()
    figure.savefig(file, metadata={"Date": None} if file.endswith("svg") else None)


@np.errstate(divide="ignore", invalid="ignore")  # where nothing was right, nothing varies
def show(file: str, picture: str | None = None) -> None:
    found = json.loads(Path(file).read_text())
    seeds = len(next(iter(found["tasks"].values()))["started"])
    runs = sum(len(task["curves"]) for task in found["tasks"].values()) * len(found["rates"]) * seeds
    print(f"{runs:,} runs, {seeds} seeds, at most {found['most']:,} rollouts each, on {found['device']}.")
    for name, task in found["tasks"].items():
        began = task["started"]
        print(f"\n## {name}\n\nRight at the start: {min(began):.2f} to {max(began):.2f}.\n")
        print("\n".join(table(task, found)))
        print("\nPredicted over realised variance of a step:\n")
        print("\n".join(variances(task)))
    if picture:
        draw(found, picture)
