"""Arrays: dtypes, shapes, live steps, what is finite."""

from __future__ import annotations

import math
import numbers
import sys
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rlvar._types import Double, Float

if TYPE_CHECKING:
    from rlvar._check.packed import Scores


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

    def among(self, rows: NDArray[np.bool_], steps: int) -> Steps:
        """Return those of some rollouts (N,), where the others have no live step."""
        if self.mask is not None:
            return Steps(None, self.mask * rows[:, None])
        return Steps(np.where(rows, np.int64(steps) if self.lengths is None else self.lengths, 0), None)

    def rows(self, rows: slice) -> Steps:
        """Return those of some rollouts."""
        return Steps(*(None if each is None else each[rows] for each in self))  # type: ignore[arg-type]


def _plain(name: str, value: ArrayLike, missing: bool = False) -> NDArray[Any]:
    """Turn `value` into an array of plain numbers, dates or strings; with `missing`, None into NaN."""
    array = _array(name, value)
    if array.dtype.kind == "O" and array.ndim:
        array = _array(name, array.tolist())  # which may all be integers
    if array.dtype.kind == "O":
        if array.ndim == 0:
            raise TypeError(f"{name} must be an array of numbers, got {type(value).__name__}")
        array = _numbers(name, array, missing)
    return array


def _array(name: str, value: Any) -> NDArray[Any]:
    try:
        return np.asarray(_readable(value))
    except MemoryError:
        raise
    except Exception as error:  # an object's own __array__ may raise anything
        kind = ValueError if isinstance(error, ValueError) else TypeError
        hint = "; pad its rows and pass lengths=" if "inhomogeneous" in str(error) else ""
        raise kind(f"{name} cannot be read as an array{hint}: {error}") from None


_PLAIN = {float, int, bool, str, bytes, type(None), np.float64, np.float32, np.int64, np.bool_}


def _readable(value: Any) -> Any:
    """Turn tensors into arrays, in lists too; refuse masked arrays, whose mask numpy would drop."""
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError("it is a masked array; fill it, and pass mask= for the live steps")
    tensor = getattr(sys.modules.get("torch"), "Tensor", ())
    if isinstance(value, tensor):
        return _untorched(value)
    if type(value) in (list, tuple) and not set(map(type, value)) <= _PLAIN:
        return [_readable(each) for each in value]
    return value


def _untorched(tensor: Any) -> NDArray[Any]:
    """Return a torch tensor of any layout, dtype and device as an array, without a copy where possible."""
    if tensor.is_meta:
        raise TypeError("it is a meta tensor, which has no data")
    if tensor.is_nested:
        raise TypeError("it is a nested tensor; pad it, or pass its values() to Rollouts.packed")
    if hasattr(tensor, "full_tensor"):
        raise TypeError("it is a distributed tensor; pass its full_tensor()")
    tensor = tensor.detach()
    if str(tensor.layout) != "torch.strided":
        tensor = tensor.to_dense()
    if tensor.is_quantized:
        tensor = tensor.dequantize()
    if str(tensor.dtype).startswith(("torch.bfloat16", "torch.float8")):  # which numpy lacks
        tensor = tensor.float()
    array: NDArray[Any] = tensor.numpy(force=True)
    return array


def _numbers(name: str, objects: NDArray[Any], missing: bool) -> Double:
    """Return objects, such as fractions and huge integers, in float64; name the first non-number."""
    result = np.empty(objects.shape)
    for index, each in np.ndenumerate(objects):
        try:
            if missing and (each is None or type(each).__name__ == "NAType"):
                each = math.nan
            elif not isinstance(each, numbers.Number):
                raise TypeError
            result[index] = float(each)
        except (TypeError, ValueError, OverflowError):
            where = ", ".join(map(str, index))
            hint = ": fill it in or leave it out" if each is None else ""
            raise TypeError(f"{name} must be real numbers, got {name}[{where}] = {each!r}{hint}") from None
    return result


_KERNEL_DTYPES = (np.dtype(np.float32), np.dtype(np.float64))


