"""Variances with a closed form. Imports the standard library and numpy; never rlvar.

Matrices are C[i,j] = sum_d Cov(X_id, X_jd) of the terms X_i = w_i S_i: the single-step estimator has
w_i = R, the multi-step one w_i = G_i. He_k are the Hermite polynomials of probability theory, with
E[He_j(z) He_k(z)] = k! [j = k] for z ~ N(0, 1): He_1 = z, He_2 = z^2 - 1.
"""

import itertools
import math

import numpy as np
from numpy.polynomial import Polynomial, hermite_e


def product_measure(values, probabilities, copies):
    """All tuples of independent draws from `values` (N, copies), and their probabilities (N,)."""
    draws = np.array(list(itertools.product(range(len(values)), repeat=copies)))
    return np.asarray(values)[draws], np.asarray(probabilities)[draws].prod(axis=1)


def normals(copies, nodes):
    """Gauss-Hermite quadrature: exact for a degree up to 2 nodes - 1 in each standard normal."""
    z, p = hermite_e.hermegauss(nodes)
    return product_measure(z, p / p.sum(), copies)


def gaussian_bandit(reward, mu, sigma):
    """Mean and variance of R s for a ~ N(mu, sigma^2); best constant baseline, variance it leaves.

    The reward is a polynomial in a of degree 2 or more (coefficients, lowest first). With
    a = mu + sigma z, s = z / sigma and R = sum_k c_k He_k(z). As z He_k = He_{k+1} + k He_{k-1},

        R z = sum_k d_k He_k,  d_k = c_{k-1} + (k+1) c_{k+1},
        E[R s] = d_0 / sigma = c_1 / sigma,  Var(R s) = sum_{k>0} k! d_k^2 / sigma^2.

    A baseline b takes b from c_0, which is in d_1 = c_0 + 2 c_2 alone. The best is therefore
    b* = c_0 + 2 c_2 = E[R z^2] = E[R s^2] / E[s^2]; any other adds (b - b*)^2 / sigma^2, the mean reward
    c_0 for one 4 c_2^2 / sigma^2. For R = a^2: c = (mu^2 + sigma^2, 2 mu sigma, sigma^2),
    b* = mu^2 + 3 sigma^2 and Var(R s) = mu^4 / sigma^2 + 14 mu^2 + 15 sigma^2.
    """
    c = hermite_e.poly2herme(Polynomial(reward)(Polynomial([mu, sigma])).coef)
    d = hermite_e.hermemulx(c)
    squares = [math.factorial(k) * d[k] ** 2 / sigma**2 for k in range(len(d))]
    return c[1] / sigma, sum(squares[1:]), c[0] + 2 * c[2], sum(squares[2:])


def gaussian_sequences(steps, mu, sigma, offset, slope):
    """C of both estimators for a_t ~ N(mu, sigma^2) that share mu, r_t = offset + slope a_t.

    With a_t = mu + sigma z_t: S_t = z_t / sigma and r_t = m + b z_t, m = offset + slope mu,
    b = slope sigma. In orthogonal polynomials, t = 1..T and n_t = T - t + 1,

        single: sigma X_i = T m z_i + b + b He_2(z_i) + b sum_{k != i} z_i z_k,
        multi:  sigma X_i = n_i m z_i + b + b He_2(z_i) + b sum_{k > i} z_i z_k,

    with squared norms 1, 2 and 1 of z_i, He_2(z_i) and z_i z_k. X_i and X_j share, beside the constant,
    only z_i z_j in the first case and nothing in the second:

        sigma^2 C_single = (T^2 m^2 + T b^2) I + b^2 11',  total T^3 m^2 + 2 T^2 b^2,
        sigma^2 C_multi = diag(n_i^2 m^2 + (n_i + 1) b^2).
    """
    m, b = offset + slope * mu, slope * sigma
    n = steps - np.arange(steps)
    single = (steps**2 * m**2 + steps * b**2) * np.eye(steps) + b**2
    return single / sigma**2, np.diag(n**2 * m**2 + (n + 1) * b**2) / sigma**2


