"""All validation and array preparation.

Each function takes what the user passed and returns what the kernels expect, or raises an error
that names the argument, what was wanted and what came. Nothing is allocated for results before
every argument has passed.
"""

from __future__ import annotations

import math
import operator
import warnings
from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple, NoReturn

import numpy as np
from numpy.typing import ArrayLike, NDArray

Float = NDArray[np.floating[Any]]
Double = NDArray[np.float64]


class Steps(NamedTuple):
    """Which steps are live: at most one of the two is given."""

    lengths: NDArray[np.int64] | None  # (N,)
    mask: NDArray[np.uint8] | None  # (N, T)

    def live(self, shape: tuple[int, int]) -> NDArray[np.bool_]:
        """Return the live steps as an (N, T) array of booleans."""
        if self.lengths is not None:
            return np.arange(shape[1]) < self.lengths[:, None]
        if self.mask is not None:
            return self.mask.view(np.bool_)
        return np.broadcast_to(np.True_, shape)


class Units(NamedTuple):
    """Independent units: unit u holds the rollouts members[offsets[u]:offsets[u + 1]]."""

    members: NDArray[np.int64]  # (N,)
    offsets: NDArray[np.int64]  # (U + 1,)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def sizes(self) -> NDArray[np.int64]:
        """Rollouts in each unit (U,)."""
        return np.diff(self.offsets)

    def sums(self, values: Double) -> Double:
        """Sum `values` (N, ...) over the rollouts of each unit, giving (U, ...)."""
        result: Double = np.add.reduceat(values[self.members], self.offsets[:-1], axis=0)
        return result


def _plain(name: str, value: ArrayLike) -> NDArray[Any]:
    """Turn `value` into an array; refuse what numpy would take apart wrongly."""
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"{name} must not be a masked array; pass the mask as mask=")
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise ValueError(f"{name} must be a rectangular array: {error}") from None
    if array.dtype.kind == "O":
        raise TypeError(f"{name} must be an array of real numbers, got dtype object")
    return array


def floats(name: str, value: ArrayLike) -> Float:
    """Return `value` as a native, aligned float32 or float64 array.

    float32 and float64 come back as they are; float16 becomes float32, integers and booleans
    float64.
    """
    array = _plain(name, value)
    kind, size = array.dtype.kind, array.dtype.itemsize
    if kind not in "fiub" or (kind == "f" and size > 8):
        raise TypeError(f"{name} must be float32, float64, float16 or integers, got dtype {array.dtype}")
    target = np.dtype(np.float32 if kind == "f" and size < 8 else np.float64)
    strided = array.flags.aligned and all(stride % target.itemsize == 0 for stride in array.strides)
    if array.dtype != target or not array.dtype.isnative or not strided:
        array = array.astype(target)
    return array


def _shape_error(name: str, wanted: str, got: tuple[int, ...]) -> ValueError:
    return ValueError(f"{name} must have shape {wanted}, got {got}")


def doubles(name: str, value: ArrayLike, *shapes: tuple[int, ...]) -> Double:
    """Return `value` in float64, of one of `shapes`, each (N,) or (N, T), if any are given.

    Half precision is exact in float64: float16, and bfloat16 of ml_dtypes, known by its name alone.
    """
    array = _plain(name, value)
    exact = array.astype(np.float32) if array.dtype.name == "bfloat16" else floats(name, array)
    if shapes and exact.shape not in shapes:
        wanted = " or ".join(f"{'(N, T)' if len(shape) == 2 else '(N,)'} = {shape}" for shape in shapes)
        raise _shape_error(name, wanted, exact.shape)
    return exact.astype(np.float64, copy=False)


