"""Rollouts: a validated container, and the files it is read from."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rlvar import _check

_KEYS = ("scores", "rewards", "lengths", "mask", "values", "groups")


@dataclass(frozen=True, eq=False, init=False)
class Rollouts:
    """N rollouts of up to T steps, with scores in D coordinates.

    Parameters
    ----------
    scores : array_like, shape (N, T, D)
        Gradient of the log-probability of each step's action; float32 and float64 are kept without
        a copy, memory-mapped arrays too.
    rewards : array_like, shape (N, T) or (N,)
        Reward of each step, or one terminal reward for each rollout. Kept as float64.
    lengths : array_like of int, shape (N,), optional
        Number of live steps of each rollout.
    mask : array_like of bool, shape (N, T), optional
        Live steps, where there are gaps. Not together with `lengths`.
    values : array_like, shape (N, T), optional
        Value of each step's state, for estimators with a learned baseline.
    groups : sequence of hashable, shape (N,), optional
        Label (prompt) of each rollout. Rollouts with equal labels are dependent.

    Attributes
    ----------
    scores, rewards, lengths, mask, values, groups
        As given, as arrays; None where not given. `groups` are numbered by first appearance.
    live_steps : ndarray, shape (N,)
        Number of live steps of each rollout.

    Raises
    ------
    ValueError, TypeError
        For wrong shapes or dtypes, fewer than 2 rollouts, lengths outside 0..T, or a reward or
        value of a live step that is not finite. Scores are searched for NaN when they are used.

    Examples
    --------
    >>> import numpy as np, rlvar
    >>> rlvar.Rollouts(np.zeros((4, 7, 2)), np.ones((4, 7)), lengths=[7, 3, 2, 5])
    Rollouts(N=4, T=7, D=2, lengths 2 to 7)
    """

    scores: NDArray[Any]
    rewards: NDArray[np.float64]
    lengths: NDArray[np.int64] | None
    mask: NDArray[np.bool_] | None
    values: NDArray[np.float64] | None
    groups: NDArray[np.int64] | None

    def __init__(
        self,
        scores: ArrayLike,
        rewards: ArrayLike,
        *,
        lengths: ArrayLike | None = None,
        mask: ArrayLike | None = None,
        values: ArrayLike | None = None,
        groups: Sequence[Hashable] | NDArray[Any] | None = None,
    ) -> None:
        array = _check.scores(scores)
        shape = array.shape[:2]
        live = _check.steps(shape, mask, lengths)
        checked_rewards = _check.floats("rewards", rewards).astype(np.float64, copy=False)
        if checked_rewards.shape == shape[:1]:
            _check.finite("rewards", checked_rewards)
        else:
            checked_rewards = _check.weights(checked_rewards, shape, live, "rewards")
        checked_values = None
        if values is not None:
            checked_values = _check.floats("values", values).astype(np.float64, copy=False)
            if checked_values.shape != shape:
                raise ValueError(f"values must have shape (N, T) = {shape}, got {checked_values.shape}")
            _check.finite("values", checked_values, live)
        labels = None if groups is None else _check.group_labels(groups, shape[0])
        fields = {
            "scores": array,
            "rewards": checked_rewards,
            "lengths": live.lengths,
            "mask": None if live.mask is None else live.mask.view(np.bool_),
            "values": checked_values,
            "groups": labels,
        }
        for name, value in fields.items():
            object.__setattr__(self, name, value)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(N, T, D)."""
        n, t, d = self.scores.shape
        return n, t, d

    @property
    def live_steps(self) -> NDArray[np.int64]:
        """Number of live steps of each rollout, shape (N,)."""
        if self.lengths is not None:
            return self.lengths
        if self.mask is not None:
            counts: NDArray[np.int64] = np.count_nonzero(self.mask, axis=1)
            return counts
        return np.full(len(self), self.scores.shape[1])

    def __len__(self) -> int:
        return len(self.scores)

    def __repr__(self) -> str:
        n, t, d = self.shape
        counts = self.live_steps
        groups = "" if self.groups is None else f", {len(np.unique(self.groups))} groups"
        return f"Rollouts(N={n}, T={t}, D={d}, lengths {counts.min()} to {counts.max()}{groups})"


def load_rollouts(path: str | PathLike[str]) -> Rollouts:
    """Read rollouts from an .npz file, or memory-map them from a directory of .npy files.

    Parameters
    ----------
    path : path-like
        An .npz file with arrays ``scores`` and ``rewards``, and optionally ``lengths`` or ``mask``,
        ``values`` and ``groups``; or a directory with ``scores.npy``, ``rewards.npy`` and so on,
        whose scores stay on disk until they are used.

    Returns
    -------
    Rollouts

    Raises
    ------
    FileNotFoundError
        If there is no such file or directory.
    ValueError
        If the file is not what is described above, or its arrays do not fit each other.

    Examples
    --------
    >>> import numpy as np, pathlib, rlvar, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder, "mine.npz")
    ...     np.savez(path, scores=np.zeros((4, 7, 2)), rewards=np.ones((4, 7)))
    ...     rlvar.load_rollouts(path)
    Rollouts(N=4, T=7, D=2, lengths 7 to 7)
    """
    path = Path(path)
    arrays = _read_directory(path) if path.is_dir() else _read_npz(path)
    missing = [key for key in ("scores", "rewards") if key not in arrays]
    if missing:
        raise ValueError(f"{path} holds no array named {' or '.join(missing)}")
    try:
        return Rollouts(**arrays)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{path}: {error}") from None


def _read_directory(path: Path) -> Mapping[str, Any]:
    arrays = {}
    for key in _KEYS:
        file = path / f"{key}.npy"
        if file.exists():
            try:
                arrays[key] = np.load(file, mmap_mode="r", allow_pickle=False)
            except (ValueError, EOFError) as error:
                raise ValueError(f"{file} is not a readable .npy file: {error}") from None
    return arrays


def _read_npz(path: Path) -> Mapping[str, Any]:
    try:
        with path.open("rb") as file:
            archive = np.load(file, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise ValueError("it holds a single array")
            return {key: archive[key] for key in _KEYS if key in archive}
    except (ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path} is not an .npz file with arrays scores and rewards: {error}") from None
