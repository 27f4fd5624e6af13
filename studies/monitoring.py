"""How often the intervals of `rlvar.Monitor` cover, and how often its on-policy test is wrong, or late.

    python studies/monitoring.py [--runs 600]

Prints what single steps say, and three Markdown tables. The first: how often 95 % intervals hold the truth,
in runs of a window's length. A completion's summed score s is standard normal in D coordinates, its return
mu . s + b + e with b the prompt's and e its own, both standard normal: with A = |mu|^2 (D + 1) + D the mean
of a group of K has the variance (A + D) / K with "single" and A / (K - 1) with "rloo", and the mean mu. In
heavy tails everything of a group is times c, log-normal with E c^2 = 1. Over the window mu falls to a half
and all of it to three quarters, so that the signal falls sevenfold; or both fall fast in its first tenth, the
signal two-hundredfold; or stay; or the policy moves by each step's own noise ("learns"): mu_{t+1} is mu_t
less a tenth of the gradient estimate. The truth is that of the policies that came about: the noise scale is
sum V_t / sum |mu_t|^2. Exits with status 1 if an interval covers less than 92 % or more than 98.5 %, by more
than three standard errors of the simulation, but where tails are very heavy or mu falls
fast.

The second: in how many runs of 500 steps on policy the test ever raises an alarm, by the worlds of
`on_policy_power.py`. The third: after how many steps of 64 rollouts it does when the policy is another one.
"""

import argparse
import sys

import numpy as np

import on_policy_power as worlds
from rlvar.analysis.run_on_policy import PolicyWatch
from rlvar.analysis.steps import Cloud, Sampled, StepRecord
from rlvar.stats.pooled import infer_pooled

TAILS = {"light": 0.0, "heavy": 0.4, "very heavy": 0.8}  # standard deviation of log c
PATHS = {
    "stays": lambda x: (np.ones_like(x), np.ones_like(x)),
    "falls": lambda x: (1 - 0.5 * x, 1 - 0.25 * x),
    "falls fast": lambda x: (0.2 + 0.8 * np.exp(-10 * x), 0.3 + 0.7 * np.exp(-10 * x)),
    "learns": lambda x: (np.ones_like(x), np.ones_like(x)),
}


def group_means(s, returns):
    """Gradients of "single" and "rloo" of each group (2, U, D)."""
    k = s.shape[1]
    centred = returns - returns.mean(axis=1, keepdims=True)
    single = np.einsum("uk,ukd->ud", returns, s) / k
    return np.stack([single, np.einsum("uk,ukd->ud", centred, s) / (k - 1)])


def run(rng, steps, prompts, completions, d, tails, strength, path):
    """Covariances and signals (n, 2, 2), variances (n, 2) and squared means (n,) of one run."""
    of_mu, of_all = PATHS[path](np.arange(steps) / steps)
    spread, mu, found = TAILS[tails], np.zeros(d), []
    mu[0] = strength
    of_c = np.exp(-(spread**2) / 2)  # E c, of which E c^2 = 1
    for t in range(steps):
        m, scale = mu * of_mu[t], of_all[t]
        s = rng.standard_normal((prompts, completions, d))
        returns = s @ m + rng.standard_normal((prompts, 1)) + rng.standard_normal((prompts, completions))
        g = group_means(s, returns) * scale
        g *= np.exp(spread * rng.standard_normal((prompts, 1)) - spread**2)
        mean = g.mean(axis=1)
        z = g - mean[:, None]
        covariance = np.einsum("aud,bud->ab", z, z) / (prompts - 1)
        a = m @ m * (d + 1) + d
        within = np.array([(a + d) / completions, a / (completions - 1)])
        variance = scale**2 * (within + (1 - of_c**2) * (m @ m))
        found.append(
            (covariance, mean @ mean.T - covariance / prompts, variance, (scale * of_c) ** 2 * (m @ m))
        )
        if path == "learns":
            mu = mu - 0.1 * mean[1]
    return [np.array(each) for each in zip(*found, strict=True)]


def covered(runs, *world):
    """Share of runs whose intervals hold the truth: noise scale, ratio, signal; and signals resolved."""
    count = np.zeros(4)
    for seed in range(runs):
        rng = np.random.default_rng([seed, *world[:4], *"".join((world[4], world[6])).encode()])
        covariances, signals, variances, squares = run(rng, *world)
        single, rloo = infer_pooled(covariances, signals, np.ones(len(squares)), ["", ""], 1, 0.95)
        v = variances.mean(axis=0)
        truth = v[1] / squares.mean(), v[0] / v[1], squares.mean()
        estimates = rloo.noise_scale, single.ratio, rloo.signal
        count[:3] += [x.low <= value <= x.high for x, value in zip(estimates, truth, strict=True)]
        count[3] += rloo.signal.resolved
    return count / runs


def single_steps():
    """Say how the ratio of single steps scatters, and what sums over 50 steps make of it."""
    world = 2000, 4, 16, 60, "light", 0.7, "stays"
    covariances, signals, variances, squares = run(np.random.default_rng(1), *world)
    v, s = covariances[:, 1, 1], signals[:, 1, 1]
    steps, windows = v / s, (v.reshape(-1, 50).sum(axis=1) / s.reshape(-1, 50).sum(axis=1))
    means = steps.reshape(-1, 50).mean(axis=1)
    for name, x in (("of single steps", steps), ("means of 50", means), ("ratios of sums over 50", windows)):
        low, high = np.quantile(x, [0.05, 0.95])
        print(f"{name}: 5 to 95 % {low:.1f} to {high:.1f}, negative {(x < 0).mean():.0%}")
    print(f"truth: {variances[0, 1] / squares[0]:.1f}\n")


