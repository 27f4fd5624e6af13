"""``rlvar explain``: the argument of the package on one page."""

from __future__ import annotations

import argparse
from typing import Any

from rlvar.cli.parser import example
from rlvar.reporting.explain import explain


def add_command(commands: argparse._SubParsersAction[Any]) -> None:
    text = "say on one page why policy gradients are noisy, with numbers computed for it"
    command = commands.add_parser(
        "explain",
        help=text,
        description=f"{text[0].upper()}{text[1:]}.",
        epilog=example("rlvar explain"),
    )
    command.set_defaults(run=lambda args: explain())
