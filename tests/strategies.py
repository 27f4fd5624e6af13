"""Hypothesis strategies: rollouts of any small shape, with lengths, masks or neither."""

from typing import Any, NamedTuple

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import reference

DTYPES = (np.float32, np.float64)


def floats(dtype, bound=100.0):
    width = 8 * np.dtype(dtype).itemsize
    return st.floats(-bound, bound, width=width, allow_subnormal=False)


@st.composite
def live_steps(draw, n, t):
    """Keyword arguments that say which steps are live: lengths, mask or nothing."""
    kind = draw(st.sampled_from(["all", "lengths", "mask"]))
    if kind == "lengths":
        return {"lengths": draw(hnp.arrays(np.int64, n, elements=st.integers(0, t)))}
    if kind == "mask":
        return {"mask": draw(hnp.arrays(np.bool_, (n, t)))}
    return {}


@st.composite
def terms(draw, max_n=7, max_t=6, max_d=4):
    """scores, weights and the keyword arguments of `covariance`."""
    n, t, d = (draw(st.integers(low, high)) for low, high in ((2, max_n), (1, max_t), (1, max_d)))
    dtype = draw(st.sampled_from(DTYPES))
    scores = draw(hnp.arrays(dtype, (n, t, d), elements=floats(dtype)))
    weight_shape = draw(st.sampled_from([(n, t), (n,)]))
    weights = draw(st.none() | hnp.arrays(np.float64, weight_shape, elements=floats(np.float64)))
    options = draw(live_steps(n, t))
    if draw(st.booleans()):
        options["sample_weight"] = draw(hnp.arrays(np.float64, n, elements=st.floats(0.125, 4.0)))
    options["ddof"] = draw(st.integers(0, 1))
    return scores, weights, options


@st.composite
def rewards(draw):
    """rewards (N, T) and the keyword arguments that say which steps are live."""
    n, t = draw(st.integers(0, 20)), draw(st.integers(0, 12))
    dtype = draw(st.sampled_from(DTYPES))
    return draw(hnp.arrays(dtype, (n, t), elements=floats(dtype))), draw(live_steps(n, t))


class Trajectories(NamedTuple):
    """What returns and advantages are made of."""

    rewards: Any  # (N, T), as all arrays but lengths and bootstrap_value (N,)
    values: Any
    rho: Any
    options: dict  # which steps are live, which are done, gamma: what all functions take
    lam: float = 0.95
    n: int = 5
    rho_clip: float = 1.0
    c_clip: float = 1.0

    def map(self, change):
        """Apply `change` to every (N, T) array."""
        options = {key: change(x) if np.ndim(x) == 2 else x for key, x in self.options.items()}
        return self._replace(
            rewards=change(self.rewards), values=change(self.values), rho=change(self.rho), options=options
        )

    def rows(self, rows):
        """The rows of a slice alone."""
        ends = {key: x[rows] for key, x in self.options.items() if key in ("lengths", "bootstrap_value")}
        return self.map(lambda x: x[rows]).but(**ends)

    def astype(self, dtype):
        """Convert every array of floats."""
        case = self.map(lambda x: x if x.dtype == bool else x.astype(dtype))
        bootstrap = self.options.get("bootstrap_value")
        return case if bootstrap is None else case.but(bootstrap_value=bootstrap.astype(dtype))

    def but(self, **options):
        """Replace options; None takes one away."""
        options = {**self.options, **options}
        return self._replace(options={key: x for key, x in options.items() if x is not None})

    @property
    def live(self):
        """Live steps (N, T)."""
        return reference.live_steps(self.rewards.shape, self.options.get("mask"), self.options.get("lengths"))

    def clean(self):
        """Put 0 wherever nobody may read."""
        case = self.map(lambda x: np.where(self.live, x, np.zeros((), x.dtype)))
        if "truncated" in self.options:
            read = self.flag("truncated") & ~self.flag("terminated")
            case.options["next_values"][~read] = 0
        return case

    def flag(self, name):
        """Live steps (N, T) where an option is set."""
        return self.live & self.options.get(name, False)


def make_trajectories(
    rng, shape, dtype, live="all", done=0.1, with_options=("terminated", "truncated", "bootstrap"), gamma=0.9
):
    """Random numbers of every kind, gamma a number or "steps"; junk wherever nobody may read."""

    def numbers(*shape):
        return rng.uniform(-100, 100, shape).astype(dtype)

    def some(probability):
        return rng.random(shape) < probability

    options = {"gamma": gamma}
    if gamma == "steps":
        options["gamma"] = np.clip(rng.uniform(-0.2, 1.2, shape), 0, 1).astype(dtype)
    if live == "lengths":
        options["lengths"] = rng.integers(0, shape[1] + 1, shape[0])
    if live == "mask":
        options["mask"] = some(rng.choice([0.1, 0.7, 0.95]))
    if "terminated" in with_options:
        options["terminated"] = some(done)
    if "truncated" in with_options:
        options |= {"truncated": some(done), "next_values": numbers(*shape)}
    if "bootstrap" in with_options:
        options["bootstrap_value"] = numbers(shape[0])
    rho = np.maximum(rng.uniform(-0.3, 3, shape), 0).astype(dtype)
    case = Trajectories(numbers(*shape), numbers(*shape), rho, options)
    junk = rng.choice([np.nan, np.inf, -np.inf, -1, np.finfo(dtype).max], shape).astype(dtype)
    case = case.map(lambda x: x if x.dtype == bool else np.where(case.live, x, junk))
    if "truncated" in with_options:
        read = case.flag("truncated") & ~case.flag("terminated")
        case = case.but(next_values=np.where(read, case.options["next_values"], junk))
    return case


@st.composite
def trajectories(draw, live=("all", "lengths", "mask"), min_n=0, min_t=0):
    """Trajectories with any combination of options.

    Shapes and options shrink; the numbers come from a seed. T reaches over several blocks of 8.
    """
    shape = draw(st.integers(min_n, 9)), draw(st.integers(min_t, 40))
    case = make_trajectories(
        np.random.default_rng(draw(st.integers(0, 2**32 - 1))),
        shape,
        draw(st.sampled_from(DTYPES)),
        draw(st.sampled_from(live)),
        draw(st.sampled_from([0.03, 0.3, 0.9])),
        draw(st.sets(st.sampled_from(["terminated", "truncated", "bootstrap"]))),
        draw(st.sampled_from([0.0, 0.5, 0.99, 1.0, "steps"])),
    )
    clip = st.sampled_from([0.5, 1.0, 2.0])
    lam = draw(st.sampled_from([0.0, 0.5, 0.95, 1.0]))
    return case._replace(lam=lam, n=draw(st.integers(1, 45)), rho_clip=draw(clip), c_clip=draw(clip))


@st.composite
def sequences(draw, min_n=0):
    """rewards (N,) and labels of any hashable kind.

    Rewards are sixty-fourths: sums of a few are exact, so that plain loops find equal rewards equal.
    """
    n = draw(st.integers(min_n, 16))
    numerators = st.integers(-4, 4) | st.integers(-6400, 6400)
    labels = st.sampled_from(["b", "a", 3, -1, 2.5, ("a", 1)])
    rewards = np.array(draw(st.lists(numerators, min_size=n, max_size=n))) / 64
    return rewards, draw(st.lists(labels, min_size=n, max_size=n))
