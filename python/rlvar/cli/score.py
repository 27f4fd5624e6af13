"""``rlvar score MODEL DATA``: scores of what a trainer wrote, with the model that sampled it."""

from __future__ import annotations

import argparse
import importlib
import shlex
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from rlvar.cli.parser import add_command, check_outputs, input_file
from rlvar.cli.streams import Progress, progress, write
from rlvar.files import load_rollouts
from rlvar.recorded import RecordedRollouts, read_recorded
from rlvar.reporting.text import wrapped
from rlvar.reporting.words import capital
from rlvar.stats.shown import printable

COLUMNS = {
    "prompt": "prompts: token ids, text or chat messages",
    "response": "responses: token ids or text",
    "tokens": "token ids of prompt and response together, in place of both; it needs --mask",
    "mask": "1 for each token that the policy chose and the loss sees",
    "reward": "rewards; several, as A,B, are summed; A.B is key B of a dictionary",
    "per-token-reward": "a reward for each token of the response",
    "group": "what rollouts of one prompt have in common (default: equal prompts)",
    "logp": "log-probabilities that the sampler recorded",
}


def add_to(commands: argparse._SubParsersAction[Any]) -> None:
    text = "compute scores of recorded rollouts with the model that sampled them"
    command = add_command(
        commands,
        "score",
        text,
        "rlvar score checkpoint/ rollouts.jsonl --out scores",
        "rlvar report scores",
        usage="rlvar score MODEL DATA --out OUT [options]",
    )
    command.add_argument(
        "model", metavar="MODEL", help="folder or name on the hub of a causal language model of transformers"
    )
    command.add_argument(
        "file",
        type=input_file,
        metavar="DATA",
        help="what a trainer wrote, with token ids or text: of NeMo-RL, open-instruct, verl, slime, TRL, "
        "ms-swift, or any JSON Lines or Parquet file",
    )
    command.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="OUT",
        help="new folder, written as it goes: after a kill the same command continues it; or an .npz file",
    )
    add_columns(command)
    add_scoring(command)
    command.set_defaults(run=_score)


def add_columns(command: argparse.ArgumentParser) -> None:
    columns = command.add_argument_group(
        "columns of recorded rollouts", 'Usual names are known; "none" stands for no such column.'
    )
    for name, text in COLUMNS.items():
        columns.add_argument(f"--{name}", metavar="COLUMN", help=text)
    columns.add_argument("--step", type=int, metavar="N", help="rollouts of this training step alone")
    columns.add_argument(
        "--trust-pickle", action="store_true", help="load a pickle (.pt), which runs code that the file holds"
    )


def add_scoring(command: argparse.ArgumentParser) -> None:
    scores = command.add_argument_group("scores of recorded rollouts", "These need torch and transformers.")
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
        metavar="TYPE",
        help="of the model: float32, bfloat16, float16, float64 or auto, that of its files (default: auto)",
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


def _address(text: str) -> str:
    if ":" not in text and text not in ("auto", "local"):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no address (host:port, auto or local); write --ray alone last, or --ray=ADDRESS"
        )
    return text


def given_columns(args: argparse.Namespace) -> list[str]:
    """Return the names of the options of columns that were given."""
    names = [name.replace("-", "_") for name in COLUMNS]
    return [name for name in (*names, "step") if getattr(args, name) is not None]


def recorded_rollouts(args: argparse.Namespace) -> RecordedRollouts:
    columns = {name: getattr(args, name) for name in given_columns(args)}
    return read_recorded(args.file, **columns, trust_pickle=args.trust_pickle)


def scored(
    args: argparse.Namespace, recorded: RecordedRollouts, out: Path, show: Progress
) -> RecordedRollouts:
    """Score recorded rollouts; return them as they were scored."""
    show("loading the model")
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
    with redirect_stdout(sys.stderr):  # Ray prints there that a worker died and is tried again
        result: RecordedRollouts = scoring.score_recorded(
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
            progress=lambda done, total: show.count("scoring", done, total),
        )
    return result


def notes_of(recorded: RecordedRollouts) -> list[str]:
    return [f"{capital(note)}." for note in recorded.notes]


def _score(args: argparse.Namespace) -> str:
    if args.out.suffix == ".npz":
        check_outputs({"--out": args.out}, [args.file])
    with progress() as show:
        show("reading rollouts")
        recorded = recorded_rollouts(args)
        try:
            found = scored(args, recorded, args.out, show)
        except KeyboardInterrupt:
            show.close()
            write(sys.stderr, "rlvar: stopped; the same command continues where it stopped\n")
            raise
        rollouts = load_rollouts(args.out)
    n, t, d = rollouts.shape
    rewards = "one terminal reward each" if rollouts.rewards.ndim == 1 else "a reward for each token"
    groups = "" if rollouts.groups is None else f" in {rollouts.groups.max() + 1} groups"
    out = printable(shlex.quote(str(args.out)))
    lines = [
        wrapped(f"Rollouts: {out}", indent=0),
        f"  {n} rollouts{groups} of up to {t} tokens, {rewards}",
        wrapped(f"Scores of {rollouts.scores_of}, {d} coordinates, by {printable(args.model)}."),
        *map(wrapped, notes_of(found)),
        wrapped(f"rlvar report {out} says how noisy the gradient is."),
    ]
    return "\n".join(lines)
