"""Worlds in which all is known of the gradients that `rlvar.compare` sees, for studies that need the truth.

A unit (rollout or group) has a sum of gradients g and a size L: 1, or its number of rollouts or tokens. With
the ratio of means m = E g / E L

    V = E |g - L m|^2 / (E L)^2,    S = |m|^2,    X_ab = m_a . m_b ,

by enumeration of all that a unit can be (`Enumerated`, `Prompts`), or in closed form (`Linear`).
`rollouts(rng, units)` draws units; `truth(name, units)` has all that `compare` estimates, a `Truth`.
"""

import itertools
import math
from typing import NamedTuple

import numpy as np

import rlvar


class Truth(NamedTuple):
    """Variance of a unit, and the mean gradient (D,)."""

    variance: float
    mean: np.ndarray


def moments(probabilities, gradients, sizes):
    """Truth of units that are one of finitely many: probabilities (M,), gradients (M, D), sizes (M,)."""
    size = probabilities @ sizes
    mean = probabilities @ gradients / size
    return Truth(
        float(probabilities @ np.square(gradients - sizes[:, None] * mean).sum(axis=1)) / size**2, mean
    )


def now(rollouts):
    """Weights that are the rewards of the step alone: quieter, and of another mean."""
    return rollouts.rewards


def tabular(seed, *, offset=0.0, vocabulary=3, steps=6, ends=False, success=None):
    """Logits (V + 1, V), tokens (M, T), lengths (M,) and rewards (M, T) of all sequences of a softmax policy.

    The logits depend on the token before, with V before the first one. A reward for each prefix; or, with
    `success`, 1 at the end of sequences of about that probability. With `ends` the last token ends a rollout.
    """
    rng = np.random.default_rng(seed)
    theta = rng.standard_normal((vocabulary + 1, vocabulary))
    tokens = np.array(list(itertools.product(range(vocabulary), repeat=steps)))
    lengths = np.full(len(tokens), steps)
    if ends:
        ended = tokens == vocabulary - 1
        lengths = np.where(ended.any(axis=1), ended.argmax(axis=1) + 1, steps)
        tokens = np.where(np.arange(steps) < lengths[:, None], tokens, 0)
        tokens, first = np.unique(tokens, axis=0, return_index=True)
        lengths = lengths[first]
    rewards = np.empty(tokens.shape)
    for t in range(steps):
        prefixes = np.unique(tokens[:, : t + 1], axis=0, return_inverse=True)[1].ravel()
        rewards[:, t] = offset + rng.standard_normal(prefixes.max() + 1)[prefixes]
    if success is not None:
        p, won = probabilities(theta, tokens, lengths), np.zeros(len(tokens), bool)
        for each in rng.permutation(len(tokens)):
            won[each] = p[won].sum() + p[each] <= success
        rewards = won[:, None] * (np.arange(steps) == lengths[:, None] - 1.0)
    return theta, tokens, lengths, rewards


def log_probabilities(theta, tokens, lengths):
    """Of each token (M, T), 0 past the end."""
    live = np.arange(tokens.shape[1]) < lengths[:, None]
    return np.where(live, np.log(softmax(theta))[before(theta, tokens), tokens], 0.0)


def probabilities(theta, tokens, lengths):
    return np.exp(log_probabilities(theta, tokens, lengths).sum(axis=1))


def scores(theta, tokens):
    """(M, T, V (V + 1))."""
    row, column = before(theta, tokens), np.indices(tokens.shape)
    result = np.zeros((*tokens.shape, *theta.shape))
    result[column[0], column[1], row] = np.eye(theta.shape[1])[tokens] - softmax(theta)[row]
    return result.reshape(*tokens.shape, -1)


def softmax(theta):
    return np.exp(theta) / np.exp(theta).sum(axis=1, keepdims=True)


def before(theta, tokens):
    return np.column_stack([np.full(len(tokens), theta.shape[1]), tokens[:, :-1]])


