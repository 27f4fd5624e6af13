"""Small policies of which all is known, and ways to spoil what they sample: for `false_verdicts.py`."""

import itertools
import math

import numpy as np

import rlvar


class Policy:
    """All that a policy can do: probabilities (M,), scores (M, T, D), rewards (M, T), lengths (M,)."""

    def __init__(self, p, scores, rewards, lengths=None):
        self.p, self.scores, self.rewards = p, scores, rewards
        self.lengths = np.full(len(p), scores.shape[1]) if lengths is None else lengths

    def draw(self, rng, n, **more):
        i = rng.choice(len(self.p), n, p=self.p)
        return rlvar.Rollouts(self.scores[i], self.rewards[i], lengths=self.lengths[i], **more)

    def terms(self, name, rewards=None):
        """Terms w S (M, T, D) of an estimator."""
        r = self.rewards if rewards is None else rewards
        to_go = np.cumsum(r[:, ::-1], axis=1)[:, ::-1]
        return self.scores * (to_go if name == "multi" else to_go[:, :1])[:, :, None]

    def moments(self, g):
        """Mean and variance of gradients (M, D)."""
        mean = self.p @ g
        return mean, float(self.p @ np.square(g - mean).sum(axis=1))

    def cut(self, name, steps):
        before = np.arange(self.scores.shape[1]) < steps
        return self.moments((self.terms(name, self.rewards * before) * before[:, None]).sum(axis=1))[1]

    def truth(self, n, **more):
        """What holds of rollouts of the policy, n at a time."""
        steps = self.scores.shape[1]
        found = {"variance": {}, "signal": {}, "noise": {}, "covariance": {}, "horizon": {}}
        ks = np.unique(np.rint(np.geomspace((steps + 1) // 2, steps, 5)).astype(int))
        for name in ("single", "multi"):
            x = self.terms(name)
            mean, v = self.moments(x.sum(axis=1))
            found["variance"][name], found["signal"][name] = v, float(mean @ mean)
            found["noise"][name] = v / (mean @ mean) if mean @ mean > 1e-20 else math.inf
            found["covariance"][name] = v - sum(self.moments(x[:, t])[1] for t in range(steps))
            if len(ks) > 1 and (self.lengths == steps).all():
                found["horizon"][name] = np.polyfit(np.log(ks), np.log([self.cut(name, k) for k in ks]), 1)[0]
        found["needs"] = {("single", "multi"): found["variance"]["single"] / found["variance"]["multi"]}
        g = self.terms("multi").sum(axis=1)
        a, b = np.random.default_rng(0).multinomial(n, self.p, (2, 2000)) @ g / n
        lengths = np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=1)
        cosines = (a * b).sum(axis=1) / np.maximum(lengths[0] * lengths[1], 1e-300)
        found["angle"] = math.degrees(math.acos(np.clip(cosines.mean(), -1, 1)))
        found["norm"] = math.sqrt(np.square(lengths[0] - lengths[1]).mean() / np.square(lengths).mean())
        return found | more


def coins(steps, p=0.5, reward=lambda y: y, scored=None):
    """Tosses of one logit; scored by another one, if given."""
    y = np.array(list(itertools.product((0.0, 1.0), repeat=steps)))
    return Policy(np.where(y > 0, p, 1 - p).prod(axis=1), (y - (scored or p))[:, :, None], reward(y))


def chain(seed=1, tokens=3, steps=4, ends=False, sharp=1.0):
    """Logits for each previous token; rewards for each prefix; token 0 ends it, if so wanted."""
    rng = np.random.default_rng(seed)
    logits, size = rng.standard_normal((tokens + 1, tokens)), tokens + 1
    scored, sampled = (np.exp(z) / np.exp(z).sum(axis=1, keepdims=True) for z in (logits, logits * sharp))
    every = itertools.product(range(tokens), repeat=steps)
    paths = sorted({s[: s.index(0) + 1] if ends and 0 in s else s for s in every})
    p, of_prefix = np.ones(len(paths)), {}
    scores, rewards = np.zeros((len(paths), steps, size, tokens)), np.zeros((len(paths), steps))
    for n, path in enumerate(paths):
        for t, (previous, token) in enumerate(zip((tokens, *path), path, strict=False)):
            p[n] *= sampled[previous, token]
            scores[n, t, previous] = np.eye(tokens)[token] - scored[previous]
            rewards[n, t] = of_prefix.setdefault(path[: t + 1], rng.standard_normal())
    return Policy(p, scores.reshape(len(paths), steps, -1), rewards, np.array([len(s) for s in paths]))


class Prompts:
    """Prompts with one choice out of six each, right with a chance that depends on both: rewards 0 and 1."""

    SINGLE = staticmethod(lambda x, k: (1.0, 0.0))
    RLOO = staticmethod(lambda x, k: (1 - (x - 1) / (k - 1), -x / (k - 1)))

    def __init__(self, chance, seed=0):
        self.chance = np.asarray(chance)  # (P, 6)
        logits = np.random.default_rng(seed).standard_normal(6)
        self.p = np.exp(logits) / np.exp(logits).sum()
        self.scores = np.eye(6) - self.p

    @staticmethod
    def grpo(x, k):
        spread = math.sqrt(x * (k - x) / (k * (k - 1))) or math.inf
        return (1 - x / k) / spread, -x / k / spread

    def draw(self, rng, groups, size, kept=False, labels=True):
        actions, right = np.empty((0, size), int), np.empty((0, size))
        while len(right) < groups:
            prompts = rng.integers(len(self.chance), size=groups)
            a = rng.choice(6, (groups, size), p=self.p)
            r = (rng.random(a.shape) < self.chance[prompts[:, None], a]).astype(float)
            mixed = (r.min(axis=1) < r.max(axis=1)) | (not kept)
            actions, right = np.concatenate([actions, a[mixed]]), np.concatenate([right, r[mixed]])
        given = np.repeat(np.arange(groups), size) if labels else None
        scores = self.scores[actions[:groups].ravel()][:, None]
        return rlvar.Rollouts(scores, right[:groups].ravel(), groups=given)

    def moments(self, weights, size, kept=False):
        """Mean and variance of a group's mean gradient, with weights (of successes, of failures)."""
        first, second, total = np.zeros(6), 0.0, 0.0
        for chance in self.chance:
            right, wrong = self.p * chance, self.p * (1 - chance)
            means = [q @ self.scores / q.sum() for q in (right, wrong)]
            spreads = [
                q @ np.square(self.scores - m).sum(axis=1) / q.sum()
                for q, m in zip((right, wrong), means, strict=True)
            ]
            s = right.sum()
            for x in range(int(kept), size + 1 - int(kept)):
                q = math.comb(size, x) * s**x * (1 - s) ** (size - x) / len(self.chance)
                a, b = weights(x, size)
                mean = (a * x * means[0] + b * (size - x) * means[1]) / size
                inside = (a**2 * x * spreads[0] + b**2 * (size - x) * spreads[1]) / size**2
                first, second, total = first + q * mean, second + q * (inside + mean @ mean), total + q
        mean = first / total
        return mean, second / total - mean @ mean

    def truth(self, size, only_mixed=False, **more):
        found = {"needs": {}, "signal": {}, "noise": {}, "variance": {}}
        for name, weights in (("single", self.SINGLE), ("rloo", self.RLOO)):
            mean, v = self.moments(weights, size, only_mixed)
            found["signal"][name], found["noise"][name] = mean @ mean, v / (mean @ mean)
            found["variance"][name] = v
        v = found["variance"]
        found["needs"]["single", "rloo"] = math.nan if only_mixed else v["single"] / v["rloo"]
        return found | more


def uneven(seed, low=0.05, high=0.95, prompts=24):
    rng = np.random.default_rng(seed)
    return Prompts(
        np.clip(rng.uniform(low, high, (prompts, 1)) + rng.uniform(-0.3, 0.3, (prompts, 6)), 0.02, 0.98)
    )


def normal(steps, d, reward, scale=None, n=40, **more):
    """Scores N(0, 1) that rewards, reward(rng, scores), know or do not."""

    def make(rng):
        s = rng.standard_normal((n, steps, d)) * (1.0 if scale is None else scale)
        return rlvar.Rollouts(s, reward(rng, s), **more)

    return make


def noise(rng, s):
    return rng.standard_normal(s.shape[:2])


def bonus(rng, s):
    """Lognormal at step 1, of mean 0 and variance 25; then noise of variance 1."""
    r = noise(rng, s)
    r[:, 0] = 5 * (rng.lognormal(-0.5, 1, len(s)) - 1) / math.sqrt(math.e - 1)
    return r


def changed(make, change):
    def made(rng):
        scores, rewards, *more = change(rng, make(rng))
        return rlvar.Rollouts(scores, rewards, **dict(*more))

    return made


# What `changed` does to rollouts: arrays of others.


def copies(jitter):
    def change(rng, r):
        s = np.repeat(r.scores, 4, axis=0)
        return s * (1 + jitter * rng.standard_normal(s.shape)), np.repeat(r.rewards, 4, axis=0)

    return change


def padded(rng, r):
    n, t, d = r.scores.shape
    scores, rewards = np.full((n, t + 3, d), np.nan), np.full((n, t + 3), 1e300)
    scores[:, :t], rewards[:, :t] = r.scores, r.rewards
    return scores, rewards, {"lengths": np.full(n, t)}


def positions(rng, r):
    """Rows of positions: half of each score goes to the step before."""
    s = r.scores.copy()
    s[:, :-1] += r.scores[:, 1:] / 2
    s[:, 1:] -= r.scores[:, 1:] / 2
    return s, r.rewards


def best_half(rng, r):
    kept = np.sort(np.argsort(-r.rewards.sum(axis=1))[: len(r) // 2])
    return r.scores[kept], r.rewards[kept]


def ordered(rng, r):
    o = np.argsort(r.rewards.sum(axis=1), kind="stable")
    return r.scores[o], r.rewards[o]


def antithetic(rng, r):
    return np.concatenate([r.scores, -r.scores]), np.concatenate([r.rewards, -r.rewards])


def centred(rng, r):
    """Rewards minus their group's mean."""
    means = np.bincount(r.groups, r.rewards) / np.bincount(r.groups)
    return r.scores, r.rewards - means[r.groups], {"groups": r.groups}


def pairs(rng, r):
    """The better one of each pair has 1, the other one -1."""
    return (
        r.scores,
        rng.permuted(np.tile([1.0, -1.0], (len(r) // 2, 1)), axis=1).ravel(),
        {"groups": r.groups},
    )


def is_seen(n, share):
    """Whether a mean score whose square is such a share of the variance is mostly found (D = 1)."""
    rng, mean = np.random.default_rng(0), math.sqrt(share / (1 - share))
    return (
        sum(not rlvar.on_policy_test(rng.standard_normal((n, 1, 1)) + mean).on_policy for _ in range(20)) > 10
    )


def unlabelled(rng):
    """16 prompts of 16, in order: each has a direction of its own, around one that all share."""
    s = rng.standard_normal((256, 1, 5))
    towards = np.repeat(0.2 + rng.standard_normal((16, 5)), 16, axis=0)
    return rlvar.Rollouts(s, (towards * s[:, 0]).sum(axis=1))


def stale(policy, older):
    logp, behavior = (
        np.log(each.p)[:, None] / policy.scores.shape[1] + 0 * policy.rewards for each in (policy, older)
    )

    def make(rng):
        i = rng.choice(len(older.p), 200, p=older.p)
        return rlvar.Rollouts(policy.scores[i], policy.rewards[i], logp=logp[i], behavior_logp=behavior[i])

    ratio, variances = policy.p / older.p, []
    for name in ("single", "multi"):
        variances.append(older.moments(ratio[:, None] * policy.terms(name).sum(axis=1))[1])
    return make, {"needs": {("single", "multi"): variances[0] / variances[1]}}


def token_mean(policy):
    variances = []
    for name in ("single", "multi"):
        g, lengths = policy.terms(name).sum(axis=1), policy.lengths[:, None]
        variances.append(policy.moments(g - lengths * (policy.p @ g) / (policy.p @ lengths))[1])
    return {("single", "multi"): variances[0] / variances[1]}


def opposed():
    """Prompts of half success pull against those that are hard or easy."""
    sign = np.array([1, -1, 1, -1, 1, -1])
    prompts = Prompts([0.5 - 0.15 * sign, 0.12 + 0.1 * sign, 0.88 + 0.1 * sign])
    (a, v), (g, of_rloo) = (prompts.moments(each, 8) for each in (prompts.grpo, prompts.RLOO))
    return prompts, {"bracket": v / of_rloo / (a @ g / (g @ g)) ** 2}
