"""What groups of rewards 0 and 1 say of a filter, and what a scale from the rewards is worth.

    python studies/groups.py [--data-sets 400]

Prints two Markdown tables. The first: how often groups that a filter kept (none of which is dead) are found,
and how often groups without a filter are taken for filtered, by the distribution of success rates.
Exits with status 1 if the latter happens in more than 1 % and three standard errors of the simulation.

The second: by how much the ratio of variances of GRPO is off at the scale of the rewards, which takes each
prompt's gradient along the whole for proportional to p (1 - p), if only prompts outside of a range of p agree
with the whole; p is uniform.
"""

import argparse
import math
import sys

import numpy as np

from rlvar.analysis.sampling import chance_of_no_dead_group

RATES = {
    "all 1/2": lambda rng, n: np.full(n, 0.5),
    "beta(5, 5)": lambda rng, n: rng.beta(5, 5, n),
    "beta(2, 2)": lambda rng, n: rng.beta(2, 2, n),
    "uniform": lambda rng, n: rng.random(n),
    "beta(1/2, 1/2)": lambda rng, n: rng.beta(0.5, 0.5, n),
}
SIZES = ((16, 4), (64, 4), (16, 8), (64, 8), (256, 8), (64, 16), (256, 16))


def kept(rng, draw, groups, size):
    """Successes of groups of which none is dead, because the others were dropped."""
    wins = np.empty(0, int)
    while len(wins) < groups:
        more = rng.binomial(size, draw(rng, 4 * groups))
        wins = np.concatenate([wins, more[(more > 0) & (more < size)]])
    return wins[:groups]


def rate(data_sets, groups, size, draw):
    """Share of data sets that are said to be filtered; one with a dead group is not."""
    found = 0
    for seed in range(data_sets):
        wins = draw(np.random.default_rng(seed))
        if ((wins > 0) & (wins < size)).all():
            found += chance_of_no_dead_group(wins, np.full(groups, size)) < 0.01
    return found / data_sets


def lengths(p, size):
    """GRPO's w(p) = E[A R] / (p (1 - p))."""
    x = np.arange(1, size)
    advantage = (1 - x / size) / np.sqrt(x * (size - x) / (size * (size - 1)))
    choices = np.array([float(math.comb(size, k)) for k in x.tolist()])
    chance = choices * p[:, None] ** x * (1 - p[:, None]) ** (size - x)
    return (chance * x / size * advantage).sum(axis=1) / (p * (1 - p))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-sets", type=int, default=400)
    args = parser.parse_args()
    allowed = 0.01 + 3 * np.sqrt(0.01 * 0.99 / args.data_sets)
    names = [f"{groups} x {size}" for groups, size in SIZES]
    print(f"| success rates, found / wrong | {' | '.join(names)} |\n" + "|---" * (1 + len(SIZES)) + "|")
    failed = []
    for name, draw in RATES.items():
        cells = []
        for groups, size in SIZES:
            found = rate(args.data_sets // 4, groups, size, lambda rng: kept(rng, draw, groups, size))  # noqa: B023
            wrong = rate(
                args.data_sets,
                groups,
                size,
                lambda rng: rng.binomial(size, draw(rng, groups)),  # noqa: B023
            )
            cells.append(f"{found:.0%} / {wrong:.1%}")
            if wrong > allowed:
                failed.append(f"{name}, {groups} x {size}")
        print(f"| {name} | {' | '.join(cells)} |", flush=True)
    print("\n| groups of | p outside 0.2 to 0.8 | p outside 0.1 to 0.9 |\n|---|---|---|")
    p = (np.arange(20_000) + 0.5) / 20_000
    of_rewards = p * (1 - p)
    for size in (4, 8, 16):
        w, cells = lengths(p, size), []
        for range_ in (0.3, 0.4):
            agree = np.abs(p - 0.5) > range_
            b, c = ((w * of_rewards * part).sum() / (of_rewards * part).sum() for part in (agree, 1.0))
            cells.append(f"{(b / c) ** 2 - 1:.0%}")
        print(f"| {size} | {' | '.join(cells)} |")
    if failed:
        print("\ntaken for filtered too often: " + "; ".join(failed))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
