"""Names as links: those in single backticks of docstrings, in code on pages, and of other projects."""

from __future__ import annotations

import re
from typing import Any

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.util.nodes import make_refnode

ELSEWHERE = {
    "numpy.typing.ArrayLike": "https://numpy.org/doc/stable/reference/typing.html#numpy.typing.ArrayLike",
    "numpy.ndarray": "https://numpy.org/doc/stable/reference/generated/numpy.ndarray.html",
}


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
        return nodes.inline("", shown.astext().removeprefix("python:").removesuffix("()"))
    if node.get("optional"):
        domain = env.get_domain("py")
        for full in (f"rlvar.{target}", f"rlvar.torch.{target}"):
            if full in domain.objects:
                return domain.resolve_xref(env, node["refdoc"], app.builder, "obj", full, node, shown)
        return shown
    return None


def link_code(app: Sphinx, doctree: nodes.document, page: str) -> None:
    """Turn code that names something public, as `rlvar.compare` or `compare(...)`, or a page into a link."""
    domain = app.env.get_domain("py")
    for literal in list(doctree.findall(nodes.literal)):
        text = literal.astext()
        if isinstance(literal.parent, (nodes.reference, nodes.title, pending_xref)):
            continue
        if (file := re.fullmatch(r"docs/(\w+)\.md", text)) and file[1] in app.env.found_docs:
            title = app.env.titles[file[1]].astext()
            literal.replace_self(make_refnode(app.builder, page, file[1], "", nodes.Text(title)))
        elif found := re.fullmatch(r"(?:rlvar\.)?([A-Za-z][\w.]*)(\(.*\))?", text):
            full = f"rlvar.{found[1]}"
            plain = text == found[1] and text[0].islower()  # a word like any
            if full in domain.objects and not plain:
                shown = literal.deepcopy()
                link = domain.resolve_xref(app.env, page, app.builder, "obj", full, pending_xref(), shown)
                literal.replace_self(link)


def setup(app: Sphinx) -> None:
    """Register the role and what resolves it."""
    app.add_role("name", name)
    app.connect("missing-reference", resolve)
    app.connect("doctree-resolved", link_code)
