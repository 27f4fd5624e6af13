"""How often `on_policy_test` finds rollouts of another policy, and how often it is wrong on policy.

    python studies/on_policy_power.py [--data-sets 2000] [--confidence 0.95]

Prints three Markdown tables. Rows of the first are on policy: the share of data sets in which the interval
of the ratio or of the mean score lies above 0, and either. Exits with status 1 if either does more
often than 1 - confidence, by more than three standard errors of the simulation. Rows of the second
are sampled from another policy than the one that scores them, in a tenth as many data sets. The column
"ratio, both sides" is what a test of the off-diagonal sum alone would say: its interval excludes 0;
"rows of positions" is how often scores are taken for rows of one backward pass. The third
is on policy where one rare action has most of the trace: how often the verdict is wrong, how often the action
was then unseen, and how often `unseen_share` is at most the share that it has.

Rollouts are tokens of a softmax whose logits are a table with a row for each previous token, and a score
is the gradient by that table; coins have one logit; normal scores are independent. "1 / p" are
gradients by the probabilities, not the logits, of tokens that depend on nothing: onehot / p - 1.
"""

import argparse
import sys

import numpy as np

import rlvar

TOKENS, STEPS = 6, 12
COLUMNS = ("ratio", "mean score", "either", "ratio, both sides", "rows of positions")


def softmax(logits):
    """Of each row."""
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def table(scale=1.0):
    """Logits of the next token; the last row is that of the first token."""
    return scale * np.random.default_rng(0).standard_normal((TOKENS + 1, TOKENS))


def top_p(pi, p):
    """Keep the likeliest tokens of each row, up to and with the one that reaches p."""
    order = np.argsort(-pi, axis=1)
    ordered = np.take_along_axis(pi, order, axis=1)
    kept = np.where(ordered.cumsum(axis=1) - ordered < p, ordered, 0.0)
    np.put_along_axis(result := np.zeros_like(pi), order, kept, axis=1)
    return result / result.sum(axis=1, keepdims=True)


