"""Naive ways to measure the noise of a policy gradient, beside the truth and ours.

    python studies/naive_ways.py [--data-sets 2000]

Prints a Markdown table: means over simulated data sets and their Monte-Carlo standard errors;
medians for the noise scale, whose mean of ratios has tails too heavy for a mean of its own. Exits
with status 1 if ours is more than four of them away from the truth, or a naive way is not. The rows
about digits are one data set, where ours must agree to rounding.

The truth is exact, a sum over all that a tiny policy can do: a softmax over three tokens with logits
for each previous token, 9 in all. Token 0 ends a completion, and so do three steps: there are 15.
Each of four prompts rewards them in its own way, with something in common.
"""

import argparse
import itertools
import sys

import numpy as np

import rlvar

TOKENS, STEPS, PROMPTS = 3, 3, 4
GROUPS, SIZE = 16, 4  # prompts of a batch, completions of each
N = GROUPS * SIZE
MICROS, MICRO = 512, 8  # micro-batches, rollouts of each
ROUNDING = 1e-9  # relative, of ours


class Policy:
    """All completions: probabilities and lengths (M,), scores (M, T, D), rewards (P, M) by prompt."""

    def __init__(self, rng):
        pi = np.exp(rng.standard_normal((TOKENS, TOKENS)))
        pi /= pi.sum(axis=1, keepdims=True)
        tokens = itertools.product(range(TOKENS), repeat=STEPS)
        sequences = sorted({s[: s.index(0) + 1] if 0 in s else s for s in tokens})
        self.lengths = np.array([len(s) for s in sequences])
        self.probabilities = np.ones(len(sequences))
        scores = np.zeros((len(sequences), STEPS, TOKENS, TOKENS))
        for n, sequence in enumerate(sequences):
            # A completion goes on after 1 and 2 only: row 0 is that of the first token.
            for t, (previous, token) in enumerate(zip((0, *sequence), sequence, strict=False)):
                self.probabilities[n] *= pi[previous, token]
                scores[n, t, previous] = np.eye(TOKENS)[token] - pi[previous]
        self.scores = scores.reshape(len(sequences), STEPS, -1)
        self.sums = self.scores.sum(axis=1)
        common = rng.standard_normal(len(sequences))
        self.rewards = common + rng.standard_normal((PROMPTS, len(sequences)))

    def draw(self, rng, prompts, size=1):
        """Completions (prompts x size,), those of one prompt in a row, and their rewards."""
        chosen = rng.choice(len(self.sums), size=prompts * size, p=self.probabilities)
        return chosen, self.rewards[np.repeat(rng.integers(PROMPTS, size=prompts), size), chosen]

    def compare(self, chosen, rewards, name="single", groups=None):
        rollouts = rlvar.Rollouts(self.scores[chosen], rewards, lengths=self.lengths[chosen], groups=groups)
        return rlvar.compare(rollouts, [name])[name]

    def moments(self, features):
        """Exact mean (F,) and covariance (F, F) of the reward times features (M, F)."""
        x = (self.rewards[:, :, None] * features).reshape(-1, features.shape[1])
        return moments(x, np.tile(self.probabilities, PROMPTS) / PROMPTS)


def moments(x, p):
    """Mean (F,) and covariance (F, F) of x (M, F) with probabilities p (M,)."""
    mean = p @ x
    return mean, (x * p[:, None]).T @ x - np.outer(mean, mean)


def advantages(rewards, name):
    """Of groups in rows (M, K)."""
    centred = rewards - rewards.mean(axis=1, keepdims=True)
    if name == "rloo":
        return centred * (SIZE / (SIZE - 1))
    return centred / (rewards.std(axis=1, ddof=1, keepdims=True) + 1e-6)


def iid_variance(policy, rng, count, name):
    """Variance of a batch's mean gradient, as if its samples were independent."""
    tuples = np.array(list(itertools.product(range(len(policy.sums)), repeat=SIZE)))
    weights = np.concatenate([advantages(r[tuples], name) for r in policy.rewards])
    g = np.einsum("mk,mkd->md", weights, np.tile(policy.sums[tuples], (PROMPTS, 1, 1))) / SIZE
    p = np.tile(policy.probabilities[tuples].prod(axis=1), PROMPTS) / PROMPTS
    truth = moments(g, p)[1].trace() / GROUPS
    labels, naive, ours = np.repeat(np.arange(GROUPS), SIZE), [], []
    for _ in range(count):
        chosen, rewards = policy.draw(rng, GROUPS, SIZE)
        weights = advantages(rewards.reshape(GROUPS, SIZE), name).reshape(N, 1)
        naive.append((weights * policy.sums[chosen]).var(axis=0, ddof=1).sum() / N)
        ours.append(policy.compare(chosen, rewards, name, labels).variance.value / GROUPS)
    return truth, naive, ours


def plug_in_signal(policy, rng, count):
    """Signal |E g|^2 as |mean g|^2."""
    mean, _ = policy.moments(policy.sums)
    naive, ours = [], []
    for _ in range(count):
        chosen, rewards = policy.draw(rng, N)
        naive.append(np.square((rewards[:, None] * policy.sums[chosen]).mean(axis=0)).sum())
        ours.append(policy.compare(chosen, rewards).signal.value)
    return mean @ mean, naive, ours


