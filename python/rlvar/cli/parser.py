"""What the commands' options share: the parser and its help, inputs and outputs."""

from __future__ import annotations

import argparse
import os
import shutil
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, get_args

from rlvar._types import Importance
from rlvar.cli.streams import write
from rlvar.files import KEYS, writable
from rlvar.reporting.words import capital
from rlvar.stats.shown import printable


class Parser(argparse.ArgumentParser):
    """Prints like the rest: to streams that may be closed, and nothing that steers the terminal."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"formatter_class": _Help, **options})

    def error(self, message: str) -> NoReturn:
        super().error(printable(message))

    def _print_message(self, message: str, file: Any = None) -> None:
        write(file, message)


class _Help(argparse.HelpFormatter):
    """Help of at most 80 columns; what has lines of its own, as examples, keeps them."""

    def __init__(self, prog: str, **options: Any) -> None:
        width = min(80, shutil.get_terminal_size().columns) - 2
        super().__init__(prog, **{"max_help_position": 24, "width": width, **options})

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return text if "\n" in text else super()._fill_text(text, width, indent)


def example(*commands: str, more: str = "") -> str:
    """Return the end of a help: commands to copy, and a line more."""
    lines = [f"example{'s' * (len(commands) > 1)}:", *(f"  {command}" for command in commands)]
    return "\n".join([*lines, *(["", more] if more else [])])


def add_command(
    commands: argparse._SubParsersAction[Any], name: str, text: str, *examples: str, usage: str | None = None
) -> argparse.ArgumentParser:
    """Add a command that does what `text` says."""
    added: argparse.ArgumentParser = commands.add_parser(
        name, help=text, description=f"{capital(text)}.", usage=usage, epilog=example(*examples)
    )
    return added


def add_importance(command: argparse._ActionsContainer) -> None:
    command.add_argument(
        "--importance",
        choices=get_args(Importance),
        default="none",
        help="importance ratios, for rollouts with logp and behavior_logp (default: none)",
    )
    command.add_argument("--truncate", type=float, metavar="C", help="largest importance ratio")


def input_file(text: str) -> str:
    return "/dev/stdin" if text == "-" else text


def check_outputs(outputs: Mapping[str, Path | None], sources: Sequence[str | None]) -> None:
    """Raise, before the work, if an output of an option cannot be written, is what is read, or is another."""
    targets: dict[str, str] = {}
    read = [path for each in sources if each for path in (each, *(f"{each}/{key}.npy" for key in KEYS))]
    for option, output in outputs.items():
        if output is None:
            continue
        target, _ = writable(output)
        for each in read:
            same = os.path.exists(each) and os.path.exists(output) and os.path.samefile(each, output)
            if same or os.path.realpath(each) == target:
                raise ValueError(f"{option} {output}: that is what is read; name another file")
        if target in targets:
            raise ValueError(f"{targets[target]} and {option} name one file, {output}; name two")
        targets[target] = option