def sequence_rewards(value: ArrayLike) -> tuple[Double, NDArray[np.bool_]]:
    """Return rewards (N,) in float64 and which are scored; warn, once, of those that are NaN."""
    array = doubles("rewards", value)
    if array.ndim != 1:
        raise _shape_error("rewards", "(N,)", array.shape)
    bad = np.flatnonzero(np.isinf(array))
    if bad.size:
        raise ValueError(
            f"rewards must be finite, or NaN where unscorable, got rewards[{bad[0]}] = {array[bad[0]]}"
        )
    scored = ~np.isnan(array)
    missing = np.count_nonzero(~scored)
    if missing:
        message = f"{missing} of {len(array)} rewards are NaN: no statistic counts them, their advantage is 0"
        warnings.warn(message, UserWarning, stacklevel=4)  # where the caller of the public function is
    return array, scored


def scores(value: ArrayLike) -> Float:
    """Return scores (N, T, D) with a contiguous last axis, N >= 2, T >= 1, D >= 1."""
    array = floats("scores", value)
    if array.ndim != 3:
        raise _shape_error("scores", "(N, T, D)", array.shape)
    n, t, d = array.shape
    if n < 2:
        raise ValueError(f"scores must hold at least N = 2 rollouts, got shape {array.shape}")
    if t < 1 or d < 1:
        raise ValueError(f"scores must have T >= 1 steps and D >= 1 coordinates, got shape {array.shape}")
    if d > 1 and array.strides[2] != array.itemsize:
        array = np.ascontiguousarray(array)
    return array


def weights(value: ArrayLike | None, shape: tuple[int, int], live: Steps, name: str = "weights") -> Double:
    """Return weights as a float64 (N, T) array, a broadcast view where they came as (N,)."""
    if value is None:
        return np.broadcast_to(np.float64(1.0), shape)
    array = doubles(name, value, shape, shape[:1])
    finite(name, array, live, shape)
    return np.broadcast_to(array[:, None], shape) if array.ndim == 1 else array


def steps(shape: tuple[int, int], mask: ArrayLike | None = None, lengths: ArrayLike | None = None) -> Steps:
    """Return the live steps of an (N, T) array from a mask (N, T) or lengths (N,)."""
    n, t = shape
    if mask is not None and lengths is not None:
        raise ValueError("mask and lengths must not both be given")
    if lengths is not None:
        counts = _plain("lengths", lengths)
        if counts.dtype.kind not in "iu":
            raise TypeError(f"lengths must be integers, got dtype {counts.dtype}")
        if counts.shape != (n,):
            raise _shape_error("lengths", f"(N,) = ({n},)", counts.shape)
        bad = np.flatnonzero((counts < 0) | (counts > t))
        if bad.size:
            raise ValueError(f"lengths must lie in 0..T = 0..{t}, got lengths[{bad[0]}] = {counts[bad[0]]}")
        return Steps(np.ascontiguousarray(counts, dtype=np.int64), None)
    if mask is not None:
        return Steps(None, flags(mask, shape).view(np.uint8))
    return Steps(None, None)


def flags(value: ArrayLike, shape: tuple[int, ...] | None = None) -> NDArray[np.bool_]:
    """Return a mask as booleans, of the given shape or of any shape (N, T)."""
    mask = _plain("mask", value)
    if mask.ndim != 2 if shape is None else mask.shape != shape:
        wanted = "(N, T)" if shape is None else f"(N, T) = {shape}" if len(shape) == 2 else f"{shape}"
        raise _shape_error("mask", wanted, mask.shape)
    if mask.dtype.kind != "b":
        if mask.dtype.kind not in "iuf":
            raise TypeError(f"mask must be booleans, or numbers 0 and 1, got dtype {mask.dtype}")
        wrong = np.argwhere((mask != 0) & (mask != 1))
        if len(wrong):
            where = ", ".join(map(str, wrong[0]))
            raise ValueError(f"mask must hold only 0 and 1, got mask[{where}] = {mask[tuple(wrong[0])]}")
    return mask.astype(np.bool_, copy=False)


def alive(name: str, array: Double, live: NDArray[np.bool_]) -> Double:
    """Return a copy of `array` that is 0 where not live, whatever lies there, and finite elsewhere."""
    array = np.where(live, array, 0.0)
    finite(name, array)
    return array


