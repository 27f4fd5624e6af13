import importlib.util
from pathlib import Path

import numpy as np
import pytest

import reference
import rlvar

EXAMPLE = Path(__file__).parents[1] / "examples" / "make_cartpole_rollouts.py"


def test_cartpole_is_real_and_ragged():
    rollouts = rlvar.datasets.cartpole()
    assert rollouts.shape[0] == 256
    assert rollouts.shape[2] == 10
    assert len(np.unique(rollouts.lengths)) > 30
    live = reference.live_steps(rollouts.rewards.shape, lengths=rollouts.lengths)
    np.testing.assert_array_equal(rollouts.rewards, live)  # CartPole pays 1 for each step
    assert (rollouts.scores[~live] == 0).all()
    assert (np.abs(rollouts.scores[live]).max(axis=1) > 0).all()
    # The scores of the two actions' logits are opposite, whatever the features.
    np.testing.assert_allclose(rollouts.scores[..., :5], -rollouts.scores[..., 5:], atol=1e-6)


def test_cartpole_ships_under_1_mb():
    path = Path(rlvar.__file__).parent / "data" / "cartpole.npz"
    assert path.stat().st_size < 1_000_000


def test_arithmetic_is_a_language_model_part_way():
    rollouts = rlvar.datasets.arithmetic()
    assert rollouts.shape == (512, 7, 64)
    assert rollouts.sketched
    assert rollouts.scores_of == "all 125,248 parameters of LlamaForCausalLM"
    assert (np.bincount(rollouts.groups) == 16).all()
    assert 1 / 3 < rollouts.rewards.mean() < 2 / 3
    # Sampled at temperature 1 from the policy that is scored, but for float32.
    np.testing.assert_allclose(rollouts.behavior_logp, rollouts.logp, atol=1e-4)
    by_token = rlvar.datasets.arithmetic(rewards="token")
    np.testing.assert_array_equal(by_token.rewards.sum(axis=1) == by_token.live_steps, rollouts.rewards == 1)


def test_with_a_terminal_reward_single_and_multi_agree_to_the_bit_and_with_token_rewards_multi_is_quieter():
    assert rlvar.compare(rlvar.datasets.arithmetic(), ["single", "multi"])["multi"].identical
    rewarded = rlvar.datasets.arithmetic(rewards="token")
    assert rlvar.compare(rewarded)["multi"].ratio.high < 1


def test_arithmetic_is_on_policy_and_ships_under_2_mb():
    assert rlvar.on_policy_test(rlvar.datasets.arithmetic()).against == ()
    path = Path(rlvar.__file__).parent / "data" / "arithmetic.npz"
    assert path.stat().st_size < 2_000_000


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("make_cartpole_rollouts", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_example_scores_match_finite_differences(example, rng):
    theta, features = rng.standard_normal((2, 5)), rng.standard_normal(5)
    for action in (0, 1):

        def log_probability(flat, action=action):
            return np.log(example.policy(flat.reshape(2, 5), features)[action])

        numeric = [
            (log_probability(theta.ravel() + step) - log_probability(theta.ravel() - step)) / 2e-6
            for step in 1e-6 * np.eye(10)
        ]
        np.testing.assert_allclose(example.score(theta, features, action), numeric, atol=1e-8)


def test_example_makes_rollouts(example, rng):
    env = example.gymnasium.make("CartPole-v1")
    batch = example.pad([example.run_episode(env, np.zeros((2, 5)), rng) for _ in range(4)])
    rollouts = rlvar.Rollouts(batch["scores"], batch["rewards"], lengths=batch["lengths"])
    assert rlvar.compare(rollouts)["multi"].variance.value > 0
