"""The scans as others write them: what `rlvar.reward_to_go` and `rlvar.gae` are timed beside.

Every function takes arrays (N, T) and returns new ones, of the same dtype. `REWARD_TO_GO` and `GAE`
list them by the module that they need; numba and torch are imported at the first call.
"""

import functools

import numpy as np

from cases import GAMMA, lfilter_reward_to_go, numpy_reward_to_go

LAMBDA = 0.95


@functools.cache
def inputs(shape, dtype):
    """Rewards and values (N, T)."""
    rng = np.random.default_rng(0)
    return rng.standard_normal(shape, dtype), rng.standard_normal(shape, dtype)


def expected(rewards, values=None, gamma=GAMMA, lam=1.0, mask=None, terminated=None):
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


REWARD_TO_GO = {
    "numpy": numpy_reward_to_go,
    "scipy": lfilter_reward_to_go,
    "numba": numba_reward_to_go,
    "torch": torch_reward_to_go,
}
GAE = {"numpy": numpy_gae, "numba": numba_gae, "torch": torch_gae}
