"""``.. command:: report``: the options of a command of rlvar, from the parser that its ``--help`` prints."""

from __future__ import annotations

import argparse
import re

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from rlvar import cli


def parser_of(command: str) -> argparse.ArgumentParser:
    """Return the parser of one command."""
    (commands,) = [each for each in cli._parser()._actions if isinstance(each, argparse._SubParsersAction)]
    return commands.choices[command]


def shown(action: argparse.Action) -> str:
    """Write an argument as its help does: ``FILE``, ``--seed N`` or ``--interval {jackknife,bootstrap}``."""
    name = action.metavar or "{" + ",".join(action.choices) + "}" if action.choices else action.metavar
    if not action.option_strings:
        return name or action.dest
    value = "" if action.nargs == 0 else f" {name or action.dest.upper()}"
    return ", ".join(f"{option}{value}" for option in action.option_strings)


def text_of(action: argparse.Action) -> str:
    """Escape the help of an argument for reStructuredText; its options are code."""
    text = re.sub(r"([\\`*|_])", r"\\\1", (action.help or "") % vars(action))
    return re.sub(r"(?<![\w-])--[a-z][\w-]*", r"``\g<0>``", text)


class Command(SphinxDirective):
    """The arguments of a command, group by group, each a target of ``:option:``."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Write them as ``.. option::``."""
        parser = parser_of(self.arguments[0])
        lines = [f".. program:: rlvar {self.arguments[0]}", ""]
        for group in parser._action_groups:
            actions = [each for each in group._group_actions if each.help is not argparse.SUPPRESS]
            actions = [each for each in actions if "--help" not in each.option_strings]
            if actions:
                about = f" ({group.description})" if group.description else ""
                lines += [f".. rubric:: {(group.title or '').capitalize()}{about}", ""]
            for action in actions:
                lines += [f".. option:: {shown(action)}", "", f"   {text_of(action)}", ""]
        return self.parse_text_to_nodes(StringList(lines, source=self.env.docname))


def setup(app: Sphinx) -> None:
    """Register the directive."""
    app.add_directive("command", Command)
