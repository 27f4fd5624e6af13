"""``rlvar covariance FILE``: rollouts of any size, streamed into the covariance of the step terms."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from rlvar.analysis.accumulator import CovarianceAccumulator
from rlvar.cli.parser import add_command, add_importance, check_outputs, input_file
from rlvar.cli.streams import progress
from rlvar.files import load_rollouts
from rlvar.reporting.text import wrapped
from rlvar.stats.shown import number, printable


def add_to(commands: argparse._SubParsersAction[Any]) -> None:
    text = "stream rollouts, which may be larger than memory, into the covariance of the step terms"
    command = add_command(
        commands,
        "covariance",
        text,
        "rlvar covariance rollouts.npz --estimator multi --out covariance.npz",
        usage="rlvar covariance FILE [options]",
    )
    command.add_argument(
        "file", type=input_file, metavar="FILE", help="as for report; a folder is read block by block"
    )
    command.add_argument(
        "--estimator", default="multi", metavar="A", help="one of those of report (default: multi)"
    )
    command.add_argument(
        "--block-size", type=int, default=1, metavar="B", help="sum so many consecutive steps (default: 1)"
    )
    command.add_argument(
        "--out", type=Path, metavar="OUT", help="also save the accumulator to this file (.npz)"
    )
    add_importance(command)
    command.set_defaults(run=_covariance)


def _covariance(args: argparse.Namespace) -> str:
    check_outputs({"--out": args.out}, [args.file])
    with progress() as show:
        show("reading rollouts")
        rollouts = load_rollouts(args.file)
        accumulator = CovarianceAccumulator(block_size=args.block_size)
        accumulator.update(
            rollouts,
            args.estimator,
            importance=args.importance,
            truncate=args.truncate,
            progress=lambda done, total: show.count("covariance", done, total),
        )
        totals = accumulator.totals()
        if args.out is not None:
            accumulator.save(args.out)
    blocks = "" if args.block_size == 1 else f"  (its terms below are blocks of {args.block_size} steps)"
    lines = [
        wrapped(f"Rollouts: {printable(args.file)}", indent=0),
        f"  {accumulator.count:,} rollouts, {args.estimator}",
        f"  variance          {number(totals.variance)}{blocks}",
        f"  variance terms    {number(totals.variance_terms)}",
        f"  covariance terms  {number(totals.covariance_terms)}",
    ]
    return "\n".join(
        [*lines, *([] if args.out is None else [wrapped(f"Saved to {printable(str(args.out))}")])]
    )
