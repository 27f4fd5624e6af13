"""The files that rollouts are read from."""

from __future__ import annotations

import math
import warnings
import zipfile
import zlib
from collections.abc import Callable
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlvar.rollouts import _KEYS, Rollouts


def load_rollouts(path: str | PathLike[str]) -> Rollouts:
    """Read rollouts from an .npz file, or memory-map them from a directory of .npy files.

    Parameters
    ----------
    path : path-like
        An .npz file with arrays ``scores`` and ``rewards``, and optionally ``lengths`` or ``mask``,
        ``values``, ``groups``, ``logp`` and ``behavior_logp``; or a directory with ``scores.npy``,
        ``rewards.npy`` and so on, whose scores stay on disk until they are used. So do those of an
        .npz file without compression, where they happen to be aligned: the first array of
        `numpy.savez` in float32 is.

    Returns
    -------
    Rollouts

    Raises
    ------
    FileNotFoundError
        If there is no such file or directory.
    ValueError
        If the file is not what is described above, or its arrays do not fit each other.

    Warns
    -----
    UserWarning
        If there are arrays by other names: they are ignored, and ``length`` is not ``lengths``.

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
    names, read = _open_directory(path) if path.is_dir() else _open_npz(path)
    missing = [key for key in ("scores", "rewards") if key not in names]
    if missing:
        found = ", ".join(sorted(names)) or "nothing"
        raise ValueError(f"{path} holds no array named {' or '.join(missing)}, but {found}")
    ignored = sorted(set(names) - set(_KEYS))
    if ignored:
        warnings.warn(f"{path}: ignored arrays named {', '.join(ignored)}", stacklevel=2)
    arrays = {}
    for key in _KEYS:
        if key in names:
            try:
                arrays[key] = read(key)
            except (ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
                raise ValueError(f"{path}: array {key} cannot be read: {error}") from None
    try:
        return Rollouts(**arrays)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{path}: {error}") from None


def _open_directory(path: Path) -> tuple[set[str], Callable[[str], Any]]:
    """Return the names of the arrays and how to map one."""

    def read(key: str) -> Any:
        return np.load(path / f"{key}.npy", mmap_mode="r", allow_pickle=False)

    return {file.stem for file in path.glob("*.npy")}, read


def _open_npz(path: Path) -> tuple[set[str], Callable[[str], Any]]:
    """Return the names of the arrays and how to read one, or map it if that is the scores."""

    def read(key: str) -> Any:
        if key == "scores":
            mapped = _map_member(path, f"{key}.npy")
            if mapped is not None:
                return mapped
        with path.open("rb") as file:
            return np.load(file, allow_pickle=False)[key]

    with path.open("rb") as file:
        try:
            members = zipfile.ZipFile(file).namelist()
        except zipfile.BadZipFile as error:
            raise ValueError(f"{path} is not an .npz file: {error}") from None
    return {name.removesuffix(".npy") for name in members}, read


def _map_member(path: Path, name: str) -> NDArray[Any] | None:
    """Map an array inside an .npz file; None if it is compressed, not aligned or not plain numbers."""
    with path.open("rb") as file, zipfile.ZipFile(file) as archive:
        if name not in archive.namelist():
            return None
        member = archive.getinfo(name)
        if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1:
            return None
        # The local header's own lengths of name and extra field: 30 bytes come before them.
        file.seek(member.header_offset)
        header = file.read(30)
        file.seek(int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little"), 1)
        start = file.tell()
        version = np.lib.format.read_magic(file)
        read_header = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }.get(version)
        if read_header is None:
            return None
        shape, fortran, dtype = read_header(file)
        offset = file.tell()
        size = dtype.itemsize * math.prod(shape)
        whole = 0 < size <= member.file_size - (offset - start)
        if dtype.hasobject or offset % dtype.alignment or not whole:
            return None
        result: NDArray[Any] = np.memmap(
            str(path), dtype=dtype, mode="r", offset=offset, shape=shape, order="F" if fortran else "C"
        )
        return result
