"""How the pages of docs/ are built: ``sphinx-build -W --keep-going -n -b html docs build/docs``.

Strict: each warning is an error, a link that leads nowhere too. Nothing is fetched while it builds.
"""

from __future__ import annotations

from typing import Any

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx

import rlvar

project = "rlvar"
author = "The rlvar maintainers"
copyright = "The rlvar maintainers"
version = release = rlvar.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "numpydoc",
    "myst_nb",
]
exclude_patterns = ["README.md"]

# Pages and notebooks. Blocks of code on pages run in tests/test_docs.py; the notebook runs here.
myst_enable_extensions = ["dollarmath", "amsmath", "deflist", "colon_fence"]
myst_heading_anchors = 4
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 120
nb_merge_streams = True

# Docstrings: numpydoc's sections; a name in single backticks is a link where it names something public.
autodoc_default_options = {
    "members": True,
    "member-order": "bysource",
    "inherited-members": "object, tuple, dict, Mapping, BaseCallback",
}
autodoc_typehints = "none"  # the sections say types, and shapes
autosummary_generate = False
numpydoc_show_class_members = False
numpydoc_xref_param_type = True
numpydoc_xref_ignore = "all"  # but for these
numpydoc_xref_aliases = {name: f"rlvar.{name}" for name in rlvar.__all__ if name[0].isupper()} | {
    "array_like": "numpy.typing.ArrayLike",
    "ndarray": "numpy.ndarray",
}
python_maximum_signature_line_length = 80
add_module_names = False
toc_object_entries_show_parents = "hide"
default_role = "name"

ELSEWHERE = {
    "numpy.typing.ArrayLike": "https://numpy.org/doc/stable/reference/typing.html#numpy.typing.ArrayLike",
    "numpy.ndarray": "https://numpy.org/doc/stable/reference/generated/numpy.ndarray.html",
}

html_theme = "furo"
html_title = f"rlvar {release}"
html_static_path = ["_static"]
html_css_files = ["rlvar.css"]
html_copy_source = False
html_show_sphinx = False
html_theme_options = {"navigation_with_keys": True}


def name(
    role: str, rawtext: str, text: str, lineno: int, inliner: Any, options: Any = None, content: Any = ()
):
    """A name in single backticks: a link if it is public, as seen from where it stands; else as it is."""
    env = inliner.document.settings.env
    context = {key: env.ref_context.get(key) for key in ("py:module", "py:class")}
    target = {"refdomain": "py", "reftype": "obj", "reftarget": text, "refdoc": env.docname}
    return [pending_xref(rawtext, nodes.literal(rawtext, text), optional=True, **target, **context)], []


def resolve(app: Sphinx, env: Any, node: pending_xref, shown: nodes.Element) -> nodes.Element | None:
    """Find what the Python domain does not: names of rlvar from rlvar.torch, and those of other projects."""
    target = node["reftarget"]
    if target in ELSEWHERE:
        return nodes.reference("", "", shown, internal=False, refuri=ELSEWHERE[target])
    if target.startswith("python:"):  # numpydoc's links on int and float, which say nothing
        return nodes.inline("", shown.astext().removeprefix("python:"))
    if node.get("optional"):
        domain = env.get_domain("py")
        for full in (f"rlvar.{target}", f"rlvar.torch.{target}"):
            if full in domain.objects:
                return domain.resolve_xref(env, node["refdoc"], app.builder, "obj", full, node, shown)
        return shown
    return None


def setup(app: Sphinx) -> None:
    app.add_role("name", name)
    app.connect("missing-reference", resolve)
