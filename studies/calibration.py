"""How often nominal 95 % intervals cover the truth, and whether the result says so where they do not.

    python studies/calibration.py [--data-sets 1000] [--confidence 0.95] [--bootstrap RESAMPLES]

Rollouts of worlds in which the truth is known (`worlds.py`) go through `rlvar.compare`. Prints a Markdown
table. Variance, ratio, signal and noise scale are those of multi-step beside single-step, of "rloo" where
there are groups; the noise scale's ratio and the alignment are those of an estimator with another mean: the
reward of the step alone, or "grpo". No interval of those two is finite before both signals are resolved, and
one that is not covers anything.

"note" is how often the result names the estimator in its notes: few units, or few that decide its variance or
ratio. "silent" is how often one of the first four intervals misses without a note, for the one that does so
most. "width" is the median of high / low. Exits with status 1 if a row covers one of the first four in
fewer than 92 % of its data sets and has the note in fewer than half of them, or if a signal of 0 is resolved
in more than 5 % (nominally in 2.5 %).
"""

import argparse
import sys
import warnings

import numpy as np

import rlvar
import worlds
from worlds import Enumerated, Linear, Prompts, less, now

UNITS = (10, 40, 160)
QUANTITIES = ("variance", "ratio", "signal", "noise scale", "its ratio", "alignment")
JUDGED = 4  # of the quantities
HALF = np.r_[np.sqrt(999.0), np.ones(999)]  # of the variance in one coordinate of 1000
ENDS = {"steps": 5, "ends": True}
STEPS, GROUPS = ("multi", ("now", now)), ("rloo", "grpo")

# The world; the estimator beside "single", and the one of another mean.
SETTINGS = {
    "light": (Linear(), *STEPS),
    "states and end tokens": (Enumerated.policy(0, **ENDS), *STEPS),
    "unlike prompts, dead groups": (Prompts(np.linspace(0.02, 0.98, 9), [8]), *GROUPS),
    "groups of 2 to 8": (Prompts(np.linspace(0.1, 0.9, 9), range(2, 9)), *GROUPS),
    "groups of 4": (Prompts(np.linspace(0.2, 0.8, 5), [4]), *GROUPS),
    "success in 4 %": (Enumerated.policy(0, success=0.04, **ENDS), "single-mean", ("now", now)),
    "a tail that both share": (Linear(factor=1.0), *STEPS),
    "a tail in one alone": (Linear(bonus=1.5), *STEPS),
    "Student t3 noise": (Linear(t3=True), *STEPS),
    "D = 1": (Enumerated.policy(5, steps=5, projected=1), *STEPS),
    "D = 1000": (Linear(1000, 2, effect=1.0), *STEPS),
    "half the noise in 1 of 1000": (Linear(1000, 2, scales=HALF, effect=0.0), *STEPS),
    "the same, signal along it": (Linear(1000, 2, scales=HALF), *STEPS),
    "token mean": (Enumerated.policy(0, aggregation="token-mean", **ENDS), *STEPS),
    "sequence mean": (Enumerated.policy(0, aggregation="sequence-mean", **ENDS), *STEPS),
    "stale": (Enumerated.policy(0, stale=0.3, **ENDS), *STEPS),
    "stale, 40 tosses": (worlds.tosses(40), ("less", less), ("less", less)),
}


def name_of(estimator):
    return estimator if isinstance(estimator, str) else estimator[0]


def truth(world, own, other, units):
    """The true QUANTITIES; NaN without a signal for those that are then undefined."""
    base, own, other = (world.truth(name, units) for name in ("single", name_of(own), name_of(other)))
    s0, s, s1 = (float(each.mean @ each.mean) for each in (base, own, other))
    scale = own.variance / s if s else np.inf
    of_others = np.nan, np.nan
    if s0 and s1:
        cosine = float(other.mean @ base.mean) / np.sqrt(s0 * s1)
        of_others = other.variance / base.variance * s0 / s1, np.clip(cosine, -1.0, 1.0)
    return np.array([own.variance, own.variance / base.variance, s, scale, *of_others])


def trial(rng, setting, units, values, confidence, bootstrap):
    """Which QUANTITIES one data set covers; note; resolved; widths; units that decide, if any vary."""
    world, *pair = setting
    own, other = map(name_of, pair)
    estimators = dict(zip((own, other), pair, strict=True))
    interval = "jackknife" if bootstrap is None else bootstrap
    result = rlvar.compare(
        world.rollouts(rng, units),
        ["single", *estimators.values()],
        reference="single",
        interval=interval,
        confidence=confidence,
        **world.options,
    )
    row, beside = result[own], result[other]
    found = (row.variance, row.ratio, row.signal, row.noise_scale, beside.noise_scale_ratio, beside.alignment)
    return [
        *(each.low <= value <= each.high for each, value in zip(found, values, strict=True)),
        bool(result.only([own]).notes),
        row.signal.resolved,
        *(each.high / each.low if each.low > 0 else np.inf for each in found[:2]),
        *((row.variance_units, row.ratio_units) if row.variance.value else (np.nan, np.nan)),
    ]


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-sets", type=int, default=1000)
    parser.add_argument("--confidence", type=float, default=0.95)
    parser.add_argument("--bootstrap", type=int, metavar="RESAMPLES", help="instead of the jackknife")
    args = parser.parse_args(arguments)
    warnings.simplefilter("ignore")  # of few units
    print(f"| setting | units | {' | '.join(QUANTITIES)} | note | silent | width, variance | width, ratio |")
    print("|---" * (6 + len(QUANTITIES)) + "|")
    failed, least = [], {"variance": 1.0, "ratio": 1.0}
    for index, (name, setting) in enumerate(SETTINGS.items()):
        for units in UNITS:
            rng, values = np.random.default_rng([index, units]), truth(*setting, units)
            found = []
            for number in range(args.data_sets):
                bootstrap = rlvar.Bootstrap(args.bootstrap, seed=number) if args.bootstrap else None
                found.append(trial(rng, setting, units, values, args.confidence, bootstrap))
            covered, (note, resolved, *widths, by_variance, by_ratio) = np.split(
                np.array(found, float).T, [len(QUANTITIES)]
            )
            shares = covered.mean(axis=1)
            silent = ((1 - covered[:JUDGED]) * (1 - note)).mean(axis=1).max()
            cells = ["" if np.isnan(x) else f"{share:.1%}" for share, x in zip(shares, values, strict=True)]
            cells += [f"{note.mean():.0%}", f"{silent:.1%}", *(f"{np.median(each):.3g}" for each in widths)]
            print(f"| {name} | {units} | " + " | ".join(cells) + " |", flush=True)
            for hits, by, what in zip(covered, (by_variance, by_ratio), least, strict=False):
                if (few := by < 4).mean() >= 0.05:
                    least[what] = min(least[what], hits[few].mean())
            low = args.confidence - 0.03
            failed += [
                f"{name}, {units} units: {what} {share:.1%}"
                for what, share in zip(QUANTITIES[:JUDGED], shares, strict=False)
                if share < low and note.mean() < 0.5
            ]
            if values[2] == 0 and resolved.mean() > 1 - args.confidence:
                failed.append(f"{name}, {units} units: resolved in {resolved.mean():.1%}")
    print("\ncovered at least, where fewer than four units decide: ", end="")
    print(", ".join(f"{what} {share:.1%}" for what, share in least.items()))
    if failed:
        print("out of range: " + "; ".join(failed))
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
