"""What is timed: the inputs, and how others write what rlvar computes.

Every function takes what rlvar's takes, arrays of one dtype, and returns all of the result in that dtype.
The word before the colon of a peer's name is the module that it needs, imported at the first call.
"""

import functools
import importlib.util

import numpy as np

COVARIANCE_SHAPES = [(256, 512, 64), (64, 1024, 128), (1024, 128, 256)]
FACTORED_SHAPES = [(64, 512, 64, 64)]
SCAN_SHAPES = [(4096, 128), (256, 4096), (64, 32768)]
DTYPES = [np.float32, np.float64]
GAMMA, LAMBDA = 0.99, 0.95
GEMM = 2048  # rows and columns
TILE = 64  # rows and columns of C that numba computes at a time
PANEL = 512  # columns of X that it multiplies at a time: two tiles of them stay in the cache


def check(result, expected, tolerance):
    """Assert that `result` is `expected` to `tolerance` of its largest entry."""
    np.testing.assert_allclose(result, expected, rtol=0, atol=tolerance * np.abs(expected).max())


# ---- The pairwise covariance, C[i,j] = sum_d Cov_n(w[n,i] S[n,i,d], w[n,j] S[n,j,d]), ddof 1. ----


def covariance_inputs(shape, dtype):
    """Scores (N, T, D) and weights (N, T)."""
    rng = np.random.default_rng(0)
    return rng.standard_normal(shape, dtype), rng.standard_normal(shape[:2])


def numpy_covariance(scores, weights):
    """Scale, centre, transpose to (T, N D), one matrix product (BLAS syrk)."""
    x = scores * weights.astype(scores.dtype)[:, :, None]
    x -= x.mean(axis=0)
    flat = x.transpose(1, 0, 2).reshape(x.shape[1], -1)
    return flat @ flat.T / (len(scores) - 1)


def terms(scores, weights):
    """Scaled and centred, (N, T, D)."""
    x = scores * weights.astype(scores.dtype)[:, :, None]
    x -= x.mean(axis=0)
    return x


def weights_and_mean(scores, weights):
    """Weights (N, T, 1) of the scores' dtype, and the mean term (T, D)."""
    weights = weights.astype(scores.dtype)
    return weights[:, :, None], np.einsum("nt,ntd->td", weights, scores) / len(scores)


def pack(scores, weights, mean, panel):
    """panel (T, n, D) = the terms of n rollouts, transposed one at a time while they are in the cache."""
    term = np.empty_like(mean)
    for n, (score, weight) in enumerate(zip(scores, weights, strict=True)):
        np.multiply(score, weight, out=term)
        np.subtract(term, mean, out=panel[:, n])


def flat_terms(scores, weights):
    """Scaled, centred and transposed, (T, N D)."""
    n, t, d = scores.shape
    x = np.empty((t, n, d), scores.dtype)
    pack(scores, *weights_and_mean(scores, weights), x)
    return x.reshape(t, n * d)


def gemm_inputs(dtype):
    """A and B."""
    rng = np.random.default_rng(0)
    return rng.standard_normal((GEMM, GEMM), dtype), rng.standard_normal((GEMM, GEMM), dtype)


def mirrored(triangle):
    """The symmetric matrix of a triangle; the other one is zero."""
    matrix = triangle + triangle.T
    np.fill_diagonal(matrix, triangle.diagonal())
    return matrix


def syrk_flat(scores, weights):
    """One BLAS syrk on (T, N D)."""
    from scipy.linalg import get_blas_funcs

    x = flat_terms(scores, weights)
    syrk = get_blas_funcs("syrk", dtype=x.dtype)
    return mirrored(syrk(1 / (len(scores) - 1), x.T, trans=1))


