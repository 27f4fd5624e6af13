"""The definitions in plain numpy loops: the oracle of the tests. Imports numpy alone.

Slow on purpose: each function is the formula of its docstring, one index at a time.
"""

import numpy as np


def live_steps(shape, mask=None, lengths=None):
    """(N, T) booleans: the live steps."""
    live = np.ones(shape, bool)
    if lengths is not None:
        for n, length in enumerate(lengths):
            live[n, length:] = False
    if mask is not None:
        live &= np.asarray(mask, bool)
    return live


def steps_backwards(
    shape, mask=None, lengths=None, terminated=None, truncated=None, next_values=None, bootstrap_value=None
):
    """Yield (n, t, following, end) of each live step t of row n, last first.

    `following` is the next live step; None where the trace stops, with the value `end` after it.
    """
    live = live_steps(shape, mask, lengths)
    for n in range(shape[0]):
        following, end = None, 0.0 if bootstrap_value is None else float(bootstrap_value[n])
        for t in reversed(np.flatnonzero(live[n])):
            if terminated is not None and terminated[n, t]:
                yield n, t, None, 0.0
            elif truncated is not None and truncated[n, t]:
                yield n, t, None, float(next_values[n, t])
            else:
                yield n, t, following, end
            following = t


def discounts(gamma, shape):
    """gamma[n,t], also of a scalar."""
    return np.broadcast_to(np.asarray(gamma, float), shape)


def reward_to_go(rewards, gamma=1.0, **options):
    """G[t] = r[t] + gamma[t] G[t'] (or the end); 0 where not live, as in all that follow."""
    rewards = np.asarray(rewards, float)
    gamma, result = discounts(gamma, rewards.shape), np.zeros(rewards.shape)
    for n, t, following, end in steps_backwards(rewards.shape, **options):
        result[n, t] = rewards[n, t] + gamma[n, t] * (end if following is None else result[n, following])
    return result


def gae(rewards, values, *, gamma, lam, **options):
    """delta[t] = r[t] + gamma[t] V[t'] - V[t], A[t] = delta[t] + gamma[t] lam A[t']; A and A + V."""
    rewards, values = np.asarray(rewards, float), np.asarray(values, float)
    gamma = discounts(gamma, rewards.shape)
    advantages, returns = np.zeros(rewards.shape), np.zeros(rewards.shape)
    for n, t, following, end in steps_backwards(rewards.shape, **options):
        value, trace = (end, 0.0) if following is None else (values[n, following], advantages[n, following])
        delta = rewards[n, t] + gamma[n, t] * value - values[n, t]
        advantages[n, t] = delta + gamma[n, t] * lam * trace
        returns[n, t] = advantages[n, t] + values[n, t]
    return advantages, returns


def lambda_returns(rewards, values, *, gamma, lam, **options):
    """G[t] = r[t] + gamma[t] ((1 - lam) V[t'] + lam G[t']), or r[t] + gamma[t] end."""
    rewards, values = np.asarray(rewards, float), np.asarray(values, float)
    gamma, result = discounts(gamma, rewards.shape), np.zeros(rewards.shape)
    for n, t, following, end in steps_backwards(rewards.shape, **options):
        if following is not None:
            end = (1 - lam) * values[n, following] + lam * result[n, following]
        result[n, t] = rewards[n, t] + gamma[n, t] * end
    return result


def n_step_returns(rewards, values, n, *, gamma, **options):
    """n rewards from t on, discounted, and the value of the step they lead to, or the end before."""
    rewards, values = np.asarray(rewards, float), np.asarray(values, float)
    gamma, result = discounts(gamma, rewards.shape), np.zeros(rewards.shape)
    way = {(row, t): onward for row, t, *onward in steps_backwards(rewards.shape, **options)}
    for row, start in way:
        t, discount = start, 1.0
        for _ in range(n):
            following, end = way[row, t]
            result[row, start] += discount * rewards[row, t]
            discount *= gamma[row, t]
            if following is None:
                result[row, start] += discount * end
                break
            t = following
        else:
            result[row, start] += discount * values[row, t]
    return result


