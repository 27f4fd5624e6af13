"""Rewards into per-step weights: backward scans over the steps of each rollout.

Every one is a recurrence over the live steps of a row, from the last to the first: what flows to a
step t from its next live step t', discounted once for each live step and cut where the episode ends.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rlvar import _check, _core
from rlvar._types import Double, Float

_OPTIONS = """lengths : array_like of int, shape (N,), optional
        Live steps are the first ``lengths[n]``. Not together with `mask`.
    mask : array_like of bool, shape (N, T), optional
        Live steps, those that belong to the policy. Gaps are skipped: the decision process is the
        sequence of live steps, one discount for each. What lies under the mask is never read.
    terminated : array_like of bool, shape (N, T), optional
        Steps after which the episode is over: nothing flows to them from later steps.
    truncated : array_like of bool, shape (N, T), optional
        Steps after which the episode was cut short: nothing flows to them from later steps either,
        but the value of the state that came next, in `next_values`. A step marked as both is
        terminated.
    next_values : array_like, shape (N, T), optional
        Value of the state after each truncated step; read there only. Goes with `truncated`.
    bootstrap_value : array_like, shape (N,), optional
        Value of the state after the last live step of each row, 0 by default.
    time_axis : {-1, 0, 1}, default -1
        Axis of the steps: with 0, arrays of shape (N, T) are given and returned as (T, N)."""

_RAISES = """Raises
    ------
    ValueError, TypeError
        For wrong shapes or dtypes, factors outside [0, 1], `lengths` outside 0..T or beside `mask`,
        `truncated` without `next_values` or the reverse, a number that is read but not finite (the
        first is named), or a result beyond the range of its dtype."""

_RESULTS = f"""Returns
    -------
    ndarray, shape (N, T)
        Exactly 0 on steps that are not live; float32 if rewards, values, next values and rho, where given,
        are (or are half precision), else float64. What is carried on is float64.

    {_RAISES}"""

_documented = _check.documented(options=_OPTIONS, raises=_RAISES, results=_RESULTS)

_NO_OPTION = (None,) * 7  # of a scan, except gamma


def _run(
    kernel: Any, scan: _check.Scan, own: tuple[Any, ...], outs: tuple[NDArray[Any] | None, ...]
) -> tuple[Float, ...]:
    """Run the kernel into new arrays or the caller's, and turn the results into the caller's axes."""
    given = scan.as_given(scan.arrays[0])
    read = [*scan.arrays, *(each for each in scan.options if isinstance(each, np.ndarray))]
    results: list[Float] = []
    for out in outs:
        if out is not None:
            _check.out_array(out, given.shape, given.dtype)
            for array in map(scan.as_given, read):
                same = out.ctypes.data == array.ctypes.data and out.strides == array.strides
                if not same and np.shares_memory(out, array):
                    raise ValueError("out must not overlap an argument, unless it is that argument")
        # Elsewhere the kernel would add in another order: the bits would depend on the strides of `out`.
        results.append(scan.empty() if out is None or not out.flags.c_contiguous else scan.as_given(out))
    # Kernels say whether all that they read, and their results, were finite.
    if not kernel(*scan.arrays, *own, scan.options, *results):
        scan.raise_not_finite()
        raise ValueError(f"the result is beyond the range of {given.dtype}; rescale the rewards")
    returned = []
    for result, out in zip(map(scan.as_given, results), outs, strict=True):
        if out is not None and not out.flags.c_contiguous:
            out[...] = result
        returned.append(result if out is None else out)
    return tuple(returned)


@_documented
def reward_to_go(
    rewards: ArrayLike,
    gamma: float | ArrayLike = 1.0,
    *,
    lengths: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    terminated: ArrayLike | None = None,
    truncated: ArrayLike | None = None,
    next_values: ArrayLike | None = None,
    bootstrap_value: ArrayLike | None = None,
    time_axis: int = -1,
    out: NDArray[Any] | None = None,
) -> Float:
    r"""Return-to-go of every step.

    .. math:: G_t = r_t + \gamma_t \begin{cases} 0 & \text{terminated} \\
              V^{\mathrm{next}}_t & \text{truncated} \\ G_{t'} & \text{otherwise} \end{cases}

    with :math:`t'` the next live step after :math:`t`, and beyond the last one the bootstrap value.

    Parameters
    ----------
    rewards : array_like, shape (N, T)
        Reward of each step. float32 and float64 are used as they are, with any strides; float16 and
        bfloat16 are converted to float32, integers and booleans to float64.
    gamma : float or array_like, shape (N, T), default 1.0
        Discount factor in [0, 1] in units of one live step, or one for each step; a 0 cuts there.
    %(options)s
    out : ndarray, shape (N, T), optional
        Where the result goes, of the result's dtype, any strides. It may be an argument itself, but not
        overlap one otherwise. After an error its content is undefined.

    %(results)s

    References
    ----------
    Sutton & Barto, *Reinforcement Learning* (2018), eq. 3.9; Pardo et al. (2018), arXiv 1712.00378.

    Examples
    --------
    >>> import rlvar
    >>> rlvar.reward_to_go([[1.0, 1.0, 4.0], [2.0, 1.0, 9.0]], 0.5, lengths=[3, 2])
    array([[2.5, 3. , 4. ],
           [2.5, 1. , 0. ]])
    """
    no_option = lengths is mask is terminated is truncated is next_values is bootstrap_value is out is None
    if no_option and time_axis == -1 and type(gamma) is float and 0.0 <= gamma <= 1.0:
        # The common case, the shortest way. What is wrong with it falls through and is named below.
        array = _check.floats("rewards", rewards)
        if array.ndim == 2:
            result = np.empty(array.shape, array.dtype)
            if _core.reward_to_go(array, (gamma, *_NO_OPTION), result):
                return result
    ends = terminated, truncated, next_values, bootstrap_value
    scan = _check.scan({"rewards": rewards}, gamma, lengths, mask, ends, time_axis)
    return _run(_core.reward_to_go, scan, (), (out,))[0]


@_documented
def gae(
    rewards: ArrayLike,
    values: ArrayLike,
    gamma: float | ArrayLike,
    lam: float,
    *,
    lengths: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    terminated: ArrayLike | None = None,
    truncated: ArrayLike | None = None,
    next_values: ArrayLike | None = None,
    bootstrap_value: ArrayLike | None = None,
    time_axis: int = -1,
    out: tuple[NDArray[Any], NDArray[Any]] | None = None,
) -> tuple[Float, Float]:
    r"""Generalised advantage estimates, and the returns that values are fitted to.

    .. math:: A_t = \delta_t + \gamma_t \lambda A_{t'}, \qquad
              \delta_t = r_t + \gamma_t V_{t'} - V_t

    where :math:`t'` is the next live step after :math:`t`. After a terminated step V and A are 0; after
    a truncated one A is 0 and V the next value; after the last live step V is the bootstrap value. The
    returns are :math:`A_t + V_t`, the lambda-returns.

    Parameters
    ----------
    rewards, values : array_like, shape (N, T)
        Reward of each step, as in `reward_to_go`, and value of its state.
    gamma : float in [0, 1] or array_like, shape (N, T), as in `reward_to_go`
    lam : float
        Trace decay in [0, 1]: 0 gives the one-step error, 1 the return-to-go minus the value.
    %(options)s
    out : pair of ndarray, shape (N, T), optional, as in `reward_to_go`

    Returns
    -------
    advantages, returns : ndarray, shape (N, T)
        As for `reward_to_go`.

    %(raises)s

    References
    ----------
    Schulman et al., "High-dimensional continuous control using GAE" (2016), eq. 16, arXiv 1506.02438.

    Examples
    --------
    >>> import rlvar
    >>> rlvar.gae([[1.0, 2.0]], [[0.5, 1.0]], gamma=1.0, lam=0.5)  # advantages, returns
    (array([[2., 1.]]), array([[2.5, 2. ]]))
    """
    ends = terminated, truncated, next_values, bootstrap_value
    scan = _check.scan({"rewards": rewards, "values": values}, gamma, lengths, mask, ends, time_axis)
    advantages, returns = _run(_core.gae, scan, (_check.discount("lam", lam),), _pair(out))
    return advantages, returns


@_documented
def lambda_returns(
    rewards: ArrayLike,
    values: ArrayLike,
    gamma: float | ArrayLike,
    lam: float,
    *,
    lengths: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    terminated: ArrayLike | None = None,
    truncated: ArrayLike | None = None,
    next_values: ArrayLike | None = None,
    bootstrap_value: ArrayLike | None = None,
    time_axis: int = -1,
) -> Float:
    r"""Lambda-returns: the second result of `gae`.

    .. math:: G^\lambda_t = r_t + \gamma_t \big((1 - \lambda) V_{t'} + \lambda G^\lambda_{t'}\big)

    with :math:`t'` the next live step after :math:`t`; beyond the last one both are the bootstrap value.

    Parameters
    ----------
    rewards, values, gamma, lam
        As in `gae`: with lam = 0 one-step targets, with lam = 1 returns-to-go.
    %(options)s

    %(results)s

    References
    ----------
    Sutton & Barto, *Reinforcement Learning* (2018), section 12.1.

    Examples
    --------
    >>> import rlvar
    >>> rlvar.lambda_returns([[1.0, 2.0]], [[0.5, 1.0]], gamma=1.0, lam=0.5)
    array([[2.5, 2. ]])
    """
    ends = terminated, truncated, next_values, bootstrap_value
    scan = _check.scan({"rewards": rewards, "values": values}, gamma, lengths, mask, ends, time_axis)
    return _run(_core.gae, scan, (_check.discount("lam", lam),), (None, None))[1]


@_documented
def n_step_returns(
    rewards: ArrayLike,
    values: ArrayLike,
    n: int,
    gamma: float | ArrayLike,
    *,
    lengths: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    terminated: ArrayLike | None = None,
    truncated: ArrayLike | None = None,
    next_values: ArrayLike | None = None,
    bootstrap_value: ArrayLike | None = None,
    time_axis: int = -1,
) -> Float:
    r"""N-step returns: n rewards, then the value of the state reached.

    .. math:: G^{(n)}_t = r_t + \gamma r_{t+1} + \dots + \gamma^{n-1} r_{t+n-1} + \gamma^n V_{t+n}

    counted in live steps. A terminated or truncated step, or the end of the row, stops it earlier: with
    nothing, the next value, or the bootstrap value.

    Parameters
    ----------
    rewards, values, gamma
        As in `gae`.
    n : int
        Number of rewards, at least 1.
    %(options)s

    %(results)s

    References
    ----------
    Sutton & Barto, *Reinforcement Learning* (2018), section 7.1.

    Examples
    --------
    >>> import rlvar
    >>> rlvar.n_step_returns([[1.0, 2.0, 3.0]], [[9.0, 8.0, 7.0]], 2, gamma=0.5)
    array([[3.75, 3.5 , 3.  ]])
    """
    ends = terminated, truncated, next_values, bootstrap_value
    scan = _check.scan({"rewards": rewards, "values": values}, gamma, lengths, mask, ends, time_axis)
    count = _check.positive_integer("n", n)
    scan.raise_not_finite()
    result = scan.empty()
    result[...] = _n_steps(scan, count)
    return scan.as_given(_check.in_range(result, "rewards"))


def _n_steps(scan: _check.Scan, n: int) -> Double:
    """N-step returns (N, T) in float64, 0 on steps that are not live.

    A step is the map x -> a + c x of what the next live step holds. Maps of 1, 2, 4, ... steps are composed
    by doubling: O(T log n), without dividing by a power of gamma.
    """
    rows, steps = scan.arrays[0].shape
    live = scan.steps.live((rows, steps))

    def ended(array: Any, end: Any) -> NDArray[Any]:
        """`array`, one column longer: the end of a row maps what it holds, the bootstrap value, to itself."""
        whole = np.full((rows, steps + 1), end)
        whole[:, :-1] = array
        return whole

    c = np.full((rows, steps), scan.gamma) if scan.gammas is None else scan.gammas
    a = scan.arrays[0].astype(np.float64)
    if scan.next_values is not None:
        cut = scan.bootstrapped
        a, c = np.where(cut, a + c * scan.next_values, a), np.where(cut, 0, c)
    if scan.terminated is not None:
        c = np.where(scan.terminated, 0, c)
    a, c = ended(a, 0.0), ended(c, 1.0)
    x = ended(scan.arrays[1], 0.0 if scan.bootstrap is None else scan.bootstrap[:, None])
    ahead = ended(np.where(live, np.arange(steps), steps), steps)  # the next live step, this one included
    ahead = np.minimum.accumulate(ahead[:, ::-1], axis=1)[:, ::-1]
    ahead = ended(ahead[:, 1:], steps)

    left = min(n, max(steps, 1))
    while left:
        a_ahead, c_ahead, x_ahead = (np.take_along_axis(each, ahead, axis=1) for each in (a, c, x))
        if left & 1:
            x = a + c * x_ahead
        a, c, ahead = a + c * a_ahead, c * c_ahead, np.take_along_axis(ahead, ahead, axis=1)
        left >>= 1
    return np.where(live, x[:, :-1], 0.0)


@_documented
def vtrace(
    rewards: ArrayLike,
    values: ArrayLike,
    rho: ArrayLike,
    gamma: float | ArrayLike,
    lam: float = 1.0,
    *,
    rho_clip: float = 1.0,
    c_clip: float = 1.0,
    lengths: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    terminated: ArrayLike | None = None,
    truncated: ArrayLike | None = None,
    next_values: ArrayLike | None = None,
    bootstrap_value: ArrayLike | None = None,
    time_axis: int = -1,
) -> tuple[Float, Float]:
    r"""V-trace targets and advantages for rollouts of another policy.

    .. math:: v_t = V_t + \rho_t \delta_t + \gamma_t c_t (v_{t'} - V_{t'}), \qquad
              A_t = \rho_t (r_t + \gamma_t v_{t'} - V_t)

    with :math:`\rho_t = \min(\bar\rho, \pi/\mu)`, :math:`c_t = \lambda \min(\bar c, \pi/\mu)`,
    :math:`\delta_t = r_t + \gamma_t V_{t'} - V_t`, and :math:`t'` the next live step after :math:`t`, or what
    there is in its place as in `gae`.

    Parameters
    ----------
    rewards, values, gamma, lam
        As in `gae`.
    rho : array_like, shape (N, T)
        Importance ratio pi/mu of each step's action: the policy that is learnt over the one that
        acted; at least 0, not clipped.
    rho_clip, c_clip : float, default 1.0
        Upper bounds of the ratios in the error and in the trace; infinity for none.
    %(options)s

    Returns
    -------
    targets, advantages : ndarray, shape (N, T)
        As for `reward_to_go`.

    %(raises)s

    References
    ----------
    Espeholt et al., "IMPALA" (2018), section 4.1, arXiv 1802.01561.

    Examples
    --------
    >>> import rlvar
    >>> rlvar.vtrace([[1.0, 2.0]], [[0.5, 1.0]], [[1.0, 3.0]], gamma=1.0)
    (array([[3., 2.]]), array([[2.5, 1. ]]))
    """
    ends = terminated, truncated, next_values, bootstrap_value
    arrays = {"rewards": rewards, "values": values, "rho": rho}
    scan = _check.scan(arrays, gamma, lengths, mask, ends, time_axis)
    bounds = _check.bound("rho_clip", rho_clip), _check.bound("c_clip", c_clip)
    decay = _check.discount("lam", lam)
    _check.ratios(scan)
    own, ratio = scan.arrays[:2], scan.arrays[2]
    live = scan.steps.live(ratio.shape)
    weight, trace = (np.minimum(ratio, bound, where=live, out=np.zeros_like(ratio)) for bound in bounds)
    # What is beyond a step that stops counts in its error alone: the trace ends there.
    stops = [marks for marks in (scan.terminated, scan.truncated) if marks is not None]
    along = scan._replace(
        gammas=(scan.gamma if scan.gammas is None else scan.gammas) * (decay * trace.astype(np.float64)),
        terminated=np.bitwise_or.reduce(stops) if stops else None,
        truncated=None,
        next_values=None,
        bootstrap=None,
    )

    def errors(values: Float) -> Float:
        of_values = scan._replace(arrays=[own[0], values], names=scan.names[:2])
        return scan.as_given(_run(_core.gae, of_values, (0.0,), (None, None))[0])

    collected = along._replace(
        arrays=[_check.in_range(weight * errors(own[1]), "rewards")], names=scan.names[:1]
    )
    correction = scan.as_given(_run(_core.reward_to_go, collected, (), (None,))[0])
    targets = _check.in_range(np.where(live, own[1] + correction, 0).astype(ratio.dtype), "rewards")
    advantages = _check.in_range(weight * (errors(targets) + correction), "rewards")
    return scan.as_given(targets), scan.as_given(advantages)


def _pair(out: Any) -> tuple[Any, Any]:
    if out is None:
        return None, None
    if not isinstance(out, (tuple, list)) or len(out) != 2:
        raise TypeError("out must be a pair of arrays: advantages, returns")
    if all(isinstance(array, np.ndarray) for array in out) and np.shares_memory(*out):
        raise ValueError("out must be two arrays that share no memory")
    return out[0], out[1]
