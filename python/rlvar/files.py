"""Files of arrays: read behind one door, written as a whole or not at all.

An .npz is read into memory, its checksums tested; of a folder of .npy files the scores are mapped. What is
wrong with the content of a file is raised as a ValueError that names the file; what the system refuses
stays an OSError.
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import io
import math
import os
import stat
import uuid
import warnings
import zipfile
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from os import PathLike
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from rlvar.rollouts import Rollouts
from rlvar.stats.shown import printable

KEYS = ("scores", *(field.name for field in dataclasses.fields(Rollouts) if field.name[0] != "_"))
_SCALARS = ("scores_of", "sketched")
#: What a folder holds as long as `rlvar score` has not finished it.
UNFINISHED = "scoring.json"

_HEAD = 1 << 14  # bytes that hold the header of an .npy: numpy reads none beyond 10,000
_CHUNK = 1 << 22
_MEMORY = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
_KINDS = ((stat.S_ISDIR, "folder"), (stat.S_ISFIFO, "pipe"), (stat.S_ISSOCK, "socket"))


def load_rollouts(path: str | PathLike[str]) -> Rollouts:
    """Read rollouts from an .npz file, or map them from a folder of .npy files.

    Parameters
    ----------
    path : path-like
        An .npz file with arrays ``scores`` and ``rewards``, and optionally any other argument of
        `Rollouts` by its name; or a folder with ``scores.npy``, ``rewards.npy`` and so on. With scores of
        shape (sum of lengths, D), and ``lengths``, they are the arguments of `Rollouts.packed`.

    Returns
    -------
    Rollouts

    Raises
    ------
    FileNotFoundError
        If there is no such file or folder.
    ValueError
        If the file lacks the arrays above or is damaged, or its arrays do not fit each other.

    Warns
    -----
    UserWarning
        If there are arrays by other names, such as ``length`` for ``lengths``: they are ignored.

    Notes
    -----
    An .npz file is read into memory: afterwards it may be replaced, also by `save_rollouts`. In a folder
    the scores, which may be larger than memory, are mapped: they stay on disk until they are used. If
    another program shortens ``scores.npy`` meanwhile, the system ends the process (SIGBUS); replace the
    file by another, under its name, instead.

    Examples
    --------
    >>> import numpy as np, pathlib, rlvar, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder, "mine.npz")
    ...     np.savez(path, scores=np.zeros((4, 7, 2)), rewards=np.ones((4, 7)))
    ...     rlvar.load_rollouts(path)
    Rollouts(N=4, T=7, D=2, lengths 7 to 7)
    """
    with opened(path) as (names, read):
        if UNFINISHED in names:
            raise ValueError(
                "its scores are not complete: run the rlvar score command that began it again, to finish them"
            )
        missing = [key for key in KEYS[:2] if f"{key}.npy" not in names]
        if missing:
            raise ValueError(f"it has no array named {' or '.join(missing)}; it has {listed(names)}")
        arrays = {key: read(key) for key in KEYS if f"{key}.npy" in names}
        # Strings and booleans come as arrays without dimensions.
        given = {
            key: array.item() if key in _SCALARS and array.ndim == 0 else array
            for key, array in arrays.items()
        }
        result = _made(given)
    held = [name.removesuffix(".npy") for name in names if name.endswith(".npy")]
    ignored = [name for name in held if name not in KEYS]
    if ignored:
        where = printable(os.fsdecode(path))
        warnings.warn(f"{where}: ignored arrays named {listed(ignored)}", UserWarning, stacklevel=2)
    return result


def save_rollouts(path: str | PathLike[str], rollouts: Rollouts) -> None:
    """Write rollouts to an .npz file that `load_rollouts` reads back, as a whole or not at all.

    Parameters
    ----------
    path : path-like
        The file, by exactly this name. A link is followed: its target is replaced.
    rollouts : Rollouts
        Labels of groups that are all whole numbers or all text are kept, others become numbers.

    Raises
    ------
    OSError
        If the file cannot be written; a file that was there before is left as it was.

    Examples
    --------
    >>> import pathlib, rlvar, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder, "mine.npz")
    ...     rlvar.save_rollouts(path, rlvar.datasets.cartpole())
    ...     rlvar.load_rollouts(path)
    Rollouts(N=256, T=208, D=10, lengths 11 to 208)
    """
    if not isinstance(rollouts, Rollouts):
        raise TypeError(f"rollouts must be a Rollouts, got {type(rollouts).__name__}")
    arrays = {key: getattr(rollouts, key) for key in KEYS}
    if rollouts.groups is not None:
        labels = np.array(rollouts.group_labels if _plain(rollouts.group_labels) else [])
        # Text that ends in zeros, and numbers beyond int64, are not what they were.
        if not labels.dtype.hasobject and tuple(labels.tolist()) == rollouts.group_labels:
            arrays["groups"] = labels[rollouts.groups]
    if arrays["scores"].ndim == 2:
        # As many steps as rollouts: rewards of steps would pass for terminal ones.
        padded = "rewards" if len(arrays["scores"]) == len(rollouts) else ""
        of_steps = [key for key, x in arrays.items() if np.ndim(x) == 2 and key not in ("scores", padded)]
        arrays |= {key: arrays[key][rollouts.live] for key in of_steps}
    # What was not given is absent.
    write_arrays(path, {key: x for key, x in arrays.items() if x is not None and x is not False})


def _plain(labels: Sequence[Hashable]) -> bool:
    return {*map(type, labels)} in ({int}, {str})


def _made(arrays: dict[str, Any]) -> Rollouts:
    """Make rollouts of the arrays of a file, padded or packed."""
    if arrays["scores"].ndim != 2:
        return Rollouts(**arrays)
    if "lengths" not in arrays or "mask" in arrays:
        extra = "lengths.npy, and no mask" if "mask" in arrays else "lengths"
        raise ValueError(
            f"scores of shape {arrays['scores'].shape} are packed, (sum of lengths, D), and need {extra}"
        )
    return Rollouts.packed(**arrays)


def checksums(path: str | PathLike[str]) -> dict[str, str]:
    """Return the SHA-256 of a file or, of a folder of .npy files, of each; none of a pipe or a device.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder, "mine.npz")
    ...     path.write_bytes(b"abc") and checksums(path)["mine.npz"][:8]
    'ba7816bf'
    """
    place, found = Path(os.fsdecode(path)), {}
    for each in sorted(place.glob("*.npy")) if place.is_dir() else [place]:
        if each.is_file():
            digest = hashlib.sha256()
            with open(each, "rb") as file:
                while block := file.read(_CHUNK):
                    digest.update(block)
            found[printable(each.name)] = digest.hexdigest()
    return found


@contextmanager
def opened(path: str | PathLike[str]) -> Iterator[tuple[list[str], Callable[[str], NDArray[Any]]]]:
    """Give the names of what an .npz file or a folder holds, and a function that reads one array.

    As a `door`, it turns errors about the file's content into one ValueError.
    """
    place, doing, room = Path(os.fsdecode(path)), "", _MEMORY
    more_room = "; in a folder of .npy files the scores are mapped"
    with door(place, lambda: doing, more_room), ExitStack() as stack:
        folder = stat.S_ISDIR(os.stat(place).st_mode)
        if folder:
            names = sorted(os.listdir(place))
        else:
            file = stack.enter_context(open_regular(place))
            names, archive = _members(file)

        def read(key: str) -> NDArray[Any]:
            nonlocal doing, room
            doing, name = f"array {key} cannot be read: ", f"{key}.npy"
            if name not in names:
                raise ValueError("it is missing")
            with open_regular(place / name) if folder else _member(archive, name) as stream:
                array: NDArray[Any]
                size = os.fstat(stream.fileno()).st_size if folder else archive.getinfo(name).file_size
                head = stream.read(_HEAD)
                shape, fortran, dtype, start = _header(key, head, size)
                order = "F" if fortran else "C"
                if folder and key == "scores" and size > start:
                    array = np.memmap(stream, dtype, "r", start, shape, order)  # type: ignore[call-overload]
                else:
                    room -= size
                    if room < 0:
                        raise MemoryError
                    array = _rest(stream, head[start:], size - start).view(dtype)
                    array = array.reshape(shape, order=order)  # type: ignore[call-overload]
            doing = ""
            return array

        yield names, read


@contextmanager
def door(place: Path, doing: Callable[[], str] = str, more_room: str = "") -> Iterator[None]:
    """Turn any error about a file's content into one ValueError that names the file.

    What the system refuses stays an OSError, and a missing package an ImportError.
    """
    try:
        yield
    except ImportError:
        raise
    except Exception as error:
        if _of_system(error):
            error.filename = error.filename or str(place)  # type: ignore[attr-defined]
            raise
        if isinstance(error, MemoryError):
            reason = f"it is too large for memory{more_room}"
        else:
            reason = printable(" ".join(str(error).split())[:400]) or type(error).__name__
        cause = None if isinstance(error, ValueError) else error
        raise ValueError(f"{printable(str(place))}: {doing()}{reason}") from cause


def open_regular(path: Path) -> IO[bytes]:
    """Open a regular file to read; refuse all else unopened. A FIFO put there meanwhile cannot hang."""
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode):
        kind = next((name for test, name in _KINDS if test(mode)), "device")
        raise ValueError(f"it is a {kind}, not a regular file")
    return open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))


def _of_system(error: Exception) -> bool:
    """Whether the system refused something, rather than a bad offset in the file's content."""
    return isinstance(error, OSError) and error.errno not in (None, errno.EINVAL)


