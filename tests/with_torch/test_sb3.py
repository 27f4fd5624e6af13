"""Rollouts of Stable-Baselines3: what it trains on, to its own rounding."""

import copy
import random
import warnings

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra rlvar[torch]")
baselines = pytest.importorskip("stable_baselines3", reason="needs stable-baselines3")

import gymnasium as gym  # noqa: E402
from stable_baselines3.common.env_util import make_vec_env  # noqa: E402
from stable_baselines3.common.logger import KVWriter, Logger  # noqa: E402
from stable_baselines3.common.vec_env import VecNormalize  # noqa: E402

import rlvar  # noqa: E402
from rlvar.torch import Sketch, sb3  # noqa: E402

SMALL = {"policy_kwargs": {"net_arch": [6]}, "device": "cpu", "seed": 1}


class Both(gym.Env):
    """Observes a dict with a class in it, acts twice at a time."""

    observation_space = gym.spaces.Dict(
        {"where": gym.spaces.Discrete(3), "x": gym.spaces.Box(-1.0, 1.0, (2,), np.float32)}
    )
    action_space = gym.spaces.MultiDiscrete([2, 3])

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self._observe(), {}

    def _observe(self):
        return {"where": self.np_random.integers(3), "x": self.np_random.uniform(-1, 1, 2).astype(np.float32)}

    def step(self, action):
        ends = self.np_random.uniform(size=2) < 0.1
        return self._observe(), float(action.sum()), bool(ends[0]), bool(ends[1]), {}


def made(algorithm, env, policy="MlpPolicy", envs=3, wrapped=lambda env: env, **options):
    """An algorithm on environments; `env` may come with its time limit."""
    name, limit = env if isinstance(env, tuple) else (env, None)
    known = {} if limit is None else {"max_episode_steps": limit}
    batch = {"batch_size": 40, "n_epochs": 2} if issubclass(algorithm, baselines.PPO) else {}
    return algorithm(
        policy,
        wrapped(make_vec_env(name, n_envs=envs, seed=0, env_kwargs=known)),
        **{"n_steps": 40, **batch, **SMALL, **options},
    )


WORLDS = {
    "cut by time": (baselines.PPO, ("CartPole-v1", 12)),
    "not cut by time": (baselines.A2C, "CartPole-v1"),
    "clipped actions": (baselines.PPO, ("Pendulum-v1", 30)),
    "observed classes": (baselines.PPO, "FrozenLake-v1"),
}


@pytest.fixture(params=WORLDS, scope="module")
def trained(request):
    """An algorithm after one buffer, and the recorder that watched."""
    model, recorder = made(*WORLDS[request.param], gamma=0.9), sb3.Recorder()
    # Nothing is learnt, so scores are those of the policy that acted.
    model.lr_schedule = lambda _: 0.0
    model.learn(120, callback=recorder)
    return model, recorder


def buffer_of(model, name):
    """An array of its rollout buffer, one environment after the other (E T, ...)."""
    array = getattr(model.rollout_buffer, name)
    if array.shape[:2] == (model.n_steps, model.n_envs):
        array = array.swapaxes(0, 1).reshape(-1, *array.shape[2:])
    return array  # or it lies like that already, by an update


def test_gae_is_the_advantage_that_the_algorithm_trains_on(trained):
    model, recorder = trained
    rollouts, gae = recorder.collected()
    assert gae == rlvar.estimator("gae", gamma=0.9, lam=model.gae_lambda)
    ours, theirs = gae.weights(rollouts)[rollouts.live], buffer_of(model, "advantages").ravel()
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)
    # The estimator of that name with its defaults is another.
    assert np.abs(rlvar.estimator("gae").weights(rollouts)[rollouts.live] - theirs).max() > 0.01


def test_rewards_are_as_earned_where_the_buffer_adds_a_value(trained):
    model, recorder = trained
    rollouts, _ = recorder.collected()
    time_limit = rollouts.truncated[rollouts.live]
    time_limit[model.n_steps - 1 :: model.n_steps] &= model._last_episode_starts  # else the buffer cuts
    added = np.where(time_limit, 0.9 * rollouts.next_values[rollouts.live], 0.0)
    theirs = buffer_of(model, "rewards").ravel()
    np.testing.assert_allclose(rollouts.rewards[rollouts.live] + added, theirs, rtol=1e-5, atol=1e-5)


def test_each_rollout_is_one_episode_with_its_end(trained):
    rollouts, _ = trained[1].collected()
    ends = rollouts.terminated | rollouts.truncated
    assert (ends.sum(axis=1) == 1).all()
    assert ends[np.arange(len(rollouts)), rollouts.lengths - 1].all()
    assert not (rollouts.terminated & rollouts.truncated).any()
    rlvar.compare(
        rollouts, ["single", "multi", "single-mean", "multi-mean"]
    )  # which take no several episodes