def lq_rollouts(normals, x0, k, sigma, tau, cost):
    """Scores (N, 2, 1) and rewards (N, 2) of x' = x + a + tau e, a = k x + sigma z; z, e, z, e (N, 4).

    The score is that of k, (a - k x) x / sigma^2; the reward of a step is -(x'^2 + cost a^2).
    """
    x, scores, rewards = x0, [], []
    for z, e in (normals[:, :2].T, normals[:, 2:].T):
        a = k * x + sigma * z
        scores.append((a - k * x) * x / sigma**2)
        x = x + a + tau * e
        rewards.append(-(x**2 + cost * a**2))
    return np.stack(scores, axis=1)[:, :, None], np.stack(rewards, axis=1)


def lq_gradient(x0, k, sigma, tau, cost):
    """Derivative of the expected return of `lq_rollouts` with respect to k.

    The second moments are m_0 = x0^2, m_{t+1} = (1+k)^2 m_t + sigma^2 + tau^2, E a_t^2 = k^2 m_t + sigma^2:

        J = -(m_1 + m_2 + cost (k^2 m_0 + k^2 m_1 + 2 sigma^2)),
        m_1' = 2 (1+k) m_0,  m_2' = 2 (1+k) m_1 + (1+k)^2 m_1'.
    """
    m0 = x0**2
    m1, slope1 = (1 + k) ** 2 * m0 + sigma**2 + tau**2, 2 * (1 + k) * m0
    slope2 = 2 * (1 + k) * m1 + (1 + k) ** 2 * slope1
    return -(slope1 + slope2 + cost * (2 * k * (m0 + m1) + k**2 * slope1))


def isserlis(*forms):
    """E of a product of affine forms m + l . xi of standard normals xi, each given as (m, *l).

    The first form gives its mean or is paired with another one (Isserlis' theorem):
    E[f_1 ... f_n] = m_1 E[f_2 ... f_n] + sum_{j>1} (l_1 . l_j) E[all but f_1 and f_j].
    """
    if not forms:
        return 1.0
    first, *rest = forms
    result = first[0] * isserlis(*rest) if first[0] else 0.0
    for j, other in enumerate(rest):
        if pairing := first[1:] @ other[1:]:
            result += pairing * isserlis(*rest[:j], *rest[j + 1 :])
    return result


def lq_covariances(x0, k, sigma, tau, cost):
    """C of both estimators for `lq_rollouts`.

    States and actions are affine in the normals (z_0, e_0, z_1, e_1), the rewards sums of their
    squares, and S_t = z_t x_t / sigma. So E X_i and E X_i X_j are sums of moments of 4 and 8 affine
    forms, which `isserlis` writes out.
    """
    one, z0, e0, z1, e1 = np.eye(5)
    a0 = k * x0 * one + sigma * z0
    x1 = x0 * one + a0 + tau * e0
    a1 = k * x1 + sigma * z1
    x2 = x1 + a1 + tau * e1
    scores = ((z0, x0 * one), (z1, x1))
    first, second = [(-1.0, x1), (-cost, a0)], [(-1.0, x2), (-cost, a1)]
    result = []
    for weights in ((first + second, first + second), (first + second, second)):
        mean, square = np.zeros(2), np.zeros((2, 2))
        for i in range(2):
            mean[i] = sum(c * isserlis(*scores[i], f, f) for c, f in weights[i]) / sigma
            for j in range(2):
                square[i, j] = sum(
                    c * d * isserlis(*scores[i], *scores[j], f, f, g, g)
                    for (c, f), (d, g) in itertools.product(weights[i], weights[j])
                )
        result.append(square / sigma**2 - np.outer(mean, mean))
    return result


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


