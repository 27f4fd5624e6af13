r"""Token scores with respect to a part of a language model, from one forward pass or one more backward pass.

    final norm   S_t = (W^T e_t) * xhat_t       no backward pass; exact, D = hidden
    head         S_t = e_t h_t^T                 no backward pass; a Khatri-Rao sketch, or exact
    last block   the parameters of `rlvar.torch.last_block`, in one backward pass through that block

with e_t = d log pi(y_t) / d (output of the head), h_t the state that goes into it, W its matrix (see
`rlvar.torch.head`) and xhat_t the state in the final norm before its gain. Only the states that predict a
response token go through the head.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from rlvar import _check
from rlvar._types import Double, Float
from rlvar.torch import inputs
from rlvar.torch.head import Head
from rlvar.torch.inputs import Network, Tokens
from rlvar.torch.last_block import Watched, exact_parts
from rlvar.torch.policy import Policy
from rlvar.torch.precondition import scales_of
from rlvar.torch.rows import Part, Signs, kind_of, tensor_of
from rlvar.torch.sketch import Sketch

Module = torch.nn.Module
Report = Callable[[int], object]
At = tuple[NDArray[np.int64], NDArray[np.int64]]  # rows and steps of some tokens


class Scored(NamedTuple):
    """What a pass over the tokens gives."""

    scores: Float  # (N, T, D)
    logp: Double  # (N, T)
    log_sum_squares: Double  # (N, T)
    scores_of: str
    sketch: Sketch | None


def part_scores(
    network: Network,
    tokens: Tokens,
    of: Literal["last_block", "final_norm", "head"],
    sketch: Sketch | None,
    policy: Policy,
    precondition: torch.optim.Optimizer | None,
    memory: int,
    report: Report,
    dtype: type = np.float32,
) -> Scored:
    """Scores of a part, in `dtype`; `report` is told the rows done."""
    if sketch is not None and precondition is not None and of != "final_norm":
        raise ValueError(
            "precondition divides each entry of a matrix by another number, which the sketch of "
            f"of={of!r} cannot do; use sketch=None, of='final_norm' or of='all'"
        )
    head = Head(network, tokens)
    parts, scores_of = {"final_norm": _final_norm, "head": _head, "last_block": _last_block}[of](head)
    if of == "final_norm":
        sketch = None
    scales = scales_of(precondition, {part.name: part.parameter for part in parts})
    size = sum(part.parameter.numel() for part in parts) if sketch is None else sketch.k
    scores = np.zeros((*tokens.live.shape, size), dtype)
    starts = np.cumsum([0, *(part.parameter.numel() for part in parts)])
    signs = Signs(sketch) if sketch is not None else None

    def take(part: int, given: torch.Tensor, gradient: torch.Tensor, at: At) -> None:
        rows = parts[part].rows(given, gradient)
        if signs is not None:
            scores[at] += _array(signs.project(parts[part].name, rows))
            return
        dense = rows.dense()
        if scales:
            dense = dense / scales[parts[part].name]
        scores[(*at, slice(starts[part], starts[part + 1]))] = _array(dense.flatten(1))

    logp, log_sum_squares = _run(head, tokens, parts, of == "final_norm", policy, memory, report, take)
    if precondition is not None:
        scores_of += ", preconditioned"
    return Scored(scores, logp, log_sum_squares, scores_of, sketch)


def _run(
    head: Head,
    tokens: Tokens,
    parts: list[Part],
    at_states: bool,
    policy: Policy,
    memory: int,
    report: Report,
    take: Callable[[int, torch.Tensor, torch.Tensor, At], None],
) -> tuple[Double, Double]:
    """Give `take` what each part's module is given and its output's gradient, by tokens and their places.

    Return log-probabilities and logs of sums of squares (N, T). `at_states`: the output of the one module is
    what the head is given, so that no graph is needed.
    """
    network = head.network
    logp, log_sum_squares = np.zeros((2, *tokens.live.shape))
    in_head = {module for module in head.module.modules() if any(part.module is module for part in parts)}
    before = [part for part in parts if part.module not in in_head]
    needing = {} if at_states else {part.name: part.parameter for part in before}
    widest = network.width(tokens, head=False) * int(tokens.lengths.max()) * 4
    done = 0
    for chunk in tokens.chunks(max(1, memory // 2 // widest)):
        chunk = chunk.to(network.device)
        watched = Watched(before, chunk)
        graph = inputs.only_requiring_grad(network.module, needing) if needing else torch.no_grad()
        with graph, watched.watching():
            states = head.states_of(chunk)
        rows, steps = (each.cpu().numpy() for each in chunk.live.nonzero(as_tuple=True))
        at = chunk.rows[rows], steps
        targets = network.targets(chunk)[chunk.live]
        by_state = torch.empty_like(states)
        width = head.at_once(memory, states.dtype)
        for start in range(0, len(states), width):
            some = slice(start, start + width)
            here = at[0][some], at[1][some]
            ends = head.ends(states[some], targets[some], policy, list(in_head))
            by_state[some] = ends.by_state
            logp[here] = _array(ends.logp)
            log_sum_squares[here] = _array(ends.log_sum_squares)
            for i, part in enumerate(parts):
                if part.module in ends.pairs:
                    take(i, *ends.pairs[part.module], here)
        if before:
            pairs = watched.pairs(by_state) if at_states else watched.pairs(by_state, states)
            for i, part in enumerate(parts):
                if part.module in pairs:
                    take(i, *pairs[part.module], at)
        done += len(chunk.rows)
        report(done)
    return logp, log_sum_squares


def _array(x: torch.Tensor) -> NDArray[Any]:
    return x.detach().to(torch.promote_types(x.dtype, torch.float32)).cpu().numpy()


def _final_norm(head: Head) -> tuple[list[Part], str]:
    """The gain of the module whose output is what the head is given."""
    name, states = head.name, head.states
    for call in reversed(head.calls):
        output = tensor_of(call.returned)
        if output is None or output.numel() != states.numel() or not call.alone:
            continue
        own = {each: p for each, p in call.module.named_parameters(recurse=False) if p.is_floating_point()}
        if not own or not torch.equal(output.reshape(states.shape).to(states.dtype), states):
            continue
        kinds = {each: kind_of(call.module, each, call.given, output) for each in own}
        for each in own:
            if kinds[each] == "gain":
                of_gain = "the gain of " if "bias" in kinds.values() else ""
                return [head.part(call, each, "gain")], f"{of_gain}the final norm of {name}"
    raise ValueError(
        f"what the head of {name} is given does not come out of a norm with a gain; use of='all'"
    )


def _head(head: Head) -> tuple[list[Part], str]:
    """The matrix of the head, and its bias."""
    parts = []
    for call in head.calls:
        output = tensor_of(call.returned)
        if call.module not in set(head.module.modules()) or output is None:
            continue
        if (call.given.shape[-1], output.shape[-1]) != (head.states.shape[-1], head.size):
            continue  # a part of an adapter
        for own, parameter in call.module.named_parameters(recurse=False):
            if parameter.is_floating_point() and (kind := kind_of(call.module, own, call.given, output)):
                parts.append(head.part(call, own, kind))
    matrices = [part for part in parts if part.kind in ("out x in", "in x out")]
    if len(matrices) != 1:
        raise ValueError(f"the head of {head.name} is not one matrix; use of='all'")
    shared = sum(
        parameter is matrices[0].parameter
        for module in head.network.module.modules()
        for parameter in module.parameters(recurse=False)
    )
    what = "the output side of the tied embedding" if shared > 1 else "the head"
    return parts, f"{what} of {head.name}"


def _last_block(head: Head) -> tuple[list[Part], str]:
    """What is exact in one backward pass."""
    parts = exact_parts(head, inputs.named(head.network.module))
    if not parts:
        raise ValueError(f"no trained parameter of {head.name} is exact in one backward pass; use of='all'")
    return parts, f"the last block of {head.name} ({', '.join(_short_names(head, parts))})"


def _short_names(head: Head, parts: list[Part]) -> list[str]:
    """Names of modules, as short as a header wants them: a group of which all are taken goes by its own."""
    taken = {part.module for part in parts}
    names = {module: name for name, module in head.network.module.named_modules()}
    called = {call.module for call in head.calls if any(True for _ in call.module.parameters(recurse=False))}
    parents = {name: module for module, name in names.items()}
    found: dict[str, None] = {}
    for part in parts:
        name, lora = names[part.module], ""
        if ".lora_" in name:
            name, lora = name.partition(".lora_")[0], "LoRA of "
        above = name
        while (above := above.rpartition(".")[0]) and not lora:
            every = [module for module in parents[above].modules() if module in called]
            if len(every) < 2 or not taken.issuperset(every):
                break
            name = above
        words = [w for w in name.split(".") if not w.isdigit() and w not in ("base_layer", "default")]
        found[lora + words[-1]] = None
    return list(found)


class HeadFactors(NamedTuple):
    """Token scores of the output head as outer products: what `head_factors` returns.

    Attributes
    ----------
    a : ndarray, shape (N, T, V)
        Gradient of each token's log-probability with respect to the output of the head, float32.
    b : ndarray, shape (N, T, hidden)
        State that goes into the head; with a last column of ones if the head has a bias.
    lengths : ndarray of int, shape (N,)
        Number of response tokens of each row.
    logp, log_sum_squares : ndarray, shape (N, T)
        As in `TokenScores`.
    scores_of : str
        What the scores are gradients with respect to.
    """

    a: Float
    b: Float
    lengths: NDArray[np.int64]
    logp: Double
    log_sum_squares: Double
    scores_of: str


def head_factors(
    model: torch.nn.Module,
    input_ids: ArrayLike,
    attention_mask: ArrayLike | None,
    response_mask: ArrayLike,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    memory: int = 1 << 30,
    progress: bool | Callable[[int, int], object] = False,
) -> HeadFactors:
    r"""Compute exact token scores of the output head, S[n,t] = a[n,t] b[n,t]^T, as their factors.

    They take N T (V + hidden) numbers where the scores have N T V hidden: for `rlvar.covariance_factored`.

    Parameters
    ----------
    model, input_ids, attention_mask, response_mask
        As for `token_scores`.
    temperature, top_k, top_p, min_p
        As the rollouts were sampled.
    memory, progress
        As for `token_scores`.

    Returns
    -------
    HeadFactors

    Raises
    ------
    ValueError, TypeError
        As `token_scores`, and for a model whose head is not one matrix.

    Examples
    --------
    >>> import torch, rlvar.torch
    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> model = LlamaForCausalLM(LlamaConfig(vocab_size=20, hidden_size=8, intermediate_size=8,
    ...     num_hidden_layers=1, num_attention_heads=1))
    >>> ids = torch.randint(20, (4, 6))
    >>> factors = rlvar.torch.head_factors(model, ids, None, response_mask=torch.ones(4, 4))
    >>> factors.a.shape, factors.b.shape, factors.scores_of
    ((4, 4, 20), (4, 4, 8), 'the head of LlamaForCausalLM')
    """
    policy = Policy(temperature, top_k, top_p, min_p)
    network, tokens = inputs.prepared(model, input_ids, attention_mask, response_mask)
    with contextlib.ExitStack() as stack:
        stack.enter_context(inputs.still(network.module))
        head = Head(network, tokens)
        parts, scores_of = _head(head)
        matrix = next(i for i, part in enumerate(parts) if part.kind in ("out x in", "in x out"))
        hidden = parts[matrix].parameter.numel() // head.size
        a = np.zeros((*tokens.live.shape, head.size), np.float32)
        b = np.zeros((*tokens.live.shape, hidden + len(parts) - 1), np.float32)

        def take(part: int, given: torch.Tensor, gradient: torch.Tensor, at: At) -> None:
            if part == matrix:
                a[at] = _array(gradient)
                b[(*at, slice(hidden))] = _array(given)
                b[(*at, slice(hidden, None))] = 1.0

        total = int(np.count_nonzero(tokens.counts))
        shown = _check.reporter(progress, total, " rollouts", stack)
        logp, squares = _run(
            head, tokens, parts, False, policy, memory, lambda done: shown(done, total), take
        )
    return HeadFactors(a, b, tokens.counts, logp, squares, scores_of)
