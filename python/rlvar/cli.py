"""The command line: ``rlvar report [FILE]``, ``rlvar covariance FILE``."""

from __future__ import annotations

import argparse
import json
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

from rlvar import datasets
from rlvar.analysis.accumulator import CovarianceAccumulator
from rlvar.config import version
from rlvar.files import load_rollouts
from rlvar.reporting.report import Report, make_report
from rlvar.stats.resampling import Bootstrap
from rlvar.weights.batch import AGGREGATIONS, Batch
from rlvar.weights.estimators import CATALOG, estimator_weights
from rlvar.weights.importance import RATIOS


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status: 0, or 2 for input that cannot be used."""
    args = _parser().parse_args(argv)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            report = args.run(args)
        for message in dict.fromkeys(str(warning.message) for warning in caught):
            print(f"rlvar: warning: {message}", file=sys.stderr)
        print(_drawable(str(report)), flush=True)
    except BrokenPipeError:
        # The reader (head, less) has gone; keep the interpreter from flushing into it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return 130
    except (OSError, TypeError, ValueError, MemoryError) as error:
        print(f"rlvar: {_one_line(error)}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="rlvar", description="How noisy is a policy gradient, and where does the noise come from?"
    )
    parser.add_argument("--version", action="version", version=f"rlvar {version}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    report = commands.add_parser(
        "report",
        help="compare estimators on rollouts and say where the variance comes from",
        description="Compare estimators on rollouts and say where the variance comes from.",
    )
    report.add_argument(
        "file",
        nargs="?",
        metavar="FILE",
        help=".npz file with arrays scores (N, T, D) and rewards (N, T) or (N,), optionally lengths or "
        "mask, values, groups, logp and behavior_logp; or a directory of .npy files; without it, the "
        "embedded CartPole rollouts",
    )
    report.add_argument(
        "--estimators",
        type=lambda text: [name.strip() for name in text.split(",") if name.strip()],
        default=["single", "multi"],
        metavar="A,B",
        help=f"estimators to compare, out of {', '.join(CATALOG)} (default: single,multi)",
    )
    _add_ratio(report)
    report.add_argument(
        "--aggregation",
        choices=AGGREGATIONS,
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
    covariance = commands.add_parser(
        "covariance",
        help="stream rollouts into the covariance of the step terms of one estimator",
        description="Stream rollouts, which may be larger than memory, into the covariance of the step terms "
        "of one estimator; print its totals, and save a CovarianceAccumulator.",
    )
    covariance.add_argument("file", metavar="FILE", help="as for report; a directory is read block by block")
    covariance.add_argument(
        "--estimator", default="multi", metavar="A", help="one of those of report (default: multi)"
    )
    covariance.add_argument(
        "--block-size", type=int, default=1, metavar="B", help="sum so many consecutive steps (default: 1)"
    )
    covariance.add_argument(
        "--out", type=Path, metavar="OUT", help="also save the accumulator to this file (.npz)"
    )
    _add_ratio(covariance)
    covariance.set_defaults(run=_covariance)
    return parser


def _add_ratio(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--ratio",
        choices=RATIOS,
        default="none",
        help="importance ratios, for rollouts with logp and behavior_logp (default: none)",
    )
    command.add_argument("--truncate", type=float, metavar="C", help="largest importance ratio")


def _report(args: argparse.Namespace) -> Report:
    progress = _progress()
    try:
        progress("reading rollouts")
        if args.file is None:
            rollouts, source = datasets.cartpole(), "CartPole-v1, embedded"
        else:
            rollouts, source = load_rollouts(args.file), args.file
        try:
            report = make_report(
                rollouts,
                args.estimators,
                source=source,
                ratio=args.ratio,
                truncate=args.truncate,
                aggregation=args.aggregation,
                interval=Bootstrap(seed=args.seed) if args.interval == "bootstrap" else "jackknife",
                progress=progress,
            )
        except ValueError as error:
            raise ValueError(f"{args.file}: {error}" if args.file else str(error)) from None
        if args.json is not None:
            progress("writing " + str(args.json))
            text = json.dumps(report.to_dict(), indent=1, allow_nan=False)
            args.json.write_text(text + "\n", encoding="utf-8")
    finally:
        progress("")
    return report


def _covariance(args: argparse.Namespace) -> str:
    if args.out is not None and (args.out.is_dir() or not args.out.parent.is_dir()):  # before the work
        raise ValueError(f"--out {args.out}: not a file in a folder that exists")
    progress = _progress()
    try:
        progress("reading rollouts")
        rollouts = load_rollouts(args.file)
        batch = Batch.of(rollouts, ratio=args.ratio, truncate=args.truncate)
        accumulator = CovarianceAccumulator(block_size=args.block_size)
        accumulator.update_from(
            rollouts.scores,
            estimator_weights(batch, (), args.estimator) * batch.step_factors,
            mask=rollouts.mask,
            lengths=rollouts.lengths,
            progress=lambda done, total: progress(f"covariance: {done} of {total} rollouts"),
        )
        totals = accumulator.totals()
        if args.out is not None:
            accumulator.save(args.out)
    finally:
        progress("")
    blocks = "" if args.block_size == 1 else f"  (its terms below are blocks of {args.block_size} steps)"
    return (
        f"{args.file}: {args.estimator}, {accumulator.count} rollouts\n"
        f"total variance    {totals.total_variance:.6g}{blocks}\n"
        f"variance terms    {totals.variance_terms:.6g}\n"
        f"covariance terms  {totals.covariance_terms:.6g}" + (f"\nsaved to {args.out}" if args.out else "")
    )


def _progress() -> Callable[[str], None]:
    """Return a function that shows the current stage on stderr, if that is a terminal."""
    if not sys.stderr.isatty():
        return lambda stage: None

    def show(stage: str) -> None:
        # Carriage return, clear to the end of the line.
        sys.stderr.write(f"\r\x1b[K{stage + ' ...' if stage else ''}")
        sys.stderr.flush()

    return show


def _drawable(text: str) -> str:
    """Draw with ASCII where standard output cannot show the blocks of the chart."""
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        ascii_text = text.translate(str.maketrans("▁▂▃▄▅▆▇█│└─", "...::###|+-"))
        return ascii_text.encode("ascii", "replace").decode()
    return text


def _one_line(error: BaseException) -> str:
    """Say what was wrong in one line, with the file where the system names one."""
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split()) or type(error).__name__
