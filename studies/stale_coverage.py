"""How often intervals cover on stale rollouts, by their effective sample size.

    python studies/stale_coverage.py [--data-sets 400]

200 rollouts of T tosses of a fair coin, weighed by sequence ratios to one with p = 0.6, whose logit is
the parameter. The return is k / T + 1/2 for k heads, and the baseline 1 is all but best. Rollouts of k
heads are alike, so the truth is a sum over k. Prints a Markdown table, and exits with status 1 if some
interval covers in fewer than 92 % of the data sets and our own warnings are silent in most of them: of an
effective sample size below three quarters of the rollouts, of ratios whose mean is not 1. "decide ratio" is
the mean number of rollouts behind the ratio of variances.
"""

import argparse
import sys
from math import comb

import numpy as np

import rlvar

OLD, NEW, ROLLOUTS, BASELINE = 0.5, 0.6, 200, 1.0
TOSSES = (5, 10, 20, 40, 80, 160)


def log_ratio(heads, tosses):
    return heads * np.log(NEW / OLD) + (tosses - heads) * np.log((1 - NEW) / (1 - OLD))


def truth(tosses):
    """Ratio of the variances with and without the baseline, variance without, squared mean gradient."""
    k = np.arange(tosses + 1)
    p = np.array([comb(tosses, heads) * OLD**heads * (1 - OLD) ** (tosses - heads) for heads in k])
    score = np.exp(log_ratio(k, tosses)) * (k - tosses * NEW)
    g = np.stack([k / tosses + 0.5, k / tosses + 0.5 - BASELINE]) * score
    mean = g @ p
    variance, less = (np.square(g) @ p) - mean**2
    return less / variance, variance, mean[0] ** 2


def simulate(rng, tosses):
    heads = rng.binomial(tosses, OLD, ROLLOUTS)
    logp = log_ratio(heads, tosses)[:, None]  # one action a rollout: all tosses together
    rewards = heads / tosses + 0.5
    scores = (heads - tosses * NEW)[:, None, None]
    rollouts = rlvar.Rollouts(scores, rewards, logp=logp, behavior_logp=np.zeros_like(logp))
    return rlvar.compare(rollouts, ["single", ("less", rewards - BASELINE)], importance="sequence")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-sets", type=int, default=400)
    count = parser.parse_args().data_sets
    head = ("tosses", "effective size", "ratio of variances", "variance", "signal", "decide ratio", "warned")
    print("| " + " | ".join(head) + " |")
    print("|---|---|---|---|---|---|---|")
    missed = False
    for tosses in TOSSES:
        rng, values, found = np.random.default_rng(tosses), truth(tosses), []
        for _ in range(count):
            result = simulate(rng, tosses)
            row = result["single"]
            ends = result["less"].ratio, row.variance, row.signal
            covered = [each.low <= value <= each.high for each, value in zip(ends, values, strict=True)]
            ratios = row.importance
            warned = ratios.effective_size < 0.75 * ROLLOUTS or ratios.misses
            found.append([ratios.effective_size, *covered, result["less"].ratio_units, warned])
        size, *shares, decide, warned = np.mean(found, axis=0)
        cells = [f"{size:.0f}", *(f"{share:.0%}" for share in shares), f"{decide:.1f}", f"{warned:.0%}"]
        print(f"| {tosses} | " + " | ".join(cells) + " |", flush=True)
        missed |= min(shares) < 0.92 and warned <= 0.5
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
