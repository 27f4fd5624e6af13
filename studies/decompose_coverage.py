"""How often the intervals of `decompose` cover, in worlds that are small enough to be enumerated.

    python studies/decompose_coverage.py [--data-sets 1000]

Tabular policies (3 tokens, 6 steps, logits by the token before, a reward for each prefix) and tosses of a
fair coin with a head as reward, 3, 6, 9 or 12 of them. The truth is `decompose` of all that can happen,
weighed by its probabilities; that of the length exponent the slope over the variances of single lengths.

Prints a Markdown table: how often the 95% intervals cover, where there is one (12 units in four strata of
length often have none); how often the truth is below and above that of the covariance terms; and how often
growth with the horizon may be linear and quadratic. Exits with status 1 if an interval covers in fewer than
85% of the data sets from 50 units on.
"""

import argparse
import itertools
import sys

import numpy as np

import rlvar
import worlds
from rlvar.analysis.growth import slope

QUANTITIES = (
    *("variance", "variance_terms", "covariance_terms"),
    *("growth_exponent", "horizon_exponent", "length_exponent"),
)
HEAD = (
    *("world", "units", "variance", "variance terms", "covariance terms", "below", "above"),
    *("growth", "horizon", "length", "not resolved"),
)


def tabular(seed, **options):
    """All rollouts of `worlds.tabular`, with their probabilities."""
    theta, tokens, lengths, rewards = worlds.tabular(seed, **options)
    whole = rlvar.Rollouts(worlds.scores(theta, tokens), rewards)
    return whole, worlds.probabilities(theta, tokens, lengths)


def coins(steps=(3, 6, 9, 12)):
    """All tosses of the longest, once for each length."""
    tosses = np.array(list(itertools.product((0.0, 1.0), repeat=steps[-1])))
    tokens, lengths = np.tile(tosses, (len(steps), 1)), np.repeat(steps, len(tosses))
    whole = rlvar.Rollouts((tokens - 0.5)[:, :, None], tokens, lengths=lengths)
    return whole, np.full(len(tokens), 1 / len(tokens))


WORLDS = {
    "tabular, multi": (tabular(0), "multi"),
    "tabular, other rewards, multi": (tabular(1), "multi"),
    "tabular, mean reward 1, multi": (tabular(6, offset=1.0), "multi"),
    "tabular, single": (tabular(8), "single"),
    "coins, multi": (coins(), "multi"),
    "coins, single": (coins(), "single"),
}


def truth(whole, probabilities, estimator):
    exact = rlvar.decompose(whole, estimator, sample_weight=probabilities, ddof=0)
    values = [getattr(exact, name).value for name in QUANTITIES[:-1]]
    lengths = np.unique(whole.live_steps)
    of_length = [
        rlvar.decompose(whole[rows], estimator, sample_weight=probabilities[rows], ddof=0).variance.value
        for rows in (whole.live_steps == length for length in lengths)
    ]
    return [*values, float(slope(np.log(lengths), np.array(of_length))) if len(lengths) > 1 else np.nan]


def trial(rollouts, estimator, values):
    """Which of QUANTITIES are covered; truth below and above that of the covariance; growth not resolved."""
    result = rlvar.decompose(rollouts, estimator)
    found = [getattr(result, name) for name in QUANTITIES]
    covered = [
        np.nan if np.isnan(each.low) else each.low <= value <= each.high
        for each, value in zip(found, values, strict=True)
    ]
    covariance, horizon = found[2], found[4]
    sides = values[2] < covariance.low, values[2] > covariance.high
    return [*covered[:3], *sides, *covered[3:], horizon.low <= 1 and horizon.high >= 2]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-sets", type=int, default=1000)
    count = parser.parse_args().data_sets
    print("| " + " | ".join(HEAD) + " |\n" + "|---" * len(HEAD) + "|")
    failed = False
    for number, (world, ((whole, probabilities), estimator)) in enumerate(WORLDS.items()):
        values = truth(whole, probabilities, estimator)
        ragged = not np.isnan(values[-1])
        for units in (12, 30, 50, 200):
            rng = np.random.default_rng([number, units])
            draws = rng.choice(len(whole), (count, units), p=probabilities)
            shares = np.nanmean([trial(whole[draw], estimator, values) for draw in draws], axis=0)
            cells = [f"{x:.1%}" if ragged or HEAD[i + 2] != "length" else "" for i, x in enumerate(shares)]
            print(f"| {world} | {units} | " + " | ".join(cells) + " |", flush=True)
            failed |= units >= 50 and min(shares[[0, 1, 2, 5, 6, *[7] * ragged]]) < 0.85
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
