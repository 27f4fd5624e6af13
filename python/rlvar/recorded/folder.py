"""A folder of rollouts that is written block by block, and continued where a killed run stopped.

While it is incomplete it has a scoring.json, and files that grow are named .part, so that `load_rollouts`
refuses it. A block counts once its rows are on the disk and scoring.json, replaced atomically, says so.
However the process ends, the next run starts at the first row that is not counted, and the bytes are those of
one run.

Rollouts lie one after the other, without padding (`Rollouts.packed`); but not where there are as many steps
as rollouts: terminal rewards could not be told from rewards of steps.
"""

from __future__ import annotations

import fcntl
import io
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlvar.files import UNFINISHED, door, replacing, write_arrays
from rlvar.stats.shown import printable

_GROWING = {"logp": "<f8", "score_squares": "<f8", "scores": "<f4"}  # the scores last


class ScoreFolder:
    """Rollouts on their way into a folder.

    Parameters
    ----------
    place : Path
        The folder: a new one, an empty one or one that was begun.
    key : mapping
        What the numbers depend on, JSON-ready: a folder that was begun with other things is refused.
    lengths : ndarray of int, shape (N,)
        Steps of each.
    """

    def __init__(self, place: Path, key: Mapping[str, Any], lengths: NDArray[np.int64]) -> None:
        self.place, self.lengths = place, lengths
        self._width = int(lengths.max()) if lengths.sum() == len(lengths) else 0  # 0 if packed
        self._made = False
        try:
            os.mkdir(place)
            self._made = True
        except FileExistsError:
            if not place.is_dir():
                raise
        self._handle: int | None = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._handle)
            raise ValueError(f"{_shown(place)}: another process is scoring into it") from None
        try:
            self._state = self._begun(dict(key))
            if self.done:
                self._cut()
            else:
                self._save()
        except BaseException:
            os.close(self._handle)
            raise

    @property
    def done(self) -> int:
        """Rollouts that are written."""
        return int(self._state["rollouts"])

    def _begun(self, key: dict[str, Any]) -> dict[str, Any]:
        names = sorted(os.listdir(self.place))
        fresh = {"key": key, "rollouts": 0, "coordinates": 0, "scores_of": "", "sketched": False}
        if UNFINISHED not in names:
            if names:
                raise FileExistsError(17, "it exists already; choose another place", str(self.place))
            return fresh
        with door(self.place / UNFINISHED):
            state = json.loads((self.place / UNFINISHED).read_bytes())
            if not isinstance(state, dict) or {name: type(x) for name, x in state.items()} != {
                name: type(x) for name, x in fresh.items()
            }:
                raise ValueError("it does not say how far scoring got; remove the folder")
        other = [name for name in key if state["key"].get(name) != key[name]]
        if state["rollouts"] and other:
            raise ValueError(
                f"{_shown(self.place)}: it was begun with another {' and another '.join(other)}; continue "
                "with the same, or choose another place"
            )
        return state if state["rollouts"] else fresh

    def append(self, count: int, blocks: Mapping[str, NDArray[Any]], scores_of: str, sketched: bool) -> None:
        """Write the next `count` rollouts: scores (m, D), logp and score_squares (m,) of their m steps."""
        coordinates = blocks["scores"].shape[1]
        if not self.done:
            self._state |= {"coordinates": coordinates, "scores_of": scores_of, "sketched": sketched}
        elif (coordinates, scores_of) != (self._state["coordinates"], self._state["scores_of"]):
            raise ValueError(f"{_shown(self.place)}: it has scores of {self._state['scores_of']}")
        for name, block in blocks.items():
            header, row = self._layout(name)
            with self._writing(name) as file:
                if not self.done:
                    file.truncate(0)
                    file.write(header)
                file.seek(len(header) + self._before(self.done) * row)
                rows = self._laid(block, self.lengths[self.done : self.done + count])
                file.write(np.ascontiguousarray(rows, _GROWING[name]).tobytes())
        self._state["rollouts"] = self.done + count
        self._save()

    def _cut(self) -> None:
        """Cut what a killed run wrote behind the rollouts that count."""
        for name in _GROWING:
            header, row = self._layout(name)
            size, part = len(header) + self._before(self.done) * row, self.place / f"{name}.npy.part"
            with suppress(FileNotFoundError):  # it has its name already
                if os.path.getsize(part) < size:
                    raise ValueError(f"{_shown(part)}: it was cut short; remove the folder")
                os.truncate(part, size)

    def by_step(self, rows: Sequence[NDArray[Any]]) -> NDArray[Any]:
        """Return one number per step of each rollout (T_n,) as the folder has them."""
        return self._laid(np.concatenate(rows), self.lengths)

    def _laid(self, steps: NDArray[Any], lengths: NDArray[np.int64]) -> NDArray[Any]:
        """Return steps (m, ...) as they lie in the folder."""
        if not self._width:
            return steps
        result = np.zeros((len(lengths), self._width, *steps.shape[1:]), steps.dtype)
        result[np.arange(self._width) < lengths[:, None]] = steps
        return result

    def _before(self, rollout: int) -> int:
        """Return the rows of the files before a rollout: steps or, padded, rollouts."""
        return rollout if self._width else int(self.lengths[:rollout].sum())

    def _layout(self, name: str) -> tuple[bytes, int]:
        """Return the header of an array's file, and the bytes of a row."""
        row = (self._width,) if self._width else ()
        row += (self._state["coordinates"],) if name == "scores" else ()
        shape = (self._before(len(self.lengths)), *row)
        file = io.BytesIO()
        head = {"descr": _GROWING[name], "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, head)
        return file.getvalue(), math.prod(row) * int(_GROWING[name][2:])

    @contextmanager
    def _writing(self, name: str) -> Iterator[io.BufferedRandom]:
        """Open the file of an array that grows; all is on the disk afterwards."""
        path = self.place / f"{name}.npy.part"
        try:
            with open(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+b") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            error.filename = str(path)
            raise

    def _save(self) -> None:
        with replacing(self.place / UNFINISHED) as file:
            file.write(json.dumps(self._state, indent=1).encode() + b"\n")

    def finish(self, arrays: Mapping[str, NDArray[Any]], archive: Path | None = None) -> None:
        """Write what does not grow and give all files their names; or put all into an .npz `archive`."""
        if self.done != len(self.lengths):
            raise ValueError(f"{self.done} of {len(self.lengths)} rollouts are written")
        whole = {**arrays, "lengths": self.lengths, "scores_of": np.array(self._state["scores_of"])}
        if self._state["sketched"]:
            whole["sketched"] = np.array(True)
        if archive is not None:
            growing = {
                name: np.load(self.place / f"{name}.npy.part", mmap_mode="r")
                for name in reversed(list(_GROWING))
            }
            write_arrays(archive, {**growing, **whole})
            self._made = True
            self._remove()
            return
        for name, array in whole.items():
            with replacing(self.place / f"{name}.npy") as file:
                np.lib.format.write_array(file, np.asanyarray(array), allow_pickle=False)
        for name in _GROWING:
            with suppress(FileNotFoundError):  # named by a run that was killed here
                os.replace(self.place / f"{name}.npy.part", self.place / f"{name}.npy")
        os.unlink(self.place / UNFINISHED)

    def _remove(self) -> None:
        for name in (UNFINISHED, *(f"{name}.npy.part" for name in _GROWING)):
            with suppress(FileNotFoundError):
                os.unlink(self.place / name)
        if self._made:
            os.rmdir(self.place)

    def __enter__(self) -> ScoreFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Release the folder; remove it if it is empty."""
        with suppress(OSError):
            if not self.done:
                self._remove()
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None


def _shown(place: Path) -> str:
    return printable(str(place))
