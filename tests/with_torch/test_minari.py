"""Minari data sets as rollouts: recorded here, from gymnasium's CartPole."""

import warnings

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra rlvar[torch]")
minari = pytest.importorskip("minari", reason="needs minari")
pytest.importorskip("pyarrow", reason="Minari keeps episodes in Arrow files")
pytest.importorskip("PIL", reason="Minari's Arrow files need pillow")

import gymnasium as gym  # noqa: E402
from minari.data_collector.episode_buffer import EpisodeBuffer  # noqa: E402

import rlvar  # noqa: E402
from rlvar.torch import Sketch, minari_rollouts  # noqa: E402

LIMIT = 30


def log_prob(policy, observation, action):
    return torch.distributions.Categorical(logits=policy(observation)).log_prob(action)


def value(observations):
    return 10.0 + observations[:, 2:3]  # (n, 1), as networks give it


@pytest.fixture(scope="module")
def policy():
    torch.manual_seed(0)
    return torch.nn.Linear(4, 2)


def recorded(policy, env, seed):
    """One episode of a policy; that of seed 0 is left half-way."""
    observation, _ = env.reset(seed=seed)
    episode = {
        "observations": [observation],
        "actions": [],
        "rewards": [],
        "terminations": [],
        "truncations": [],
    }
    for _ in range(3 if seed == 0 else LIMIT):
        with torch.no_grad():
            action = (
                torch.distributions.Categorical(logits=policy(torch.as_tensor(observation))).sample().item()
            )
        observation, reward, terminated, truncated, _ = env.step(action)
        for name, value in zip(episode, (observation, action, reward, terminated, truncated), strict=True):
            episode[name].append(value)
        if terminated or truncated:
            break
    arrays = {name: np.array(values) for name, values in episode.items()}
    return EpisodeBuffer(id=seed, seed=seed, infos={}, **arrays)


@pytest.fixture(scope="module")
def dataset(policy, tmp_path_factory):
    """Twelve episodes of CartPole under the policy: some fall, some reach the time limit."""
    env = gym.make("CartPole-v1", max_episode_steps=LIMIT)
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is set to None", category=UserWarning)  # authors, code
        patch.setenv("MINARI_DATASETS_PATH", str(tmp_path_factory.mktemp("minari")))
        torch.manual_seed(0)
        episodes = [recorded(policy, env, seed) for seed in range(12)]
        yield minari.create_dataset_from_buffers("test/cartpole-v0", episodes, env=env, data_format="arrow")


def test_an_episode_is_a_rollout_with_its_ends_apart(dataset, policy):
    rollouts = minari_rollouts(dataset, log_prob, policy, value_fn=value)
    episodes = list(dataset)
    assert rollouts.lengths.tolist() == [len(each) for each in episodes]
    fell = [bool(each.terminations[-1]) for each in episodes]
    assert 0 < sum(fell) < 11
    assert rollouts.terminated.any(axis=1).tolist() == fell
    assert not fell[0]  # it was left half-way, and carries no mark
    assert not episodes[0].truncations.any()
    assert rollouts.truncated.any(axis=1).tolist() == np.logical_not(fell).tolist()
    for row, episode in zip(range(len(rollouts)), episodes, strict=True):
        steps = len(episode)
        np.testing.assert_array_equal(rollouts.rewards[row, :steps], episode.rewards)
        np.testing.assert_allclose(
            rollouts.values[row, :steps], 10.0 + episode.observations[:-1, 2], rtol=1e-6
        )
        if not fell[row]:
            after = 10.0 + episode.observations[-1, 2]
            np.testing.assert_allclose(rollouts.next_values[row, steps - 1], after, rtol=1e-6)


def test_scores_are_those_of_one_backward_pass_a_step(dataset, policy):
    rollouts = minari_rollouts(dataset, log_prob, policy)
    assert rollouts.scores_of == "all 10 parameters of Linear"
    scores = rollouts.padded().scores
    for row, episode in enumerate(dataset):
        for t, (observation, action) in enumerate(
            zip(episode.observations[:-1], episode.actions, strict=True)
        ):
            logp = log_prob(policy, torch.as_tensor(observation), torch.as_tensor(action))
            parts = torch.autograd.grad(logp, list(policy.parameters()))
            expected = torch.cat([part.flatten() for part in parts]).numpy()
            np.testing.assert_allclose(scores[row, t], expected, rtol=1e-5, atol=1e-6)
            np.testing.assert_allclose(rollouts.logp[row, t], logp.item(), rtol=1e-5)


def test_without_values_the_return_ends_with_the_time_limit(dataset, policy):
    rollouts = minari_rollouts(dataset, log_prob, policy)
    assert rollouts.values is None
    ours = rlvar.estimator("single").weights(rollouts)[:, 0]
    np.testing.assert_array_equal(ours, [each.rewards.sum() for each in dataset])


def test_some_of_the_episodes_do(dataset, policy):
    some = [dataset[3], dataset[5]]
    rollouts = minari_rollouts(some, log_prob, policy, sketch=Sketch(6))
    assert rollouts.shape == (2, max(map(len, some)), 6)
    assert rollouts.sketched


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ("test/cartpole-v0", TypeError, r"dataset must be minari.load_dataset\(\.\.\.\)"),
        (3, TypeError, "a Minari data set or a list of episodes, got 3"),
        ([np.zeros(3)], TypeError, "dataset must give episodes of Minari, got ndarray"),
        ([], ValueError, "at least 2 episodes with steps, got 0"),
    ],
)
def test_what_is_no_data_set_is_refused(policy, given, error, message):
    with pytest.raises(error, match=message):
        minari_rollouts(given, log_prob, policy)


def test_values_of_another_number_are_refused(dataset, policy):
    with pytest.raises(ValueError, match=r"value_fn must return a tensor with a value for each of \d+"):
        minari_rollouts(dataset, log_prob, policy, value_fn=lambda observations: observations)
