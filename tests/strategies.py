"""Hypothesis strategies: rollouts of any small shape, with lengths, masks or neither."""

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

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


@st.composite
def sequences(draw, min_n=0):
    """rewards (N,) and labels of any hashable kind.

    Rewards are sixty-fourths: sums of a few are exact, so that plain loops find equal rewards equal.
    """
    n = draw(st.integers(min_n, 16))
    numerators = st.integers(-4, 4) | st.integers(-6400, 6400)
    labels = st.sampled_from(["b", "a", 3, -1, 2.5, ("a", 1), None])
    rewards = np.array(draw(st.lists(numerators, min_size=n, max_size=n))) / 64
    return rewards, draw(st.lists(labels, min_size=n, max_size=n))