def vtrace(rewards, values, rho, *, gamma, lam=1.0, rho_clip=1.0, c_clip=1.0, **options):
    """x[t] = rho[t] delta[t] + gamma[t] c[t] x[t'], rho and c = lam rho clipped; two results:

    vs[t] = V[t] + x[t] and the advantages rho[t] (r[t] + gamma[t] vs[t'] - V[t]).
    """
    rewards, values, rho = (np.asarray(array, float) for array in (rewards, values, rho))
    gamma = discounts(gamma, rewards.shape)
    vs, advantages = np.zeros(rewards.shape), np.zeros(rewards.shape)
    for n, t, following, end in steps_backwards(rewards.shape, **options):
        weight, c = min(rho_clip, rho[n, t]), lam * min(c_clip, rho[n, t])
        value, target = (end, end) if following is None else (values[n, following], vs[n, following])
        delta = rewards[n, t] + gamma[n, t] * value - values[n, t]
        vs[n, t] = values[n, t] + weight * delta + gamma[n, t] * c * (target - value)
        advantages[n, t] = weight * (rewards[n, t] + gamma[n, t] * target - values[n, t])
    return vs, advantages


def terms(scores, weights=None, mask=None, lengths=None):
    """X[n,t,d] = w[n,t] S[n,t,d], 0 where not live."""
    n, t, d = scores.shape
    live = live_steps((n, t), mask, lengths)
    weights = np.ones((n, t)) if weights is None else np.asarray(weights, float)
    if weights.ndim == 1:
        weights = np.repeat(weights[:, None], t, axis=1)
    result = np.zeros((n, t, d))
    for i in range(n):
        for j in range(t):
            if live[i, j]:
                result[i, j] = weights[i, j] * scores[i, j].astype(float)
    return result


def weights_of_samples(n, sample_weight=None):
    """p[n], ones by default."""
    return np.ones(n) if sample_weight is None else np.asarray(sample_weight, float)


def effective_size(n, sample_weight=None):
    """(sum p)^2 / sum p^2."""
    p = weights_of_samples(n, sample_weight)
    return p.sum() ** 2 / (p**2).sum()


def normaliser(n, sample_weight=None, ddof=1):
    """N - ddof, or with weights v1 - ddof v2 / v1: v1 and v2 sum p and p^2."""
    p = weights_of_samples(n, sample_weight)
    return p.sum() - ddof * p.sum() / effective_size(n, sample_weight)


def centred(x, w):
    """x less its mean with weights w over the first axis."""
    return x - np.tensordot(w, x, axes=1) / w.sum()


def covariance(scores, weights=None, mask=None, lengths=None, sample_weight=None, ddof=1):
    """C[i,j] = sum_d sum_n w[n] (X[n,i,d] - mean) (X[n,j,d] - mean) / normaliser."""
    n, t, _ = scores.shape
    p = weights_of_samples(n, sample_weight)
    x = centred(terms(scores, weights, mask, lengths), p)
    result = np.zeros((t, t))
    for i in range(t):
        for j in range(t):
            result[i, j] = sum(p[k] * np.dot(x[k, i], x[k, j]) for k in range(n))
    return result / normaliser(n, sample_weight, ddof)