def finite(name: str, array: Float, live: Steps | None = None, shape: tuple[int, int] | None = None) -> None:
    """Raise where `array` is not finite; name the first index.

    With `live`, only where a step is live, if `array` is (N, T), or any step of the rollout, if it
    is (N,); `shape` is then (N, T).
    """
    good = np.isfinite(array)
    if good.all():
        return
    where_live = ""
    if live is not None:
        where_live = " in live steps"
        alive = live.live(shape or array.shape)
        good |= ~(alive if array.ndim == 2 else alive.any(axis=1))
    bad = np.argwhere(~good)
    if len(bad):
        index = tuple(int(i) for i in bad[0])
        where = ", ".join(map(str, index))
        raise ValueError(f"{name} must be finite{where_live}, got {name}[{where}] = {array[index]}")


def raise_not_finite(array: Float, live: Steps) -> NoReturn:
    """Explain a result that is not finite: name the first bad live score, or else the overflow.

    Kernels do not look for NaN; it shows in what they return. This slow search runs only then.
    """
    alive = live.live(array.shape[:2])
    for n, rollout in enumerate(array):
        good = np.isfinite(rollout) | ~alive[n][:, None]
        if not good.all():
            t, d = (int(i) for i in np.argwhere(~good)[0])
            raise ValueError(
                f"scores must be finite in live steps, got scores[{n}, {t}, {d}] = {rollout[t, d]}"
            )
    raise ValueError("the result is beyond the range of float64; rescale the scores or the weights")


def non_negative(name: str, value: ArrayLike, n: int) -> Double:
    """Return an array (N,), float64, finite and non-negative."""
    array = np.ascontiguousarray(doubles(name, value, (n,)))
    finite(name, array)
    if (array < 0).any():
        i = int(np.argmax(array < 0))
        raise ValueError(f"{name} must not be negative, got {name}[{i}] = {array[i]}")
    return array


def sample_weight(value: ArrayLike | None, n: int) -> Double | None:
    """Return sample weights (N,), float64, non-negative, not all zero, the largest in [1/2, 1).

    Results do not depend on their common factor; a power of two changes no digit of them.
    """
    if value is None:
        return None
    array = non_negative("sample_weight", value, n)
    if not array.any():
        raise ValueError("sample_weight must not be all zero")
    scaled: Double = np.ldexp(array, -int(np.frexp(array.max())[1]))
    return scaled


def normaliser(weight: Double | None, n: int, ddof: int) -> float:
    """Return what sums of squares are divided by: N - ddof, or numpy.cov's form for aweights.

    With sample weights p that is v1 - ddof * v2 / v1, where v1 = sum(p) and v2 = sum(p**2).
    """
    if isinstance(ddof, bool) or not isinstance(ddof, (int, np.integer)) or ddof < 0:
        raise ValueError(f"ddof must be a non-negative integer, got {ddof!r}")
    if weight is None:
        v1 = v2 = float(n)
    else:
        v1, v2 = float(weight.sum()), float(np.square(weight).sum())
    result = v1 - ddof * v2 / v1
    if result <= 0:
        raise ValueError(
            f"ddof must leave degrees of freedom, got ddof = {ddof} for {v1**2 / v2:.6g} samples"
        )
    return result