class Enumerated:
    """Rollouts that are one of those of `whole`, with their probabilities (M,)."""

    def __init__(self, whole, probabilities, *, aggregation="sum", own=()):
        self.whole, self.probabilities, self.aggregation = whole, probabilities, aggregation
        self.own = dict(own)  # weights (M, T) of other estimators
        self.options = {"aggregation": aggregation}
        if whole.logp is not None:
            self.options["importance"] = "sequence"

    @classmethod
    def policy(cls, seed, *, projected=None, stale=0.0, aggregation="sum", **options):
        """Return a `tabular` policy: scores `projected` to few coordinates, sampled by a `stale` one."""
        theta, tokens, lengths, rewards = tabular(seed, **options)
        rng, given = np.random.default_rng([seed, 1]), {}
        drawn = probabilities(theta, tokens, lengths)
        if stale:
            old = theta + stale * rng.standard_normal(theta.shape)
            given = {"logp": log_probabilities(theta, tokens, lengths)}
            given["behavior_logp"] = log_probabilities(old, tokens, lengths)
            drawn = probabilities(old, tokens, lengths)
        s = scores(theta, tokens)
        if projected is not None:
            s = s @ rng.standard_normal((s.shape[2], projected))
        return cls(rlvar.Rollouts(s, rewards, lengths=lengths, **given), drawn, aggregation=aggregation)

    def rollouts(self, rng, units):
        return self.whole[rng.choice(len(self.probabilities), units, p=self.probabilities)]

    def truth(self, name, units):
        whole, p = self.whole, self.probabilities
        live = whole.live
        rewards = np.where(live, whole.rewards, 0.0) if whole.rewards.ndim == 2 else whole.rewards[:, None]
        to_go = np.cumsum(rewards[:, ::-1], axis=1)[:, ::-1]
        weights = {"single": to_go[:, :1], "single-mean": to_go[:, :1], "multi": to_go, "now": rewards}
        weights.update(self.own)
        s = whole.scores * live[:, :, None]
        if whole.logp is not None:
            s = s * np.exp((whole.logp - whole.behavior_logp).sum(axis=1))[:, None, None]
        if self.aggregation == "sequence-mean":
            s = s / whole.live_steps[:, None, None]
        sizes = whole.live_steps.astype(float) if self.aggregation == "token-mean" else np.ones(len(p))
        if name == "single-mean":  # leave-one-out of all units: tests/closed_forms.py, rloo_moments
            summed, q = s.sum(axis=1), to_go[:, 0] - p @ to_go[:, 0]
            found = moments(p, q[:, None] * summed, sizes)
            spread = (p @ q**2) * (p @ np.square(summed).sum(axis=1)) + found.mean @ found.mean
            return Truth(found.variance + spread / (units - 1), found.mean)
        return moments(p, np.einsum("mt,mtd->md", np.broadcast_to(weights[name], live.shape), s), sizes)


def tosses(count, old=0.5, new=0.6):
    """Tosses of a coin that is fair and should be less so, weighed by sequence ratios, as one action each.

    The return is k / T + 1/2 for k heads. "less" has the baseline 1, which is all but best.
    """
    heads = np.arange(count + 1)
    p = np.array([math.comb(count, k) * old**k * (1 - old) ** (count - k) for k in heads])
    logp = heads * np.log(new / old) + (count - heads) * np.log((1 - new) / (1 - old))
    whole = rlvar.Rollouts(
        (heads - count * new)[:, None, None],
        heads / count + 0.5,
        logp=logp[:, None],
        behavior_logp=np.zeros((count + 1, 1)),
    )
    return Enumerated(whole, p, own={"less": less(whole)[:, None]})


def less(rollouts):
    return rollouts.rewards - 1.0