def _members(file: IO[bytes]) -> tuple[list[str], zipfile.ZipFile]:
    """Return the names of what an .npz file holds, and the file as an archive."""
    start = file.read(6)
    try:
        archive = zipfile.ZipFile(file)
    except Exception as error:
        if _of_system(error):
            raise
        known = {b"": ": it is empty", b"\x93NUMPY": " but one array: put it into a folder as scores.npy"}
        damaged = f"it is a damaged .npz file: {error}" if start[:2] == b"PK" else "it is not an .npz file"
        raise ValueError(damaged + known.get(start, "")) from None
    names = [member.filename for member in archive.infolist()]
    if len(set(names)) < len(names):
        raise ValueError("it has two arrays of the same name")
    return names, archive


def _member(archive: zipfile.ZipFile, name: str) -> IO[bytes]:
    """Open a member of an .npz file. Only what numpy writes is read: the rest may unpack without bounds."""
    member = archive.getinfo(name)
    if member.flag_bits & 1:
        raise ValueError("it is encrypted")
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"it uses compression method {member.compress_type}, which numpy never writes")
    return archive.open(member)


def _header(key: str, head: bytes, size: int) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    """Return shape, order, dtype and place of the numbers in an .npy of `size` bytes; `head` starts it."""
    file = io.BytesIO(head)
    formats = np.lib.format
    try:
        version = formats.read_magic(file)
        if version not in ((1, 0), (2, 0), (3, 0)):  # 3.0 is 2.0 with names of fields in UTF-8
            raise ValueError(f"it has version {version}")
        parse = formats.read_array_header_1_0 if version == (1, 0) else formats.read_array_header_2_0
        shape, fortran, dtype = parse(file)
    except Exception as error:  # of the parser too
        raise ValueError(f"its header is damaged: {error}") from None
    if dtype.hasobject:
        how = f"{key}.astype(str)" if key == "groups" else "numbers, padded to one shape, with their lengths"
        raise ValueError(f"it has Python objects, which are not unpickled; save {how}")
    if dtype.names or dtype.subdtype or not dtype.itemsize:
        raise ValueError(f"it has records of {dtype}, not numbers")
    start = file.tell()
    stated = start + math.prod(shape) * dtype.itemsize
    if stated != size or min(shape, default=0) < 0:
        raise ValueError(f"its header, of shape {shape} and dtype {dtype}, does not fit its {size} bytes")
    return shape, fortran, dtype, start