def test_scores_are_those_of_one_backward_pass_a_step(trained):
    model, recorder = trained
    rollouts, _ = recorder.collected()
    policy, actor = model.policy, []
    observations = torch.as_tensor(buffer_of(model, "observations"))
    actions = torch.as_tensor(buffer_of(model, "actions"))
    if isinstance(model.observation_space, gym.spaces.Discrete):
        observations = observations.flatten()
    if isinstance(model.action_space, gym.spaces.Discrete):
        actions = actions.flatten()
    actor = [each for name, each in policy.named_parameters() if "value" not in name]
    expected = []
    for observation, action in zip(observations, actions, strict=True):
        logp = policy.evaluate_actions(observation[None], action[None])[1]
        expected.append(torch.cat([part.flatten() for part in torch.autograd.grad(logp, actor)]).numpy())
    np.testing.assert_allclose(rollouts.scores, expected, rtol=2e-4, atol=1e-5)
    count = sum(each.numel() for each in actor)
    assert rollouts.scores_of == (
        f"all {count} parameters of ActorCriticPolicy that its log-probabilities depend on"
    )
    np.testing.assert_allclose(rollouts.logp, rollouts.behavior_logp, atol=1e-5)  # of actions as sampled


def test_whole_episodes_are_as_many_from_each_environment():
    model = made(baselines.PPO, ("CartPole-v1", 12))
    rollouts, _ = sb3.collect(model, episodes=11)
    assert len(rollouts) == 11
    assert (rollouts.lengths[rollouts.truncated.any(axis=1)] == 12).all()  # nothing but the time limit cuts
    # What it sees next is where the environments stand.
    states = [env.unwrapped.state for env in model.env.envs]
    np.testing.assert_array_equal(model._last_obs, np.array(states, np.float32))


def test_steps_go_on_where_the_environments_stand():
    model = made(baselines.PPO, ("Pendulum-v1", 30), envs=2)
    rollouts = [sb3.collect(model, steps=40).rollouts for _ in range(2)]
    assert [each.lengths.tolist() for each in rollouts] == [[30, 10, 30, 10], [20, 20, 20, 20]]
    assert sb3.collect(model).rollouts.live_steps.sum() == 2 * model.n_steps


def test_collecting_leaves_the_algorithm_as_it_was():
    model = made(baselines.PPO, ("CartPole-v1", 12), wrapped=VecNormalize)
    model.learn(120)
    normalizer = model.get_vec_normalize_env()

    def state():
        arrays = [getattr(model.rollout_buffer, name).copy() for name in ("rewards", "advantages")]
        moments = [normalizer.obs_rms.mean.copy(), normalizer.ret_rms.var]
        return [*arrays, *moments, *(each.detach().clone() for each in model.policy.parameters())]

    before, held = state(), model.policy.action_dist
    told = model.num_timesteps, list(model.ep_info_buffer), model.policy.training, normalizer.training
    sb3.collect(model, episodes=7)
    for then, now in zip(before, state(), strict=True):
        np.testing.assert_array_equal(np.asarray(then), np.asarray(now))
    assert (
        model.num_timesteps,
        list(model.ep_info_buffer),
        model.policy.training,
        normalizer.training,
    ) == told
    assert model.policy.action_dist is held
    copy.deepcopy(model.policy)  # nothing of vmap is left in it
    model.learn(120, reset_num_timesteps=False)


def test_dicts_classes_and_several_actions_are_taken():
    model = made(baselines.PPO, Both, policy="MultiInputPolicy")
    rollouts, _ = sb3.collect(model, episodes=9, sketch=Sketch(16))
    assert rollouts.shape[2] == 16
    assert rollouts.sketched
    np.testing.assert_allclose(rollouts.logp, rollouts.behavior_logp, atol=1e-5)
    space = model.policy.observation_space
    assert isinstance(space["where"], gym.spaces.Discrete)


def test_after_an_update_the_rollouts_are_of_another_policy():
    model, recorder = made(baselines.PPO, ("CartPole-v1", 12), learning_rate=0.02), sb3.Recorder()
    model.learn(120, callback=recorder)
    rollouts, _ = recorder.collected()
    assert np.abs(rollouts.logp - rollouts.behavior_logp).max() > 1e-3


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"episodes": 2, "steps": 3}, ValueError, "pass episodes or steps, not both"),
        ({"episodes": 0}, ValueError, "episodes must be"),
        ({"steps": 3}, ValueError, "all of one episode; at least 2 are needed"),
    ],
)
def test_errors_say_what_to_do(options, error, message):
    with pytest.raises(error, match=message):
        sb3.collect(made(baselines.PPO, "CartPole-v1", envs=1), **options)


def test_other_algorithms_are_refused_by_name():
    with pytest.raises(TypeError, match=r"model must be PPO, A2C .*, got DQN"):
        sb3.collect(baselines.DQN("MlpPolicy", "CartPole-v1", device="cpu", buffer_size=10))

    class Recurrent(baselines.PPO):
        def collect_rollouts(self, *args, **options):
            raise NotImplementedError

    with pytest.raises(TypeError, match="Recurrent collects rollouts in its own way"):
        sb3.collect(made(Recurrent, "CartPole-v1"))
    with pytest.raises(ValueError, match=r"share their exploration noise.*sde_sample_freq=1"):
        sb3.collect(made(baselines.A2C, "Pendulum-v1", use_sde=True))
    assert sb3.collect(made(baselines.A2C, ("Pendulum-v1", 9), use_sde=True, sde_sample_freq=1)).rollouts
    model = made(baselines.PPO, "CartPole-v1")
    model.env = None
    with pytest.raises(ValueError, match="model has no environment"):
        sb3.collect(model)
    with pytest.raises(ValueError, match="no rollout buffer has been filled yet"):
        sb3.Recorder().collected()


