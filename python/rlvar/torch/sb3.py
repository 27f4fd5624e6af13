"""Rollouts out of Stable-Baselines3's on-policy algorithms, PPO and A2C.

Its rollout buffer holds r + gamma V(s') where a time limit cut an episode, and no longer says where. So steps
are recorded as they happen: rewards as earned, `terminated` and `truncated` apart, V(s') beside them. Each
episode, or part of one that the buffer holds, is a rollout; the end of the buffer truncates the last ones.

    A_t = sum_k (gamma lambda)^k delta_{t+k},  delta_t = r_t + gamma V(s_{t+1}) - V(s_t)

with the trainer's gamma and lambda, up to the end of the episode, are then `rollout_buffer.advantages`.
"""

from __future__ import annotations

import contextlib
import copy
import time
import warnings
from collections import deque
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.preprocessing import preprocess_obs

from rlvar import _check
from rlvar.monitor import Monitor
from rlvar.rollouts import Rollouts
from rlvar.torch.probe import untouched
from rlvar.torch.sketch import Sketch
from rlvar.torch.steps import per_step_scores
from rlvar.weights.estimators import Estimator, estimator

__all__ = ["Collected", "Recorder", "Watch", "collect"]


class Collected(NamedTuple):
    """Rollouts of an algorithm, and the estimator that it trains with.

    Attributes
    ----------
    rollouts : Rollouts
        Scores of the actor, rewards without what the algorithm adds, values, and where episodes end.
    gae : Estimator
        "gae" with the algorithm's own gamma and lambda. Plain "gae" is another estimator: its gamma
        is 1. PPO by default also centres and scales the advantages of each minibatch.
    """

    rollouts: Rollouts
    gae: Estimator


