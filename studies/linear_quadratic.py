r"""Noise over signal of a linear-quadratic problem, along a training path: measured, and in closed form.

    python studies/linear_quadratic.py [--rollouts 20000] [--picture FILE.svg]

A state x' = A x + B u + tau w is steered by the Gaussian policy u = K x + sigma e; a step is rewarded with
-(x'Q x + u'R u), before the state moves on. Gradient ascent on the exact return leads K from 0 to near its
optimum. States and actions are linear in the standard normals xi = (x_0, e, w) of a rollout, so rewards and
scores are quadratic forms of xi, and every moment of the estimators is a sum of traces (`moment`). That V
over |E g|^2 has a closed form here, and rises towards the optimum: Han & Yang (2026), arXiv 2602.01460.

At each point of the path rlvar measures V, |E g|^2 and their ratio, the noise scale, on fresh rollouts.
Prints a chart, or draws a picture with matplotlib, and exits with status 1 if, over the path, an interval
misses the truth more often than a 95 % interval may by chance, or V is off on average.
"""

import argparse
import math
import sys
from typing import NamedTuple

import numpy as np

import rlvar

POINTS, RATE = 40, 0.008


class Problem(NamedTuple):
    a: np.ndarray
    b: np.ndarray
    q: np.ndarray
    r: np.ndarray
    sigma: float
    tau: float
    horizon: int


PROBLEM = Problem(
    np.array([[1.0, 0.3], [0.0, 0.9]]), np.array([[0.0], [0.5]]), np.eye(2), 0.2 * np.eye(1), 0.5, 0.2, 8
)


def linear_maps(problem, k):
    """States and noises of actions as linear maps of xi: (T, nx, M) and (T, nu, M)."""
    a, b, _, _, sigma, tau, horizon = problem
    nx, nu = b.shape
    rows = np.eye(horizon * (nu + nx))
    noises = rows[: horizon * nu].reshape(horizon, nu, -1)
    start, *pushes = rows[horizon * nu :].reshape(horizon, nx, -1)
    states = [start]
    for e, w in zip(noises[:-1], pushes, strict=True):
        states.append((a + b @ k) @ states[-1] + sigma * b @ e + tau * w)
    return np.array(states), noises


def simulate(problem, k, rng, count):
    """Rollouts with scores (N, T, nu nx) of K and rewards (N, T)."""
    states, noises = linear_maps(problem, k)
    xi = rng.standard_normal((count, states.shape[2]))
    x, e = np.einsum("tim,nm->nti", states, xi), np.einsum("tim,nm->nti", noises, xi)
    u = x @ k.T + problem.sigma * e
    scores = (e[:, :, :, None] * x[:, :, None, :] / problem.sigma).reshape(count, problem.horizon, -1)
    rewards = -np.einsum("nti,ij,ntj->nt", x, problem.q, x) - np.einsum("nti,ij,ntj->nt", u, problem.r, u)
    return rlvar.Rollouts(scores, rewards)


def quadratic_forms(problem, k):
    """Symmetric matrices of rewards (T, M, M) and scores (T, D, M, M): each is xi' matrix xi."""
    states, noises = linear_maps(problem, k)
    actions = k @ states + problem.sigma * noises
    rewards = -np.einsum("tim,ij,tjn->tmn", states, problem.q, states)
    rewards -= np.einsum("tim,ij,tjn->tmn", actions, problem.r, actions)
    scores = np.einsum("tim,tjn->tijmn", noises, states) / problem.sigma
    scores = scores.reshape(len(scores), -1, *scores.shape[-2:])
    return rewards, (scores + np.swapaxes(scores, 2, 3)) / 2


def moment(b, s, c, z):
    """E of the product of four quadratic forms of standard normals, of which s and z have mean 0.

    It is the sum over partitions of the products of joint cumulants: tr B; 2 tr BS; 8 tr BSC;
    16 (tr BSCZ + tr BSZC + tr BCSZ).
    """

    def two(x, y):
        return 2 * np.sum(x * y)

    def three(x, y, w):
        return 8 * np.sum(x @ y * w)

    four = 16 * (np.sum(b @ s * (z @ c)) + np.sum(b @ s * (c @ z)) + np.sum(b @ c * (z @ s)))
    pairs = two(b, s) * two(c, z) + two(b, z) * two(c, s) + two(b, c) * two(s, z)
    tb, tc = np.trace(b), np.trace(c)
    return four + pairs + tb * three(s, c, z) + tc * three(b, s, z) + tb * tc * two(s, z)


