"""The progress of long work: a bar, or the caller's function."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack


def reporter(
    progress: bool | Callable[[int, int], object],
    total: int,
    unit: str,
    stack: ExitStack,
    seconds: float | None = None,
) -> Callable[[int, int], object]:
    """Return what to call with what is done and the whole; a bar closes with `stack`."""
    if callable(progress):
        return progress
    if not progress:
        return lambda done, total: None
    try:
        from tqdm import tqdm
    except ImportError:
        raise ImportError("a progress bar needs tqdm: pip install 'rlvar[progress]'") from None
    about = None if seconds is None else f"about {tqdm.format_interval(seconds)}"
    bar = stack.enter_context(tqdm(desc=about, total=total, unit=unit))
    return lambda done, total: bar.update(done - bar.n)
