"""``rlvar report [FILE [FILE]]``: the verdict on rollouts, as text, numbers or a page."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any, get_args

from rlvar import datasets
from rlvar._types import Aggregation
from rlvar.cli.parser import add_command, add_importance, check_outputs, input_file
from rlvar.cli.score import add_columns, add_scoring, given_columns, notes_of, recorded_rollouts, scored
from rlvar.cli.streams import Progress, has_colour, progress
from rlvar.files import KEYS, checksums, load_rollouts, replacing
from rlvar.recorded import is_recorded
from rlvar.reporting.pair import PairReport, report_pair
from rlvar.reporting.report import Report
from rlvar.reporting.report import report as make_report
from rlvar.reporting.rewards import RewardReport, report_rewards
from rlvar.reporting.writing import check_page
from rlvar.rollouts import Rollouts
from rlvar.stats.resampling import Bootstrap
from rlvar.stats.shown import printable
from rlvar.weights.estimators import estimators

_EMBEDDED = {
    "cartpole": ("CartPole-v1", datasets.cartpole),
    "arithmetic": ("two-digit sums", datasets.arithmetic),
}
_STDOUT = Path("-")


def add_to(commands: argparse._SubParsersAction[Any]) -> None:
    text = "compare estimators on rollouts and say where the variance comes from"
    command = add_command(
        commands,
        "report",
        text,
        "rlvar report",
        "rlvar report rollouts.npz --html report.html",
        "rlvar report before.npz after.npz",
        "rlvar report rollouts.npz --estimators single,multi,otb --json numbers.json",
        "rlvar report completions.jsonl --reward score",
        usage="rlvar report [FILE [FILE]] [options]",
    )
    command.add_argument(
        "files",
        nargs="*",
        type=input_file,
        metavar="FILE",
        help=".npz file with arrays scores (N, T, D) and rewards (N, T) or (N,), optionally "
        f"{', '.join(KEYS[2:])}; or a folder of .npy files; or what a trainer wrote, JSON Lines, Parquet or "
        "torch's pickles, as for score; two files are set side by side; without any, embedded rollouts",
    )
    _add_outputs(command)
    _add_comparison(command)
    models = command.add_argument_group("recorded rollouts with their model")
    models.add_argument(
        "--model", metavar="MODEL", help="score what a trainer wrote with this model first, as score does"
    )
    models.add_argument(
        "--scores", type=Path, metavar="FOLDER", help="where to keep these scores (default: nowhere)"
    )
    add_columns(command)
    add_scoring(command)
    command.set_defaults(run=_report)


def _add_outputs(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("what to show")
    length = group.add_mutually_exclusive_group()
    length.add_argument("--full", action="store_true", help="also print every table and chart")
    length.add_argument(
        "--quiet", action="store_true", help="print the verdict alone, a sentence a line, and no progress"
    )
    group.add_argument(
        "--html", type=Path, metavar="OUT", help="also write a page with pictures to this file"
    )
    group.add_argument(
        "--json",
        type=Path,
        metavar="OUT",
        help="also write every number to this file; - prints them in place of the text",
    )


def _add_comparison(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("what to compare")
    group.add_argument(
        "--dataset",
        choices=tuple(_EMBEDDED),
        help="which embedded rollouts (default: cartpole); arithmetic is a small language model's",
    )
    group.add_argument(
        "--estimators",
        type=lambda text: [name.strip() for name in text.split(",") if name.strip()],
        metavar="A,B",
        help=f"estimators to compare, out of {', '.join(each.name for each in estimators())} (default: "
        "single; multi with rewards of steps; rloo,grpo,dr-grpo with groups; else single-mean)",
    )
    group.add_argument(
        "--reference",
        metavar="A",
        help="what ratios are relative to (default: rloo if it is compared, else single)",
    )
    add_importance(group)
    group.add_argument(
        "--aggregation",
        choices=get_args(Aggregation),
        default="sum",
        help="how gradients are divided by lengths (default: sum)",
    )
    group.add_argument(
        "--interval",
        choices=("jackknife", "bootstrap"),
        default="jackknife",
        help="where the estimators' intervals come from (default: jackknife)",
    )
    group.add_argument("--seed", type=int, default=0, help="seed of the bootstrap (default: 0)")
    group.add_argument(
        "--paired",
        action=argparse.BooleanOptionalAction,
        help="of two files: whether groups of one label are the same prompt in both (default: if labels "
        "are in both and not consecutive numbers)",
    )


def _report(args: argparse.Namespace) -> str:
    if len(args.files) > 2:
        raise ValueError(f"report takes one file, or two to set side by side; got {len(args.files)}")
    if len(set(args.files)) < len(args.files):
        raise ValueError(f"{args.files[0]}: this file is given twice; name two")
    args.file = args.files[0] if args.files else None
    _check_outputs(args)
    with progress(quiet=args.quiet) as show, tempfile.TemporaryDirectory(prefix="rlvar-") as scratch:
        show("reading rollouts")
        if args.file is not None and args.dataset is not None:
            raise ValueError("give a FILE or --dataset, not both")
        found: Report | RewardReport | PairReport
        if args.paired is not None and len(args.files) != 2:
            raise ValueError("--paired is for two files")
        if len(args.files) == 2:
            found = _of_two(args, show)
        elif args.file is not None and is_recorded(args.file):
            found = _of_recorded(args, Path(scratch, "scores"), show)
        else:
            _no_options_of_recorded(args)
            found = _of_rollouts(args, *_with_scores(args), show)
        return _shown(args, found, show)  # here, for the scores may be in the scratch folder


def _check_outputs(args: argparse.Namespace) -> None:
    if args.html == _STDOUT:
        raise ValueError("--html takes a file: a page is for a browser, not for standard output")
    numbers = None if args.json == _STDOUT else args.json
    check_outputs({"--html": args.html, "--json": numbers}, args.files)
    if args.html is not None:
        check_page(args.html)


def _of_two(args: argparse.Namespace, show: Progress) -> PairReport:
    if args.reference is not None or args.interval != "jackknife":
        option = "--interval" if args.reference is None else "--reference"
        raise ValueError(f"{option} is for one file; two are compared estimator by estimator")
    for each in args.files:
        if is_recorded(each):
            raise ValueError(f"{each}: two files side by side need scores; rlvar score computes them")
    _no_options_of_recorded(args)
    first, second = map(printable, args.files)
    short = Path(first).stem, Path(second).stem
    return report_pair(
        load_rollouts(args.files[0]),
        load_rollouts(args.files[1]),
        args.estimators,
        names=short if short[0] != short[1] else (first, second),
        sources=(first, second),
        paired=args.paired,
        importance=args.importance,
        truncate=args.truncate,
        aggregation=args.aggregation,
        progress=show,
    )


def _of_recorded(args: argparse.Namespace, scratch: Path, show: Progress) -> Report | RewardReport:
    if args.model is None:
        for option in ("scores", "html"):
            if getattr(args, option) is not None:
                raise ValueError(f"--{option} takes scores, and so --model")
        return report_rewards(recorded_rollouts(args), source=args.file)
    place = args.scores or scratch
    result = scored(args, recorded_rollouts(args), place, show)
    source = printable(f"{args.file} ({result.format}), scored by {args.model}")
    return _of_rollouts(args, load_rollouts(place), "\n".join([source, *notes_of(result)]), show)


def _with_scores(args: argparse.Namespace) -> tuple[Rollouts, str]:
    if args.file is not None:
        return load_rollouts(args.file), printable(args.file)
    source, load = _EMBEDDED[args.dataset or "cartpole"]
    return load(), f"{source}, embedded"


def _of_rollouts(args: argparse.Namespace, rollouts: Rollouts, source: str, show: Progress) -> Report:
    try:
        return make_report(
            rollouts,
            args.estimators,
            source=source,
            sha256=checksums(args.file) if args.file and (args.html or args.json) else None,
            reference=args.reference,
            importance=args.importance,
            truncate=args.truncate,
            aggregation=args.aggregation,
            interval=Bootstrap(seed=args.seed) if args.interval == "bootstrap" else "jackknife",
            progress=show,
        )
    except ValueError as error:
        raise ValueError(f"{args.file}: {error}" if args.file else str(error)) from None


def _no_options_of_recorded(args: argparse.Namespace) -> None:
    given = [name for name in ("model", "scores", *given_columns(args)) if getattr(args, name)]
    if not given:
        return
    if args.file is not None and os.path.isfile(args.file) and not os.path.getsize(args.file):
        raise ValueError(f"{args.file}: it is empty")
    what = "embedded rollouts" if args.file is None else f"{args.file}: these rollouts"
    option = given[0].replace("_", "-")
    raise ValueError(f"{what} have scores already; --{option} is for what trainers write")


def _shown(args: argparse.Namespace, report: Report | RewardReport | PairReport, show: Progress) -> str:
    """Write the files that are asked for; return what standard output gets."""
    if args.html is not None and not isinstance(report, RewardReport):
        show(f"writing {args.html}")
        report.to_html(args.html)
    if args.json is not None:
        numbers = json.dumps(report.to_dict(), indent=1, allow_nan=False)
        if args.json == _STDOUT:
            return numbers
        show(f"writing {args.json}")
        with replacing(args.json) as file:
            file.write(numbers.encode() + b"\n")
    if args.quiet:
        return "\n".join(map(printable, report.verdict))
    return report.text(full=args.full, colour=has_colour(sys.stdout))
