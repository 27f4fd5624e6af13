"""Rewards into per-step weights: backward scans over the steps of each rollout."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rlvar import _check, _core


def reward_to_go(
    rewards: ArrayLike,
    gamma: float = 1.0,
    *,
    mask: ArrayLike | None = None,
    lengths: ArrayLike | None = None,
    out: NDArray[Any] | None = None,
) -> NDArray[Any]:
    r"""Return-to-go of every step.

    .. math:: G_{n,t} = r_{n,t} + \gamma\, G_{n,t'}

    where :math:`t'` is the next live step after :math:`t` (:math:`G = 0` if there is none).

    Parameters
    ----------
    rewards : array_like, shape (N, T)
        Reward of each step. float32 and float64 are used as they are, with any strides; float16 is
        converted to float32, integers and booleans to float64.
    gamma : float, default 1.0
        Discount factor in [0, 1], in units of one live step.
    mask : array_like of bool, shape (N, T), optional
        Live steps, those that belong to the policy. Gaps are skipped: the decision process is the
        sequence of live steps, one `gamma` for each. What lies under the mask is never read.
    lengths : array_like of int, shape (N,), optional
        Live steps are the first ``lengths[n]``. Not together with `mask`.
    out : ndarray, shape (N, T), optional
        Where the result goes, of the result's dtype, any strides. It may be `rewards` itself.

    Returns
    -------
    ndarray, shape (N, T)
        Return-to-go, float32 or float64 as the rewards; exactly 0 on steps that are not live.

    Raises
    ------
    ValueError
        For wrong shapes, `gamma` outside [0, 1], lengths outside 0..T, or a reward of a live step
        that is not finite (the first is named).
    TypeError
        For dtypes that are not real numbers.

    References
    ----------
    Sutton & Barto, *Reinforcement Learning: An Introduction* (2018), section 3.3, eq. 3.9.

    Examples
    --------
    >>> import rlvar
    >>> rlvar.reward_to_go([[1.0, 1.0, 4.0], [2.0, 1.0, 9.0]], 0.5, lengths=[3, 2])
    array([[2.5, 3. , 4. ],
           [2.5, 1. , 0. ]])
    """
    array = _check.floats("rewards", rewards)
    if array.ndim != 2:
        raise ValueError(f"rewards must have shape (N, T), got {array.shape}")
    discount = _check.gamma(gamma)
    live = _check.steps(array.shape, mask, lengths)
    _check.finite("rewards", array, live)
    if out is None:
        result = np.empty(array.shape, array.dtype)
    else:
        result = _check.out_array(out, array.shape, array.dtype)
        same = result.ctypes.data == array.ctypes.data and result.strides == array.strides
        if not same and np.may_share_memory(result, array):
            array = array.copy()
    _core.reward_to_go(array, discount, *live, result, None)
    return result
