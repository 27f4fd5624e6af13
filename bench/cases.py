"""What is timed, and the best numpy that a good engineer would write for it.

Every function here returns its result, so that whoever times it can check it too.
"""

import numpy as np

COVARIANCE_SHAPES = [(256, 512, 64), (64, 1024, 128), (1024, 128, 256)]
RETURNS_SHAPES = [(4096, 128), (256, 4096), (64, 32768)]
DTYPES = [np.float32, np.float64]
GAMMA = 0.99


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


def numpy_growth(scores, weights):
    """Variance of cumulative sums."""
    x = scores * weights.astype(scores.dtype)[:, :, None]
    return np.cumsum(x, axis=1).var(axis=0, ddof=1).sum(axis=1)


def returns_inputs(shape, dtype):
    """Rewards (N, T)."""
    return np.random.default_rng(0).standard_normal(shape, dtype)


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


def check(result, expected, tolerance):
    """Assert that `result` is `expected` to `tolerance` of its largest entry."""
    np.testing.assert_allclose(result, expected, rtol=0, atol=tolerance * np.abs(expected).max())