def mismatched_bernoulli(steps, p, q):
    """Off-diagonal sum, squared mean and trace of scores y_t - p of Bernoulli(q) tokens of one logit.

    A score has mean q - p and E (y - p)^2 = q (1-p)^2 + (1-q) p^2; tokens are independent. Hence
    T (T-1) (q - p)^2, |E sum_t S_t|^2 = T^2 (q - p)^2 and T times that square; the first two are 0 at
    q = p alone, and the off-diagonal sum for T = 1.
    """
    return (
        steps * (steps - 1) * (q - p) ** 2,
        steps**2 * (q - p) ** 2,
        steps * (q * (1 - p) ** 2 + (1 - q) * p**2),
    )


def all_correct_covariance(steps, p):
    """C for T Bernoulli(p) tokens of one logit and a terminal reward R = 1 if all of them are 1.

    The reward is not 0 only where every score y_t - p is 1 - p: X_i = (1-p) R for all i, so

        C[i,j] = (1-p)^2 Var(R) = (1-p)^2 p^T (1 - p^T),

    V(k) = k^2 C[0,0]: quadratic growth, with covariance and variance terms as T-1 to 1. Had each token
    a logit of its own, the covariances would be between different coordinates, and C the diagonal.
    """
    return np.full((steps, steps), (1 - p) ** 2 * p**steps * (1 - p**steps))


def length_covariances(length_probabilities, score_variance):
    """C of both estimators for a reward of 1 a step up to a random length L, 1..T.

    Scores are independent of each other and of L, with mean 0 and variance v. Hence no X_i = w_i S_i
    with w_i a function of L is correlated with another. w_i = L or L - i + 1 for i <= L, else 0:

        single: C[i,i] = v E[L^2; L >= i],          total v E[L^3],
        multi:  C[i,i] = v E[(L - i + 1)^2; L >= i], total v E[L (L+1) (2L+1) / 6].

    With L = T the ratio is 6 T^2 / ((T+1) (2T+1)), which tends to 3.
    """
    length = np.arange(1, len(length_probabilities) + 1)
    i = length[:, None]
    alive = score_variance * np.where(length >= i, length_probabilities, 0.0)
    return np.diag((alive * length**2).sum(axis=1)), np.diag((alive * (length - i + 1) ** 2).sum(axis=1))


def rloo_moments(probabilities, rewards, scores, group):
    """Leave-one-out gradient of K samples: mean (D,), variance were they independent, and what it lacks.

    A sample has reward R and score s (D,), E s = 0; q = R - E R, G = E[R s] = E[q s]. The gradient
    g = 1/K sum_k A_k s_k, A_k = q_k - sum_{j != k} q_j / (K-1), as E R cancels. Samples are
    independent and E q = E s = 0: an expectation is 0 if a sample enters by one q or one s alone. Thus
    E[A_k s_k] = G (unbiased), and

        E |A_k s_k|^2 = E[q^2 |s|^2] + Var(R) E|s|^2 / (K-1),
        E A_j s_j . A_k s_k = E q_j q_k s_j . s_k + E (-q_k) (-q_j) s_j . s_k / (K-1)^2
                            = |G|^2 + |G|^2 / (K-1)^2,

    Var(g) = (E[q^2 |s|^2] - |G|^2 + Var(R) E|s|^2 / (K-1)) / K  +  |G|^2 / (K (K-1)).

    The first part is what independent samples with these advantages would have: too small, unless
    G = 0, as each of the K (K-1) covariances of A_j s_j and A_k s_k is |G|^2 / (K-1)^2.
    """
    q = rewards - probabilities @ rewards
    norms = np.square(scores).sum(axis=1)
    mean = (probabilities * q) @ scores
    spread = (probabilities @ q**2) * (probabilities @ norms) / (group - 1)
    independent = (probabilities @ (q**2 * norms) - mean @ mean + spread) / group
    return mean, independent, mean @ mean / (group * (group - 1))


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
        self.pi = pi = np.exp(theta) / np.exp(theta).sum(axis=1, keepdims=True)
        self.sequences = list(itertools.product(range(vocabulary), repeat=steps))
        self.scores = np.zeros((len(self.sequences), steps, *theta.shape))
        self.logp = np.zeros((len(self.sequences), steps))
        for n, sequence in enumerate(self.sequences):
            for t, (previous, token) in enumerate(zip((vocabulary, *sequence), sequence, strict=False)):
                self.logp[n, t] = np.log(pi[previous, token])
                self.scores[n, t, previous] = (np.arange(vocabulary) == token) - pi[previous]
        self.probabilities = np.exp(self.logp.sum(axis=1))
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

    def given_prefix(self, values, steps):
        """E[values | the first `steps` tokens] for each sequence; a prefix's are next to each other."""
        p, x = (a.reshape(self.pi.shape[1] ** steps, -1) for a in (self.probabilities, values))
        return np.repeat((p * x).sum(axis=1) / p.sum(axis=1), p.shape[1])

    def fisher_information(self):
        """Trace of E[S_t S_t'] for each step.

        Given the previous token, S = onehot - pi has E|S|^2 = sum_a pi_a (1 - 2 pi_a + |pi|^2)
        = 1 - |pi|^2; the previous tokens are a Markov chain.
        """
        previous, result = np.eye(len(self.pi))[-1], []
        for _ in range(self.scores.shape[1]):
            result.append(previous @ (1 - np.square(self.pi).sum(axis=1)))
            previous = np.append(previous @ self.pi, 0.0)
        return np.array(result)


