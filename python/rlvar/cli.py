"""The command line: ``rlvar report [FILE]``, ``rlvar score MODEL DATA``, ``rlvar covariance FILE``."""

from __future__ import annotations

import argparse
import errno
import importlib
import json
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any, NoReturn, TextIO, get_args

from rlvar import datasets
from rlvar._types import Aggregation, Importance
from rlvar.analysis.accumulator import CovarianceAccumulator
from rlvar.config import version
from rlvar.files import KEYS, load_rollouts, printable, replacing, writable
from rlvar.recorded import RecordedRollouts, is_recorded, read_recorded
from rlvar.reporting.report import Report
from rlvar.reporting.report import report as make_report
from rlvar.reporting.rewards import RewardReport, report_rewards
from rlvar.reporting.text import wrapped
from rlvar.rollouts import Rollouts
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
    except (OSError, TypeError, ValueError, MemoryError, ImportError) as error:
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
        f"{', '.join(KEYS[2:])}; or a folder of .npy files; or what a trainer wrote, JSON Lines, Parquet or "
        "torch's pickles, as for score; without it, embedded rollouts",
    )
    report.add_argument(
        "--dataset",
        choices=tuple(_EMBEDDED),
        help="which embedded rollouts (default: cartpole); arithmetic is a small language model's",
    )
    report.add_argument(
        "--estimators",
        type=lambda text: [name.strip() for name in text.split(",") if name.strip()],
        metavar="A,B",
        help=f"estimators to compare, out of {known} (default: single; multi with rewards of steps; "
        "rloo,grpo,dr-grpo with groups; else single-mean)",
    )
    report.add_argument(
        "--reference",
        metavar="A",
        help="what ratios are relative to (default: rloo if it is compared, else single)",
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
    report.add_argument(
        "--model", metavar="MODEL", help="score what a trainer wrote with this model first, as score does"
    )
    report.add_argument(
        "--scores", type=Path, metavar="FOLDER", help="where to keep these scores (default: nowhere)"
    )
    _add_scoring(report)
    report.set_defaults(run=_report)
    text = "compute scores of recorded rollouts with the model that sampled them"
    score = commands.add_parser("score", help=text, description=text)
    score.add_argument(
        "model", metavar="MODEL", help="folder or name on the hub of a causal language model of transformers"
    )
    score.add_argument(
        "file",
        type=_input,
        metavar="DATA",
        help="what a trainer wrote, with token ids or text: of NeMo-RL, open-instruct, verl, slime, TRL, "
        "ms-swift, or any JSON Lines or Parquet file",
    )
    score.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="OUT",
        help="new folder, written as it goes: after a kill the same command continues it; or an .npz file",
    )
    _add_scoring(score)
    score.set_defaults(run=_score)
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


_COLUMNS = {
    "prompt": "prompts: token ids, text or chat messages",
    "response": "responses: token ids or text",
    "tokens": "token ids of prompt and response together, in place of both; it needs --mask",
    "mask": "1 for each token that the policy chose and the loss sees",
    "reward": "rewards; several, as A,B, are summed; A.B is key B of a dictionary",
    "per-token-reward": "a reward for each token of the response",
    "group": "what rollouts of one prompt have in common (default: equal prompts)",
    "logp": "log-probabilities that the sampler recorded",
}


