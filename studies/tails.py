"""What tails do to intervals of variances and of their ratio, and whether any diagnostic tells of it.

    python studies/tails.py [--data-sets 400]

Steps have scores s_t ~ N(0, I_D), or those of coins, and rewards 0.3 + 0.3 s_t[0] + 0.3 s_{t-1}[1] + noise;
"multi" is compared with "single". In "bonus" a lognormal number is added to the reward of step 1: it is in
all weights of single-step and in one of multi-step, a tail that the two do not share. In "scale" a lognormal
number multiplies all rewards: a tail that they do share.

The first table has, for the ratio of variances, how often the interval of the jackknife alone covers and how
often ours does, how often the truth is below and above ours, the median ratio of their lengths on the log
scale, and how often the interval of multi-step's variance covers. The second has the area under the curve of
diagnostics, as flags that an interval misses (0.5 says nothing; below it, intervals miss where the flag is
silent): over all data sets, and on average within a setting. Exits with status 1 if a setting with light
tails is covered in less than 92 % from 30 units on, or its intervals are a tenth longer than the jackknife's.
"""

import argparse
import sys

import numpy as np

from rlvar.stats import moments
from rlvar.stats.intervals import deciding_units, effective_units, jackknife, ratio_of_variances

STEPS = 12
LIGHT = ("light", "D = 50", "noise t3", "token mean")
SETTINGS = {
    "light": {},
    "D = 50": {"d": 50},
    "noise t3": {"noise": "t3"},
    "D = 1": {"d": 1},
    "coins": {"coin": 0.3, "d": 1},
    "rare coins": {"coin": 0.02, "d": 1},
    "token mean": {"token": True},
    "bonus 1": {"bonus": 1.0},
    "bonus 1.5": {"bonus": 1.5},
    "bonus 2": {"bonus": 2.0},
    "scale 1": {"scale": 1.0},
    "scale 2": {"scale": 2.0},
}
UNITS = (12, 30, 100, 300)


def lognormal(rng, sigma, count, *, tail):
    """Numbers of this shape; without the tail, normal ones of the same mean and variance."""
    if tail:
        return rng.lognormal(0.0, sigma, count)
    spread = np.exp(sigma**2 / 2) * np.sqrt(np.expm1(sigma**2))
    return np.exp(sigma**2 / 2) + spread * rng.standard_normal(count)


