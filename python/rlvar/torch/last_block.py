r"""The parameters whose scores one backward pass gives.

A linear module takes a_s (in) and returns W a_s at each position s. One backward pass from the sum of all
log-probabilities gives d_s = d (sum_t log pi_t) / d output_s, and the row d_s a_s^T is what *position*
s adds to the gradient with respect to W. It is the score of the token predicted there only if the output at s
moves no other token's log-probability: d log pi_t / d output_s = 0 for s != t. In a causal network that holds
behind the last mixing of positions: of the last block the queries and what follows attention, and the final
norm; not its keys and values and the norm before them, nor anything earlier.

The choice is measured, not a list of names. The network runs on a few tokens, and a parameter is taken if

1. the gradients of single tokens' log-probabilities with respect to its module's output vanish at all other
   positions, to the bit, and do not vanish at their own;
2. the module is linear in it: a matrix, a gain or a bias;
3. no other module has it, and its rows add up to its gradient, so nothing else uses it.

The experts of a mixture, which see tokens in another order, do not pass, and are left out.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from rlvar.torch import inputs
from rlvar.torch.head import Call, Head
from rlvar.torch.inputs import Chunk
from rlvar.torch.policy import of_tokens
from rlvar.torch.rows import Kind, Layout, Part, agree, by_token, full, kind_of, layouts, tensor_of

Module = torch.nn.Module
Parameters = dict[str, torch.nn.Parameter]


def exact_parts(head: Head, chosen: Parameters) -> list[Part]:
    """Return the parameters among `chosen` that pass, in their order."""
    model, chunk = head.network.module, head.probe
    names = {parameter: name for name, parameter in chosen.items()}
    owners: dict[torch.nn.Parameter, list[tuple[Module, str]]] = {}
    for module in model.modules():
        for own, parameter in module.named_parameters(recurse=False):
            if parameter in names:
                owners.setdefault(parameter, []).append((module, own))
    with inputs.only_requiring_grad(model, chosen):
        logits, every = head.recorded(chunk)
        calls: dict[Module, list[Call]] = {}
        for call in every:
            output = tensor_of(call.returned)
            if output is not None and output.requires_grad:
                calls.setdefault(call.module, []).append(call)
        logp = of_tokens(full(logits[:, :-1]).log_softmax(-1), chunk.ids[:, 1:])
        single = [module for module, own in (each[0] for each in owners.values() if len(each) == 1)]
        found = _causal({module: calls[module] for module in single if module in calls}, logp, chunk)
        parts = []
        for parameter, name in names.items():
            module, own = owners[parameter][0]
            if len(owners[parameter]) > 1 or module not in found:
                continue
            kind = _kind(module, own, calls[module])
            if kind is not None:
                part = Part(name, parameter, module, own, kind, found[module])
                if _adds_up(part, calls[module], logp, chunk):
                    parts.append(part)
    return parts


def _causal(calls: dict[Module, list[Call]], logp: torch.Tensor, chunk: Chunk) -> dict[Module, Layout]:
    """Layouts of those modules whose output at a position moves one log-probability alone."""
    n, length = chunk.ids.shape
    last = chunk.live.sum(1) - 1
    tests = [(row, int(last[row])) for row in range(n)] + [(0, int(last[0]) // 2)]
    flat = [(module, call.returned) for module, several in calls.items() for call in several]
    outputs = [_tensor(returned) for _, returned in flat]
    fitting = [layouts(output, n, length) for output in outputs]
    moved = [False] * len(flat)
    for row, place in tests:
        found = torch.autograd.grad(logp[row, place], outputs, retain_graph=True, materialize_grads=True)
        for i, gradient in enumerate(found):
            if not (nonzero := gradient != 0).any():
                continue
            elsewhere = []
            for layout in fitting[i]:
                others = by_token(nonzero, layout, n, length).clone()
                moved[i] |= bool(others[row, place].any())
                others[row, place] = False
                if not others.any():
                    elsewhere.append(layout)
            fitting[i] = elsewhere
            moved[i] |= not elsewhere
    result: dict[Module, Layout] = {}
    for module in calls:
        mine = [fitting[i] for i, each in enumerate(flat) if each[0] is module and moved[i]]
        common = [layout for layout in (mine[0] if mine else []) if all(layout in each for each in mine)]
        if common:
            result[module] = common[0]
    return result


def _kind(module: Module, own: str, calls: list[Call]) -> Kind | None:
    if not all(call.alone for call in calls):
        return None
    kinds = {kind_of(module, own, call.given, _tensor(call.returned)) for call in calls}
    return kinds.pop() if len(kinds) == 1 else None


def _adds_up(part: Part, calls: list[Call], logp: torch.Tensor, chunk: Chunk) -> bool:
    """Whether the rows of a part are all of its gradient, of a weighted sum of log-probabilities."""
    weights = torch.linspace(1.0, 2.0, logp.numel(), device=logp.device, dtype=logp.dtype).view_as(logp)
    outputs = [_tensor(call.returned) for call in calls]
    gradient, *found = torch.autograd.grad(
        (weights * chunk.live * logp).sum(),
        [part.parameter, *outputs],
        retain_graph=True,
        materialize_grads=True,
    )
    n, length = chunk.ids.shape
    if any(part.layout not in layouts(output, n, length) for output in outputs):
        return False
    direction = torch.linspace(1.0, 2.0, gradient.shape[-1], device=logp.device, dtype=full(gradient).dtype)
    totals = []
    for call, by_output in zip(calls, found, strict=True):
        given = by_token(call.given.detach(), part.layout, n, length).flatten(0, 1)
        rows = part.rows(given, by_token(by_output, part.layout, n, length).flatten(0, 1))
        totals.append(rows.total(direction))
    wanted = full(gradient) @ direction if rows.factored else full(gradient)
    return agree(torch.stack(totals).sum(0), wanted.to(gradient.dtype))


def _tensor(returned: object) -> torch.Tensor:
    result = tensor_of(returned)
    assert result is not None
    return result


class Watched:
    """What modules before the head are given and return, while a chunk runs."""

    def __init__(self, parts: list[Part], chunk: Chunk) -> None:
        self.chunk = chunk
        self.layouts = {part.module: part.layout for part in parts}
        self.given: dict[Module, list[torch.Tensor]] = {}
        self.outputs: list[tuple[Module, torch.Tensor]] = []

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Note each call of the modules."""

        def note(module: Module, args: tuple[torch.Tensor, ...], returned: object) -> None:
            self.outputs.append((module, _tensor(returned)))
            self.given.setdefault(module, []).append(self._predicting(args[0].detach(), module))

        with contextlib.ExitStack() as stack:
            for module in self.layouts:
                stack.callback(module.register_forward_hook(note).remove)
            yield

    def _predicting(self, x: torch.Tensor, module: Module) -> torch.Tensor:
        """Of what a module was given or returned, what belongs to the m live tokens (m, ...)."""
        n, length = self.chunk.ids.shape
        layout = self.layouts[module]
        if layout not in layouts(x, n, length):
            raise ValueError(
                f"a {type(module).__name__} was given an array of shape {tuple(x.shape)} for {n} rows of "
                f"{length} tokens; of='last_block' cannot tell its tokens apart"
            )
        rows, steps = self.chunk.live.nonzero(as_tuple=True)
        return by_token(x, layout, n, length)[rows, self.chunk.places[rows, steps] - 1]

    def pairs(
        self, by_state: torch.Tensor, states: torch.Tensor | None = None
    ) -> dict[Module, tuple[torch.Tensor, torch.Tensor]]:
        """What each module was given, and its output's gradient, (m, calls, ...) both.

        It takes one backward pass from the states, or none where they are what the one module returned.
        """
        if states is None:
            gradients = {module: [by_state] for module in self.given}
        else:
            outputs = [output for _, output in self.outputs]
            found = torch.autograd.grad(states, outputs, by_state, materialize_grads=True)
            gradients = {module: [] for module in self.given}
            for (module, _), gradient in zip(self.outputs, found, strict=True):
                gradients[module].append(self._predicting(gradient, module))
        return {
            module: (torch.stack(self.given[module], 1), torch.stack(gradients[module], 1))
            for module in gradients
        }