def out_array(out: Any, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Check an output array that the caller passed."""
    if not isinstance(out, np.ndarray):
        raise TypeError(f"out must be a numpy array, got {type(out).__name__}")
    if out.shape != shape:
        raise _shape_error("out", str(shape), out.shape)
    if out.dtype != dtype or not out.dtype.isnative:
        raise TypeError(f"out must have dtype {dtype}, got {out.dtype}")
    if not out.flags.writeable:
        raise ValueError("out must be writeable")
    if not out.flags.aligned or any(stride % out.itemsize for stride in out.strides):
        raise ValueError("out must be aligned")
    return out


def units(groups: Sequence[Hashable] | NDArray[Any] | None, n: int) -> Units:
    """Return the independent units: groups of rollouts by label, or single rollouts."""
    if groups is None:
        return Units(np.arange(n), np.arange(n + 1))
    labels = group_labels(groups, n)
    members = np.argsort(labels, kind="stable")
    offsets = np.concatenate([[0], np.cumsum(np.bincount(labels))])
    if len(offsets) < 3:
        raise ValueError("groups must hold at least two different labels, got one")
    return Units(members, offsets)


def group_labels(groups: Sequence[Hashable] | NDArray[Any], n: int) -> NDArray[np.int64]:
    """Number arbitrary hashable labels (N,) in the order of their first appearance."""
    if hasattr(groups, "__array__"):  # tensors too: theirs hash by identity, so no two would be equal
        array = np.asarray(groups)
        if array.ndim != 1:
            raise _shape_error("groups", f"(N,) = ({n},)", array.shape)
        groups = array.tolist()
    if len(groups) != n:
        raise _shape_error("groups", f"(N,) = ({n},)", (len(groups),))
    seen: dict[Hashable, int] = {}
    try:
        labels = np.array([seen.setdefault(label, len(seen)) for label in groups], dtype=np.int64)
    except TypeError:
        raise TypeError("groups must hold hashable labels") from None
    if any(label != label for label in seen):
        raise ValueError("groups must not hold NaN: it is not equal to itself")
    return labels


def threads(value: int | None) -> int | None:
    """Return the number of threads asked for, or None for the default."""
    if value is None:
        return None
    try:
        count = operator.index(value)
    except TypeError:
        raise TypeError(f"num_threads must be an integer, got {type(value).__name__}") from None
    if count < 1:
        raise ValueError(f"num_threads must be at least 1, got {count}")
    return min(count, 1024)


def _number(name: str, value: Any) -> float:
    if isinstance(value, str) or np.ndim(value) != 0:
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    try:
        return float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}") from None


def confidence(value: float) -> float:
    """Return a confidence level strictly between 0 and 1."""
    level = _number("confidence", value)
    if not 0.0 < level < 1.0:
        raise ValueError(f"confidence must lie strictly between 0 and 1, got {value!r}")
    return level


def gamma(value: float) -> float:
    """Return a discount factor in [0, 1]."""
    discount = _number("gamma", value)
    if not 0.0 <= discount <= 1.0:
        raise ValueError(f"gamma must lie in 0..1, got {value!r}")
    return discount


def choice(name: str, value: Any, options: Sequence[Any]) -> None:
    """Raise unless `value` is among `options`."""
    if value not in options:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, options))}, got {value!r}")


def non_negative_number(name: str, value: float) -> float:
    """Return a finite number >= 0."""
    number = _number(name, value)
    if not 0.0 <= number < math.inf:
        raise ValueError(f"{name} must be finite and not negative, got {value!r}")
    return number


def degrees_of_freedom(name: str, count: int, ddof: int) -> int:
    """Return what a sum of `count` squares is divided by; at least one must be left."""
    if count <= ddof:
        raise ValueError(f"{name} must have at least ddof + 1 = {ddof + 1} entries that count, got {count}")
    return count - ddof


def every_group(good: NDArray[np.bool_], rows: NDArray[np.bool_], wanted: str) -> None:
    """Raise unless `good` for each row that `rows` marks; name the first that is not."""
    if not good.all():
        row = np.flatnonzero(rows)[np.argmin(good)]
        raise ValueError(f"{wanted} in the group of rewards[{row}]")


def placed(rewards: Double, last: NDArray[np.int64]) -> None:
    """Raise unless rewards (N,) are finite, and 0 where there is no last step (-1) to hold them."""
    finite("rewards", rewards)
    lost = np.flatnonzero((last < 0) & (rewards != 0))
    if lost.size:
        i = lost[0]
        raise ValueError(f"mask must leave a step for rewards[{i}] = {rewards[i]}, got none in row {i}")
