"""How often a plan of prompts x completions keeps its promise, and what it costs beside the best.

    python studies/plans.py [--data-sets 200]

Prints two Markdown tables. The first is of plans for a target: "missed" is the share of data sets whose plan
has a true variance above the target; "by estimate" is the same of plans by the estimated variance alone, with
the same completions. "cost" is the median over that of the best plan for one who knows the truth. "gain
covers" is how often the interval of the gain holds the true one, for the completions that were chosen. The
two numbers of a cell are for costs of a prompt of 0 and of 8 completions.

The second is of plans for a budget of 64 rollouts: "moved" is the share of data sets whose plan leaves the
completions in use, "noisier" that of plans with a true variance more than 1 % above that in use; "gain" is
the mean of the true variance in use over that of the plan, "at best" that of the best shape by the truth, and
"covers" is as above, where the plan moved.

Exits with status 1 if from 30 groups on more plans miss than 5 %, or more are noisier than 2.5 %, and three
standard errors of the simulation.

Rewards are 0 or 1, by a logistic model of the score (normal): prompts differ in their success rates and in
the model's weights, by little of 20 coordinates in the first table, by much of 5 in the second. The truth is
the estimate from 10,000 groups.
"""

import argparse
import sys
import warnings

import numpy as np

import rlvar

TRUTH_GROUPS = 10_000
SIZES = ((10, 4), (10, 8), (30, 4), (30, 8), (100, 8))
COSTS = ((0, 1), (8, 1))  # of a prompt, of a completion: the two numbers of each cell
BUDGET = 64
SIZES_IN_BUDGET = ((10, 16), (30, 16), (100, 16))


def simulate(rng, groups, size, coordinates=20, spread=0.5):
    """Rollouts of prompts whose log-odds have a standard deviation of 1.5."""
    weights = np.zeros(coordinates)
    weights[:3] = 0.8, 0.4, 0.2
    of_prompt = weights + spread * rng.standard_normal((groups, 1, coordinates)) * (
        np.arange(coordinates) < 5
    )
    scores = rng.standard_normal((groups, size, coordinates))
    scores[..., 0] *= 2
    log_odds = 1.5 * rng.standard_normal((groups, 1)) + (scores * of_prompt).sum(axis=-1)
    rewards = (rng.random((groups, size)) < 1 / (1 + np.exp(-log_odds))).astype(float)
    labels = np.arange(groups).repeat(size)
    return rlvar.Rollouts(scores.reshape(-1, 1, coordinates), rewards.ravel(), groups=labels)


def trial(parts, truth, target, costs):
    """Whether a plan misses, by the interval and by the estimate; its cost; whether the gain covers."""
    options = dict(zip(("cost_prompt", "cost_completion"), costs, strict=True))
    best = rlvar.plan(parts, target=target, **options)
    k, now = best.completions, parts.completions
    by_estimate = max(1, int(np.ceil(parts.batch_variance(1, k).value / target)))
    each = {n: truth.batch_variance(1, n).value * (costs[0] + n * costs[1]) for n in (now, k)}
    return (
        truth.batch_variance(best.prompts, k).value > target,
        truth.batch_variance(by_estimate, k).value > target,
        best.cost,
        best.gain.low <= each[now] / each[k] <= best.gain.high,
    )


def gains(truth, in_use):
    """The true variance of 64 rollouts as they are over that of each other shape, by its completions."""
    now = truth.batch_variance(1, in_use).value * in_use
    least = 1 if truth.estimator == "single" else 2
    shapes = [k for k in range(least, BUDGET + 1) if BUDGET % k == 0]
    if truth.estimator == "grpo":
        shapes = [k for k in shapes if k <= in_use]
    return {k: now / (truth.batch_variance(1, k).value * k) for k in shapes}


def budget_trial(parts, true):
    """Whether a plan for a budget moved and is noisier, its true gain, and whether its interval covers."""
    best = rlvar.plan(parts, budget=BUDGET)
    gain = true[best.completions]
    moved = best.completions != parts.completions
    return moved, gain < 1 / 1.01, gain, best.gain.low <= gain <= best.gain.high


