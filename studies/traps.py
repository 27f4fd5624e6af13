"""Statistical traps: naive ways to measure the noise of a policy gradient, beside the truth and rlvar.

    python studies/traps.py [--data-sets 2000]

Prints the Markdown table of docs/traps.md: a row for each trap, means over simulated data sets (a half to a
fortieth of them where each is large) and their Monte-Carlo standard errors; medians where the mean of a ratio
has tails too heavy for a mean of its own. Exits with status 1 if rlvar is more than four of them away from
the truth, but where it says that it may be, or a naive way is not. The rows about digits are one data set,
where rlvar must agree to rounding.

The truth is exact, a sum over all that a small policy can do. Most rows take a softmax over three tokens with
logits for each previous token, 9 in all. Token 0 ends a completion, and so do three steps: there are 15. Each
of four prompts rewards them in its own way, with something in common. The others are in `small_policies.py`
and `worlds.py`.
"""

import argparse
import functools
import itertools
import sys
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

import rlvar
import small_policies
import worlds

TOKENS, STEPS, PROMPTS = 3, 3, 4
GROUPS, SIZE = 16, 4  # prompts of a batch, completions of each
N = GROUPS * SIZE
MICROS, MICRO = 512, 8  # micro-batches, rollouts of each
ROUNDING = 1e-9  # relative, of rlvar


class Found(NamedTuple):
    """The truth, and what each data set gave in a naive way and with rlvar."""

    truth: float
    naive: Any
    rlvar: Any
    median: bool = False
    admitted: bool = False  # rlvar misses the truth too, and says so


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

    def rollouts(self, chosen, rewards, groups=None):
        return rlvar.Rollouts(self.scores[chosen], rewards, lengths=self.lengths[chosen], groups=groups)

    def compare(self, chosen, rewards, name="single", groups=None):
        return rlvar.compare(self.rollouts(chosen, rewards, groups), [name])[name]

    def moments(self, features):
        """Exact mean (F,) and covariance (F, F) of the reward times features (M, F)."""
        x = (self.rewards[:, :, None] * features).reshape(-1, features.shape[1])
        return moments(x, np.tile(self.probabilities, PROMPTS) / PROMPTS)


def moments(x, p):
    """Mean (F,) and covariance (F, F) of x (M, F) with probabilities p (M,)."""
    mean = p @ x
    return mean, (x * p[:, None]).T @ x - np.outer(mean, mean)


@functools.cache
def policy():
    return Policy(np.random.default_rng(0))


@functools.cache
def prompts():
    """24 prompts of unlike success rates, many hardly ever solved; rewards of 0 and 1."""
    rng = np.random.default_rng(0)
    logits = 3 * rng.standard_normal((24, 1)) - 1.5 + 2 * rng.standard_normal((1, 6))
    return small_policies.Prompts(1 / (1 + np.exp(-logits)))


def advantages(rewards, name):
    """Of groups in rows (M, K)."""
    centred = rewards - rewards.mean(axis=1, keepdims=True)
    if name == "rloo":
        return centred * (SIZE / (SIZE - 1))
    return centred / (rewards.std(axis=1, ddof=1, keepdims=True) + 1e-6)


def iid_variance(rng, count, name):
    """Variance of a batch's mean gradient, as if its samples were independent."""
    tuples = np.array(list(itertools.product(range(len(policy().sums)), repeat=SIZE)))
    weights = np.concatenate([advantages(r[tuples], name) for r in policy().rewards])
    g = np.einsum("mk,mkd->md", weights, np.tile(policy().sums[tuples], (PROMPTS, 1, 1))) / SIZE
    p = np.tile(policy().probabilities[tuples].prod(axis=1), PROMPTS) / PROMPTS
    truth = moments(g, p)[1].trace() / GROUPS
    labels, naive, found = np.repeat(np.arange(GROUPS), SIZE), [], []
    for _ in range(count):
        chosen, rewards = policy().draw(rng, GROUPS, SIZE)
        weights = advantages(rewards.reshape(GROUPS, SIZE), name).reshape(N, 1)
        naive.append((weights * policy().sums[chosen]).var(axis=0, ddof=1).sum() / N)
        found.append(policy().compare(chosen, rewards, name, labels).variance.value / GROUPS)
    return Found(truth, naive, found)