class Fed(rlvar.Monitor):
    """A monitor that keeps what it is fed."""

    def __init__(self, *given, **options):
        super().__init__(*given, **options)
        self.fed = []

    def update(self, what, **options):
        self.fed.append((what, options))
        super().update(what, **options)


class Remembering(KVWriter):
    """What a logger writes."""

    def __init__(self):
        self.written = []

    def write(self, key_values, key_excluded, step=0):
        self.written.append({"step": step, **key_values})

    def close(self):
        pass


def learnt(watch, buffers=3, algorithm=baselines.PPO, **options):
    """What training leaves: the algorithm, its numbers as bytes, what it logged."""
    model, logged = made(algorithm, ("CartPole-v1", 12), **options), Remembering()
    model.set_logger(Logger(None, [logged]))
    model.learn(buffers * 120, callback=watch, log_interval=1)
    states = [*model.policy.state_dict().values(), torch.get_rng_state(), torch.as_tensor(model._last_obs)]
    optimizer = [part for each in model.policy.optimizer.state.values() for part in each.values()]
    bits = [np.asarray(each).tobytes() for each in (*states, *optimizer)]
    return model, [*bits, np.random.get_state()[1].tobytes(), random.getstate()], logged.written  # noqa: NPY002


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("algorithm", [baselines.PPO, baselines.A2C])
def test_watching_never_changes_training(algorithm, fails, monkeypatch):
    if fails:  # in the midst of it, after numbers were drawn
        monkeypatch.setattr(Fed, "update", lambda *_, **__: torch.rand(1) / np.random.rand(1) / 0)  # noqa: NPY002
    watch = sb3.Watch(Fed(["single"]), every=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _, bits, _ = learnt(watch, algorithm=algorithm)
    assert bits == learnt(None, algorithm=algorithm)[1]
    assert len(watch.monitor.fed) == 3 * (not fails)


def test_watching_feeds_the_episodes_of_the_buffer_and_logs():
    watch = sb3.Watch(every=2)
    model, _, logged = learnt(watch, buffers=5, gamma=0.9)
    gae = rlvar.estimator("gae", gamma=0.9, lam=model.gae_lambda)
    assert [row.name for row in watch.monitor] == ["single", "multi", gae.name]
    assert watch.monitor.reference == gae.name
    assert watch.monitor.steps == 3
    assert [record["step"] for record in watch.monitor.history] == [120, 360, 600]
    written = [each for each in logged if "rlvar/steps" in each]
    assert [each["step"] for each in written] == [120, 360, 600]
    assert written[-1]["rlvar/ratio/single"] == watch.monitor["single"].ratio.value
    assert 0.0 < written[0]["rlvar/seconds"] < written[-1]["rlvar/seconds"] == watch.seconds
    assert watch.failures == 0


def test_watching_feeds_what_the_recorder_records():
    watch, recorder = sb3.Watch(Fed(["single", "multi"]), every=1), sb3.Recorder()
    model = made(baselines.PPO, ("CartPole-v1", 12))
    model.lr_schedule = lambda _: 0.0
    model.learn(120, callback=[watch, recorder])
    ((rollouts, options),), wanted = watch.monitor.fed, recorder.collected().rollouts
    assert options == {"step": 120}
    for name in (
        "scores",
        "rewards",
        "values",
        "logp",
        "behavior_logp",
        "truncated",
        "next_values",
        "lengths",
    ):
        np.testing.assert_array_equal(getattr(rollouts, name), getattr(wanted, name), err_msg=name)


def test_what_cannot_be_measured_is_one_warning():
    watch = sb3.Watch(every=1)
    with pytest.warns(
        UserWarning, match="could not be measured, and training goes on: .* at least 2"
    ) as told:
        learnt(watch, n_steps=10, envs=1, batch_size=5, buffers=1)  # no episode ends within 10 steps
    assert len(told) == 1
    assert watch.failures == 12 - watch.monitor.steps > 1


def test_learning_on_goes_on_with_the_monitor():
    watch = sb3.Watch(every=1)
    model = made(baselines.PPO, ("CartPole-v1", 12))
    for reset in (True, False, True):
        model.learn(120, callback=watch, reset_num_timesteps=reset)
    assert [record["step"] for record in watch.monitor.history] == [120, 240, 360]
    with pytest.raises(TypeError, match=r"model must be PPO, A2C .*, got DQN"):
        baselines.DQN("MlpPolicy", "CartPole-v1", device="cpu", buffer_size=10).learn(5, callback=sb3.Watch())