def collect(
    model: OnPolicyAlgorithm,
    *,
    episodes: int | None = None,
    steps: int | None = None,
    sketch: Sketch | None = None,
    memory: int = 1 << 30,
) -> Collected:
    """Run an algorithm's policy in its environments and return the rollouts with their scores.

    Parameters
    ----------
    model : OnPolicyAlgorithm
        PPO, A2C or another algorithm that collects as they do, with its environments.
    episodes : int, optional
        Number of whole episodes, from a reset on: as many from each environment, to within one, because short
        episodes finish first and would otherwise be too many.
    steps : int, optional
        Number of steps of each environment, from where it stands: whole episodes, and parts of those that the
        first and the last step cut. Without `episodes`, ``model.n_steps``: what one update trains on.
    sketch, memory
        As in `per_step_scores`.

    Returns
    -------
    Collected
        A pair, ``rollouts, gae``.

    Raises
    ------
    ValueError, TypeError
        For an algorithm that collects in its own way (recurrent policies, masked actions), exploration noise
        that several steps share, or fewer than 2 episodes.

    Notes
    -----
    The environments move on and random numbers are drawn, as in training. The policy, the rollout buffer,
    what is logged and the running statistics of VecNormalize stay as they are. Rewards and observations are
    those that the policy trains on: normalised, if VecNormalize does that.

    Examples
    --------
    >>> import rlvar, stable_baselines3
    >>> from rlvar.torch import sb3
    >>> model = stable_baselines3.PPO("MlpPolicy", "CartPole-v1", seed=0, device="cpu")
    >>> rollouts, gae = sb3.collect(model, episodes=20)
    >>> len(rollouts), gae.name
    (20, 'gae(gamma=0.99)')
    >>> comparison = rlvar.compare(rollouts, ["multi", gae])
    """
    _checked(model)
    env = model.get_env()
    if env is None:
        raise ValueError("model has no environment: use model.set_env(env) or PPO.load(path, env=env)")
    if episodes is not None and steps is not None:
        raise ValueError("pass episodes or steps, not both")
    recorder: Recorder
    if episodes is not None:
        episodes, count = _check.positive_integer("episodes", episodes), env.num_envs
        recorder = _Episodes(np.array([(episodes + i) // count for i in reversed(range(count))]))
        steps = np.iinfo(np.int64).max  # the recorder stops it
    else:
        recorder = Recorder()
        steps = model.n_steps if steps is None else _check.positive_integer("steps", steps)
    recorder.init_callback(model)
    with _bookkeeping_kept(model):
        if episodes is not None or model._last_obs is None:
            model._last_obs = env.reset()  # type: ignore[assignment]
            model._last_episode_starts = np.ones(env.num_envs, bool)
        model.collect_rollouts(env, recorder, _NoBuffer(), steps)  # type: ignore[arg-type]
        # Where a callback stops it, it forgets its last step.
        model._last_obs = recorder.locals["new_obs"]
        model._last_episode_starts = recorder.locals["dones"]
    return recorder.collected(sketch=sketch, memory=memory)


class Recorder(BaseCallback):
    """A callback that records what an algorithm trains on: the last rollout buffer that was filled.

    Examples
    --------
    >>> import stable_baselines3
    >>> from rlvar.torch import sb3
    >>> model = stable_baselines3.PPO("MlpPolicy", "CartPole-v1", n_steps=128, seed=0, device="cpu")
    >>> recorder = sb3.Recorder()
    >>> model = model.learn(256, callback=recorder)
    >>> rollouts, gae = recorder.collected()
    >>> int(rollouts.live_steps.sum())
    128
    """

    def __init__(self) -> None:
        super().__init__()
        self._steps: list[dict[str, Any]] = []
        self._last_values: NDArray[Any] | None = None  # (E,) after the last step

    def _init_callback(self) -> None:
        _checked(self.model)

    def _on_rollout_start(self) -> None:
        self._steps, self._last_values = [], None

    def _on_step(self) -> bool:
        step, policy = self.locals, self.model.policy
        dones, infos = np.asarray(step["dones"], bool), step["infos"]
        truncated, next_values = np.zeros(dones.shape, bool), np.zeros(dones.shape)
        for i in np.flatnonzero(dones):
            # As in collect_rollouts: another end is a termination to it.
            last = infos[i].get("terminal_observation")
            if last is not None and infos[i].get("TimeLimit.truncated", False):
                with torch.no_grad():
                    truncated[i] = True
                    next_values[i] = policy.predict_values(policy.obs_to_tensor(last)[0]).item()  # type: ignore[operator]
        self._steps.append(
            {
                "observations": _mapped(np.array, self.model._last_obs),
                "actions": np.array(step["actions"]),
                "rewards": np.array(step["rewards"]),
                "values": step["values"].cpu().numpy().reshape(-1),
                "behavior_logp": step["log_probs"].cpu().numpy().reshape(-1),
                "terminated": dones & ~truncated,
                "truncated": truncated,
                "next_values": next_values,
            }
        )
        return True

    def _on_rollout_end(self) -> None:
        self._last_values = self.locals["values"].cpu().numpy().reshape(-1)

    def collected(self, *, sketch: Sketch | None = None, memory: int = 1 << 30) -> Collected:
        """Return the last rollout buffer that was filled, with scores of the policy as it is now.

        `behavior_logp` are the log-probabilities when it acted, before the updates since.

        Parameters
        ----------
        sketch, memory
            As in `per_step_scores`.

        Returns
        -------
        Collected
        """
        if self._last_values is None:
            raise ValueError(
                "no rollout buffer has been filled yet: pass the recorder to learn(callback=...)"
            )
        arrays = {name: _by_environment([step[name] for step in self._steps]) for name in self._steps[0]}
        self._end(arrays, self._last_values)
        ends = arrays["terminated"] | arrays["truncated"]
        kept = self._kept(ends)
        arrays = {name: _mapped(lambda array: array[kept], tree) for name, tree in arrays.items()}
        lengths = np.diff(np.flatnonzero(ends[kept]), prepend=-1)
        if len(lengths) < 2:
            raise ValueError(
                "the steps are all of one episode; at least 2 are needed, so take more steps or episodes"
            )
        policy, observations, actions = self.model.policy, arrays.pop("observations"), arrays.pop("actions")
        with _held(policy, observations) as encoded:  # type: ignore[arg-type]
            scored = per_step_scores(
                _log_prob, policy, encoded, actions, lengths=lengths, sketch=sketch, memory=memory
            )
        return Collected(scored.rollouts(**arrays), _gae(self.model))

    def _end(self, arrays: dict[str, Any], last_values: NDArray[Any]) -> None:
        """Mark the last step of each environment (E, T) as truncated, unless an episode ends there."""
        cut = ~(arrays["terminated"][:, -1] | arrays["truncated"][:, -1])
        arrays["truncated"][cut, -1], arrays["next_values"][cut, -1] = True, last_values[cut]

    def _kept(self, ends: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Return which steps (E, T) are kept."""
        return np.ones(ends.shape, bool)


class Watch(Recorder):
    """A callback that watches a run: it updates a `Monitor` and logs ``rlvar/...`` as the algorithm does.

    The rollouts are the episodes in the algorithm's buffer, and parts of those that its ends cut.

    Parameters
    ----------
    monitor : Monitor, optional
        A monitor with estimators and a window of your choice. By default it compares "single", "multi"
        and "gae" with the algorithm's own gamma and lambda, which is the reference.
    every : int, default 10
        The first buffer is measured, and then one in this many.
    sketch : Sketch, optional
        As in `per_step_scores`.

    Attributes
    ----------
    monitor : Monitor
        What was measured: ``watch.monitor.report()``. None before training starts, if none was given.
    seconds : float
        Time that it has taken so far.
    failures : int
        How many buffers could not be measured. The first gives a warning; training goes on.

    Notes
    -----
    Training is the same to the bit with and without it.

    Examples
    --------
    >>> import stable_baselines3
    >>> from rlvar.torch import sb3
    >>> model = stable_baselines3.PPO("MlpPolicy", "CartPole-v1", n_steps=128, seed=0, device="cpu")
    >>> watch = sb3.Watch(every=2)
    >>> model = model.learn(384, callback=watch)
    >>> watch.monitor.steps
    2
    """

    def __init__(
        self, monitor: Monitor | None = None, *, every: int = 10, sketch: Sketch | None = None
    ) -> None:
        super().__init__()
        self.monitor = monitor
        self.seconds, self.failures = 0.0, 0
        self._every, self._sketch = _check.positive_integer("every", every), sketch
        self._buffers, self._due = 0, False
        self._before, self._last = 0, 0  # time steps of calls of learn() before this one, and of this one

    def _init_callback(self) -> None:
        super()._init_callback()
        if self.monitor is None:
            gae = _gae(self.model)
            self.monitor = Monitor(["single", "multi", gae], reference=gae.name)

    def _on_training_start(self) -> None:
        if self.num_timesteps < self._last:
            self._before += self._last

    def _on_rollout_start(self) -> None:
        super()._on_rollout_start()
        self._due = self._buffers % self._every == 0
        self._buffers += 1

    def _on_step(self) -> bool:
        if self._due:
            with self._measuring():
                super()._on_step()
        return True

    def _on_rollout_end(self) -> None:
        self._last = self.num_timesteps
        if not self._due:
            return
        with self._measuring(), untouched(self.model.policy):
            super()._on_rollout_end()
            assert self.monitor is not None
            self.monitor.update(self.collected(sketch=self._sketch).rollouts, step=self._before + self._last)
            for name, value in self.monitor.metrics().items():
                self.logger.record(f"rlvar/{name}", value)
        self._steps = []
        self.logger.record("rlvar/seconds", self.seconds)

    @contextlib.contextmanager
    def _measuring(self) -> Iterator[None]:
        """Take the time; let no error stop the training."""
        began = time.perf_counter()
        try:
            yield
        except Exception as error:
            self._due = False
            self.failures += 1
            if self.failures == 1:
                message = f"a rollout buffer could not be measured, and training goes on: {error}"
                warnings.warn(message, stacklevel=2)
        finally:
            self.seconds += time.perf_counter() - began


class _Episodes(Recorder):
    """Records a number of whole episodes of each environment, and stops."""

    def __init__(self, wanted: NDArray[np.int64]) -> None:
        super().__init__()
        self._wanted = wanted  # (E,)
        self._ended = np.zeros_like(wanted)

    def _on_step(self) -> bool:
        super()._on_step()
        self._ended += np.asarray(self.locals["dones"], np.int64)
        if (self._ended < self._wanted).any():
            return True
        self._last_values = np.zeros(len(self._wanted))  # not read
        return False

    def _end(self, arrays: dict[str, Any], last_values: NDArray[Any]) -> None:
        pass

    def _kept(self, ends: NDArray[np.bool_]) -> NDArray[np.bool_]:
        before: NDArray[np.bool_] = np.cumsum(ends, axis=1) - ends < self._wanted[:, None]
        return before


class _NoBuffer:
    """Stands for the rollout buffer where the recorder keeps the steps."""

    def reset(self) -> None: ...
    def add(self, *step: Any) -> None: ...
    def compute_returns_and_advantage(self, **ends: Any) -> None: ...


def _gae(model: Any) -> Estimator:
    return estimator("gae", gamma=model.gamma, lam=model.gae_lambda)


def _checked(model: Any) -> None:
    if not isinstance(model, OnPolicyAlgorithm):
        raise TypeError(f"model must be PPO, A2C or another OnPolicyAlgorithm, got {type(model).__name__}")
    own = type(model).collect_rollouts is not OnPolicyAlgorithm.collect_rollouts
    if own or not isinstance(model.policy, ActorCriticPolicy):
        kind = type(model).__name__
        raise TypeError(f"{kind} collects rollouts in its own way; score its steps with per_step_scores")
    if model.use_sde and model.sde_sample_freq != 1:
        raise ValueError(
            "with use_sde, steps share their exploration noise, so the log-probabilities are not those of "
            "actions given the past; use sde_sample_freq=1 or no use_sde"
        )


@contextlib.contextmanager
def _bookkeeping_kept(model: OnPolicyAlgorithm) -> Iterator[None]:
    """Restore what an algorithm counts and logs while it collects, and its policy's mode."""
    names = ("num_timesteps", "ep_info_buffer", "ep_success_buffer")
    before = {name: getattr(model, name) for name in names}
    normalizer, mode = model.get_vec_normalize_env(), model.policy.training
    moving = normalizer is not None and normalizer.training
    model.ep_info_buffer, model.ep_success_buffer = deque(), deque()
    if normalizer is not None:
        normalizer.training = False
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(model, name, value)
        if normalizer is not None:
            normalizer.training = moving
        model.policy.set_training_mode(mode)


@contextlib.contextmanager
def _held(policy: ActorCriticPolicy, observations: Any) -> Iterator[Any]:
    """Make a policy ready for vmap, with one-hot codes for numbers of classes; restore it afterwards."""
    space, distribution = policy.observation_space, policy.action_dist
    policy.observation_space, encoded = _encoded(space, observations)
    policy.action_dist = copy.copy(distribution)  # it keeps tensors of the last call
    try:
        yield encoded
    finally:
        policy.observation_space, policy.action_dist = space, distribution


def _encoded(space: spaces.Space[Any], observations: Any) -> tuple[spaces.Space[Any], Any]:
    """Return observations as SB3 encodes classes, which vmap cannot, and a space that leaves them alone."""
    if isinstance(space, spaces.Dict):
        parts = {name: _encoded(each, observations[name]) for name, each in space.spaces.items()}
        space = spaces.Dict({name: part for name, (part, _) in parts.items()})
        return space, {name: array for name, (_, array) in parts.items()}
    if isinstance(space, spaces.Box):
        return space, observations
    codes = preprocess_obs(torch.as_tensor(observations), space).numpy()  # type: ignore[union-attr]
    return spaces.Box(-np.inf, np.inf, codes.shape[1:], np.float32), codes


def _log_prob(policy: Any, observation: Any, action: torch.Tensor) -> Any:
    """Log-probability of one action, by the way that the algorithm differentiates."""
    return policy.evaluate_actions(_mapped(lambda tensor: tensor[None], observation), action[None])[1]


def _by_environment(steps: list[Any]) -> Any:
    """Stack T steps of arrays (E, ...) to (E, T, ...)."""
    if isinstance(steps[0], dict):
        return {name: _by_environment([step[name] for step in steps]) for name in steps[0]}
    return np.stack(steps, axis=1)


def _mapped(function: Any, tree: Any) -> Any:
    """Apply a function to each array of a dict, or to the one that there is."""
    return {name: function(each) for name, each in tree.items()} if isinstance(tree, dict) else function(tree)
