"""How often the intervals of signals and noise scales cover, from one direction of noise to a thousand.

    python studies/signals.py [--data-sets 1000] [--confidence 0.95]

Prints a Markdown table. Units have gradients g ~ N(mu, Sigma) of D coordinates, or are those of a softmax
over four arms; "one mean" are two estimators of one mean, of which the noisier takes the signal of the
quieter.
"low > s" and "high < s" are how often an interval lies above and below the truth. Without a signal a low end
above 0 is a false "resolved": nominally in 2.5 % of the data sets. Exits with status 1 if an interval covers
less than 90 %, or a signal of 0 is resolved in more than 5 %.
"""

import argparse
import sys

import numpy as np

from rlvar.stats.inference import infer
from rlvar.stats.moments import Sample


def gaussian(scales, mean):
    """Draw units (count, D) with these deviations of the coordinates and this mean; signal and variance."""
    scales, mean = np.asarray(scales, float), np.asarray(mean, float)
    mean = np.broadcast_to(mean, scales.shape)

    def draw(rng, count):
        return rng.standard_normal((count, len(scales))) * scales + mean

    return draw, float(mean @ mean), float(scales @ scales)


def bandit(probabilities, rewards):
    """Draw units of single-step on a softmax policy over arms."""
    p = np.asarray(probabilities)
    outcomes = (np.eye(len(p)) - p) * np.asarray(rewards)[:, None]
    mean = p @ outcomes

    def draw(rng, count):
        return outcomes[rng.choice(len(p), count, p=p)]

    return draw, float(mean @ mean), float(p @ np.square(outcomes - mean).sum(axis=1))


def first(size, d):
    """A mean (d,) of this size along the first coordinate."""
    return np.r_[size, np.zeros(d - 1)]


HALF = np.r_[np.sqrt(999.0), np.ones(999)]  # half of the variance in one coordinate
SPIKE = np.r_[np.sqrt(3000.0), np.ones(2999)]

SETTINGS = {
    "spike of 3000, signal along it": (gaussian(SPIKE, first(20.0, 3000)), (20, 50, 100)),
    "half in one of 1000, none": (gaussian(HALF, 0.0), (30, 100, 300)),
    "isotropic, D = 1000, none": (gaussian(np.ones(1000), 0.0), (30, 100, 300)),
    "isotropic, D = 300": (gaussian(np.ones(300), 0.1), (30, 100, 300)),
    "D = 1, none": (gaussian([1.0], 0.0), (12, 30, 200)),
    "D = 1": (gaussian([1.0], 0.3), (12, 30, 200)),
    "D = 3, along the noise": (gaussian([2.0, 1.0, 0.3], [0.6, 0.0, 0.0]), (12, 30, 200)),
    "D = 3, across the noise": (gaussian([2.0, 1.0, 0.3], [0.0, 0.0, 0.3]), (12, 30, 200)),
    "four arms": (bandit([0.5, 0.3, 0.15, 0.05], [1.0, 0.0, 2.0, 0.5]), (12, 30, 200)),
    "four arms, one rare and rich": (bandit([0.9, 0.05, 0.04, 0.01], [0.0, 1.0, 1.0, 5.0]), (50, 200, 800)),
}


def count(rng, draw, units, data_sets, confidence, truth):
    """Shares of the data sets: signal covers, low > s, high < s; noise scale covers; resolved."""
    signal, variance = truth
    scale = variance / signal if signal else np.inf
    happened = np.zeros(5)
    for _ in range(data_sets):
        (found,) = infer([Sample(draw(rng, units))], 0, confidence)
        low, high = found.signal.interval
        happened += [
            low <= signal <= high,
            low > signal,
            high < signal,
            found.noise_scale.low <= scale <= found.noise_scale.high,
            found.signal.resolved,
        ]
    return happened / data_sets


def shared(rng, units, data_sets, confidence):
    """The same of the noisier of two estimators whose mean is the same, as both are unbiased."""
    happened, mean = np.zeros(5), first(0.7, 20)
    signal, variance = float(mean @ mean), 20 * 9.0 + 20.0
    finite_alone = 0.0
    for _ in range(data_sets):
        quiet = rng.standard_normal((units, 20)) + mean
        noisy = quiet + 3 * rng.standard_normal((units, 20))
        samples = [Sample(noisy), Sample(quiet)]
        found = infer(samples, 0, confidence, classes=["unbiased", "unbiased"])[0]
        finite_alone += infer(samples, 0, confidence)[0].signal.resolved / data_sets
        low, high = found.signal.interval
        scale = found.noise_scale
        covered = scale.low <= variance / signal <= scale.high
        happened += [low <= signal <= high, low > signal, high < signal, covered, found.signal.resolved]
    return happened / data_sets, finite_alone


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-sets", type=int, default=1000)
    parser.add_argument("--confidence", type=float, default=0.95)
    args = parser.parse_args()
    print("| noise | units | signal | low > s | high < s | noise scale | resolved |")
    print("|---" * 7 + "|")
    missed = []
    for name, ((draw, signal, variance), sizes) in SETTINGS.items():
        for units in sizes:
            rng = np.random.default_rng([len(name), units])
            shares = count(rng, draw, units, args.data_sets, args.confidence, (signal, variance))
            print(f"| {name} | {units} | " + " | ".join(f"{x:.1%}" for x in shares) + " |", flush=True)
            rare = "rare" in name  # of an arm that was not drawn nothing is known
            if not rare and min(shares[0], shares[3]) < args.confidence - 0.05:
                missed.append(f"{name}, {units} units")
            if signal == 0 and shares[4] > 1 - args.confidence:
                missed.append(f"{name}, {units} units: resolved")
    for units in (12, 30, 100):
        shares, alone = shared(np.random.default_rng(units), units, args.data_sets, args.confidence)
        name = f"one mean, the noisier ({alone:.1%} resolved alone)"
        print(f"| {name} | {units} | " + " | ".join(f"{x:.1%}" for x in shares) + " |", flush=True)
        if min(shares[0], shares[3]) < args.confidence - 0.05:
            missed.append(f"one mean, {units} units")
    if missed:
        print("\nout of range: " + "; ".join(missed))
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