def alive_only(rng, count, total):
    """Sum of the step variances, or of all covariances too, each over the rollouts alive."""
    steps = range(STEPS)
    covariance = policy().moments(policy().scores.reshape(len(policy().sums), -1))[1]
    matrix = np.einsum("idjd->ij", covariance.reshape(STEPS, -1, STEPS, len(covariance) // STEPS))
    naive, found = [], []
    for _ in range(count):
        chosen, rewards = policy().draw(rng, N)
        x, lengths = rewards[:, None, None] * policy().scores[chosen], policy().lengths[chosen]
        value = 0.0
        for i, j in itertools.product(steps, steps) if total else zip(steps, steps, strict=True):
            a, b = x[lengths > max(i, j)][:, [i, j]].transpose(1, 0, 2)
            if len(a) > 1:
                value += ((a - a.mean(axis=0)) * b).sum() / (len(a) - 1)
        naive.append(value)
        parts = rlvar.decompose(policy().scores[chosen], rewards, lengths=lengths)
        found.append((parts.variance if total else parts.variance_terms).value)
    return Found(matrix.sum() if total else matrix.trace(), naive, found)


def unlike_means(rng, count):
    """How many times the groups of RLOO GRPO needs, as the ratio of their variances."""
    (a, v_a), (r, v_r) = (prompts().moments(each, 8) for each in (prompts().grpo, prompts().RLOO))
    naive, found = [], []
    for _ in range(count // 10):
        row = rlvar.compare(prompts().draw(rng, 1000, 8), ["rloo", "grpo"])["grpo"]
        naive.append(row.ratio.value)
        found.append(row.noise_scale_ratio.value)
    return Found((v_a / (a @ a)) / (v_r / (r @ r)), naive, found, median=True)


def plug_in_signal(rng, count):
    """Signal |E g|^2 as |mean g|^2."""
    mean, _ = policy().moments(policy().sums)
    naive, found = [], []
    for _ in range(count):
        chosen, rewards = policy().draw(rng, N)
        naive.append(np.square((rewards[:, None] * policy().sums[chosen]).mean(axis=0)).sum())
        found.append(policy().compare(chosen, rewards).signal.value)
    return Found(mean @ mean, naive, found)


def plug_in_ratio(rng, count):
    """Signal to noise |E g|^2 / V as |mean g|^2 / V, with rewards that are tosses of a coin."""
    naive, found = [], []
    for _ in range(count):
        chosen, _ = policy().draw(rng, N)
        rewards = rng.choice([-1.0, 1.0], size=N)
        row = policy().compare(chosen, rewards)
        mean = (rewards[:, None] * policy().sums[chosen]).mean(axis=0)
        naive.append(mean @ mean / row.variance.value)
        found.append(row.signal.value / row.variance.value)
    return Found(0.0, naive, found)


def mean_of_ratios(rng, count):
    """Noise scale as the mean of V / signal of micro-batches, 0 where that is negative."""
    mean, covariance = policy().moments(policy().sums)
    naive, found = [], []
    for _ in range(count // 5):
        chosen, rewards = policy().draw(rng, MICROS * MICRO)
        variance, signal = by_batches(chosen, rewards, MICRO)
        naive.append(np.maximum(variance / signal, 0.0).mean())
        found.append(policy().compare(chosen, rewards).noise_scale.value)
    return Found(covariance.trace() / (mean @ mean), naive, found, median=True)


def by_batches(chosen, rewards, size):
    """Variance and unbiased signal of each batch of so many rollouts."""
    g = (rewards[:, None] * policy().sums[chosen]).reshape(-1, size, policy().sums.shape[1])
    variance = g.var(axis=1, ddof=1).sum(axis=1)
    return variance, np.square(g.mean(axis=1)).sum(axis=1) - variance / size


def one_batch(rng, count):
    """Share of noise scales within a factor of two of the truth: of one step, and pooled over 50 steps."""
    mean, covariance = policy().moments(policy().sums)
    truth = covariance.trace() / (mean @ mean)
    naive, found = [], []
    for _ in range(count // 40):
        chosen, rewards = policy().draw(rng, 50 * MICRO)
        variance, signal = by_batches(chosen, rewards, MICRO)
        naive.append(np.mean((variance / signal > truth / 2) & (variance / signal < truth * 2)))
        monitor = rlvar.Monitor(["single"], window=50)
        for step in range(50):
            part = slice(step * MICRO, (step + 1) * MICRO)
            monitor.update(policy().rollouts(chosen[part], rewards[part]))
        found.append(truth / 2 < monitor["single"].noise_scale.value < truth * 2)
    return Found(1.0, naive, np.array(found, float))


def tails(_, count, silent):
    """Share of 95% intervals of a variance that miss, or do without a word; lognormal bonus at step 1."""
    world, rng = worlds.Linear(bonus=1.5), np.random.default_rng(9)  # the same data sets for both rows
    truth = world.truth("multi", 160).variance
    naive, found = [], []
    for _ in range(count // 2):
        rollouts = world.rollouts(rng, 160)
        to_go = rollouts.rewards[:, ::-1].cumsum(axis=1)[:, ::-1]
        g = (rollouts.scores * to_go[:, :, None]).sum(axis=1)
        squares = np.square(g - g.mean(axis=0)).sum(axis=1) * (160 / 159)
        naive.append(abs(squares.mean() - truth) > 1.96 * squares.std(ddof=1) / 160**0.5)
        comparison = rlvar.compare(rollouts, ["multi"])
        of = comparison["multi"].variance
        found.append(not of.low < truth < of.high and not (silent and comparison.notes))
    return Found(0.0 if silent else 0.05, np.array(naive, float), np.array(found, float), admitted=True)


def along_the_sequence(rng, count):
    """Growth with the length, as the slope of the variance of the first k terms; 20 tosses of a coin."""
    steps, p = 20, 0.5
    ks = np.unique(np.rint(np.geomspace(steps // 2, steps, 5)).astype(int))
    truth = np.polyfit(np.log(ks), np.log([multi_variance(k, p) for k in ks]), 1)[0]
    k, naive, found = np.arange(steps // 2, steps + 1), [], []
    for _ in range(count // 10):
        tokens = (rng.random((1000, steps)) < p).astype(float)
        to_go = tokens[:, ::-1].cumsum(axis=1)[:, ::-1]
        of_first = ((tokens - p) * to_go).cumsum(axis=1).var(axis=0, ddof=1)
        naive.append(np.polyfit(np.log(k), np.log(of_first[k - 1]), 1)[0])
        rollouts = rlvar.Rollouts((tokens - p)[:, :, None], tokens)
        found.append(rlvar.decompose(rollouts, "multi").horizon_exponent.value)
    return Found(truth, naive, found)


def multi_variance(steps, p):
    """Variance of multi-step for independent tosses y_t of one logit, each its own reward.

    g = sum_t (a_t z_t + z_t^2) + sum_{t<k} z_t z_k, z_t = y_t - p and a_t = (T - t) p, t = 0..T-1.
    """
    v, a = p * (1 - p), (steps - np.arange(steps)) * p
    third, fourth = v * (1 - 2 * p), v * (1 - 3 * v)
    return (a**2 * v + 2 * a * third + fourth - v**2).sum() + steps * (steps - 1) / 2 * v**2


def position_rows(rng, count, covariance):
    """Variance of multi-step, or its covariance terms, with rows of one backward pass for token scores.

    The logits of token t are the mean of x_j A over positions j <= t, x_j one-hot of the token before. The
    share of position j in the score of token t is x_j (onehot_t - pi_t)' / t.
    """
    tokens, steps, p = 3, 4, 1.0
    paths = np.array(list(itertools.product(range(tokens), repeat=steps)))
    matrix = np.random.default_rng(2).standard_normal((tokens + 1, tokens))
    x = np.eye(tokens + 1)[np.insert(paths[:, :-1], 0, tokens, axis=1)]  # (M, T, V + 1)
    shares = np.zeros((len(paths), steps, steps, (tokens + 1) * tokens))  # of position j in token t
    for t in range(steps):
        logits = (x[:, : t + 1] @ matrix).mean(axis=1)
        pi = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        p = p * pi[np.arange(len(paths)), paths[:, t]]
        error = np.eye(tokens)[paths[:, t]] - pi
        shares[:, : t + 1, t] = np.einsum("mjx,mv->mjxv", x[:, : t + 1], error / (t + 1)).reshape(
            len(paths), t + 1, -1
        )
    rewards = small_policies.chain(1).rewards
    of_tokens, of_rows = (small_policies.Policy(p, shares.sum(axis=axis), rewards) for axis in (1, 2))
    terms = of_tokens.terms("multi")
    truth = of_tokens.moments(terms.sum(axis=1))[1]
    if covariance:
        truth -= sum(of_tokens.moments(terms[:, t])[1] for t in range(steps))
    naive, found = [], []
    for _ in range(count // 10):
        seed = rng.integers(1 << 32)
        for rows, into in ((of_rows, naive), (of_tokens, found)):
            parts = rlvar.decompose(rows.draw(np.random.default_rng(seed), 1000), "multi")
            into.append((parts.covariance_terms if covariance else parts.variance).value)
    return Found(truth, naive, found)


def kept_groups(rng, count):
    """Groups at which noise and signal of RLOO are equal, measured on groups that are not dead."""
    mean, variance = prompts().moments(prompts().RLOO, 8)
    naive, found = [], []
    for _ in range(count // 10):
        kept = rlvar.compare(prompts().draw(rng, 500, 8, kept=True), ["rloo"])["rloo"]
        naive.append(kept.noise_scale.value)
        every = rlvar.compare(prompts().draw(rng, 500, 8), ["rloo"])["rloo"]
        found.append(every.noise_scale.value)
    return Found(variance / (mean @ mean), naive, found, median=True)


def copies(rng, count):
    """Signal over variance of rollouts that were used four times each, with rewards of a coin."""
    naive, found = [], []
    for _ in range(count):
        chosen, _ = policy().draw(rng, N)
        again = np.repeat(np.arange(N), 4)
        rewards = rng.choice([-1.0, 1.0], size=N)[again]
        for into, groups in ((naive, None), (found, again)):
            row = policy().compare(chosen[again], rewards, groups=groups)
            into.append(row.signal.value / row.variance.value)
    return Found(0.0, naive, found)


def off_policy(rng, count):
    """Signal |E g|^2 from rollouts of an older policy, without importance ratios."""
    new, old = small_policies.chain(1), small_policies.chain(1, sharp=0.7)
    mean, _ = new.moments(new.terms("multi").sum(axis=1))
    logp, behavior = (np.log(each.p)[:, None] / 4 + np.zeros((1, 4)) for each in (new, old))
    naive, found = [], []
    for _ in range(count):
        i = rng.choice(len(old.p), N, p=old.p)
        rollouts = rlvar.Rollouts(new.scores[i], new.rewards[i], logp=logp[i], behavior_logp=behavior[i])
        for into, ratios in ((naive, "none"), (found, "sequence")):
            into.append(rlvar.compare(rollouts, ["multi"], importance=ratios)["multi"].signal.value)
    return Found(mean @ mean, naive, found)


def effective_size(rng, count):
    """Effective sample size over N of ratios of tokens, where gradients are weighed by whole sequences."""
    steps, old, new, rollouts = 20, 0.5, 0.6, 4000
    per_step = new**2 / old + (1 - new) ** 2 / (1 - old)  # E rho^2 of a toss
    naive, found = [], []
    for _ in range(count // 10):
        heads = rng.random((rollouts, steps)) < old
        logp = np.log(np.where(heads, new, 1 - new))
        behavior = np.full(heads.shape, np.log(old))
        rho = np.exp(logp - behavior)
        naive.append(rho.mean() ** 2 / np.square(rho).mean())
        ratios = rlvar.importance_ratios(logp, behavior, importance="sequence")
        found.append(ratios.effective_size / rollouts)
    return Found(per_step**-steps, naive, found)


def other_discount(rng, count):
    """Variance of multi-step in a run with gamma = 0.9, measured with gamma = 1."""
    chain, gamma = small_policies.chain(3, steps=6), 0.9
    later = np.arange(6) - np.arange(6)[:, None]  # k - t
    weights = chain.rewards @ np.where(later >= 0, gamma ** np.abs(later), 0.0).T
    truth = chain.moments(np.einsum("mt,mtd->md", weights, chain.scores))[1]
    naive, found = [], []
    for _ in range(count):
        rows = list(rlvar.compare(chain.draw(rng, N), ["multi", rlvar.estimator("multi", gamma=gamma)]))
        naive.append(rows[0].variance.value)
        found.append(rows[1].variance.value)
    return Found(truth, naive, found)


def within_groups(rng, count):
    """Variance of the completions of a prompt as np.var has it, over K and not K - 1."""
    p = policy().probabilities
    truth = np.mean([moments(r[:, None] * policy().sums, p)[1].trace() for r in policy().rewards])
    labels, naive, found = np.repeat(np.arange(GROUPS), SIZE), [], []
    for _ in range(count):
        chosen, rewards = policy().draw(rng, GROUPS, SIZE)
        g = (rewards[:, None] * policy().sums[chosen]).reshape(GROUPS, SIZE, -1)
        naive.append(g.var(axis=1).sum(axis=1).mean())
        parts = rlvar.prompt_components(policy().rollouts(chosen, rewards, labels), "single")
        found.append(parts.within.value)
    return Found(truth, naive, found)


def part_of_parameters(rng, count):
    """Noise scale from the logits after one of the three tokens."""
    mean, covariance = policy().moments(policy().sums)
    naive, found = [], []
    for _ in range(count // 10):
        chosen, rewards = policy().draw(rng, 2000)
        part = rlvar.Rollouts(
            policy().scores[chosen][:, :, 3:6].copy(), rewards, lengths=policy().lengths[chosen]
        )
        naive.append(rlvar.compare(part, ["single"])["single"].noise_scale.value)
        found.append(policy().compare(chosen, rewards).noise_scale.value)
    return Found(covariance.trace() / (mean @ mean), naive, found, median=True)


def one_pass(rng, count, dtype, mean):
    """Variance as E[x^2] - E[x]^2, of one data set of numbers that `dtype` holds exactly."""
    z = np.round(256 * rng.standard_normal(1000)) / 256
    x = (mean + z).astype(dtype)
    naive = (np.square(x).mean() - np.square(x.mean())) * (1000 / 999)
    return Found(z.var(ddof=1), [naive], [rlvar.decompose(x[:, None, None]).variance.value])


ROWS: dict[str, tuple[Callable[..., Found], dict[str, Any]]] = {
    f"variance of the mean, RLOO, {GROUPS} prompts x {SIZE}": (iid_variance, {"name": "rloo"}),
    f"variance of the mean, GRPO, {GROUPS} prompts x {SIZE}": (iid_variance, {"name": "grpo"}),
    "step variances, their sum": (alive_only, {"total": False}),
    "covariances of steps, their sum": (alive_only, {"total": True}),
    "groups that GRPO needs, over RLOO's": (unlike_means, {}),
    f"signal, {N} rollouts": (plug_in_signal, {}),
    f"signal over variance, {N} rollouts without signal": (plug_in_ratio, {}),
    f"noise scale, {MICROS} micro-batches of {MICRO} rollouts": (mean_of_ratios, {}),
    "noise scales of a step within a factor of 2": (one_batch, {}),
    "95% intervals of a variance that miss": (tails, {"silent": False}),
    "95% intervals that miss without a caution": (tails, {"silent": True}),
    "exponent of growth with length, multi-step": (along_the_sequence, {}),
    "variance of multi-step, rows of positions": (position_rows, {"covariance": False}),
    "its covariance terms, rows of positions": (position_rows, {"covariance": True}),
    "noise scale of RLOO, in groups to sample": (kept_groups, {}),
    f"signal over variance, {N} rollouts used four times": (copies, {}),
    "signal, rollouts of an older policy": (off_policy, {}),
    "effective sample size over N, 20 tokens": (effective_size, {}),
    "variance of multi-step with gamma = 0.9": (other_discount, {}),
    f"variance within prompts, {SIZE} completions": (within_groups, {}),
    "noise scale of all parameters": (part_of_parameters, {}),
    "variance, float64, mean 1e8 spreads": (one_pass, {"dtype": np.float64, "mean": 1e8}),
    "variance, float32, mean 4096 spreads": (one_pass, {"dtype": np.float32, "mean": 4096.0}),
}


def centre(values, median):
    """Mean or median of the values and its standard error; a median's is by order statistics."""
    values, count = np.sort(np.asarray(values, np.float64)), len(values)
    if count == 1:
        return values[0], 0.0
    if not median:
        return values.mean(), values.std(ddof=1) / count**0.5
    low, high = (min(int(count / 2 + sign * count**0.5 / 2), count - 1) for sign in (-1, 1))
    return np.median(values), (values[high] - values[low]) / 2


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-sets", type=int, default=2000, help="0 prints the truths alone")
    count = parser.parse_args(arguments).data_sets
    if count < 80 and count:
        parser.error(f"argument --data-sets: must be 0 or at least 80, got {count}")
    warnings.filterwarnings("ignore", "only .* rollouts")
    print(
        "| number | truth | naive | rlvar |\n|---|---|---|---|" if count else "| number | truth |\n|---|---|"
    )
    missed = []
    for index, (name, (way, options)) in enumerate(ROWS.items()):
        found = way(np.random.default_rng([1, index]), count, **options)
        if not count:
            print(f"| {name} | {found.truth:.4g} |")
            continue
        both = [centre(values, found.median) for values in (found.naive, found.rlvar)]
        cells = [f"{value:.4g} ± {error:.2g}" if error else f"{value:.4g}" for value, error in both]
        print(f"| {name} | {found.truth:.4g} | " + " | ".join(cells) + " |", flush=True)
        naive_is_off, rlvar_is_off = (
            abs(x - found.truth) > max(4 * e, ROUNDING * abs(found.truth)) for x, e in both
        )
        if (rlvar_is_off and not found.admitted) or not naive_is_off:
            missed.append(name)
    if missed:
        print("\nnot as promised: " + "; ".join(missed))
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
