"""How text reaches the terminal: streams that may be closed, what they can show, colour, and progress."""

from __future__ import annotations

import errno
import math
import os
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from rlvar.reporting.text import STYLES, clipped
from rlvar.stats.shown import printable

_LONG = 10.0  # seconds; a log has nothing on shorter work
_PAUSE = 60.0  # seconds between two lines of a log on one stage


def write(stream: TextIO | None, text: str) -> OSError | None:
    """Print to a standard stream, which may be closed or broken; return what went wrong."""
    if stream is None:
        return OSError(errno.EBADF, "closed")
    try:
        print(text, end="", file=stream, flush=True)
    except OSError as error:
        # Keep the interpreter from flushing into it once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        return error
    return None


def shown(text: str) -> str:
    """Return text as standard output can show it: nothing steers it but our colours."""
    ours = "|".join(re.escape(code) for code in STYLES.values())
    parts = re.split(f"({ours})", text)
    safe = "".join(
        part if i % 2 else "\n".join(map(printable, part.split("\n"))) for i, part in enumerate(parts)
    )
    try:
        safe.encode(sys.stdout.encoding or "utf-8")
    except UnicodeError:
        ascii_text = safe.translate(str.maketrans("▁▂▃▄▅▆▇█│└─", "...::###|+-"))
        return ascii_text.encode("ascii", "backslashreplace").decode()
    return safe


def has_colour(stream: TextIO) -> bool:
    """Whether a stream shows colours and the user wants them (no-color.org; FORCE_COLOR for ``less -R``)."""
    if os.environ.get("NO_COLOR"):
        return False
    return bool(os.environ.get("FORCE_COLOR")) or (os.environ.get("TERM") != "dumb" and stream.isatty())


def _columns(stream: TextIO | None) -> int:
    try:
        return os.get_terminal_size(-1 if stream is None else stream.fileno()).columns or 80
    except OSError:
        return 80


def one_line(error: BaseException | str) -> str:
    """Say what was wrong in one line, with the file where the system names one."""
    text = str(error)
    if isinstance(error, OSError) and error.filename is not None:
        text = f"{os.fsdecode(error.filename)}: {error.strerror}"
    return printable(" ".join(text.split())) or type(error).__name__


class Progress:
    """Shows what long work is at on stderr.

    On a terminal the current stage, with a bar of tqdm for what is counted if that is installed; the line is
    cleared at the end. In a log a line for each stage, and one a minute for what is counted, once the work
    has taken ten seconds.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self._stream = None if quiet else sys.stderr
        self._terminal = self._stream is not None and self._stream.isatty()
        self._began = time.monotonic()
        self._counted: tuple[str, float, int] | None = None  # stage, when it began, what was done then
        self._told = -math.inf
        self._bar: Any = None

    def __call__(self, stage: str) -> None:
        """Show the stage that begins."""
        self.close()
        self._counted = None
        self._show(stage)

    def count(self, stage: str, done: int, total: int) -> None:
        """Show how many rollouts of all the stage has done."""
        now = time.monotonic()
        if self._counted is None or self._counted[0] != stage:
            self._counted = stage, now, done
            self._bar = self._new_bar(stage, done, total)
        if self._bar is not None:
            self._bar.update(done - self._bar.n)
            return
        _, since, first = self._counted
        left = (now - since) * (total - done) / (done - first) if done > first else 0.0
        about = f", about {left / 60:.0f} minutes left" if left > 60 else ""
        if self._terminal or now - self._told >= _PAUSE:
            self._show(f"{stage}: {done:,} of {total:,} rollouts{about}")

    def close(self) -> None:
        """Clear the line."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
        if self._terminal:
            write(self._stream, "\r\x1b[K")

    def _show(self, stage: str) -> None:
        if self._terminal:  # carriage return, clear to the end of the line; a longer line would not clear
            write(self._stream, f"\r\x1b[K{clipped(printable(stage), _columns(self._stream) - 5)} ...")
        elif self._stream is not None and (now := time.monotonic()) - self._began >= _LONG:
            self._told = now
            write(self._stream, f"rlvar: {printable(stage)}\n")

    def _new_bar(self, stage: str, done: int, total: int) -> Any:
        if not self._terminal:
            return None
        try:
            from tqdm import tqdm
        except ImportError:
            return None
        write(self._stream, "\r\x1b[K")
        return tqdm(
            desc=stage, initial=done, total=total, unit=" rollouts", file=self._stream, leave=False,
            dynamic_ncols=True,
        )  # fmt: skip


@contextmanager
def progress(*, quiet: bool = False) -> Iterator[Progress]:
    """Give what shows the progress, and clear it at the end."""
    shown = Progress(quiet=quiet)
    try:
        yield shown
    finally:
        shown.close()