def _add_scoring(command: argparse.ArgumentParser) -> None:
    columns = command.add_argument_group(
        "columns of recorded rollouts", 'usual names are known; "none" for no such column'
    )
    for name, text in _COLUMNS.items():
        columns.add_argument(f"--{name}", metavar="COLUMN", help=text)
    columns.add_argument("--step", type=int, metavar="N", help="rollouts of this training step alone")
    columns.add_argument(
        "--trust-pickle", action="store_true", help="load a pickle (.pt), which runs code that the file holds"
    )
    scores = command.add_argument_group("scores of recorded rollouts", "they need torch and transformers")
    scores.add_argument(
        "--of",
        choices=("all", "last_block", "final_norm", "head"),
        default="all",
        help="parameters (default: all, which noise scales need)",
    )
    scores.add_argument(
        "--sketch",
        default="64",
        metavar="K",
        help="random directions of them, or none for each parameter's own coordinate (default: 64)",
    )
    scores.add_argument("--sketch-seed", type=int, default=0, metavar="SEED", help="of them (default: 0)")
    scores.add_argument(
        "--temperature", type=float, help="of sampling (default: as recorded, or else 1)", metavar="TAU"
    )
    scores.add_argument("--top-k", type=int, metavar="K", help="as sampled")
    scores.add_argument("--top-p", type=float, metavar="P", help="as sampled")
    scores.add_argument("--min-p", type=float, metavar="P", help="as sampled")
    scores.add_argument(
        "--dtype",
        choices=("auto", "float32", "bfloat16", "float16", "float64"),
        default="auto",
        help="of the model (default: auto, that of its files)",
    )
    scores.add_argument("--device", help="of the model (default: cuda if there is one, or else cpu)")
    scores.add_argument(
        "--memory",
        type=float,
        default=1.0,
        metavar="GIB",
        help="for what passes through the model at a time (default: 1)",
    )
    scores.add_argument(
        "--ray",
        nargs="?",
        const=True,
        default=False,
        type=_address,
        metavar="ADDRESS",
        help="let Ray's workers share the work: of the cluster at this address (host:port), or by default of "
        "the one that runs or, if none does, of a new one on this machine",
    )
    scores.add_argument(
        "--cpus",
        type=int,
        metavar="N",
        help="of each of Ray's workers, which needs that --memory (default: 1)",
    )


def _add_importance(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--importance",
        choices=get_args(Importance),
        default="none",
        help="importance ratios, for rollouts with logp and behavior_logp (default: none)",
    )
    command.add_argument("--truncate", type=float, metavar="C", help="largest importance ratio")


def _address(text: str) -> str:
    if ":" not in text and text not in ("auto", "local"):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no address (host:port, auto or local); write --ray alone last, or --ray=ADDRESS"
        )
    return text


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


def _report(args: argparse.Namespace) -> Report | RewardReport:
    _check_output("--json", args.json, args.file)
    with _progress() as progress, tempfile.TemporaryDirectory(prefix="rlvar-") as scratch:
        progress("reading rollouts")
        if args.file is not None and args.dataset is not None:
            raise ValueError("give a FILE or --dataset, not both")
        if args.file is not None and is_recorded(args.file):
            recorded = _recorded(args)
            if args.model is None:
                if args.scores is not None:
                    raise ValueError("--scores takes scores, and so --model")
                rewards = report_rewards(recorded, source=printable(args.file))
                _write_json(args, rewards, progress)
                return rewards
            place = args.scores or Path(scratch, "scores")
            scored = _scored(args, recorded, place, progress)
            rollouts = load_rollouts(place)
            source = f"{printable(args.file)} ({scored.format}), scored by {printable(args.model)}"
            source = "\n".join([source, *_notes(scored)])
        else:
            given = [name for name in ("model", "scores", *_given_columns(args)) if getattr(args, name)]
            if (
                given
                and args.file is not None
                and os.path.isfile(args.file)
                and not os.path.getsize(args.file)
            ):
                raise ValueError(f"{args.file}: it is empty")
            if given:
                what = "embedded rollouts" if args.file is None else f"{args.file}: these rollouts"
                option = given[0].replace("_", "-")
                raise ValueError(f"{what} have scores already; --{option} is for what trainers write")
            rollouts, source = _with_scores(args)
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
        _write_json(args, report, progress)
        str(report)  # the scores may be in the scratch folder
    return report


def _with_scores(args: argparse.Namespace) -> tuple[Rollouts, str]:
    if args.file is not None:
        return load_rollouts(args.file), printable(args.file)
    source, load = _EMBEDDED[args.dataset or "cartpole"]
    return load(), f"{source}, embedded"


