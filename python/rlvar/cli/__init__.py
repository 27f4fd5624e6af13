"""The command line: ``rlvar report``, ``rlvar score``, ``rlvar covariance``, ``rlvar explain``.

A file for each command, with its options and what it does; `parser.py`, what their options share;
`streams.py`, how text, colour and progress reach the terminal.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Sequence

from rlvar.cli import covariance, explain, report, score, streams
from rlvar.cli.parser import Parser, example
from rlvar.config import version


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status.

    0; 1 where nobody reads the report; 2 for input that cannot be used or output that cannot be written;
    130 after Ctrl-C.
    """
    try:
        return _run(_parser().parse_args(argv))
    except KeyboardInterrupt:
        return 130


def _run(args: argparse.Namespace) -> int:
    try:
        if sys.stdout is None:
            raise OSError("standard output is closed")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            text = args.run(args)
    except (OSError, TypeError, ValueError, MemoryError, ImportError) as error:
        streams.write(sys.stderr, f"rlvar: {streams.one_line(error)}\n")
        return 2
    for message in dict.fromkeys(str(warning.message) for warning in caught):
        streams.write(sys.stderr, f"rlvar: warning: {streams.one_line(message)}\n")
    lost = streams.write(sys.stdout, streams.shown(text) + "\n")
    if lost is None or isinstance(lost, BrokenPipeError):  # head, less: the reader has gone
        return 0 if lost is None else 1
    streams.write(sys.stderr, f"rlvar: standard output: {lost.strerror}\n")
    return 2


def _parser() -> Parser:
    parser = Parser(
        prog="rlvar",
        description="How noisy is a policy gradient, where does the noise come from, and which estimator is "
        "quieter?",
        epilog=example(
            "rlvar report",
            "rlvar report rollouts.npz --html report.html",
            more="rlvar COMMAND --help shows the options of a command, with examples.",
        ),
    )
    parser.add_argument("--version", action="version", version=f"rlvar {version}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", title="commands")
    for each in (report, score, covariance, explain):
        each.add_to(commands)
    return parser
