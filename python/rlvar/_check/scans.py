"""The arguments of a backward scan over the steps of each rollout."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rlvar._check.arrays import (
    Steps,
    _shape_error,
    doubles,
    finite,
    flags,
    floats,
    log_probabilities,
    refuse,
    row_ends,
    steps,
)
from rlvar._check.options import choice, discount
from rlvar._types import Double, Float


class Scan(NamedTuple):
    """The checked arguments of a backward scan; all (N, T) arrays of one dtype."""

    arrays: list[Float]  # rewards, and what else there is to read at every step
    gamma: float
    gammas: Double | None  # one discount a step
    steps: Steps
    terminated: NDArray[np.uint8] | None
    truncated: NDArray[np.uint8] | None
    next_values: Float | None
    bootstrap: Double | None  # (N,)
    names: Sequence[str]
    time_first: bool  # whether the caller's arrays are (T, N)

    @property
    def options(self) -> tuple[Any, ...]:
        """What the kernels take after their own arguments."""
        ends = (self.terminated, self.truncated, self.next_values, self.bootstrap)
        return (self.gamma, self.gammas, *self.steps, *ends)

    @property
    def bootstrapped(self) -> NDArray[np.bool_]:
        """Which steps (N, T) take a next value: those truncated and not terminated."""
        assert self.truncated is not None
        cut = self.truncated.view(np.bool_)
        return cut if self.terminated is None else cut & ~self.terminated.view(np.bool_)

    @property
    def open_ended(self) -> NDArray[np.bool_]:
        """Which rows (N,) take a bootstrap value: no episode ends at their last live step."""
        live = self.steps.live(self.arrays[0].shape)
        last: NDArray[np.bool_] = live & (np.arange(1, live.shape[1] + 1) == row_ends(live)[:, None])
        for marks in (self.terminated, self.truncated):
            if marks is not None:
                last &= marks == 0
        return np.asarray(last.any(axis=1))

    def empty(self) -> Float:
        """Allocate a result (N, T) with the memory order of the caller's arrays."""
        given = self.as_given(self.arrays[0])
        return self.as_given(np.empty(given.shape, given.dtype))

    def as_given(self, result: Float) -> Float:
        """Turn a result (N, T) into the caller's axes."""
        return result.T if self.time_first else result

    def raise_not_finite(self) -> None:
        """Raise if a number that the scan reads is not finite; name the first."""
        shape = self.arrays[0].shape
        for name, array in zip(self.names, self.arrays, strict=True):
            if name in ("logp", "behavior_logp"):
                log_probabilities(name, array, self.steps.live(shape), self.time_first)
            else:
                finite(name, array, self.steps, shape, self.time_first)
        if self.gammas is not None:
            finite("gamma", self.gammas, self.steps, shape, self.time_first)
        if self.next_values is not None and self.truncated is not None:
            read = self.steps.live(shape) & self.bootstrapped
            finite("next_values", self.next_values, Steps(None, read.view(np.uint8)), shape, self.time_first)
        if self.bootstrap is not None:
            finite("bootstrap_value", self.bootstrap)


def scan(
    arrays: dict[str, ArrayLike],
    gamma: float | ArrayLike,
    lengths: ArrayLike | None,
    mask: ArrayLike | None,
    ends: Sequence[ArrayLike | None],
    time_axis: int,
) -> Scan:
    """Check the arguments of a backward scan; `arrays`, by name, start with the rewards.

    `ends` says where and how episodes end: terminated, truncated, next_values, bootstrap_value.
    """
    terminated, truncated, next_values, bootstrap_value = ends
    choice("time_axis", time_axis, (-1, 0, 1))
    time_first = time_axis == 0
    axes = "(T, N)" if time_first else "(N, T)"
    checked = {name: floats(name, value) for name, value in arrays.items()}
    first = next(iter(checked))
    given = checked[first].shape
    if len(given) != 2:
        raise _shape_error(first, axes, given)
    shape = given[::-1] if time_first else given
    gammas = None if gamma is None or np.isscalar(gamma) else doubles("gamma", gamma)
    if gammas is not None and gammas.ndim == 0:
        gammas = None
    factor = discount("gamma", gamma) if gammas is None else 1.0
    if (truncated is None) != (next_values is None):
        pair = ("truncated", "next_values")
        present, missing = pair if next_values is None else pair[::-1]
        raise ValueError(
            f"{present} needs {missing}: next_values are the values of the states after truncated steps"
        )
    beyond = None if next_values is None else floats("next_values", next_values)
    tail = None if bootstrap_value is None else doubles("bootstrap_value", bootstrap_value)
    for name, array in {**checked, "gamma": gammas, "next_values": beyond}.items():
        if array is not None and array.shape != given:
            raise _shape_error(name, f"{axes} = {given}", array.shape)
    if tail is not None and tail.shape != shape[:1]:
        raise _shape_error("bootstrap_value", f"(N,) = ({shape[0]},)", tail.shape)

    def turned(array: Any) -> Any:
        return array.T if time_first and array is not None else array

    def marks(name: str, value: ArrayLike | None) -> NDArray[np.uint8] | None:
        return None if value is None else turned(flags(value, given, name, axes).view(np.uint8))

    if lengths is None and mask is not None:
        live = Steps(None, marks("mask", mask))
    else:
        live = steps(shape, lengths=lengths, mask=mask)
    read = [*checked.values()] if beyond is None else [*checked.values(), beyond]
    dtype = np.result_type(*read)
    read = [turned(array.astype(dtype, copy=False)) for array in read]
    result = Scan(
        read[: len(checked)],
        factor,
        turned(gammas),
        live,
        marks("terminated", terminated),
        marks("truncated", truncated),
        None if beyond is None else read[-1],
        None if tail is None else np.ascontiguousarray(tail),
        list(checked),
        time_first,
    )
    if tail is not None and not np.isfinite(tail).all():
        result = result._replace(bootstrap=np.where(result.open_ended, tail, 0.0))
    if result.gammas is not None:
        wrong = ~((result.gammas >= 0) & (result.gammas <= 1)) & live.live(shape)
        refuse("gamma", result.gammas, wrong, "lie in 0..1", time_first)
    return result


def ratios(scan: Scan) -> None:
    """Raise unless the importance ratios of a scan, its last array, are finite and >= 0 where live."""
    array = scan.arrays[-1]
    finite("rho", array, scan.steps, array.shape, scan.time_first)
    wrong = (array < 0) & scan.steps.live(array.shape)
    refuse("rho", array, wrong, "not be negative", scan.time_first)