def records(scores, count, group=1):
    """Records, as far as the test goes, of steps of `count` rollouts each."""
    n, _, d = scores.shape
    sums = scores.sum(axis=1, dtype=np.float64)
    squares = np.einsum("ntd,ntd->n", scores, scores, dtype=np.float64)
    off, trace = (
        (x.reshape(-1, count)).sum(axis=1) for x in (np.square(sums).sum(axis=1) - squares, squares)
    )
    of_units = sums.reshape(n // count, count // group, group, d).sum(axis=2)
    own, total = np.square(of_units).sum(axis=(1, 2)), np.square(of_units.sum(axis=1)).sum(axis=1)
    units, nothing = count // group, np.zeros((0, 0))
    cloud = Cloud(units, float(count), float(units * group**2), nothing, nothing, None, None)
    for step in range(n // count):
        several = off[step] if scores.shape[1] > 1 else 0.0
        sampled = Sampled(several, trace[step], own[step], None, total[step] - own[step])
        yield StepRecord(step, count, None, 0.0, 0, cloud, (), sampled=sampled)


def alarm(steps):
    """Step of the alarm, or None."""
    watch = PolicyWatch(0.95)
    for record in steps:
        watch = watch.add(record)
        if watch.since is not None:
            return watch.since
    return None


ON_POLICY = {
    "coin, p = 0.1, T = 1": lambda rng, n: worlds.coins(rng, n, 1, 0.1)[0],
    "coin, p = 0.01, T = 10": lambda rng, n: worlds.coins(rng, n, 10, 0.01)[0],
    "normal, T = 1, D = 50": lambda rng, n: rng.standard_normal((n, 1, 50)),
    "table": lambda rng, n: worlds.sample(rng, n, worlds.PI, worlds.PI)[0],
    "table, groups of 8": lambda rng, n: worlds.sample(rng, n, worlds.PI, worlds.PI, group=8)[0],
    "table, peaked": lambda rng, n: worlds.sample(rng, n, worlds.PEAKED, worlds.PEAKED)[0],
    "1 / p, 1 in 100 tokens has 77 % of the trace": lambda rng, n: worlds.inverse(rng, n, 12, 0.01)[0],
    "1 / p, 1 in 500 tokens has 93 %": lambda rng, n: worlds.inverse(rng, n, 12, 0.002)[0],
    "1 / p, 1 in 10,000 tokens has 99.6 %": lambda rng, n: worlds.inverse(rng, n, 12, 0.0001)[0],
}
UNSEEN = "1 / p, 1 in 10,000 tokens has 99.6 %"  # no test of 18 steps can tell
ROLLOUTS, STEPS = 16, 500


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=600)
    args = parser.parse_args()
    wrong = []
    single_steps()
    least, most = (x + sign * 3 * np.sqrt(x * (1 - x) / args.runs) for x, sign in ((0.92, -1), (0.985, 1)))
    print("| window | prompts x completions | D | tails | policy | noise scale | ratio | signal | resolved |")
    print("|---" * 9 + "|")
    settings = [
        (window, prompts, completions, d, tails, path)
        for window in (20, 50)
        for prompts, completions in ((16, 4), (4, 16))
        for d in (3, 60)
        for tails, path in (("light", "falls"), ("heavy", "learns"))
    ]
    settings.append((50, 4, 16, 60, "heavy", "stays"))
    settings += [(window, 4, 16, 60, "light", "falls fast") for window in (20, 50)]
    settings += [(window, 4, 16, 60, "very heavy", "stays") for window in (20, 50)]
    for window, prompts, completions, d, tails, path in settings:
        # A step's signal over the noise of its own: about 1 of three coordinates, 1 / 4 of sixty.
        strength = 1.4 * np.sqrt(d / (prompts * completions)) / d**0.25
        found = covered(args.runs, window, prompts, completions, d, tails, strength, path)
        name = f"{window} | {prompts} x {completions} | {d} | {tails} | {path}"
        print(f"| {name} | " + " | ".join(f"{x:.1%}" for x in found) + " |", flush=True)
        if (
            tails != "very heavy"
            and path != "falls fast"
            and not (least <= found[:3].min() and found[:3].max() <= most)
        ):
            wrong.append(name)
    runs = args.runs // 4
    print(f"\n| on policy, {STEPS} steps of {ROLLOUTS} | runs with an alarm |\n|---|---|")
    for name, draw in ON_POLICY.items():
        group = 8 if "groups" in name else 1
        alarms = [
            alarm(records(draw(np.random.default_rng(seed), ROLLOUTS * STEPS), ROLLOUTS, group))
            for seed in range(runs)
        ]
        share = np.mean([each is not None for each in alarms])
        print(f"| {name} | {share:.1%} |", flush=True)
        if share > 0.05 + 3 * np.sqrt(0.05 * 0.95 / runs) and name != UNSEEN:
            wrong.append(name)
    print("\n| another policy, steps of 64 | found | after, in the median |\n|---|---|---|")
    for name, behavior in worlds.MISMATCHED.items():
        for start in (0, 300) if name == "temperature 0.9" else (0,):
            alarms = []
            for seed in range(max(1, runs // 10)):
                rng = np.random.default_rng(seed)
                parts = [(start, worlds.PI), (STEPS, behavior)]
                scores = [worlds.sample(rng, 64 * n, worlds.PI, pi)[0] for n, pi in parts if n]
                alarms.append(alarm(records(np.concatenate(scores), 64)))
            late = [np.inf if each is None or each < start else each - start for each in alarms]
            from_then = f", from step {start} on" if start else ""
            print(
                f"| {name}{from_then} | {np.isfinite(late).mean():.0%} | {np.median(late):.0f} |", flush=True
            )
    if wrong:
        print("\noutside: " + "; ".join(wrong))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
