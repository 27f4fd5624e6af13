"""Pages: one HTML file that needs no network and no script, from a template and its pictures.

Whatever users name is escaped by the templates, and control characters are shown as escapes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from rlvar.reporting.words import capital
from rlvar.stats.shown import measured, number, printable


@dataclass(frozen=True)
class Key:
    """An entry of a legend: a line in the colour of `look`, or that of the text, and what it is."""

    label: str
    look: int | None = None
    dashes: str = ""


@dataclass(frozen=True)
class Picture:
    """A figure of a page: an SVG element with its title, its legend and a line on how to read it."""

    anchor: str
    title: str
    aid: str
    svg: str
    keys: tuple[Key, ...] = ()


def alternative(title: str, told: Sequence[str]) -> str:
    """Return the text that stands for a picture."""
    return printable(f"{title}: {'; '.join(told)}.")


def page(template: str, **context: Any) -> str:
    """Return a page made of a template of this package."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_shown,
    )
    environment.filters |= {"measured": measured, "number": number}
    environment.globals["capital"] = capital
    return environment.get_template(template).render(context)


def _shown(value: Any) -> Any:
    """Escape control characters of text; what is markup is ours."""
    return printable(value) if isinstance(value, str) and not hasattr(value, "__html__") else value
