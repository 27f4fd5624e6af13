"""Make the embedded rollouts: CartPole-v1 episodes of a half-trained softmax policy.

    pip install '.[examples]'
    python examples/make_cartpole_rollouts.py python/rlvar/data/cartpole.npz

The policy is linear: pi(a | x) = softmax(theta x)_a with x = (observation, 1) and theta (2, 5). Its
score is exact, d log pi(a | x) / d theta_b = (1[a = b] - pi(b | x)) x, and REINFORCE trains it with
rlvar's own reward-to-go until episodes last about `TARGET_LENGTH` steps on average; then 256 fresh
episodes are kept.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import gymnasium
import numpy as np

import rlvar

ACTIONS, FEATURES = 2, 5
EPISODES = 256
TARGET_LENGTH = 60
BATCH = 32
LEARNING_RATE = 0.02


def policy(theta, features):
    """Probabilities of the actions (2,) in a state with features (5,)."""
    logits = theta @ features
    weights = np.exp(logits - logits.max())
    return weights / weights.sum()


def score(theta, features, action):
    """Gradient of log pi(action | features) with respect to theta, flattened to (10,)."""
    onehot = np.arange(ACTIONS) == action
    return np.outer(onehot - policy(theta, features), features).ravel()


def run_episode(env, theta, rng):
    """Play one episode; return its scores (L, 10) and rewards (L,)."""
    observation, _ = env.reset(seed=int(rng.integers(2**31)))
    scores, rewards, done = [], [], False
    while not done:
        features = np.append(observation, 1.0)
        action = int(rng.random() < policy(theta, features)[1])
        scores.append(score(theta, features, action))
        observation, reward, terminated, truncated, _ = env.step(action)
        rewards.append(float(reward))
        done = terminated or truncated
    return np.array(scores), np.array(rewards)


def pad(episodes):
    """Stack episodes of unequal lengths into arrays padded with zeros, with their lengths."""
    lengths = np.array([len(rewards) for _, rewards in episodes])
    scores = np.zeros((len(episodes), lengths.max(), ACTIONS * FEATURES), np.float32)
    rewards = np.zeros((len(episodes), lengths.max()), np.float32)
    for n, (s, r) in enumerate(episodes):
        scores[n, : lengths[n]] = s
        rewards[n, : lengths[n]] = r
    return {"scores": scores, "rewards": rewards, "lengths": lengths}


def train(env, rng):
    """REINFORCE with reward-to-go and a batch-mean baseline, part of the way."""
    theta = np.zeros((ACTIONS, FEATURES))
    while True:
        batch = pad([run_episode(env, theta, rng) for _ in range(BATCH)])
        lengths = batch["lengths"]
        print(f"mean length {lengths.mean():.1f}")
        if lengths.mean() >= TARGET_LENGTH:
            return theta
        weights = rlvar.reward_to_go(batch["rewards"], lengths=lengths)
        live = np.arange(weights.shape[1]) < lengths[:, None]
        weights = np.where(live, weights - weights[live].mean(), 0.0)
        gradient = np.einsum("nt,ntd->d", weights, batch["scores"]) / lengths.sum()
        theta += LEARNING_RATE * gradient.reshape(theta.shape)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="the .npz file to write")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng = np.random.default_rng(args.seed)
    env = gymnasium.make("CartPole-v1")
    theta = train(env, rng)
    rollouts = pad([run_episode(env, theta, rng) for _ in range(EPISODES)])
    np.savez_compressed(args.out, **rollouts)
    lengths = rollouts["lengths"]
    print(f"{args.out}: {args.out.stat().st_size} bytes, lengths {lengths.min()} to {lengths.max()}")


if __name__ == "__main__":
    main()