class MixingNetwork:
    """Two causal layers over V tokens, all V^T sequences, and what each position's weights do to each token.

    Layer l: x_t + tanh(mean over s <= t of x_s A_l); logits are x_t W. With a copy of A_l for each position,
    `shares` c (M, j, t, D) are the gradients of log p(y_t) by the copies of position j, by complex steps:
    token scores are their sums over j, rows of one backward pass those over t.
    """

    def __init__(self, seed, vocabulary=3, steps=3, width=2):
        rng = np.random.default_rng(seed)
        self.embedding = rng.standard_normal((vocabulary + 1, width))
        layers = rng.standard_normal((2, width, width))
        self.output = rng.standard_normal((width, vocabulary))
        self.sequences = np.array(list(itertools.product(range(vocabulary), repeat=steps)))
        copies = np.repeat(layers[:, None], steps, axis=1).astype(complex)
        self.probabilities = np.exp(self._logp(copies).real.sum(axis=1))
        self.shares = np.zeros((len(self.sequences), steps, steps, layers.size))
        for d, (layer, i, k) in enumerate(np.ndindex(layers.shape)):
            for j in range(steps):
                moved = copies.copy()
                moved[layer, j, i, k] += 1e-30j
                self.shares[:, j, :, d] = self._logp(moved).imag / 1e-30
        self.rewards = np.empty(self.sequences.shape)  # a number for each prefix
        for t in range(steps):
            prefix = np.unique(self.sequences[:, : t + 1], axis=0, return_inverse=True)[1].ravel()
            self.rewards[:, t] = rng.standard_normal(prefix.max() + 1)[prefix]

    def _logp(self, copies):
        steps, vocabulary = self.sequences.shape[1], self.output.shape[1]
        x = self.embedding[np.insert(self.sequences[:, :-1], 0, vocabulary, axis=1)].astype(complex)
        mean = np.tril(np.ones((steps, steps))) / np.arange(1, steps + 1)[:, None]
        for layer in copies:
            x = x + np.tanh(np.einsum("ts,msh,shk->mtk", mean, x, layer))
        logits = x @ self.output
        logits = logits - np.log(np.exp(logits).sum(axis=2, keepdims=True))
        return np.take_along_axis(logits, self.sequences[:, :, None], axis=2)[:, :, 0]