def closed_form(problem, k):
    """Mean gradient (D,) of K, and variances of the single- and the multi-step estimator."""
    rewards, scores = quadratic_forms(problem, k)
    to_go = np.cumsum(rewards[::-1], axis=0)[::-1]
    mean = 2 * np.einsum("tmn,tdmn->d", to_go, scores)
    whole, total = rewards.sum(axis=0), scores.sum(axis=0)
    single = sum(moment(whole, s, whole, s) for s in total)
    multi = sum(
        moment(b, s, c, z)
        for b, of_b in zip(to_go, scores, strict=True)
        for c, of_c in zip(to_go, scores, strict=True)
        for s, z in zip(of_b, of_c, strict=True)
    )
    return mean, {"single": single - mean @ mean, "multi": multi - mean @ mean}


def path(problem):
    """Yield the number of ascent steps, K, the squared gradient and the variances along the path."""
    k = np.zeros((problem.b.shape[1], problem.b.shape[0]))
    for step in range(POINTS):
        mean, variances = closed_form(problem, k)
        yield step, k, float(mean @ mean), variances
        k = k + RATE * mean.reshape(k.shape)


def chart(points, name):
    """Return lines of text: the interval of V / |E g|^2, the estimate o and the truth |, on a log scale."""
    values = [x for p in points for x in (p[name].low, p["truth"][name]) if x > 0]
    low, high = math.log(min(values)), math.log(max(values)) + 0.5

    def place(x):
        return (
            int(np.clip((math.log(x) - low) / (high - low), 0, 1) * 59) if 0 < x < math.inf else 59 * (x > 0)
        )

    lines = [f"noise over signal of {name}, {math.exp(low):.3g} to {math.exp(high):.3g}, log scale"]
    for p in points[::2]:
        each, cells = p[name], [" "] * 60
        for i in range(place(each.low), place(each.high) + 1):
            cells[i] = "-"
        cells[place(each.value) if each.value > 0 else 59] = "o"
        cells[place(p["truth"][name])] = "|"
        lines.append(f"{p['step']:4d} {''.join(cells)} {p['truth'][name]:.4g}")
    return lines


def draw(points, file):
    from matplotlib import pyplot

    pyplot.rcParams.update({"svg.hashsalt": "rlvar", "svg.fonttype": "none"})
    figure, axes = pyplot.subplots(figsize=(7, 4))
    steps = np.array([p["step"] for p in points])
    for name, colour in (("single", "tab:red"), ("multi", "tab:blue")):
        axes.plot(steps, [p["truth"][name] for p in points], colour, label=f"{name}, closed form")
        ends = np.array([[p[name].low, p[name].high] for p in points]).T
        axes.fill_between(steps, *np.where(np.isfinite(ends), ends, 1e9), color=colour, alpha=0.15, lw=0)
        values = np.array([p[name].value for p in points])
        axes.plot(steps, np.where(values > 0, values, np.nan), ".", color=colour, label=f"{name}, measured")
    top = 10 * max(max(p["truth"].values()) for p in points)
    axes.set(
        yscale="log",
        ylim=(None, top),
        xlabel="steps of gradient ascent",
        ylabel="noise over signal, V / |E g|²",
    )
    axes.legend(frameon=False)
    figure.savefig(file, bbox_inches="tight", metadata={"Date": None} if file.endswith("svg") else None)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rollouts", type=int, default=20000)
    parser.add_argument("--picture", metavar="FILE", help="draw with matplotlib instead of a chart of text")
    options = parser.parse_args(arguments)
    rng, points, missed, errors = np.random.default_rng(0), [], {}, {"single": [], "multi": []}
    for step, k, squared, variances in path(PROBLEM):
        result = rlvar.compare(simulate(PROBLEM, k, rng, options.rollouts))
        truth = {name: variance / squared for name, variance in variances.items()}
        points.append({"step": step, "truth": truth, **{row.name: row.noise_scale for row in result}})
        for row in result:
            exact = variances[row.name], squared, truth[row.name]
            for what, value in zip(("variance", "signal", "noise_scale"), exact, strict=True):
                each = getattr(row, what)
                missed[row.name, what] = missed.get((row.name, what), 0) + (
                    not each.low <= value <= each.high
                )
            errors[row.name].append(row.variance.value / variances[row.name] - 1)
    if options.picture:
        draw(points, options.picture)
    else:
        print("\n".join(line for name in ("single", "multi") for line in [*chart(points, name), ""]))
    # So many of independent 95 % intervals miss with a probability of less than 0.1 %.
    chances = [math.comb(POINTS, m) * 0.05**m * 0.95 ** (POINTS - m) for m in range(POINTS + 1)]
    most = next(m for m in range(POINTS) if sum(chances[m + 1 :]) < 1e-3)
    failed = False
    for (name, what), count in missed.items():
        failed |= count > most
        print(f"{name} {what}: {POINTS - count} of {POINTS} intervals hold the truth")
    for name, values in errors.items():
        z = np.mean(values) / (np.std(values, ddof=1) / math.sqrt(POINTS))
        failed |= abs(z) > 4
        print(f"{name} variance: {np.mean(values):+.2%} off on average, {z:+.1f} standard errors")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