def _rest(stream: IO[bytes], first: bytes, size: int) -> NDArray[np.uint8]:
    """Return `size` bytes, of which `first` have been read; none beyond them is unpacked."""
    result = np.empty(size, np.uint8)
    at, piece = 0, first
    while piece:
        result[at : at + len(piece)] = np.frombuffer(piece, np.uint8)
        at += len(piece)
        piece = stream.read(min(_CHUNK, size - at))
    if at < size:
        raise ValueError(f"it ends after {at} of {size} bytes")
    return result


def write_arrays(path: str | PathLike[str], arrays: dict[str, Any]) -> None:
    """Write an .npz file as `numpy.savez` does, without pickles, at once or not at all."""
    with replacing(path) as file, zipfile.ZipFile(file, "w") as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asanyarray(array), allow_pickle=False)


def writable(path: str | PathLike[str]) -> tuple[str, os.stat_result | None]:
    """Return where `path` leads and what is there, if anything; raise what writing it would meet."""
    target = os.path.realpath(os.fsdecode(path))
    try:
        there = os.stat(path)
    except FileNotFoundError:
        there = None
    if there is not None and stat.S_ISDIR(there.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fsdecode(path))
    needed = [] if there is None else [os.fsdecode(path)]
    if there is None or stat.S_ISREG(there.st_mode):  # another takes its place, in its folder
        needed.append(os.path.dirname(target))
        os.stat(needed[-1])
    for each in needed:
        if not os.access(each, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), each)
    return target, there


@contextmanager
def replacing(path: str | PathLike[str]) -> Iterator[IO[bytes]]:
    """Open a file to write that takes the place of `path` when all is written, and never if not.

    It follows links and keeps the mode and the owner of what it replaces. A FIFO, a device and what
    standard output goes to are written straight.
    """
    target, there = writable(path)
    part = os.path.join(os.path.dirname(target), f".{uuid.uuid4().hex}.part")
    straight: int | str | None = None if there is None or stat.S_ISREG(there.st_mode) else os.fsdecode(path)
    with suppress(OSError):  # where standard output is closed
        if there is not None and os.path.samestat(os.fstat(1), there):
            straight = os.dup(1)
    try:
        if straight is not None:
            with _Stream(io.FileIO(straight, "w")) as file:
                yield file
            return
        with open(part, "xb") as file:
            if there is not None:
                with suppress(OSError):  # another's file, or a file system without owners
                    os.fchown(file.fileno(), there.st_uid, there.st_gid)
                os.fchmod(file.fileno(), stat.S_IMODE(there.st_mode))
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, target)
    except BaseException as error:
        if straight is None:
            with suppress(OSError):
                os.unlink(part)
        if isinstance(error, OSError) and error.errno is not None:
            error.filename = os.fsdecode(path)
        raise


class _Stream(io.BufferedWriter):
    """A file that cannot seek: /dev/null claims that it can."""

    def tell(self) -> int:
        raise io.UnsupportedOperation("tell")


def listed(names: Sequence[str]) -> str:
    """Return some names in one line, not too many and not too long."""
    shown = [printable(name if len(name) < 60 else name[:57] + "...") for name in sorted(names)[:8]]
    more = f" and {len(names) - len(shown)} more" if len(names) > len(shown) else ""
    return ", ".join(shown) + more or "nothing"