def syrk_panels(scores, weights, columns=1024):
    """Some rollouts at a time, about so many columns of X, added to one matrix in place."""
    from scipy.linalg import get_blas_funcs

    n, t, d = scores.shape
    syrk = get_blas_funcs("syrk", dtype=scores.dtype)
    weights, mean = weights_and_mean(scores, weights)
    step = max(columns // d, 1)
    panel = np.empty((t, step, d), scores.dtype)
    triangle = np.zeros((t, t), scores.dtype, order="F")
    for start in range(0, n, step):
        x = panel[:, : min(step, n - start)]
        pack(scores[start : start + step], weights[start : start + step], mean, x)
        triangle = syrk(1 / (n - 1), x.reshape(t, -1).T, 1.0, triangle, trans=1, overwrite_c=1)
    return mirrored(triangle)


def syrk_rollouts(scores, weights):
    """One rollout at a time: nothing is transposed."""
    return syrk_panels(scores, weights, columns=1)


def numpy_einsum(scores, weights):
    x = terms(scores, weights)
    return np.einsum("nid,njd->ij", x, x, optimize=True) / (len(scores) - 1)


def torch_einsum(scores, weights):
    import torch

    scores, weights = torch.from_numpy(scores), torch.from_numpy(weights)
    x = scores * weights.to(scores.dtype)[:, :, None]
    x -= x.mean(dim=0)
    return (torch.einsum("nid,njd->ij", x, x) / (len(scores) - 1)).numpy()


def torch_matmul(scores, weights):
    import torch

    scores, weights = torch.from_numpy(scores), torch.from_numpy(weights)
    n, t, d = scores.shape
    x = torch.empty((t, n, d), dtype=scores.dtype)
    torch.mul(scores.transpose(0, 1), weights.to(scores.dtype).T[:, :, None], out=x)
    x -= x.mean(dim=1, keepdim=True)
    flat = x.view(t, n * d)
    return (flat @ flat.T / (n - 1)).numpy()


def sklearn_covariance(scores, weights):
    """N D samples of T features, already centred; sklearn divides by N D."""
    from sklearn.covariance import empirical_covariance

    samples = flat_terms(scores, weights).T
    return empirical_covariance(samples, assume_centered=True) * (len(samples) / (len(scores) - 1))


@functools.cache
def numba_products():
    """Tiles of scale X X^T on threads, compiled once in this process."""
    from numba import njit, prange

    @njit(fastmath=True)
    def add_eight(x, i, j, start, stop, sums):
        """sums (4, 2) += rows i .. i+3 times rows j, j+1; past the last row, that one again."""
        last = len(x) - 1
        a0, a1 = x[i, start:stop], x[min(i + 1, last), start:stop]
        a2, a3 = x[min(i + 2, last), start:stop], x[min(i + 3, last), start:stop]
        b0, b1 = x[j, start:stop], x[min(j + 1, last), start:stop]
        s00 = s01 = s10 = s11 = s20 = s21 = s30 = s31 = x.dtype.type(0)
        for k in range(stop - start):
            s00 += a0[k] * b0[k]
            s01 += a0[k] * b1[k]
            s10 += a1[k] * b0[k]
            s11 += a1[k] * b1[k]
            s20 += a2[k] * b0[k]
            s21 += a2[k] * b1[k]
            s30 += a3[k] * b0[k]
            s31 += a3[k] * b1[k]
        sums[0, 0] += s00
        sums[0, 1] += s01
        sums[1, 0] += s10
        sums[1, 1] += s11
        sums[2, 0] += s20
        sums[2, 1] += s21
        sums[3, 0] += s30
        sums[3, 1] += s31

    @njit(parallel=True, fastmath=True)
    def products(x, scale, rows, columns, out):
        t, width = x.shape
        for pair in prange(len(rows)):
            i0, j0 = rows[pair] * TILE, columns[pair] * TILE
            i1, j1 = min(i0 + TILE, t), min(j0 + TILE, t)
            tile = np.zeros((TILE, TILE), x.dtype)
            for start in range(0, width, PANEL):
                stop = min(start + PANEL, width)
                for i in range(i0, i1, 4):
                    for j in range(j0, j1, 2):
                        add_eight(x, i, j, start, stop, tile[i - i0 :, j - j0 :])
            for i in range(i0, i1):
                for j in range(j0, j1):
                    out[i, j] = out[j, i] = scale * tile[i - i0, j - j0]

    return products


def numba_covariance(scores, weights):
    x = flat_terms(scores, weights)
    tiles = np.tril_indices(-(-len(x) // TILE))
    out = np.empty((len(x), len(x)), x.dtype)
    numba_products()(x, x.dtype.type(1 / (len(scores) - 1)), *tiles, out)
    return out


def numpy_growth(scores, weights):
    """Variance of cumulative sums."""
    x = scores * weights.astype(scores.dtype)[:, :, None]
    return np.cumsum(x, axis=1).var(axis=0, ddof=1).sum(axis=1)


# ---- The same of scores that are outer products, S = a (x) b. ----


def factored_inputs(shape, dtype):
    """Factors a (N, T, p) and b (N, T, q), weights (N, T)."""
    n, t, p, q = shape
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((n, t, p), dtype), rng.standard_normal((n, t, q), dtype)
    return a, b, rng.standard_normal((n, t))


def formed_covariance(a, b, weights):
    """All p q coordinates, and their covariance by rlvar."""
    import rlvar

    scores = (a[..., :, None] * b[..., None, :]).reshape(*a.shape[:2], -1)
    return rlvar.covariance(scores, weights).astype(a.dtype)


def numpy_factored(a, b, weights):
    """Two Gram matrices a rollout, then the product of the means. Nothing is centred."""
    x = a * weights.astype(a.dtype)[:, :, None]
    sums = sum((left @ left.T) * (right @ right.T) for left, right in zip(x, b, strict=True))
    mean = np.matmul(x.transpose(1, 2, 0), b.transpose(1, 0, 2)).reshape(a.shape[1], -1)
    return (sums - mean @ mean.T / len(a)) / (len(a) - 1)


# ---- The scans: rewards and values (N, T). ----


@functools.cache
def scan_inputs(shape, dtype):
    """Rewards and values (N, T)."""
    rng = np.random.default_rng(0)
    return rng.standard_normal(shape, dtype), rng.standard_normal(shape, dtype)


def scans(rewards, values=None, gamma=GAMMA, lam=1.0, mask=None, terminated=None):
    """Advantages and returns in float64; without values and lam, both are the reward-to-go."""
    rewards, values, mask, terminated = (
        np.ascontiguousarray(np.broadcast_to(default if x is None else x, rewards.shape).T, dtype)
        for x, default, dtype in (
            (rewards, None, np.float64),
            (values, 0.0, np.float64),
            (mask, True, bool),
            (terminated, False, bool),
        )
    )
    advantages = np.zeros_like(rewards)
    future = next_value = np.zeros(rewards.shape[1])
    for t in reversed(range(len(rewards))):
        flow = np.where(terminated[t], 0.0, gamma)
        now = rewards[t] + flow * next_value - values[t] + flow * lam * future
        future = np.where(mask[t], now, future)
        next_value = np.where(mask[t], values[t], next_value)
        advantages[t] = np.where(mask[t], now, 0.0)
    return advantages.T, np.where(mask, advantages + values, 0.0).T


def numpy_reward_to_go(rewards, gamma=GAMMA):
    """The reverse loop over steps, vectorised over rows."""
    out = np.empty_like(rewards)
    future = np.zeros(len(rewards), rewards.dtype)
    gamma = rewards.dtype.type(gamma)
    for t in reversed(range(rewards.shape[1])):
        future = rewards[:, t] + gamma * future
        out[:, t] = future
    return out


def lfilter_reward_to_go(rewards, gamma=GAMMA):
    """scipy's recursive filter over the reversed rows."""
    from scipy.signal import lfilter

    one = np.array([1.0], rewards.dtype)
    feedback = np.array([1.0, -gamma], rewards.dtype)
    return lfilter(one, feedback, rewards[:, ::-1], axis=1)[:, ::-1]


def numpy_gae(rewards, values, gamma=GAMMA, lam=LAMBDA):
    """The reverse loop over steps, vectorised over rows, as in Stable-Baselines3's buffers."""
    gamma, lam = rewards.dtype.type(gamma), rewards.dtype.type(lam)
    advantages = np.empty_like(rewards)
    advantage = next_value = np.zeros(len(rewards), rewards.dtype)
    for t in reversed(range(rewards.shape[1])):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        advantage = delta + gamma * lam * advantage
        next_value = values[:, t]
        advantages[:, t] = advantage
    return advantages, advantages + values


@functools.cache
def numba_rows():
    """Row after row, compiled once in this process: (reward_to_go, gae)."""
    from numba import njit

    @njit
    def reward_to_go(rewards, gamma, out):
        for n in range(rewards.shape[0]):
            future = rewards.dtype.type(0)
            for t in range(rewards.shape[1] - 1, -1, -1):
                future = rewards[n, t] + gamma * future
                out[n, t] = future

    @njit
    def gae(rewards, values, gamma, lam, advantages, returns):
        for n in range(rewards.shape[0]):
            advantage = next_value = rewards.dtype.type(0)
            for t in range(rewards.shape[1] - 1, -1, -1):
                value = values[n, t]
                advantage = rewards[n, t] + gamma * next_value - value + gamma * lam * advantage
                next_value = value
                advantages[n, t] = advantage
                returns[n, t] = advantage + value

    return reward_to_go, gae


def numba_reward_to_go(rewards, gamma=GAMMA, out=None):
    out = np.empty_like(rewards) if out is None else out
    numba_rows()[0](rewards, rewards.dtype.type(gamma), out)
    return out


def numba_gae(rewards, values, gamma=GAMMA, lam=LAMBDA, out=None):
    out = (np.empty_like(rewards), np.empty_like(rewards)) if out is None else out
    numba_rows()[1](rewards, values, rewards.dtype.type(gamma), rewards.dtype.type(lam), *out)
    return out


def torch_reward_to_go(rewards, gamma=GAMMA):
    """The loop over the time axis of (B, T), as in OpenRLHF's cumulative returns."""
    import torch

    rewards = torch.from_numpy(rewards)
    returns = torch.zeros_like(rewards)
    future = torch.zeros(len(rewards), dtype=rewards.dtype)
    for t in reversed(range(rewards.shape[1])):
        future = rewards[:, t] + gamma * future
        returns[:, t] = future
    return returns.numpy()


def torch_gae(rewards, values, gamma=GAMMA, lam=LAMBDA):
    """The loop over the time axis of (B, T), as in TRL's PPO and, less its mask, verl."""
    import torch

    rewards, values = torch.from_numpy(rewards), torch.from_numpy(values)
    advantage = next_value = 0.0
    backwards = []
    for t in reversed(range(rewards.shape[1])):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        advantage = delta + gamma * lam * advantage
        next_value = values[:, t]
        backwards.append(advantage)
    advantages = torch.stack(backwards[::-1], dim=1)
    return advantages.numpy(), (advantages + values).numpy()


PEERS = {
    "covariance": {
        "numpy: X @ X.T": numpy_covariance,
        "numpy: einsum": numpy_einsum,
        "scipy: syrk of X": syrk_flat,
        "scipy: syrk a rollout": syrk_rollouts,
        "scipy: syrk a panel": syrk_panels,
        "torch: matmul": torch_matmul,
        "torch: einsum": torch_einsum,
        "sklearn: empirical_covariance": sklearn_covariance,
        "numba: tiles": numba_covariance,
    },
    "covariance_factored": {
        "rlvar: covariance of a (x) b": formed_covariance,
        "numpy: Gram matrices": numpy_factored,
    },
    "decompose": {"numpy: growth curve alone": numpy_growth},
    "reward_to_go": {
        "numpy: loop over steps": numpy_reward_to_go,
        "scipy: lfilter": lfilter_reward_to_go,
        "numba: loop": numba_reward_to_go,
        "torch: loop over steps": torch_reward_to_go,
    },
    "gae": {
        "numpy: loop over steps": numpy_gae,
        "numba: loop": numba_gae,
        "torch: loop over steps": torch_gae,
    },
}


def module(peer):
    """The module that a peer needs."""
    return peer.partition(":")[0]


def installed(operation):
    """The peers of an operation that can run here."""
    return {peer: f for peer, f in PEERS[operation].items() if importlib.util.find_spec(module(peer))}
