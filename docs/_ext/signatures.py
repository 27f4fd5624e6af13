"""Signatures of the reference: of what users call, and of no result that they are handed."""

from __future__ import annotations

from typing import Any

from sphinx.application import Sphinx


def without_fields(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, signature: str | None, returns: str | None
) -> tuple[str, str] | None:
    """Leave out the fields of a class that users do not make: its docstring has no Parameters."""
    if what == "class" and "Parameters\n" not in (obj.__doc__ or ""):
        return "", ""
    return None


def setup(app: Sphinx) -> None:
    """Connect it to autodoc."""
    app.connect("autodoc-process-signature", without_fields)
