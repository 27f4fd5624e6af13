"""``rlvar explain``: the argument of the package on one page."""

from __future__ import annotations

import argparse
from typing import Any

from rlvar.cli.parser import add_command
from rlvar.reporting.explain import explain


def add_to(commands: argparse._SubParsersAction[Any]) -> None:
    text = "say on one page why policy gradients are noisy, with numbers computed for it"
    command = add_command(commands, "explain", text, "rlvar explain")
    command.set_defaults(run=lambda args: explain())
