"""Real rollouts that come with the package."""

from __future__ import annotations

from importlib.resources import as_file, files
from typing import Literal

import numpy as np

from rlvar import _check
from rlvar.files import KEYS, load_rollouts
from rlvar.rollouts import Rollouts


def cartpole() -> Rollouts:
    """256 episodes of gymnasium's CartPole-v1 under a half-trained softmax policy.

    The policy is a softmax over the two actions, linear in the four observations and a constant,
    caught part-way through training by REINFORCE; scores are exact gradients with respect to its
    ten parameters. The reward is 1 for each step, so an episode's return is its length, and the
    lengths differ widely. ``examples/make_cartpole_rollouts.py`` in the repository made the file.

    Returns
    -------
    Rollouts
        N = 256 episodes, D = 10 coordinates, with lengths.

    Examples
    --------
    >>> import rlvar
    >>> len(rlvar.datasets.cartpole())
    256
    """
    with as_file(files("rlvar") / "data" / "cartpole.npz") as path:
        return load_rollouts(path)


def arithmetic(*, rewards: Literal["completion", "token"] = "completion") -> Rollouts:
    """512 completions of a small language model that learns two-digit sums, caught half-way.

    A Llama of three layers and 125,248 parameters gets a prompt such as "37+45=" and writes the sum of the
    ones and the answer, "12 82.", one token for each character. 32 prompts with 16 completions each were
    sampled at temperature 1, when 45% were right; groups are prompts. Scores are a 64-dimensional sketch of
    the token scores of all parameters. ``examples/make_arithmetic_rollouts.py`` in the repository made the
    file.

    Parameters
    ----------
    rewards : {"completion", "token"}, default "completion"
        A terminal reward of 1 for a completion without an error, 0 otherwise; or 1 for each token up to
        the first wrong one.

    Returns
    -------
    Rollouts
        N = 512 completions of 5 to 7 tokens, D = 64, with groups, `logp`, `behavior_logp` and
        `score_squares`.

    Examples
    --------
    >>> import rlvar
    >>> rlvar.datasets.arithmetic()
    Rollouts(N=512, T=7, D=64, lengths 5 to 7, 32 groups)
    """
    _check.choice("rewards", rewards, Literal["completion", "token"])
    with as_file(files("rlvar") / "data" / "arithmetic.npz") as path:
        rollouts = load_rollouts(path)
    if rewards == "token":
        return rollouts
    right = (rollouts.rewards.sum(axis=1) == rollouts.live_steps).astype(np.float64)
    return Rollouts(**{key: getattr(rollouts, key) for key in KEYS} | {"rewards": right})
