"""What the numbers were measured on: all parameters or a part of them, exactly or through a sketch.

`Rollouts.scores_of` names the parameters: "all 162,368 parameters of LlamaForCausalLM", or a part, "the final
norm of LlamaForCausalLM", whose ratios and noise scales are not the whole model's
(`studies/parts_of_models.py`).
"""

from __future__ import annotations

from collections.abc import Iterable

from rlvar.stats.estimate import Estimate
from rlvar.stats.shown import printable
from rlvar.stats.sketch_noise import SketchNoise

# A sketch's standard error of more than this share of that of sampling is worth a larger sketch.
_LARGE = 0.5


def scores_line(scores_of: str | None, sketch: int | None) -> str | None:
    """Name what the scores, maybe a `sketch` of so many dimensions, are of; None if nothing is known."""
    of = None if scores_of is None else printable(scores_of)
    if sketch is not None:
        return f"Scores: a {sketch:,}-dimensional sketch{'' if of is None else f' of {of}'}"
    return None if of is None else f"Scores: {of}"


def part_of(scores_of: str | None) -> str | None:
    """Return the part of the parameters that the scores are of; None of all, or where it is not known."""
    if scores_of is None or scores_of.split()[0].lower() == "all":
        return None
    return printable(scores_of.partition(" of ")[0])


def part_note(part: str) -> str:
    """Say what numbers from a part of the parameters are good for."""
    return (
        f"The scores are those of {part}, not of the whole policy, and so are signals, noise scales and what "
        "follows from them, such as how many rollouts would resolve a signal. In trials on small language "
        "models, noise scales from the final norm were 6 to 100 times too small; ratios of variances from "
        "parts were between a quarter and four times those of the whole model."
    )


def sketch_line(rows: Iterable[tuple[str, Estimate, Estimate, SketchNoise]]) -> str:
    """Return the sketch's standard errors of variances and ratios, which the intervals leave out."""
    found = list(rows)
    shares = [f"{noise.variance / v.value:.1%} ({name})" for name, v, _, noise in found if v.value > 0]
    ratios = [f"{noise.ratio:.2g} ({name})" for name, _, ratio, noise in found if ratio.stderr > 0]
    of_ratios = f"; of ratios {', '.join(ratios)}" if ratios else ""
    k = found[0][3].coordinates
    return f"sketch of {k:,} directions: standard errors of variances {', '.join(shares)}{of_ratios}"


def sketch_note(rows: Iterable[tuple[str, dict[str, tuple[Estimate, float]]]]) -> str | None:
    """Say where a sketch's standard error is more than half of that of sampling."""
    large: dict[str, list[str]] = {}
    for name, pairs in rows:
        for what, (estimate, stderr) in pairs.items():
            if stderr > _LARGE * estimate.stderr > 0:
                large.setdefault(what, []).append(f"{name} ({stderr:.2g} beside {estimate.stderr:.2g})")
    if not large:
        return None
    whose = "; ".join(f"the {what} of {', '.join(names)}" for what, names in large.items())
    return (
        f"The intervals cover sampling alone, and the sketch adds standard errors of more than half of those "
        f"of sampling: {whose}. A larger sketch would reduce them."
    )
