"""Pages on disk: what they need is checked before the work, and they are written at once or not at all."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from os import PathLike

from rlvar import files


def check_page(path: str | PathLike[str]) -> None:
    """Raise what writing a page would meet: OSError, or ImportError without matplotlib and jinja2."""
    files.writable(path)
    try:
        for package in ("jinja2", "matplotlib"):
            import_module(package)
    except ImportError as error:
        needs = "a page needs matplotlib and jinja2: pip install 'rlvar[report]'"
        raise ImportError(f"{needs} ({error})") from None


def write_page(path: str | PathLike[str], make: Callable[[], str]) -> None:
    """Write the page that `make` returns."""
    check_page(path)
    page = make().encode()
    with files.replacing(path) as file:
        file.write(page)
