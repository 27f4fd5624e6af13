"""The command line: ``rlvar report [FILE]``, ``rlvar covariance FILE``."""

from __future__ import annotations

import argparse
import errno
import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn, TextIO, get_args

from rlvar import datasets
from rlvar._types import Aggregation, Importance
from rlvar.analysis.accumulator import CovarianceAccumulator
from rlvar.config import version
from rlvar.files import KEYS, load_rollouts, printable, replacing, writable
from rlvar.reporting.report import Report
from rlvar.reporting.report import report as make_report
from rlvar.stats.resampling import Bootstrap
from rlvar.weights.estimators import estimators

_EMBEDDED = {
    "cartpole": ("CartPole-v1", datasets.cartpole),
    "arithmetic": ("two-digit sums", datasets.arithmetic),
}


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
            report = str(args.run(args))
    except (OSError, TypeError, ValueError, MemoryError) as error:
        _write(sys.stderr, f"rlvar: {_one_line(error)}\n")
        return 2
    for message in dict.fromkeys(str(warning.message) for warning in caught):
        _write(sys.stderr, f"rlvar: warning: {printable(message)}\n")
    lost = _write(sys.stdout, _drawable("\n".join(map(printable, report.split("\n"))) + "\n"))
    if lost is None or isinstance(lost, BrokenPipeError):  # head, less: the reader has gone
        return 0 if lost is None else 1
    _write(sys.stderr, f"rlvar: standard output: {lost.strerror}\n")
    return 2


