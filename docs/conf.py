"""How the pages of docs/ are built: ``sphinx-build -W --keep-going -n -b html docs build/docs``.

Strict: each warning is an error, a link that leads nowhere too. Nothing is fetched while it builds.
"""

from __future__ import annotations

import sys
from pathlib import Path

import rlvar

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

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
    "command_line",  # these three in _ext/
    "names",
    "signatures",
]
smartquotes = False  # what is shown can be copied

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

html_theme = "furo"
pygments_dark_style = "github-dark"  # Furo's own underlines what is imported
html_title = f"rlvar {release}"
html_static_path = ["_static"]
html_css_files = ["rlvar.css"]
html_copy_source = False
html_show_sphinx = False
html_theme_options = {"navigation_with_keys": True}
