"""How often the interval of a fitted baseline's factor covers where there is little to gain.

    python studies/fitted_baselines.py [--data-sets 500]

Tabular policies as in `decompose_coverage`, with rewards of mean 0. The truth is the ratio of the variances
of the batch's mean gradients over ten times as many data sets, which holds what the fit costs and what it
ties together. Prints a Markdown table: the true factor and the mean of those estimated; how often the 95%
intervals cover it, are above it and below it; and how often they claim a gain. Exits with status 1 if a
factor to "single" is covered in fewer than 82%, or a gain is claimed in more than 2.5% where there is none.
"""

import argparse
import sys

import numpy as np

import rlvar
from decompose_coverage import tabular

PAIRS = {"single": ["single-mean", "single-optimal"], "multi": ["multi-mean", "multi-optimal", "otb"]}
HEAD = ("policy", "units", "estimator", "to", "factor", "mean", "covers", "above", "below", "gain claimed")


def batch_variance(batches, name):
    """Variance of the mean gradient over data sets."""
    estimator = rlvar.estimator(name)
    means = [np.einsum("nt,ntd->d", estimator.weights(each), each.scores) / len(each) for each in batches]
    return np.var(means, axis=0).sum()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-sets", type=int, default=500)
    count = parser.parse_args().data_sets
    print("| " + " | ".join(HEAD) + " |\n" + "|---" * len(HEAD) + "|")
    failed = False
    for policy, units in [(policy, units) for policy in (0, 1) for units in (12, 30, 100)]:
        whole, p = tabular(policy)
        draws = np.random.default_rng([policy, units]).choice(len(whole), (10 * count, units), p=p)
        for reference, names in PAIRS.items():
            factors = [batch_variance(map(whole.__getitem__, draws), name) for name in (reference, *names)]
            compared = [rlvar.compare(whole[draw], names, reference=reference) for draw in draws[:count]]
            for name, variance in zip(names, factors[1:], strict=True):
                factor, ratios = variance / factors[0], [each[name].ratio for each in compared]
                low, high = np.array([each.interval for each in ratios]).T
                covered = np.mean((low <= factor) & (factor <= high))
                shares = covered, np.mean(low > factor), np.mean(high < factor), np.mean(high < 1)
                cells = [f"{factor:.3f}", f"{np.mean([each.value for each in ratios]):.3f}"]
                cells += [f"{share:.1%}" for share in shares]
                print(
                    f"| {policy} | {units} | {name} | {reference} | " + " | ".join(cells) + " |", flush=True
                )
                failed |= reference == "single" and covered < 0.82
                failed |= factor > 1 and shares[3] > 0.025
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
