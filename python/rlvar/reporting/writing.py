"""Reports with a page: what it needs is checked before the work, and it is written at once or not at all."""

from __future__ import annotations

from datetime import datetime, timezone
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


def now() -> str:
    """Return the time for a report, in UTC."""
    return datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")


class Paged:
    """A report that has a page."""

    def _page(self) -> str:
        raise NotImplementedError

    def to_html(self, path: str | PathLike[str]) -> None:
        """Write the report as one HTML file that needs no network and no script, at once or not at all.

        Parameters
        ----------
        path : path-like
            The file; what is there is replaced.

        Raises
        ------
        ImportError
            Without matplotlib and jinja2: ``pip install 'rlvar[report]'``.
        OSError
            If the file cannot be written; what was there before is then as it was.
        """
        check_page(path)
        page = self._page().encode()
        with files.replacing(path) as file:
            file.write(page)
