"""How often the intervals of `rlvar.compare_rollouts` cover, of two policies whose moments are known.

    python studies/two_sets.py [--data-sets 300]

Independent sets of rollouts come from the worlds of `worlds.py`. Sets on the same prompts come from `Shared`:
a prompt u has a factor f_u of its rewards, lognormal, and an ease a_u, which both policies meet; a completion
has a normal score z (D,) and the reward f_u (a_u + c z_0 + e). So a group's gradient is f_u h_u, with h_u
independent of f_u, and

    E g = E f E h,    E |g|^2 = E f^2 E |h|^2 ;

E |h|^2 is a mean over a million groups. The same data are analysed with their prompts matched and not.

Prints a Markdown table: how often the 95% intervals of ratios and of the difference of rewards cover, where
there is one (a signal whose estimate is not positive has no ratio); how often the notes say that few units
decide, or that there are few; and the median width, upper over lower end, "open" where half of the intervals
have no end. Exits with status 1 if an interval covers in fewer than 88% of the data sets of 30 units or more,
but for a tail that one set has alone.
"""

import argparse
import math
import sys
import warnings

import numpy as np

import rlvar
import worlds

UNITS = (8, 12, 30, 100)
LEAST = 0.88
NAMES = ("variance", "signal", "noise scale", "reward")


class Shared:
    """Two policies on the same prompts, K completions of each; B is noisier and follows the reward more."""

    def __init__(
        self,
        spread,
        k=4,
        d=5,
        effects=(0.5, 0.8),
        noise=(0.5, 1.0),
    ):
        self.spread, self.k, self.d, self.effects, self.noise = spread, k, d, effects, noise

    def draw(self, rng, prompts, policy):
        """Scores (U, K, D) and rewards over their factor (U, K) of some prompts with this ease (U,)."""
        z = rng.standard_normal((len(prompts), self.k, self.d))
        e = self.noise[policy] * rng.standard_normal((len(prompts), self.k))
        return z, prompts[:, None] + self.effects[policy] * z[..., 0] + e

    def rollouts(self, rng, units, alone=0):
        """Two sets of rollouts, of which so many prompts of each are in one alone."""
        n = units + alone
        factor, ease = rng.lognormal(0.0, self.spread, n), rng.standard_normal(n)
        found = []
        for policy in (0, 1):
            here = np.arange(units) + policy * alone
            z, r = self.draw(rng, ease[here], policy)
            labels = np.repeat([f"prompt {i} of {hash(i) % 7}" for i in here], self.k)
            rewards = (factor[here, None] * r).ravel()
            found.append(rlvar.Rollouts(z.reshape(-1, 1, self.d), rewards, groups=labels))
        return found

    def truth(self):
        """Ratios B over A of variance, signal and noise scale of "rloo", and the difference of rewards."""
        rng, v, s = np.random.default_rng(0), [], []
        mean, square = math.exp(self.spread**2 / 2), math.exp(2 * self.spread**2)
        for policy in (0, 1):
            total, count = 0.0, 1_000_000
            for _ in range(10):
                z, r = self.draw(rng, rng.standard_normal(count // 10), policy)
                weights = (r - r.mean(axis=1, keepdims=True)) * self.k / (self.k - 1)
                h = np.einsum("uk,ukd->ud", weights, z) / self.k
                total += np.square(h).sum()
            s.append((mean * self.effects[policy]) ** 2)
            v.append(square * total / count - s[-1])
        return v[1] / v[0], s[1] / s[0], v[1] / v[0] / (s[1] / s[0]), 0.0


def independent():
    """Pairs of worlds of `worlds.py`, with the estimator to look at."""
    linear, policy = worlds.Linear, worlds.Enumerated.policy
    return {
        "normal scores": (linear(), linear(effect=0.6, noise=1.0), "multi"),
        "tabular": (policy(3), policy(4), "multi"),
        "noise t3": (linear(t3=True), linear(effect=0.6, noise=1.0, t3=True), "multi"),
        "rewards x lognormal 1": (linear(factor=1.0), linear(effect=0.6, factor=1.0), "multi"),
        "one with a bonus": (linear(), linear(bonus=1.5), "multi"),
    }


class Count:
    """How often the intervals of one analysis cover, and how wide they are."""

    def __init__(self):
        self.rows, self.widths, self.warned = [], [], 0

    def add(self, found, name, truth):
        row = found[name]
        of = (row.ratio, row.signal_ratio, row.noise_scale_ratio, found.reward_difference)
        self.rows.append(
            [
                math.nan if math.isnan(x.low + t) else x.low <= t <= x.high
                for x, t in zip(of, truth, strict=True)
            ]
        )
        self.warned += any("few of" in note or "only" in note for note in found.notes)
        ratios = [x.high / x.low if x.low > 0 else math.inf for x in (of[0], of[2])]
        self.widths.append([*ratios, of[3].high - of[3].low])

    @property
    def covered(self):
        rows = np.array(self.rows, float)
        return [np.nanmean(x) if np.isfinite(x).any() else math.nan for x in rows.T]

    def line(self):
        covered = ["" if math.isnan(x) else f"{x:.0%}" for x in self.covered]
        none = np.isnan(np.array(self.rows, float)[:, 2]).mean()
        wide = ["open" if math.isinf(w) else f"{w:.3g}" for w in np.median(np.array(self.widths), axis=0)]
        return " | ".join([*covered, f"{none:.0%}", f"{self.warned / len(self.rows):.0%}", *wide])


def rows(count):
    """Yield the lines of the table, and whether the intervals cover."""
    columns = [*NAMES, "no ratio", "few decide", "width: variance", "noise scale", "reward"]
    yield f"| two sets | units | {' | '.join(columns)} |", True
    yield "|---" * (len(columns) + 2) + "|", True
    for title, (a, b, name) in independent().items():
        true = [each.truth(name, 100) for each in (a, b)]
        signals = [float(each.mean @ each.mean) for each in true]
        ratio = true[1].variance / true[0].variance
        for units in [*[(n, n) for n in UNITS], (12, 60)]:
            rng, covered = np.random.default_rng(units), Count()
            for _ in range(count):
                sets = a.rollouts(rng, units[0]), b.rollouts(rng, units[1])
                found = rlvar.compare_rollouts(*sets, [name])
                s = signals[1] / signals[0]
                covered.add(found, name, (ratio, s, ratio / s, math.nan))
            well = min(units) < 30 or "one" in title or min(covered.covered[:3]) >= LEAST
            yield f"| {title} | {units[0]} and {units[1]} | {covered.line()} |", well
    for spread in (0.25, 1.0):
        world = Shared(spread)
        truth = world.truth()
        for units, alone in [*[(n, 0) for n in UNITS], (30, 6)]:
            rng, analyses = (
                np.random.default_rng([units, alone]),
                {"matched": Count(), "not matched": Count()},
            )
            for _ in range(count):
                sets = world.rollouts(rng, units, alone)
                for paired, covered in zip((True, False), analyses.values(), strict=True):
                    covered.add(rlvar.compare_rollouts(*sets, ["rloo"], paired=paired), "rloo", truth)
            for how, covered in analyses.items():
                well = units < 30 or min(covered.covered) >= LEAST
                apart = f", {alone} of each alone" if alone else ""
                yield f"| prompts x lognormal {spread}, {how} | {units}{apart} | {covered.line()} |", well


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--data-sets", type=int, default=300)
    warnings.simplefilter("ignore")
    good = True
    for line, well in rows(parser.parse_args().data_sets):
        print(line, flush=True)
        good &= well
    sys.exit(not good)