def floats(name: str, value: ArrayLike, missing: bool = False) -> Float:
    """Return `value` as a native, aligned float32 or float64 array.

    float32 and float64 come back as they are; float16 and bfloat16 become float32, integers and
    booleans float64. numpy saves bfloat16 without its name, as two bytes: those are bfloat16 too.
    """
    if type(value) is np.ndarray and value.dtype in _KERNEL_DTYPES:
        flags = value.flags
        if flags.c_contiguous and flags.aligned:
            return value
    array = _plain(name, value, missing)
    if array.dtype.name.startswith(("bfloat16", "float8")):  # of ml_dtypes, known by their names alone
        return array.astype(np.float32)
    if array.dtype == "V2":
        return (array.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    kind, size = array.dtype.kind, array.dtype.itemsize
    if kind not in "fiub" or (kind == "f" and size > 8):
        raise TypeError(
            f"{name} must be float32, float64, half precision, integers or booleans, got dtype {array.dtype}"
        )
    target = np.dtype(np.float32 if kind == "f" and size < 8 else np.float64)
    strided = array.flags.aligned and all(stride % target.itemsize == 0 for stride in array.strides)
    if array.dtype != target or not array.dtype.isnative or not strided:
        array = array.astype(target)
    return array


def rows(value: Any) -> Any:
    """Return what picks rollouts, a slice or an array of indices or booleans, as numpy takes it."""
    if isinstance(value, slice):
        return value
    array = _plain("rows", value)
    if array.ndim != 1:
        raise TypeError(f"rollouts must be indexed by a slice or an array, got {type(value).__name__}")
    return array if array.size else array.astype(np.intp)


def _shape_error(name: str, wanted: str, got: tuple[int, ...]) -> ValueError:
    return ValueError(f"{name} must have shape {wanted}, got {got}")


def doubles(name: str, value: ArrayLike, *shapes: tuple[int, ...], missing: bool = False) -> Double:
    """Return `value` in float64, of one of `shapes`, each (N,) or (N, T), if any are given.

    Half precision is exact in float64.
    """
    exact = floats(name, value, missing)
    if shapes and exact.shape not in shapes:
        wanted = " or ".join(f"{'(N, T)' if len(shape) == 2 else '(N,)'} = {shape}" for shape in shapes)
        raise _shape_error(name, wanted, exact.shape)
    return exact.astype(np.float64, copy=False)


def sequence_rewards(value: ArrayLike) -> tuple[Double, NDArray[np.bool_]]:
    """Return rewards (N,) in float64 and which are scored; warn once if some are NaN."""
    array = doubles("rewards", value, missing=True)
    if array.ndim != 1:
        raise _shape_error("rewards", "(N,)", array.shape)
    refuse("rewards", array, np.isinf(array), "be finite, or NaN where unscorable")
    scored = ~np.isnan(array)
    missing = np.count_nonzero(~scored)
    if missing:
        message = f"{missing} of {len(array)} rewards are NaN; they are ignored and get advantage 0"
        warnings.warn(message, UserWarning, stacklevel=5)  # where the caller of the public function is
    return array, scored


def scores(value: ArrayLike, rollouts: int = 2, name: str = "scores", width: str = "D") -> Float:
    """Return scores (N, T, D) with a contiguous last axis, N >= `rollouts`, T >= 1, D >= 1."""
    array = floats(name, value)
    if array.ndim != 3:
        raise _shape_error(name, f"(N, T, {width})", array.shape)
    n, t, d = array.shape
    if n < rollouts:
        raise ValueError(f"{name} must have at least N = {rollouts} rollouts, got shape {array.shape}")
    if t < 1 or d < 1:
        raise ValueError(
            f"{name} must have T >= 1 steps and {width} >= 1 coordinates, got shape {array.shape}"
        )
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


def weight_sets(value: ArrayLike, shape: tuple[int, int], live: Steps) -> Double:
    """Return E sets of weights as a float64 (E, N, T) array."""
    array = doubles("weights", value)
    if array.ndim != 3 or array.shape[1:] != shape or not len(array):
        raise _shape_error("weights", f"(E, N, T) = (E, {shape[0]}, {shape[1]}) with E >= 1", array.shape)
    for e, one in enumerate(array):
        finite(f"weights[{e}]", one, live, shape)
    return array


def _integers(name: str, value: ArrayLike, n: int) -> NDArray[np.integer[Any]]:
    """Return a copy of an array (N,) of integers: the caller's can change after the check."""
    counts = np.array(_plain(name, value))
    if counts.dtype.kind not in "iu" and counts.size:
        raise TypeError(f"{name} must be integers, got dtype {counts.dtype}")
    if counts.shape != (n,):
        raise _shape_error(name, f"(N,) = ({n},)", counts.shape)
    return counts


def token_counts(value: ArrayLike, live_steps: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the numbers of tokens (N,) of rollouts: at least the live steps, and 0 where there are none."""
    counts = _integers("tokens", value, len(live_steps))
    refuse("tokens", counts, counts < 0, "not be negative")
    refuse(
        "tokens",
        counts,
        counts < live_steps,
        "be at least the number of live steps; a rollout without tokens has length 0",
    )
    refuse("tokens", counts, (counts > 0) & (live_steps == 0), "be 0 in rollouts without live steps")
    return counts.astype(np.int64)


def steps(
    shape: tuple[int, int], *, lengths: ArrayLike | None = None, mask: ArrayLike | None = None
) -> Steps:
    """Return the live steps of an (N, T) array from lengths (N,) or a mask (N, T)."""
    n, t = shape
    if lengths is not None and mask is not None:
        raise ValueError("pass lengths or mask, not both")
    if lengths is not None:
        counts = _integers("lengths", lengths, n)
        refuse("lengths", counts, (counts < 0) | (counts > t), f"lie in 0..T = 0..{t}")
        return Steps(counts.astype(np.int64, copy=False), None)
    if mask is not None:
        return Steps(None, flags(mask, shape).view(np.uint8))
    return Steps(None, None)


def live(
    shape: tuple[int, ...], lengths: ArrayLike | None, mask: ArrayLike | None, name: str = "x"
) -> NDArray[np.bool_]:
    """Return the live steps of an array, of shape (N, T), as booleans."""
    if len(shape) != 2:
        raise _shape_error(name, "(N, T)", shape)
    return steps((shape[0], shape[1]), lengths=lengths, mask=mask).live((shape[0], shape[1]))


def flags(
    value: ArrayLike, shape: tuple[int, ...] | None = None, name: str = "mask", axes: str = "(N, T)"
) -> NDArray[np.bool_]:
    """Return a mask as booleans, of the given shape or of any shape (N, T)."""
    mask = _plain(name, value)
    if mask.ndim != 2 if shape is None else mask.shape != shape:
        wanted = axes if shape is None else f"{axes} = {shape}" if len(shape) == 2 else f"{shape}"
        raise _shape_error(name, wanted, mask.shape)
    if mask.dtype.kind != "b":
        if mask.dtype.kind not in "iuf":
            raise TypeError(f"{name} must be booleans, or numbers 0 and 1, got dtype {mask.dtype}")
        refuse(name, mask, (mask != 0) & (mask != 1), "be 0 or 1")
    return mask.astype(np.bool_, copy=False)


def alive(name: str, array: Double, live: NDArray[np.bool_]) -> Double:
    """Return a copy of `array` that is 0 where not live, whatever lies there, and finite elsewhere."""
    array = np.where(live, array, 0.0)
    finite(name, array)
    return array


def finite(
    name: str,
    array: Float,
    live: Steps | None = None,
    shape: tuple[int, int] | None = None,
    time_first: bool = False,
) -> None:
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
    refuse(name, array, ~good, f"be finite{where_live}", time_first)


def log_probabilities(name: str, array: Float, live: NDArray[np.bool_], time_first: bool = False) -> None:
    """Raise where a live log-probability (N, T) is not finite; only `logp` may be minus infinity."""
    bad, wanted = live & ~np.isfinite(array), "be finite in live steps"
    if name == "behavior_logp":
        if np.isneginf(array[bad]).any():
            wanted += " (a policy never samples what it gives probability 0)"
    else:
        bad &= ~np.isneginf(array)
        wanted += ", or minus infinity"
    refuse(name, array, bad, wanted, time_first)


def refuse(
    name: str, array: NDArray[Any], bad: NDArray[np.bool_], wanted: str, time_first: bool = False
) -> None:
    """Raise if any number is bad: say what it must, and name the first as the caller has it."""
    if bad.any():
        index = tuple(np.argwhere(bad)[0])
        where = ", ".join(map(str, index[::-1] if time_first else index))
        raise ValueError(f"{name} must {wanted}, got {name}[{where}] = {array[index]}")


class NotFiniteError(ValueError):
    """Scores that are not finite, or whose results are not: no estimator is at fault."""


def finite_scores(array: Scores, live: Steps, first: int = 0, name: str = "scores") -> None:
    """Raise where scores (N, T, D) are not finite in live steps; name the first.

    Rollouts count from `first`.
    """
    alive = live.live(array.shape[:2])
    for n, rollout in enumerate(array):
        good = np.isfinite(rollout) | ~alive[n][:, None]
        if not good.all():
            t, d = (int(i) for i in np.argwhere(~good)[0])
            at = f"{first + n}, {t}"
            if not isinstance(array, np.ndarray):
                at = f"{array.row(n, t)}"
            raise NotFiniteError(
                f"{name} must be finite in live steps, got {name}[{at}, {d}] = {rollout[t, d]}"
            )


def raise_not_finite(array: Scores, live: Steps, first: int = 0, name: str = "scores") -> NoReturn:
    """Explain a result that is not finite: name the first bad live score, or else the overflow.

    Kernels do not look for NaN; it shows in what they return. This slow search runs only then.
    """
    finite_scores(array, live, first, name)
    raise NotFiniteError("the result is beyond the range of float64; rescale the scores or the weights")


def refuse_underflow(square: float, varied: Callable[[], object]) -> None:
    """Raise if a largest or summed square has lost its digits, or is 0, though its terms vary."""
    if square < 2.0**-1000 and varied():
        raise NotFiniteError("the variance is below the range of float64; rescale the scores or the weights")


def non_negative(name: str, value: ArrayLike, n: int) -> Double:
    """Return an array (N,), float64, finite and non-negative."""
    array = np.ascontiguousarray(doubles(name, value, (n,)))
    finite(name, array)
    refuse(name, array, array < 0, "not be negative")
    return array


def out_array(out: Any, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Check an output array that the caller passed."""
    if not isinstance(out, np.ndarray) or isinstance(out, np.ma.MaskedArray):
        raise TypeError(f"out must be a numpy array, got {type(out).__name__}")
    if out.shape != shape:
        raise _shape_error("out", str(shape), out.shape)
    if out.dtype != dtype or not out.dtype.isnative:
        raise TypeError(f"out must have dtype {dtype}, got {out.dtype}")
    if not out.flags.writeable:
        raise ValueError("out must be writeable")
    if not out.flags.aligned or not all(stride % out.itemsize == 0 for stride in out.strides):
        raise ValueError("out must be aligned")
    return out


def in_range(result: NDArray[Any], what: str = "scores or the weights") -> NDArray[Any]:
    """Return a result; raise if it is not finite."""
    if not np.isfinite(result).all():
        raise ValueError(f"the result is beyond the range of {result.dtype}; rescale the {what}")
    return result


def row_ends(live: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return one past the last live step of each row (N,), 0 where there is none."""
    return np.asarray(np.where(live, np.arange(1, live.shape[1] + 1), 0).max(axis=1, initial=0))


def at_the_end(rewards: Double, live: NDArray[np.bool_]) -> Double:
    """Return rewards (N,) as those of steps (N, T): each on the last live step of its row, if it has one."""
    result = np.zeros(live.shape)
    rows = np.flatnonzero(live.any(axis=1))
    result[rows, row_ends(live)[rows] - 1] = rewards[rows]
    return result