def simulate(rng, count, *, d=5, noise="normal", coin=0.0, token=False, bonus=0.0, scale=0.0, tail=True):
    """Gradients (count, D) of single-step and multi-step, and sizes (count,)."""
    shape = (count, STEPS)
    if coin:
        heads = (rng.random(shape) < coin).astype(float)
        scores, rewards = (heads - coin)[..., None], heads.copy()
        rewards[:, 1:] += 0.5 * heads[:, :-1]
    else:
        scores = rng.standard_normal((*shape, d))
        error = (
            rng.standard_t(3, shape) / np.sqrt(3) if noise == "t3" and tail else rng.standard_normal(shape)
        )
        rewards = 0.3 + 0.3 * scores[..., 0] + 0.5 * error
        rewards[:, 1:] += 0.3 * scores[:, :-1, 1 % d]
    if bonus:
        rewards[:, 0] += lognormal(rng, bonus, count, tail=tail)
    if scale:
        factor = rng.lognormal(0.0, scale, count) if tail else np.full(count, np.exp(scale**2))
        rewards = rewards * factor[:, None]
    sizes = np.ones(count)
    if token:  # half of the rollouts end early, by chance
        sizes = rng.integers(STEPS // 4, STEPS + 1, count).astype(float)
        alive = np.arange(STEPS) < sizes[:, None]
        scores, rewards = scores * alive[..., None], rewards * alive
    to_go = np.cumsum(rewards[:, ::-1], axis=1)[:, ::-1]
    return (
        np.einsum("n,ntd->nd", rewards.sum(axis=1), scores),
        np.einsum("nt,ntd->nd", to_go, scores),
        sizes,
    )


def truth(options):
    """Variances of the two by 200,000 units, without the tail, whose second moments are the same."""
    rng, found = np.random.default_rng(0), []
    for _ in range(20):
        *gradients, sizes = simulate(rng, 10_000, **options, tail=False)
        found.append([variance_of(g, sizes)[1].value for g in gradients])
    return np.mean(found, axis=0)


def variance_of(gradients, sizes):
    ((own, _),) = moments.products([moments.Sample(gradients, sizes)])
    return own.diagonal, moments.variance(own)


def pareto(x):
    """Shape k of the tail of x by Zhang and Stephens (2009), as in Pareto-smoothed importance sampling."""
    x = np.sort(x)
    m = int(min(0.2 * len(x), 3 * np.sqrt(len(x))))
    if m < 5 or not x[-m - 1] > 0:
        return np.nan
    excess = x[-m:] - x[-m - 1]
    candidates, quartile = 30 + int(np.sqrt(m)), excess[int(m / 4 + 0.5) - 1]
    if not quartile > 0:
        return np.nan
    b = 1 / excess[-1] + (1 - np.sqrt(candidates / (np.arange(1, candidates + 1) - 0.5))) / (3 * quartile)
    k = np.log1p(-b[:, None] * excess[:-1]).mean(axis=1)
    likelihood = m * (np.log(-b / k) - k - 1)
    weights = 1 / np.exp(np.clip(likelihood - likelihood[:, None], -700, 700)).sum(axis=1)
    return float(np.log1p(-float(b @ weights / weights.sum()) * excess[:-1]).mean())


def diagnostics(parts, left_out):
    """Numbers of which each would be a flag: the higher, the worse."""
    changes = np.square(left_out - left_out.mean())
    return {
        "1 / units behind it": 1 / deciding_units(left_out),
        "1 / units of the variance": 1 / effective_units(parts),
        "kurtosis": len(parts) / deciding_units(left_out),
        "top 1 %": np.sort(changes)[-max(1, len(parts) // 100) :].sum() / changes.sum(),
        "Pareto k of the changes": pareto(changes),
        "Pareto k of the squares": pareto(parts),
    }


def area(flag, missed):
    """Area under the curve: how often a miss has the higher flag than a hit, ties by half."""
    known = np.isfinite(flag)
    flag, missed = flag[known], missed[known]
    if missed.all() or not missed.any():
        return np.nan
    hits = np.sort(flag[~missed])
    below, up_to = (np.searchsorted(hits, flag[missed], side) for side in ("left", "right"))
    return float((below + up_to).mean() / 2 / len(hits))


def study(name, options, exact, units, data_sets, records):
    """One line of the first table; adds what the second needs to `records`."""
    rng = np.random.default_rng([len(name), units])
    happened, lengths = [], []
    for _ in range(data_sets):
        single, multi, sizes = simulate(rng, units, **options)
        (_, base), (parts, own) = (variance_of(g, sizes) for g in (single, multi))
        if not min(base.left_out.min(), own.left_out.min()) > 0:
            continue
        left_out = own.left_out / base.left_out
        plain = jackknife(own.value / base.value, left_out, 0.95, positive=True)
        ours, variance = ratio_of_variances(own, base, 0.95), jackknife(*own, 0.95, positive=True)
        if not plain.stderr > 0:
            continue
        ratio = exact[1] / exact[0]
        happened.append(
            [
                plain.low <= ratio <= plain.high,
                ours.low <= ratio <= ours.high,
                ratio < ours.low,
                ratio > ours.high,
                variance.low <= exact[1] <= variance.high,
            ]
        )
        lengths.append(np.log(ours.high / ours.low) / np.log(plain.high / plain.low))
        for what, values, covered in (
            ("variance", own.left_out, happened[-1][4]),
            ("ratio", left_out, happened[-1][1]),
        ):
            records.append((what, name, units, not covered, diagnostics(parts, values)))
    shares, longer = np.mean(happened, axis=0), float(np.median(lengths))
    cells = [*(f"{x:.1%}" for x in shares[:4]), f"{longer:.2f}", f"{shares[4]:.1%}"]
    print(f"| {name} | {units} | " + " | ".join(cells) + " |", flush=True)
    return name in LIGHT and units >= 30 and (shares[1] < 0.92 or longer > 1.1)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-sets", type=int, default=400)
    data_sets = parser.parse_args().data_sets
    print("| rollouts | units | jackknife | ours | ratio < low | ratio > high | longer | variance |")
    print("|---" * 8 + "|")
    records, failed = [], False
    for name, options in SETTINGS.items():
        exact = truth(options)
        for units in UNITS:
            failed |= study(name, options, exact, units, data_sets, records)
    print("\n| of | diagnostic | all data sets | within a setting |")
    print("|---" * 4 + "|")
    for what in ("variance", "ratio"):
        of = [record for record in records if record[0] == what]
        missed = np.array([record[3] for record in of])
        settings = np.array([f"{record[1]} {record[2]}" for record in of])
        for diagnostic in of[0][4]:
            flag = np.array([record[4][diagnostic] for record in of])
            within = [area(flag[settings == each], missed[settings == each]) for each in np.unique(settings)]
            print(f"| {what} | {diagnostic} | {area(flag, missed):.2f} | {np.nanmean(within):.2f} |")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
