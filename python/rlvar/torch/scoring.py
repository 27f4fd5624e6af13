"""Recorded rollouts and a model into a folder of scored rollouts, block by block.

Blocks are of rollouts in a row, cut by their lengths alone, so a run that was killed and continued gives the
same bits as one that was not. Never more than a block of scores is in memory.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Generator, Iterator
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rlvar import _check
from rlvar.config import version
from rlvar.files import writable
from rlvar.recorded.container import RecordedRollouts, padded
from rlvar.recorded.folder import ScoreFolder
from rlvar.torch import inputs, shards
from rlvar.torch.language import Of, token_scores
from rlvar.torch.policy import Policy
from rlvar.torch.pretrained import Dtype, load_model, load_tokenizer, tokenised
from rlvar.torch.sketch import Sketch

_ROWS, _BYTES = 64, 1 << 26  # of a block


def score_recorded(
    model: torch.nn.Module | str | PathLike[str],
    recorded: RecordedRollouts,
    out: str | PathLike[str],
    *,
    tokenizer: Any = None,
    of: Of = "all",
    sketch: Sketch | None = Sketch(),  # noqa: B008 - frozen
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    dtype: Dtype = "auto",
    device: str | None = None,
    memory: int = 1 << 30,
    ray: bool | str = False,
    cpus: int = 1,
    progress: bool | Callable[[int, int], object] = False,
) -> RecordedRollouts:
    """Score recorded rollouts with a model, into a folder that `load_rollouts` reads.

    It is what ``rlvar score`` does. The folder is written as it goes; after a kill, the same call continues
    where it stopped.

    Parameters
    ----------
    model : torch.nn.Module, str or path-like
        As for `token_scores`, or a local folder or a name on the hub, as transformers takes it: the policy
        that sampled the rollouts, if the scores are to be theirs.
    recorded : RecordedRollouts
        What `read_recorded` gave, with tokens or text.
    out : path-like
        A new folder, or one of the same call that was stopped; or an .npz file.
    tokenizer : optional
        For text, where `model` is not a name or folder of transformers.
    of, sketch, top_k, top_p, min_p, memory
        As for `token_scores`.
    temperature : float, optional
        Of sampling. By default what was recorded, or else 1.
    dtype : {"auto", "float32", "bfloat16", "float16", "float64"}, default "auto"
        Of a model by name; "auto" is that of its files.
    device : str, optional
        Of a model by name. By default "cuda" if there is one, or else "cpu".
    ray : bool or str, default False
        Whether Ray's workers score the blocks (it needs ``rlvar[ray]``): True for the cluster that runs or,
        if none does, a new one on this machine for the time being; or the address of a cluster, as
        ``ray.init`` takes it. The bits are those of one process with as many threads as a worker.
    cpus : int, default 1
        CPUs, and threads, of each of Ray's workers; on GPUs each has one of them too. Each needs `memory`.
    progress : bool or callable, default False
        Whether to show a progress bar (it needs tqdm), or a function of the rollouts done and all of them.

    Returns
    -------
    RecordedRollouts
        As given, with the tokens that were scored.

    Raises
    ------
    ValueError, TypeError
        As `token_scores`; for rewards alone, without tokens or text; for a folder that was begun with another
        model, other rollouts or other options.
    OSError
        If the folder exists already or cannot be written; if Ray's cluster cannot be reached, or its
        workers die repeatedly.
    ImportError, MemoryError
        If a package is missing; if memory runs out, here or in a worker.

    Examples
    --------
    >>> import pathlib, tempfile, numpy as np, rlvar, rlvar.torch
    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> model = LlamaForCausalLM(LlamaConfig(vocab_size=20, hidden_size=8, intermediate_size=8,
    ...     num_hidden_layers=1, num_attention_heads=1))
    >>> ids = [np.array([1, 2, 3, 4]), np.array([1, 2, 5])]
    >>> recorded = rlvar.RecordedRollouts("mine", "mine", rewards=np.array([0.0, 1.0]), ids=ids,
    ...     masks=[np.arange(len(each)) >= 2 for each in ids])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = rlvar.torch.score_recorded(model, recorded, pathlib.Path(folder, "scores"))
    ...     rlvar.load_rollouts(pathlib.Path(folder, "scores"))
    Rollouts(N=2, T=2, D=64, lengths 1 to 2, packed)
    """
    if not isinstance(recorded, RecordedRollouts):
        raise TypeError(f"recorded must be a RecordedRollouts, got {type(recorded).__name__}")
    _check.choice("of", of, Of)
    _check.choice("dtype", dtype, Dtype)
    cpus = _check.positive_integer("cpus", cpus)
    if recorded.ids is None and recorded.texts is None:
        raise ValueError(
            f"{recorded.source}: it has rewards but neither token ids nor text to score; name their columns "
            "(prompt, response)"
        )
    if len(recorded) < 2:
        raise ValueError(f"{recorded.source}: two rollouts or more are needed, got {len(recorded)}")
    recorded_temperature = 1.0 if recorded.temperature is None else recorded.temperature
    policy = Policy(recorded_temperature if temperature is None else temperature, top_k, top_p, min_p)
    place = Path(os.fsdecode(out))
    archive = place if place.suffix == ".npz" else None
    folder = place if archive is None else place.with_name(f"{place.name}.scoring")
    if archive is not None:
        writable(archive)
    elif place.exists() and not place.is_dir():
        raise FileExistsError(17, "it exists already; choose another place", str(place))
    if recorded.texts is not None:
        if tokenizer is None:
            if isinstance(model, torch.nn.Module):
                raise ValueError("tokenizer is needed: the rollouts are recorded as text")
            tokenizer = load_tokenizer(os.fspath(model))
        recorded = tokenised(recorded, tokenizer)
    lengths = recorded.lengths
    if not lengths.any():
        raise ValueError(f"{recorded.source}: no response has a token")
    with contextlib.ExitStack() as stack:
        cluster = None
        if ray:
            cluster = stack.enter_context(shards.connected(None if ray is True else ray))
        by_name = isinstance(model, str | PathLike)
        if not isinstance(model, torch.nn.Module):
            model = load_model(os.fspath(model), dtype, device if cluster is None else "cpu")
        inner = inputs.unwrapped(model)
        known = inputs.named(inner)
        kind = next((each.device.type for each in known.values()), "none")
        if cluster is not None:
            kind = cluster.device(device if by_name else kind)
        options: dict[str, Any] = {
            "of": of,
            "sketch": sketch,
            "temperature": policy.temperature,
            "top_k": top_k,
            "top_p": top_p,
            "min_p": min_p,
            "memory": memory,
        }
        key = {
            "model": _hash_of(inner),
            "set of rollouts": _hash_of(recorded),
            **{name: value if name != "sketch" else repr(value) for name, value in options.items()},
            "kind of device": kind,
            "version of rlvar": version,
        }
        n = len(recorded)
        size = sum(each.numel() for each in known.values()) if sketch is None else sketch.k
        shown = _check.reporter(progress, n, " rollouts", stack)
        target = stack.enter_context(ScoreFolder(folder, key, lengths))
        cuts = [(start, stop) for start, stop in _blocks(lengths, 4 * size) if stop > target.done]
        shown(target.done, n)
        if cluster is None:
            found: Generator[Any, None, None] = (
                _block(model, *_rows(recorded, *cut), options, _within(shown, *cut, n)) for cut in cuts
            )
        else:
            parts = [(*_rows(recorded, *cut), options) for cut in cuts]
            found = cluster.map(_block, inner, parts, cpus=cpus, device=kind)
            stack.enter_context(contextlib.closing(found))
        for (start, stop), scored in zip(cuts, found, strict=True):
            target.append(stop - start, *scored)
            shown(stop, n)
        shown(n, n)
        arrays: dict[str, NDArray[Any]] = {"rewards": recorded.rewards}
        if recorded.token_rewards is not None:
            arrays["rewards"] = target.by_step(recorded.token_rewards)
        if recorded.behavior_logp is not None:
            arrays["behavior_logp"] = target.by_step(recorded.behavior_logp)
        if recorded.groups is not None:
            arrays["groups"] = recorded.groups
        target.finish(arrays, archive)
    return recorded


def _blocks(lengths: NDArray[np.int64], coordinate_bytes: int) -> Iterator[tuple[int, int]]:
    """Give the ends of blocks of rollouts in a row, each with one that has a token."""
    cuts, widest = [0], 0
    for n, length in enumerate(lengths.tolist()):
        rows, wide = n - cuts[-1], max(widest, length)
        if widest and (rows >= _ROWS or (rows + 1) * wide * coordinate_bytes > _BYTES):
            cuts.append(n)
            wide = length
        widest = wide
    if not widest:  # nothing to score behind the last cut
        cuts.pop()
    yield from zip(cuts, [*cuts[1:], len(lengths)], strict=True)


def _rows(
    recorded: RecordedRollouts, start: int, stop: int
) -> tuple[list[NDArray[np.int64]], list[NDArray[np.bool_]]]:
    """Return the tokens and the masks of those of some rollouts that have a token to score."""
    assert recorded.ids is not None
    assert recorded.masks is not None
    live = [n for n in range(start, stop) if recorded.masks[n].any()]
    return [recorded.ids[n] for n in live], [recorded.masks[n] for n in live]


def _within(
    shown: Callable[[int, int], object], start: int, stop: int, n: int
) -> Callable[[int, int], object]:
    """Return what shows how far a block has come."""
    return lambda done, total: shown(start + (stop - start) * done // total, n)


def _block(
    model: torch.nn.Module,
    ids: list[NDArray[np.int64]],
    masks: list[NDArray[np.bool_]],
    options: dict[str, Any],
    progress: bool | Callable[[int, int], object] = False,
) -> tuple[dict[str, NDArray[Any]], str, bool]:
    """Score some rollouts; return what goes into the folder."""
    width = max(map(len, ids))
    attended = np.arange(width) < np.array([len(each) for each in ids])[:, None]
    try:
        found = token_scores(
            model, padded(ids, width), attended, padded(masks, width), progress=progress, **options
        )
    except torch.OutOfMemoryError:
        raise MemoryError("the device's memory is too small for these rollouts; lower memory") from None
    arrays = {"logp": found.logp, "score_squares": found.score_squares, "scores": found.scores}
    blocks: dict[str, NDArray[Any]] = {name: array[found.live] for name, array in arrays.items()}
    return blocks, found.scores_of, found.sketch is not None


def _hash_of(what: torch.nn.Module | RecordedRollouts) -> str:
    """Return a hash of a model's parameters, or of all that is recorded."""
    digest = hashlib.blake2b(digest_size=16)
    if isinstance(what, torch.nn.Module):
        for name, each in [*what.named_parameters(), *what.named_buffers()]:
            digest.update(f"{name} {each.dtype} {tuple(each.shape)}".encode())
            flat = each.detach().contiguous().view(-1).view(torch.uint8)
            for start in range(0, len(flat), 1 << 26):
                digest.update(flat[start : start + (1 << 26)].cpu().numpy().data)
        return digest.hexdigest()
    for rows in (what.ids, what.masks, what.token_rewards, what.behavior_logp, [what.rewards], [what.groups]):
        digest.update(b"none" if rows is None else f"{len(rows)}".encode())
        for row in rows or []:
            if row is not None:
                digest.update(f"{row.shape}".encode() + row.tobytes())
    return digest.hexdigest()