class Prompts:
    """Groups of a few completions of prompts with these success rates, all equally likely.

    A completion is one of four actions of a softmax policy, of which two succeed, on features that prompts
    share in part.
    """

    def __init__(self, rates, sizes, d=8, seed=0):
        rng, rates = np.random.default_rng(seed), np.asarray(rates)[:, None]
        self.group_sizes, self.rewards = np.asarray(sizes), np.array([1.0, 1.0, 0.0, 0.0])
        self.policy = np.hstack([rates * 0.7, rates * 0.3, (1 - rates) * 0.6, (1 - rates) * 0.4])
        features = rng.standard_normal((4, d)) + 0.5 * rng.standard_normal((len(rates), 4, d))
        self.scores = features - np.einsum("qa,qad->qd", self.policy, features)[:, None]
        self.options = {}

    def rollouts(self, rng, units):
        prompts, sizes = rng.integers(len(self.policy), size=units), rng.choice(self.group_sizes, units)
        prompts, groups = np.repeat(prompts, sizes), np.repeat(np.arange(units), sizes)
        below = self.policy.cumsum(axis=1)[prompts, :-1]
        actions = (rng.random((len(prompts), 1)) > below).sum(axis=1)
        return rlvar.Rollouts(self.scores[prompts, actions][:, None], self.rewards[actions], groups=groups)

    def truth(self, name, units):
        p, g, of_size = [], [], []
        for k in self.group_sizes:
            # How often each of the four actions occurs in a group of k.
            counts = np.array([c for c in itertools.product(range(k + 1), repeat=4) if sum(c) == k])
            ways = [math.factorial(k) / math.prod(map(math.factorial, c)) for c in counts.tolist()]
            mean = counts @ self.rewards[:, None] / k
            centred = self.rewards - mean
            deviation = np.sqrt((counts * centred**2).sum(axis=1, keepdims=True) / (k - 1))
            weights = {
                "single": np.broadcast_to(self.rewards, counts.shape),
                "rloo": centred * k / (k - 1),
                "grpo": centred / (deviation + 1e-6),
            }[name]
            for policy, s in zip(self.policy, self.scores, strict=True):
                p.append(ways * np.prod(policy**counts, axis=1))
                g.append((counts * weights) @ s)
                of_size.append(np.full(len(counts), float(k)))
        p, g, of_size = (np.concatenate(each) for each in (p, g, of_size))
        return moments(p / (len(self.policy) * len(self.group_sizes)), g, of_size)


class Linear:
    """Normal scores s_t = scales * z_t and rewards r_t = f (b + c z_t[0] + c z_{t-1}[1] + e_t), T steps.

    Half of what an action does comes a step late. e_t is noise, normal or Student's t3; where asked for, f is
    a lognormal number of the rollout, and a lognormal bonus is added at the first step. With weights
    w_t = sum_k A_tk r_k, so that A is all ones for "single", its upper triangle for "multi" and 1 for "now",

        w_t = f (a_t + sum_kj L_tkj z_k[j] + n_t),    g_d = scales_d sum_t w_t z_t[d] ,

    is a quadratic form in normals: without f its mean is scales_d sum_t L_ttd, and its variance

        scales_d^2 (sum L^2 + sum_tk L_tkd L_ktd + sum_t (a_t^2 + E n_t^2)) .
    """

    def __init__(
        self, d=5, steps=6, *, scales=1.0, offset=0.3, effect=0.3, noise=0.5, t3=False, factor=0.0, bonus=0.0
    ):
        self.scales, self.steps, self.offset, self.effect = (
            np.broadcast_to(scales, (d,)),
            steps,
            offset,
            effect,
        )
        self.noise, self.t3, self.factor, self.bonus = noise, t3, factor, bonus
        self.options = {}

    def rollouts(self, rng, units):
        shape = units, self.steps
        z = rng.standard_normal((*shape, len(self.scales)))
        e = rng.standard_t(3, shape) / np.sqrt(3) if self.t3 else rng.standard_normal(shape)
        rewards = self.offset + self.effect * z[..., 0] + self.noise * e
        rewards[:, 1:] += self.effect * z[:, :-1, 1]
        if self.bonus:
            rewards[:, 0] += rng.lognormal(0.0, self.bonus, units)
        if self.factor:
            rewards *= rng.lognormal(0.0, self.factor, (units, 1))
        return rlvar.Rollouts(z * self.scales, rewards)

    def truth(self, name, units):
        t, d = self.steps, len(self.scales)
        sums = {"single": np.ones((t, t)), "multi": np.triu(np.ones((t, t))), "now": np.eye(t)}[name]
        rewards, noise = np.full(t, self.offset), np.full(t, self.noise**2)
        if self.bonus:
            rewards[0] += np.exp(self.bonus**2 / 2)
            noise[0] += np.exp(self.bonus**2) * np.expm1(self.bonus**2)
        by = np.zeros((d, t, t))  # L by j, t, k
        by[0], by[1, :, :-1] = self.effect * sums, self.effect * sums[:, 1:]
        common = np.square(by).sum() + np.square(sums @ rewards).sum() + (sums**2 @ noise).sum()
        mean = self.scales * np.einsum("jtt->j", by)
        variance = float(np.square(self.scales) @ (common + np.einsum("jtk,jkt->j", by, by)))
        first, second = np.exp(self.factor**2 / 2), np.exp(2 * self.factor**2)
        return Truth(second * (variance + mean @ mean) - first**2 * float(mean @ mean), first * mean)