def sample(rng, n, pi, behavior, *, ragged=False, group=1):
    """Scores under pi of rollouts sampled from `behavior`, and options of `on_policy_test`.

    If ragged, token 0 ends a rollout; those of a group have one first token, not scored, in common.
    """
    previous = np.full(n, TOKENS) if group == 1 else np.repeat(rng.integers(0, TOKENS, n // group), group)
    cumulative = behavior.cumsum(axis=1)
    scores = np.zeros((n, STEPS, TOKENS + 1, TOKENS), np.float32)
    rows, lengths = np.arange(n), np.full(n, STEPS)
    for t in range(STEPS):
        token = np.minimum((rng.random(n)[:, None] > cumulative[previous]).sum(axis=1), TOKENS - 1)
        scores[rows, t, previous] = -pi[previous]
        scores[rows, t, previous, token] += 1
        lengths[(token == 0) & (lengths == STEPS)] = t + 1
        previous = token
    options = {"lengths": lengths} if ragged else {}
    if group > 1:
        options["groups"] = np.arange(n) // group
    return scores.reshape(n, STEPS, -1), options


def coins(rng, n, steps, p):
    """One logit: heads less their probability."""
    return ((rng.random((n, steps, 1)) < p) - p), {}


def inverse(rng, n, steps, rarest=0.01):
    """Gradients by the probabilities of tokens."""
    p = np.array([0.6, 0.25, 0.1, 0.05 - rarest, rarest])
    return np.eye(len(p))[rng.choice(len(p), (n, steps), p=p)] / p - 1, {}


RARE = (0.004, 0.002, 0.001)
PI, PEAKED = softmax(table()), softmax(table(3.0))

ON_POLICY = {
    "coin, p = 0.3, T = 1": lambda rng, n: coins(rng, n, 1, 0.3),
    "coin, p = 0.1, T = 1": lambda rng, n: coins(rng, n, 1, 0.1),
    "coin, p = 0.05, T = 10": lambda rng, n: coins(rng, n, 10, 0.05),
    "normal, T = 1, D = 50": lambda rng, n: (rng.standard_normal((n, 1, 50)), {}),
    "normal, T = 10, D = 5": lambda rng, n: (rng.standard_normal((n, 10, 5)), {}),
    "table": lambda rng, n: sample(rng, n, PI, PI),
    "table, peaked": lambda rng, n: sample(rng, n, PEAKED, PEAKED),
    "table, ragged": lambda rng, n: sample(rng, n, PI, PI, ragged=True),
    "table, groups of 4": lambda rng, n: sample(rng, 4 * n, PI, PI, group=4),
    "1 / p, T = 12": lambda rng, n: inverse(rng, n, 12),
}

MISMATCHED = {
    "temperature 0.9": softmax(table() / 0.9),
    "temperature 1.1": softmax(table() / 1.1),
    "top-p 0.95": top_p(PI, 0.95),
    "stale: logits moved by 10 %": softmax(table() + 0.1 * np.random.default_rng(1).standard_normal((7, 6))),
}


def rejections(draw, data_sets, confidence):
    """Share of data sets that speak against the policy, by `COLUMNS`."""
    counts = np.zeros(len(COLUMNS))
    for seed in range(data_sets):
        scores, options = draw(np.random.default_rng(seed))
        result = rlvar.on_policy_test(scores, confidence=confidence, **options)
        counts += [
            "ratio" in result.against,
            "mean_score" in result.against,
            result.on_policy is False,
            result.ratio.low > 0 or result.ratio.high < 0,
            result.positions,
        ]
    return counts / data_sets


def rare(p, count, data_sets, confidence):
    """Share of the trace that an action of probability p has; of wrong verdicts, if unseen and bounded."""
    share = (1 / p - 1) / (1 / 0.6 + 1 / 0.25 + 1 / 0.1 + 1 / (0.05 - p) + 1 / p - 5)
    found = []
    for seed in range(data_sets):
        scores, _ = inverse(np.random.default_rng(seed), count, STEPS, p)
        result = rlvar.on_policy_test(scores, confidence=confidence)
        if result.on_policy is False:
            found.append((not (scores[..., 4] > 0).any(), result.unseen_share <= share))
    return share, found


def show(name, count, shares):
    """Print a row."""
    print(f"| {name} | {count} | " + " | ".join(f"{x:.1%}" for x in shares) + " |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-sets", type=int, default=2000)
    parser.add_argument("--confidence", type=float, default=0.95)
    args = parser.parse_args()
    error = 1 - args.confidence
    allowed = error + 3 * np.sqrt(error * (1 - error) / args.data_sets)
    missed = []
    print("| on policy | units | " + " | ".join(COLUMNS) + " |\n" + "|---" * 7 + "|")
    for name, draw in ON_POLICY.items():
        for count in (30, 300):
            shares = rejections(lambda rng: draw(rng, count), args.data_sets, args.confidence)  # noqa: B023
            show(name, count, shares)
            if shares[COLUMNS.index("either")] > allowed:
                missed.append(f"{name}, {count} units")
    print("\n| another policy | rollouts | " + " | ".join(COLUMNS) + " |\n" + "|---" * 7 + "|")
    for name, behavior in MISMATCHED.items():
        for count in (64, 256, 1024):
            draw = lambda rng: sample(rng, count, PI, behavior)  # noqa: B023, E731
            show(name, count, rejections(draw, max(1, args.data_sets // 10), args.confidence))
    print("\n| on policy, a rare action | rollouts | its share | wrong | unseen then | bound holds |")
    print("|---" * 6 + "|")
    for p in RARE:
        for count in (30, 100, 300):
            share, found = rare(p, count, args.data_sets, args.confidence)
            wrong = np.array(found).reshape(-1, 2)
            cells = [share, len(wrong) / args.data_sets, *wrong.mean(axis=0)] if len(wrong) else [share, 0.0]
            print(
                f"| 1 in {1 / p:.0f} tokens | {count} | " + " | ".join(f"{x:.0%}" for x in cells) + " |",
                flush=True,
            )
    if missed:
        print("\nwrong too often on policy: " + "; ".join(missed))
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
