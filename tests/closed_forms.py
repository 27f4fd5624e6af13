"""Variances with a closed form. Imports the standard library and numpy; never rlvar."""

import itertools
import math

import numpy as np


def bernoulli_variances(steps, p):
    """Variances of the single- and multi-step estimators for independent Bernoulli tokens.

    Tokens y_t ~ Bernoulli(p) share one logit, so S_t = z_t = y_t - p, and each is its own reward,
    r_t = y_t. With v = p(1-p), k3 = v(1-2p) and m4 = v(1-3v) the central moments of z and
    Z = sum z_t, the single-step estimator is g = (Tp + Z) Z with E g = Tv and

        Var = T^2 p^2 E Z^2 + 2 T p E Z^3 + E Z^4 - (Tv)^2,
        E Z^2 = Tv,  E Z^3 = T k3,  E Z^4 = T m4 + 3 T (T-1) v^2.

    The multi-step estimator is g = sum_t (a_t z_t + z_t^2) + sum_{t<k} z_t z_k with
    a_t = (T - t) p, t = 0..T-1; its two sums are uncorrelated, so

        Var = sum_t (a_t^2 v + 2 a_t k3 + m4 - v^2) + T (T-1) / 2 v^2.

    The ratio tends to T^3 / (T^3 / 3) = 3.
    """
    v = p * (1 - p)
    k3, m4 = v * (1 - 2 * p), v * (1 - 3 * v)
    t = steps
    single = t**3 * p**2 * v + 2 * t**2 * p * k3 + t * m4 + 3 * t * (t - 1) * v**2 - (t * v) ** 2
    a = (t - np.arange(t)) * p
    multi = float((a**2 * v + 2 * a * k3 + m4 - v**2).sum()) + t * (t - 1) / 2 * v**2
    return single, multi


def bernoulli_rollouts(tokens, p):
    """Scores (N, T, 1) and rewards (N, T) of Bernoulli token sequences (N, T)."""
    tokens = np.asarray(tokens, float)
    return (tokens - p)[:, :, None], tokens


class EnumeratedPolicy:
    """A softmax policy over V tokens whose logits depend on the previous token; all V^T sequences.

    theta[previous, token] are the logits; the first token is drawn after a start symbol V. The
    score of a step is (onehot(token) - pi(. | previous)) in the row of the previous token. The
    reward of a step is an arbitrary number for each prefix that ends there: causal, or past rewards
    would not be independent of present actions.
    """

    def __init__(self, vocabulary, steps, seed):
        rng = np.random.default_rng(seed)
        theta = rng.standard_normal((vocabulary + 1, vocabulary))
        pi = np.exp(theta) / np.exp(theta).sum(axis=1, keepdims=True)
        self.sequences = list(itertools.product(range(vocabulary), repeat=steps))
        self.scores = np.zeros((len(self.sequences), steps, *theta.shape))
        self.probabilities = np.ones(len(self.sequences))
        for n, sequence in enumerate(self.sequences):
            for t, (previous, token) in enumerate(zip((vocabulary, *sequence), sequence, strict=False)):
                self.probabilities[n] *= pi[previous, token]
                self.scores[n, t, previous] = (np.arange(vocabulary) == token) - pi[previous]
        self.scores = self.scores.reshape(len(self.sequences), steps, -1)
        reward_of = {}
        for sequence in self.sequences:
            for t in range(steps):
                reward_of.setdefault(sequence[: t + 1], rng.standard_normal())
        self.rewards = np.array([[reward_of[s[: t + 1]] for t in range(steps)] for s in self.sequences])

    def expectation(self, values):
        """E[values] with values[n] belonging to sequence n, summed without rounding error."""
        return math.fsum(p * x for p, x in zip(self.probabilities, values, strict=True))

    def covariance(self, weights):
        """C[i,j] = sum_d E[X_id X_jd] - E[X_id] E[X_jd], by exact expectations."""
        x = weights[:, :, None] * self.scores
        n, steps, coords = x.shape
        mean = np.array([[self.expectation(x[:, t, d]) for d in range(coords)] for t in range(steps)])
        return np.array(
            [
                [
                    self.expectation([x[k, i] @ x[k, j] for k in range(n)]) - mean[i] @ mean[j]
                    for j in range(steps)
                ]
                for i in range(steps)
            ]
        )