def cheapest(truth, target, costs, most):
    """Cost of the best plan by the truth, for real numbers of prompts."""
    first = 1 if truth.estimator == "single" else 2
    each = [truth.batch_variance(1, k).value * (costs[0] + k * costs[1]) for k in range(first, most + 1)]
    return min(each) / target


def for_targets(name, data_sets):
    """Print the rows of the first table; return those that miss too often."""
    failed, of_size = [], {}
    for size in (4, 8) if name == "grpo" else (8,):
        many = simulate(np.random.default_rng(99), TRUTH_GROUPS, size)
        of_size[size] = rlvar.prompt_components(many, name)
    for groups, size in SIZES:
        truth = of_size.get(size, of_size[8])
        target = truth.batch_variance(200, size).value
        found = []
        for seed in range(data_sets):
            rollouts = simulate(np.random.default_rng([seed, groups, size]), groups, size)
            parts = rlvar.prompt_components(rollouts, name)
            found.append([trial(parts, truth, target, costs) for costs in COSTS])
        most = size if name == "grpo" else 256
        best = [cheapest(truth, target, costs, most) for costs in COSTS]
        missed, by_estimate, cost, covers = np.moveaxis(np.array(found, float), 2, 0)
        cells = [
            ", ".join(f"{x:.1%}" for x in missed.mean(axis=0)),
            ", ".join(f"{x:.0%}" for x in by_estimate.mean(axis=0)),
            ", ".join(f"{x:.2f}" for x in np.median(cost, axis=0) / best),
            ", ".join(f"{x:.0%}" for x in covers.mean(axis=0)),
        ]
        print(f"| {name} | {groups} x {size} | {' | '.join(cells)} |", flush=True)
        if groups >= 30 and missed.mean(axis=0).max() > allowed(0.05, data_sets):
            failed.append(f"{name}, {groups} x {size}, missed")
    return failed


def for_budgets(name, data_sets):
    """Print the rows of the second table; return those that are noisier too often."""
    failed = []
    truth = rlvar.prompt_components(simulate(np.random.default_rng(99), TRUTH_GROUPS, 16, 5, 2.0), name)
    for groups, size in SIZES_IN_BUDGET:
        true = gains(truth, size)
        found = []
        for seed in range(data_sets):
            rollouts = simulate(np.random.default_rng([seed, groups, size]), groups, size, 5, 2.0)
            found.append(budget_trial(rlvar.prompt_components(rollouts, name), true))
        moved, noisier, gain, covers = np.array(found, float).T
        covered = f"{covers[moved > 0].mean():.0%}" if moved.any() else "-"
        cells = f"{moved.mean():.0%} | {noisier.mean():.1%} | {gain.mean():.2f} | {max(true.values()):.2f}"
        print(f"| {name} | {groups} x {size} | {cells} | {covered} |", flush=True)
        if groups >= 30 and noisier.mean() > allowed(0.025, data_sets):
            failed.append(f"{name}, {groups} x {size}, noisier")
    return failed


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-sets", type=int, default=200)
    args = parser.parse_args()
    warnings.simplefilter("ignore")  # of few groups
    names, failed = ("single", "rloo", "grpo"), []
    print("| plan for | groups | missed | by estimate | cost | gain covers |\n" + "|---" * 6 + "|")
    for name in names:
        failed += for_targets(name, args.data_sets)
    print("\n| plan for | groups | moved | noisier | gain | at best | covers |\n" + "|---" * 7 + "|")
    for name in names:
        failed += for_budgets(name, args.data_sets)
    if failed:
        print("\ntoo often: " + "; ".join(failed))
    return 1 if failed else 0


def allowed(share, data_sets):
    return share + 3 * np.sqrt(share * (1 - share) / data_sets)


if __name__ == "__main__":
    sys.exit(main())