def _write_json(
    args: argparse.Namespace, report: Report | RewardReport, progress: Callable[[str], None]
) -> None:
    if args.json is None:
        return
    progress(f"writing {args.json}")
    text = json.dumps(report.to_dict(), indent=1, allow_nan=False)
    with replacing(args.json) as file:
        file.write(text.encode() + b"\n")


def _given_columns(args: argparse.Namespace) -> list[str]:
    """Return the names of the options of columns that were given."""
    names = [name.replace("-", "_") for name in _COLUMNS]
    return [name for name in (*names, "step") if getattr(args, name) is not None]


def _recorded(args: argparse.Namespace) -> RecordedRollouts:
    columns = {name: getattr(args, name) for name in _given_columns(args)}
    return read_recorded(args.file, **columns, trust_pickle=args.trust_pickle)


def _scored(
    args: argparse.Namespace, recorded: RecordedRollouts, out: Path, progress: Callable[[str], None]
) -> RecordedRollouts:
    """Score recorded rollouts; return them as they were scored."""
    progress("loading the model")
    try:
        scoring: Any = importlib.import_module("rlvar.torch")
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise ImportError("scores need torch and transformers: pip install 'rlvar[torch]'") from None
    sketch = None
    if args.sketch != "none":
        if not args.sketch.isdecimal():
            raise ValueError(f"--sketch must be a number of directions or none, got {args.sketch!r}")
        sketch = scoring.Sketch(int(args.sketch), args.sketch_seed)
    if not 0 < args.memory < 1e6:
        raise ValueError(f"--memory must be a number of GiB above 0, got {args.memory}")
    if args.cpus is not None and not args.ray:
        raise ValueError("--cpus are those of Ray's workers, and so need --ray")
    seen: list[tuple[float, int]] = []

    def show(done: int, total: int) -> None:
        seen.append((time.monotonic(), done))
        (since, first), (now, _) = seen[0], seen[-1]
        left = (now - since) * (total - done) / (done - first) if done > first else 0.0
        about = f", about {left / 60:.0f} minutes left" if left > 60 else ""
        progress(f"scoring: {done} of {total} rollouts{about}")

    with redirect_stdout(sys.stderr):  # Ray prints there that a worker died and is tried again
        scored: RecordedRollouts = scoring.score_recorded(
            args.model,
            recorded,
            out,
            of=args.of,
            sketch=sketch,
            temperature=args.temperature,
            top_k=args.top_k,
            top_p=args.top_p,
            min_p=args.min_p,
            dtype=args.dtype,
            device=args.device,
            memory=int(args.memory * 2**30),
            ray=args.ray,
            cpus=1 if args.cpus is None else args.cpus,
            progress=show,
        )
    return scored


def _notes(recorded: RecordedRollouts) -> list[str]:
    return [wrapped(f"{note[:1].upper()}{note[1:]}.") for note in recorded.notes]


def _score(args: argparse.Namespace) -> str:
    if args.out.suffix == ".npz":
        _check_output("--out", args.out, args.file)
    with _progress() as progress:
        progress("reading rollouts")
        recorded = _recorded(args)
        try:
            scored = _scored(args, recorded, args.out, progress)
        except KeyboardInterrupt:
            progress("")
            _write(sys.stderr, "rlvar: stopped; the same command continues where it stopped\n")
            raise
        rollouts = load_rollouts(args.out)
    n, t, d = rollouts.shape
    rewards = "one terminal reward each" if rollouts.rewards.ndim == 1 else "a reward for each token"
    groups = "" if rollouts.groups is None else f" in {rollouts.groups.max() + 1} groups"
    out = printable(str(args.out))
    lines = [
        f"{out}: {n} rollouts{groups} of up to {t} tokens, {rewards}",
        f"  Scores of {rollouts.scores_of}, {d} coordinates, by {printable(args.model)}.",
        *_notes(scored),
        f"  rlvar report {out} says how noisy the gradient is.",
    ]
    return "\n".join(lines)


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