def blocks(matrix, size):
    """Entries of a (T, T) matrix summed over blocks of `size` rows and columns."""
    count = -(-len(matrix) // size)
    result = np.zeros((count, count))
    for i in range(len(matrix)):
        for j in range(len(matrix)):
            result[i // size, j // size] += matrix[i, j]
    return result


def growth(scores, weights=None, mask=None, lengths=None, sample_weight=None, ddof=1):
    """V(k) = trace of the covariance of the sum of the first k terms, k = 1..T."""
    n, t, _ = scores.shape
    p = weights_of_samples(n, sample_weight)
    x = terms(scores, weights, mask, lengths)
    result = np.zeros(t)
    for k in range(1, t + 1):
        h = centred(x[:, :k].sum(axis=1), p)
        result[k - 1] = sum(p[i] * np.dot(h[i], h[i]) for i in range(n))
    return result / normaliser(n, sample_weight, ddof)


def strata_of(lengths, strata):
    """floor(S (fraction shorter + half the fraction of the same length))."""
    lengths = np.asarray(lengths)
    shares = [np.mean(lengths < length) + np.mean(lengths == length) / 2 for length in lengths]
    return np.floor(strata * np.array(shares) + 1e-9).astype(int)


def length_exponent(g, labels, lengths):
    """Slope of the log of the variance of g within each stratum on the log of its mean length."""
    x, y = [], []
    for label in sorted(set(labels)):
        rows = labels == label
        x.append(np.log(lengths[rows].mean()))
        y.append(np.log(g[rows].var(axis=0, ddof=1).sum()))
    return np.polyfit(x, y, 1)[0]


def lag_profile(matrix):
    """c(k) = sum_t C[t,t+k]."""
    t = len(matrix)
    return np.array([sum(matrix[i, i + k] for i in range(t - k)) for k in range(t)])


def gradients(scores, weights=None, mask=None, lengths=None):
    """g[n] = sum_t X[n,t]."""
    return terms(scores, weights, mask, lengths).sum(axis=1)


def unit_moments(g, labels):
    """Variance of a label's part in the mean over all rollouts, and squared norm of that mean, unbiased."""
    labels = np.asarray(labels)
    names = list(dict.fromkeys(labels.tolist()))
    mean, size = g.mean(axis=0), len(g) / len(names)
    parts = [sum(g[n] - mean for n in np.flatnonzero(labels == name)) / size for name in names]
    variance = sum(part @ part for part in parts) / (len(names) - 1)
    return variance, mean @ mean - variance / len(names)


def jackknife_stderr(statistic, labels):
    """Standard error of statistic(kept rollouts), leaving out one label at a time."""
    labels = np.asarray(labels)
    names = list(dict.fromkeys(labels.tolist()))
    left_out = np.array([statistic(np.flatnonzero(labels != name)) for name in names])
    m = len(names)
    return np.sqrt((m - 1) / m * ((left_out - left_out.mean()) ** 2).sum())


def importance_ratios(logp, behavior_logp, ratio, truncate=None, mask=None, lengths=None):
    """min(exp(d), c), d of the step, summed or averaged over the rollout's live steps; 0 elsewhere."""
    live = live_steps(logp.shape, mask, lengths)
    result = np.zeros(logp.shape)
    for n, t in np.argwhere(live):
        d = [logp[n, k] - behavior_logp[n, k] for k in np.flatnonzero(live[n])]
        log = {"token": logp[n, t] - behavior_logp[n, t], "sequence": sum(d), "geometric": np.mean(d)}
        result[n, t] = min(np.exp(log[ratio]), np.inf if truncate is None else truncate)
    return result


def mean_score(sums, traces, labels):
    """|E s|^2 over a rollout's E sum_t |S_t|^2 from each one's sum s_n (D,) and trace; a label is a unit.

    What |mean|^2 has too much is the variance of the mean, by units that deviate from it as a whole.
    """
    labels = np.asarray(labels)
    names = list(dict.fromkeys(labels.tolist()))
    mean = sum(sums) / len(sums)
    deviations = [sum(s - mean for s in sums[labels == name]) for name in names]
    u = len(names)
    variance_of_mean = u / (u - 1) * sum(y @ y for y in deviations) / len(sums) ** 2
    return (mean @ mean - variance_of_mean) / (sum(traces) / len(traces))


def group_members(groups, i):
    """Whoever has the label of i, i too; with no groups, all."""
    return [j for j in range(len(groups)) if groups[j] == groups[i]]


def standard_deviation(values, ddof):
    """Of a list, about its mean; 0 for a single value."""
    mean = sum(values) / len(values)
    return np.sqrt(sum((v - mean) ** 2 for v in values) / max(len(values) - ddof, 1))


def rloo(rewards, groups, singleton="zero"):
    """A[i] = r[i] - mean of the others of the group."""
    result = np.zeros(len(rewards))
    for i, r in enumerate(rewards):
        others = [rewards[j] for j in group_members(groups, i) if j != i]
        if others:
            result[i] = r - sum(others) / len(others)
        elif singleton == "raw":
            result[i] = r
    return result


def grpo(rewards, groups, scale="group", eps=1e-6, ddof=1, singleton="zero"):
    """A[i] = (r[i] - mean of the group) / (standard deviation of group or batch + eps)."""
    result = np.zeros(len(rewards))
    for i, r in enumerate(rewards):
        group = [rewards[j] for j in group_members(groups, i)]
        if len(group) == 1:
            result[i] = r if singleton == "raw" else 0.0
            continue
        result[i] = r - sum(group) / len(group)
        if scale != "none" and result[i] != 0.0:
            result[i] /= standard_deviation(group if scale == "group" else list(rewards), ddof) + eps
    return result


def reinforce_pp(rewards, groups=None):
    """A[i] = r[i] - mean of the group or batch."""
    return grpo(rewards, [0] * len(rewards) if groups is None else groups, scale="none")


def opo(rewards, lengths, groups=None):
    """A[i] = r[i] - sum L r / sum L over the group or batch."""
    groups = [0] * len(rewards) if groups is None else groups
    result = np.zeros(len(rewards))
    for i, r in enumerate(rewards):
        group = group_members(groups, i)
        result[i] = r - sum(lengths[j] * rewards[j] for j in group) / sum(lengths[j] for j in group)
    return result


def in_other_folds(groups, i):
    """Rollouts of other folds than i: unit u, by first appearance, is in fold u modulo min(10, units)."""
    units = list(dict.fromkeys(groups))
    count = min(10, len(units))
    fold = [units.index(label) % count for label in groups]
    return [j for j in range(len(groups)) if fold[j] != fold[i]]


def cross_fitted(numerators, denominators, groups=None):
    """b[i] = sum of numerators over sum of denominators of the other folds, 0 if that is 0."""
    groups = range(len(numerators)) if groups is None else groups
    result = np.zeros(numerators.shape)
    for i in range(len(result)):
        others = in_other_folds(groups, i)
        for t in np.ndindex(result.shape[1:]):
            below = sum(denominators[(j, *t)] for j in others)
            if below > 0:
                result[(i, *t)] = sum(numerators[(j, *t)] for j in others) / below
    return result


def projections(scores, vectors, mask=None, lengths=None):
    """S[n,t] . v[n]."""
    x = terms(scores, None, mask, lengths)
    return np.array([[step @ v for step in rollout] for rollout, v in zip(x, vectors, strict=True)])


def single_optimal(scores, returns, groups=None, **live):
    """R - E[R |s|^2] / E[|s|^2], s = sum_t S_t."""
    squares = np.array([s @ s for s in gradients(scores, **live)])
    return returns - cross_fitted(returns * squares, squares, groups)


def multi_optimal(scores, to_go, groups=None, **live):
    """G[t] - E[S[t] . g] / E[|S[t]|^2], g = sum_j G[j] S[j], within the range of G[t] in the other folds."""
    g = gradients(scores, to_go, **live)
    squares = np.square(terms(scores, None, **live)).sum(axis=2)
    baselines, alive = (
        cross_fitted(projections(scores, g, **live), squares, groups),
        live_steps(to_go.shape, **live),
    )
    for i, t in np.argwhere(alive):
        others = in_other_folds(range(len(to_go)) if groups is None else groups, i)
        within = [to_go[j, t] for j in others if alive[j, t]]
        if within:
            baselines[i, t] = min(max(baselines[i, t], min(within)), max(within))
    return np.where(alive, to_go - baselines, 0)


def token_baseline(scores, to_go, groups=None, **live):
    """G[t] - E[G[t] W[t]] / E[W[t]] over who is alive at t, W[t] = sum of |S[j]|^2 up to t."""
    alive = live_steps(to_go.shape, **live)
    squares = np.square(terms(scores, None, **live)).sum(axis=2)
    energy = np.zeros(to_go.shape)
    for n, t in np.argwhere(alive):
        energy[n, t] = squares[n, : t + 1].sum()
    return np.where(alive, to_go - cross_fitted(np.where(alive, to_go, 0) * energy, energy, groups), 0)


def whiten(x, mask, shift_mean=True, eps=1e-8, ddof=1):
    """(x - mean) / sqrt(var + eps) over the unmasked entries, the mean added back if not shifted."""
    entries = [index for index in np.ndindex(x.shape) if mask[index]]
    values = [float(x[index]) for index in entries]
    mean = sum(values) / len(values)
    variance = standard_deviation(values, ddof) ** 2
    result = np.zeros(x.shape)
    for index, value in zip(entries, values, strict=True):
        centred = value - mean
        result[index] = (centred and centred / np.sqrt(variance + eps)) + (0.0 if shift_mean else mean)
    return result


def kl_estimate(logp, ref_logp, estimator):
    """k1, k2 or k3 of one step."""
    ratio = ref_logp - logp
    return {"k1": -ratio, "k2": ratio**2 / 2, "k3": np.exp(ratio) - 1 - ratio}[estimator]


def kl_rewards(rewards, logp, ref_logp, mask, coef, estimator="k1"):
    """r'[n,t] = r[n,t] - coef k(logp, ref_logp); a reward (N,) lands on the last live step."""
    result = np.zeros(logp.shape)
    for n in range(logp.shape[0]):
        steps = np.flatnonzero(mask[n])
        for t in steps:
            reward = rewards[n, t] if rewards.ndim == 2 else rewards[n] * (t == steps[-1])
            result[n, t] = reward - coef * kl_estimate(logp[n, t], ref_logp[n, t], estimator)
    return result


def to_steps(per_sequence, mask):
    """w[n,t] = a[n] where live."""
    result = np.zeros(mask.shape)
    for n in range(mask.shape[0]):
        for t in range(mask.shape[1]):
            if mask[n, t]:
                result[n, t] = per_sequence[n]
    return result


def james_stein(rewards, groups):
    """A[i] = r[i] - (1 - l) mean of the others of the prompt - l mean of the means of the other prompts.

    l = (P - 1) / P v / (v + s): v the mean of the other prompts' sample variances over the own size K, s the
    variance of their means with ddof 0; 1 for K = 1, 0 without other prompts.
    """
    result = np.zeros(len(rewards))
    for i, r in enumerate(rewards):
        own = [rewards[j] for j in group_members(groups, i) if j != i]
        rest = [[rewards[j] for j in group_members(groups, k)] for k in first_members(groups)]
        rest = [each for each, k in zip(rest, first_members(groups), strict=True) if groups[k] != groups[i]]
        means = [sum(each) / len(each) for each in rest]
        variances = [standard_deviation(each, 1) ** 2 for each in rest if len(each) > 1]
        v = sum(variances) / max(len(variances), 1) / (len(own) + 1)
        s = standard_deviation(means, 0) ** 2 if means else 0.0
        shrink = len(rest) / (len(rest) + 1) * v / (v + s) if v + s > 0 else 0.0
        shrink = 1.0 if not own and rest else shrink
        result[i] = r
        if own:
            result[i] -= (1 - shrink) * sum(own) / len(own)
        if rest:
            result[i] -= shrink * sum(means) / len(means)
    return result


def first_members(groups):
    """The first rollout of each group."""
    return [i for i in range(len(groups)) if group_members(groups, i)[0] == i]


def length_weights(lengths, alpha):
    """L^-alpha over its mean, both over who has L > 0; 0 elsewhere."""
    live = [length for length in lengths if length > 0]
    mean = sum(float(length) ** -alpha for length in live) / len(live)
    return np.array([float(length) ** -alpha / mean if length > 0 else 0.0 for length in lengths])


def otb_verl(to_go, squares, groups, ratios=None, mask=None, lengths=None):
    """G[t] - sum G[t] W[t] / (sum W[t] + 1e-8), W[t] = sum of rho^2 q up to t, over the group's alive at t.

    G itself where nobody else of the group is alive.
    """
    alive = live_steps(to_go.shape, mask, lengths)
    ratios = np.ones(to_go.shape) if ratios is None else ratios
    energy, result = np.zeros(to_go.shape), np.zeros(to_go.shape)
    for n, t in np.argwhere(alive):
        energy[n, t] = sum(ratios[n, k] ** 2 * squares[n, k] for k in range(t + 1) if alive[n, k])
    for n, t in np.argwhere(alive):
        group = [j for j in group_members(groups, n) if alive[j, t]]
        above, below = sum(to_go[j, t] * energy[j, t] for j in group), sum(energy[j, t] for j in group)
        result[n, t] = to_go[n, t] - (above / (below + 1e-8) if len(group) > 1 else 0.0)
    return result


def ppo_objective(logp, behavior_logp, advantages, clip):
    """min(rho A, max(1 - clip[0], min(1 + clip[1], rho)) A) of each step; PPO maximises their sum."""
    result = np.zeros(logp.shape)
    for index in np.ndindex(logp.shape):
        rho, a = np.exp(logp[index] - behavior_logp[index]), advantages[index]
        result[index] = min(rho * a, max(1 - clip[0], min(1 + clip[1], rho)) * a)
    return result
