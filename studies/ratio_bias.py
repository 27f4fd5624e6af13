"""What leaving out importance ratios biases, beside its error; how often ratios are found to lack support.

    python studies/ratio_bias.py [--data-sets 20]

Tokens of a softmax whose logits are a table with a row for each previous token, and a reward for each pair of
tokens. The sampler has noise of its own in the logits (an inference engine that rounds), another temperature,
logits that moved, or top-p. Prints a Markdown table with the median over data sets of the upper end of
`ComparisonRow.bias` of multi-step (the squared bias over the squared standard error), how often the claims
stay (at most 0.05), and how often sequence ratios are not called unbiased. Exits with status 1 if noise
withdraws
claims of 12 steps in more than a fifth of the data sets, if 256 rollouts of 12 steps keep them of another
temperature or of moved logits in more than a tenth, or if top-p is ever missed.
"""

import argparse
import sys

import numpy as np

import rlvar
from on_policy_power import softmax, top_p

TOKENS = 6
LOGITS, REWARDS, DRIFT = np.random.default_rng(0).standard_normal((3, TOKENS + 1, TOKENS))

SAMPLERS = {
    "noise 0.01": lambda rng, rows: softmax(LOGITS[rows] + 0.01 * rng.standard_normal((len(rows), TOKENS))),
    "noise 0.03": lambda rng, rows: softmax(LOGITS[rows] + 0.03 * rng.standard_normal((len(rows), TOKENS))),
    "temperature 0.97": lambda rng, rows: softmax(LOGITS[rows] / 0.97),
    "temperature 0.9": lambda rng, rows: softmax(LOGITS[rows] / 0.9),
    "moved by 0.05": lambda rng, rows: softmax(LOGITS[rows] + 0.05 * DRIFT[rows]),
    "moved by 0.1": lambda rng, rows: softmax(LOGITS[rows] + 0.1 * DRIFT[rows]),
    "top-p 0.95": lambda rng, rows: top_p(softmax(LOGITS[rows]), 0.95),
}


def sample(rng, n, steps, sampler):
    """Rollouts, with scores of the table of logits."""
    before, rows = np.full(n, TOKENS), np.arange(n)
    scores = np.zeros((n, steps, TOKENS + 1, TOKENS), np.float32)
    rewards, new, old = np.zeros((3, n, steps))
    for t in range(steps):
        p, q = softmax(LOGITS[before]), sampler(rng, before)
        token = np.minimum((rng.random((n, 1)) > q.cumsum(axis=1)).sum(axis=1), TOKENS - 1)
        scores[rows, t, before] = np.eye(TOKENS)[token] - p
        rewards[:, t], new[:, t] = REWARDS[before, token], np.log(p[rows, token])
        old[:, t], before = np.log(q[rows, token]), token
    return rlvar.Rollouts(scores.reshape(n, steps, -1), rewards, logp=new, behavior_logp=old)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-sets", type=int, default=20)
    count = parser.parse_args().data_sets
    head = ("sampler", "steps", "rollouts", "bias at most", "claims stay", "not unbiased")
    print("| " + " | ".join(head) + " |\n" + "|---" * len(head) + "|")
    failed = False
    for name, sampler in SAMPLERS.items():
        for steps, n in [(steps, n) for steps in (12, 60) for n in (64, 256)]:
            found = []
            for seed in range(count):
                rollouts = sample(np.random.default_rng(seed), n, steps, sampler)
                row = rlvar.compare(rollouts, ["multi"], reference="multi").rows[0]
                ratios = rlvar.importance_ratios(rollouts.logp, rollouts.behavior_logp)
                most = np.inf if row.bias is None else row.bias.high
                found.append((most, row.unbiased, not ratios.unbiased))
            most, stay, denied = np.array(found, float).T
            cells = f"{np.median(most):.2g} | {stay.mean():.0%} | {denied.mean():.0%}"
            print(f"| {name} | {steps} | {n} | {cells} |", flush=True)
            failed |= name.startswith("noise") and steps == 12 and stay.mean() < 0.8
            failed |= name.startswith("top-p") and denied.mean() < 1
            failed |= name in ("temperature 0.9", "moved by 0.1") and n == 256 and stay.mean() > 0.1
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