def plug_in_ratio(policy, rng, count):
    """Signal to noise |E g|^2 / V as |mean g|^2 / V, with rewards that are tosses of a coin."""
    naive, ours = [], []
    for _ in range(count):
        chosen, _ = policy.draw(rng, N)
        rewards = rng.choice([-1.0, 1.0], size=N)
        row = policy.compare(chosen, rewards)
        mean = (rewards[:, None] * policy.sums[chosen]).mean(axis=0)
        naive.append(mean @ mean / row.variance.value)
        ours.append(row.signal.value / row.variance.value)
    return 0.0, naive, ours


def alive_only(policy, rng, count, total):
    """Sum of the step variances, or of all covariances too, each over the rollouts alive."""
    steps = range(STEPS)
    covariance = policy.moments(policy.scores.reshape(len(policy.sums), -1))[1]
    matrix = np.einsum("idjd->ij", covariance.reshape(STEPS, -1, STEPS, len(covariance) // STEPS))
    naive, ours = [], []
    for _ in range(count):
        chosen, rewards = policy.draw(rng, N)
        x, lengths = rewards[:, None, None] * policy.scores[chosen], policy.lengths[chosen]
        value = 0.0
        for i, j in itertools.product(steps, steps) if total else zip(steps, steps, strict=True):
            a, b = x[lengths > max(i, j)][:, [i, j]].transpose(1, 0, 2)
            if len(a) > 1:
                value += ((a - a.mean(axis=0)) * b).sum() / (len(a) - 1)
        naive.append(value)
        parts = rlvar.decompose(policy.scores[chosen], rewards, lengths=lengths)
        ours.append((parts.variance if total else parts.variance_terms).value)
    return matrix.sum() if total else matrix.trace(), naive, ours


def mean_of_ratios(policy, rng, count):
    """Noise scale as the mean of V / signal of micro-batches, 0 where that is negative."""
    mean, covariance = policy.moments(policy.sums)
    naive, ours = [], []
    for _ in range(count // 5):
        chosen, rewards = policy.draw(rng, MICROS * MICRO)
        g = (rewards[:, None] * policy.sums[chosen]).reshape(MICROS, MICRO, -1)
        variance = g.var(axis=1, ddof=1).sum(axis=1)
        signal = np.square(g.mean(axis=1)).sum(axis=1) - variance / MICRO
        naive.append(np.maximum(variance / signal, 0.0).mean())
        ours.append(policy.compare(chosen, rewards).noise_scale.value)
    return covariance.trace() / (mean @ mean), naive, ours


def one_pass(policy, rng, count, dtype, mean):
    """Variance as E[x^2] - E[x]^2, of one data set of numbers that `dtype` holds exactly."""
    z = np.round(256 * rng.standard_normal(1000)) / 256
    x = (mean + z).astype(dtype)
    naive = (np.square(x).mean() - np.square(x.mean())) * (1000 / 999)
    return z.var(ddof=1), [naive], [rlvar.decompose(x[:, None, None]).variance.value]


ROWS = {
    f"iid variance of the mean, rloo, {GROUPS} prompts x {SIZE}": (iid_variance, {"name": "rloo"}),
    f"iid variance of the mean, grpo, {GROUPS} prompts x {SIZE}": (iid_variance, {"name": "grpo"}),
    f"plug-in signal, {N} rollouts": (plug_in_signal, {}),
    f"plug-in signal to noise, {N} rollouts without signal": (plug_in_ratio, {}),
    "step variances over the alive, their sum": (alive_only, {"total": False}),
    "covariances over the alive, sum of all": (alive_only, {"total": True}),
    f"noise scale, mean of {MICROS} ratios of {MICRO} rollouts": (mean_of_ratios, {}),
    "E[x^2] - E[x]^2, float64, mean 1e8 spreads": (one_pass, {"dtype": np.float64, "mean": 1e8}),
    "E[x^2] - E[x]^2, float32, mean 4096 spreads": (one_pass, {"dtype": np.float32, "mean": 4096.0}),
}


def centre(values, median):
    """Mean or median of the values and its standard error; a median's is by order statistics."""
    values, count = np.sort(np.asarray(values, np.float64)), len(values)
    if count == 1:
        return values[0], 0.0
    if not median:
        return values.mean(), values.std(ddof=1) / count**0.5
    low, high = (int(count / 2 + sign * count**0.5 / 2) for sign in (-1, 1))
    return np.median(values), (values[high] - values[low]) / 2


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-sets", type=int, default=2000)
    count = parser.parse_args().data_sets
    if count < 20:
        parser.error(f"argument --data-sets: must be at least 20, got {count}")
    policy = Policy(np.random.default_rng(0))
    print("| naive way | truth | naive | ours |\n|---|---|---|---|")
    missed = []
    for index, (name, (way, options)) in enumerate(ROWS.items()):
        truth, *simulated = way(policy, np.random.default_rng([1, index]), count, **options)
        both = [centre(values, way is mean_of_ratios) for values in simulated]
        cells = [f"{value:.4g} ± {error:.2g}" if error else f"{value:.4g}" for value, error in both]
        print(f"| {name} | {truth:.4g} | " + " | ".join(cells) + " |", flush=True)
        naive_is_off, ours_is_off = (abs(x - truth) > max(4 * e, ROUNDING * truth) for x, e in both)
        if ours_is_off or not naive_is_off:
            missed.append(name)
    if missed:
        print("\nnot as promised: " + "; ".join(missed))
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
