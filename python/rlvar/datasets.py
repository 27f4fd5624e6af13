"""Real rollouts that come with the package."""

from __future__ import annotations

from importlib.resources import as_file, files

from rlvar.files import load_rollouts
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