class _Parser(argparse.ArgumentParser):
    """Prints like the rest: to streams that may be closed, and nothing that steers the terminal."""

    def error(self, message: str) -> NoReturn:
        super().error(printable(message))

    def _print_message(self, message: str, file: Any = None) -> None:
        _write(file, message)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="rlvar", description="How noisy is a policy gradient, and where does the noise come from?"
    )
    parser.add_argument("--version", action="version", version=f"rlvar {version}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    known = ", ".join(each.name for each in estimators())
    text = "compare estimators on rollouts and say where the variance comes from"
    report = commands.add_parser("report", help=text, description=text)
    report.add_argument(
        "file",
        nargs="?",
        type=_input,
        metavar="FILE",
        help=".npz file with arrays scores (N, T, D) and rewards (N, T) or (N,), optionally "
        f"{', '.join(KEYS[2:])}; or a folder of .npy files; without it, embedded rollouts",
    )
    report.add_argument(
        "--dataset",
        choices=tuple(_EMBEDDED),
        help="which embedded rollouts (default: cartpole); arithmetic is a small language model's",
    )
    report.add_argument(
        "--estimators",
        type=lambda text: [name.strip() for name in text.split(",") if name.strip()],
        default=["single", "multi"],
        metavar="A,B",
        help=f"estimators to compare, out of {known} (default: single,multi)",
    )
    report.add_argument(
        "--reference", default="single", metavar="A", help="what ratios are relative to (default: single)"
    )
    _add_importance(report)
    report.add_argument(
        "--aggregation",
        choices=get_args(Aggregation),
        default="sum",
        help="how gradients are divided by lengths (default: sum)",
    )
    report.add_argument(
        "--interval",
        choices=("jackknife", "bootstrap"),
        default="jackknife",
        help="where the estimators' intervals come from (default: jackknife)",
    )
    report.add_argument("--seed", type=int, default=0, help="seed of the bootstrap (default: 0)")
    report.add_argument("--json", type=Path, metavar="OUT", help="also write every number to this file")
    report.set_defaults(run=_report)
    text = "stream rollouts, which may be larger than memory, into the covariance of the step terms"
    covariance = commands.add_parser("covariance", help=text, description=text)
    covariance.add_argument(
        "file", type=_input, metavar="FILE", help="as for report; a folder is read block by block"
    )
    covariance.add_argument(
        "--estimator", default="multi", metavar="A", help="one of those of report (default: multi)"
    )
    covariance.add_argument(
        "--block-size", type=int, default=1, metavar="B", help="sum so many consecutive steps (default: 1)"
    )
    covariance.add_argument(
        "--out", type=Path, metavar="OUT", help="also save the accumulator to this file (.npz)"
    )
    _add_importance(covariance)
    covariance.set_defaults(run=_covariance)
    return parser


def _add_importance(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--importance",
        choices=get_args(Importance),
        default="none",
        help="importance ratios, for rollouts with logp and behavior_logp (default: none)",
    )
    command.add_argument("--truncate", type=float, metavar="C", help="largest importance ratio")


def _input(text: str) -> str:
    return "/dev/stdin" if text == "-" else text


def _check_output(option: str, output: Path | None, source: str | None) -> None:
    """Raise, before the work, if `output` cannot be written or is what is read, by whatever name."""
    if output is None:
        return
    target, _ = writable(output)
    read = [] if source is None else [source, *(f"{source}/{key}.npy" for key in KEYS)]
    for each in read:
        same = os.path.exists(each) and os.path.exists(output) and os.path.samefile(each, output)
        if same or os.path.realpath(each) == target:
            raise ValueError(f"{option} {output}: that is what is read; name another file")


def _report(args: argparse.Namespace) -> Report:
    _check_output("--json", args.json, args.file)
    with _progress() as progress:
        progress("reading rollouts")
        if args.file is None:
            source, load = _EMBEDDED[args.dataset or "cartpole"]
            rollouts, source = load(), f"{source}, embedded"
        elif args.dataset is not None:
            raise ValueError("give a FILE or --dataset, not both")
        else:
            rollouts, source = load_rollouts(args.file), printable(args.file)
        try:
            report = make_report(
                rollouts,
                args.estimators,
                source=source,
                reference=args.reference,
                importance=args.importance,
                truncate=args.truncate,
                aggregation=args.aggregation,
                interval=Bootstrap(seed=args.seed) if args.interval == "bootstrap" else "jackknife",
                progress=progress,
            )
        except ValueError as error:
            raise ValueError(f"{args.file}: {error}" if args.file else str(error)) from None
        if args.json is not None:
            progress(f"writing {args.json}")
            text = json.dumps(report.to_dict(), indent=1, allow_nan=False)
            with replacing(args.json) as file:
                file.write(text.encode() + b"\n")
    return report


def _covariance(args: argparse.Namespace) -> str:
    _check_output("--out", args.out, args.file)
    with _progress() as progress:
        progress("reading rollouts")
        rollouts = load_rollouts(args.file)
        accumulator = CovarianceAccumulator(block_size=args.block_size)
        accumulator.update(
            rollouts,
            args.estimator,
            importance=args.importance,
            truncate=args.truncate,
            progress=lambda done, total: progress(f"covariance: {done} of {total} rollouts"),
        )
        totals = accumulator.totals()
        if args.out is not None:
            accumulator.save(args.out)
    blocks = "" if args.block_size == 1 else f"  (its terms below are blocks of {args.block_size} steps)"
    saved = f"\nsaved to {printable(str(args.out))}" if args.out else ""
    return (
        f"{printable(args.file)}: {args.estimator}, {accumulator.count} rollouts\n"
        f"variance          {totals.variance:.6g}{blocks}\n"
        f"variance terms    {totals.variance_terms:.6g}\n"
        f"covariance terms  {totals.covariance_terms:.6g}{saved}"
    )


@contextmanager
def _progress() -> Iterator[Callable[[str], None]]:
    """Give a function that shows the current stage on stderr, if that is a terminal; clear it at the end."""
    shown = sys.stderr is not None and sys.stderr.isatty()

    def show(stage: str) -> None:
        if shown:  # carriage return, clear to the end of the line
            _write(sys.stderr, f"\r\x1b[K{printable(stage) + ' ...' if stage else ''}")

    try:
        yield show
    finally:
        show("")


def _write(stream: TextIO | None, text: str) -> OSError | None:
    """Print to a standard stream, which may be closed or broken; return what went wrong."""
    if stream is None:
        return OSError(errno.EBADF, "closed")
    try:
        print(text, end="", file=stream, flush=True)
    except OSError as error:
        # Keep the interpreter from flushing into it once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        return error
    return None


def _drawable(text: str) -> str:
    """Draw with ASCII where standard output cannot show the blocks of the chart."""
    encoding = sys.stdout.encoding or "utf-8"
    try:
        text.encode(encoding)
    except UnicodeError:
        ascii_text = text.translate(str.maketrans("▁▂▃▄▅▆▇█│└─", "...::###|+-"))
        return ascii_text.encode("ascii", "backslashreplace").decode()
    return text


def _one_line(error: BaseException) -> str:
    """Say what was wrong in one line, with the file where the system names one."""
    text = str(error)
    if isinstance(error, OSError) and error.filename is not None:
        text = f"{os.fsdecode(error.filename)}: {error.strerror}"
    return printable(" ".join(text.split())) or type(error).__name__
