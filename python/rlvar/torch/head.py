r"""The output head of a causal network: from the last states to log-probabilities of tokens, and back.

A head maps one state h (hidden) to V numbers, a = W h; what follows (a soft cap, a scale of the logits, the
temperature, warping) makes log-probabilities of them. Here the network runs up to its head once, and then the
network's own code from the head on runs over a few tokens at a time, forwards and backwards, with everything
before the head replaced by what it returned for one token. So any arithmetic behind the head is the model's
own, and no array of (tokens, V) numbers is larger than `_LARGEST` bytes (or a sixteenth of the memory).

With e = d log pi(y) / d a (V,): e = (onehot(y) - pi) / temperature, through what follows the head; the
gradient with respect to the state is W^T e, that with respect to W is e h^T.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from rlvar.torch import inputs
from rlvar.torch.inputs import Chunk, Network, Tokens
from rlvar.torch.policy import Policy, of_tokens
from rlvar.torch.rows import Kind, Part, agree, layouts

Module = torch.nn.Module

_LARGEST = 1 << 25  # bytes: more tokens at a time are no faster
_SHORT = 12  # tokens: enough to tell what mixes positions


class Ends(NamedTuple):
    """What comes out of a head for some tokens."""

    logp: torch.Tensor  # (c,)
    log_sum_squares: torch.Tensor  # (c,)
    by_state: torch.Tensor  # (c, hidden), W^T e
    pairs: dict[Module, tuple[torch.Tensor, torch.Tensor]]
    """Of modules in the head: what each was given (c, in), as h, and its output's gradient (c, out), as e."""


@dataclass(frozen=True)
class Call:
    """One call of a module: its first argument, whether it was the only one, and what it returned."""

    module: Module
    given: Any
    alone: bool
    returned: Any


class Head:
    """The head of a network, found by running it on a few tokens, and checked on them."""

    def __init__(self, network: Network, tokens: Tokens) -> None:
        self.network = network
        self.name = inputs.name_of(network.module)
        self.probe = short(tokens).to(network.device)
        with torch.no_grad():
            logits, calls = self.recorded(self.probe)
            if logits.isnan().any():
                raise ValueError(
                    f"the logits of {self.name} are not finite: parameters of the model are not, or its "
                    "precision overflows"
                )
            self.module = self._found(logits, calls)
            mine = [call for call in calls if call.module is self.module]
            states = self._states(mine[0].given, self.probe, 0)
            self._alone = _first_token(self.probe)
            self._before = self._replaced(self.recorded(self._alone)[1])
            self.calls = calls
            again = self.replayed(states.flatten(0, -2))
        if len(mine) > 1 or not agree(again[0], logits.flatten(0, -2)):
            raise ValueError(
                f"the logits of {self.name} are not its head applied to each token alone, which parts need; "
                "use of='all'"
            )
        self.size = logits.shape[-1]
        self.states = states  # (n, l, hidden) of the probe

    def recorded(self, chunk: Chunk) -> tuple[torch.Tensor, list[Call]]:
        """Run the network on a chunk, and note each call of each module in the order of their ends."""
        calls: list[Call] = []

        def note(module: Module, args: Any, named: Any, returned: Any) -> None:
            every = (*args, *named.values())
            alone = len(args) == 1 and not named
            calls.append(Call(module, every[0] if every else None, alone, returned))

        with contextlib.ExitStack() as stack:
            for module in self.network.module.modules():
                stack.callback(module.register_forward_hook(note, with_kwargs=True).remove)
            return self.network.every(chunk)[0], calls

    def _found(self, logits: torch.Tensor, calls: list[Call]) -> Module:
        base = inputs.base(self.network.module)
        declared = getattr(base, "get_output_embeddings", lambda: None)()
        for call in reversed(calls):
            own = dict(call.module.named_parameters(recurse=False)).values()
            if call.module is declared or (
                declared is None and any(each.dim() == 2 and logits.shape[-1] in each.shape for each in own)
            ):
                return call.module
        raise ValueError(f"{self.name} has no output head as a separate module; use of='all'")

    def _states(self, given: Any, chunk: Chunk, first: int) -> torch.Tensor:
        """States (n, l, hidden) that go into the head, whatever their shape."""
        n, length = len(chunk.ids), chunk.ids.shape[1] - first
        if isinstance(given, torch.Tensor) and given.numel() == n * length * given.shape[-1]:
            return given.reshape(n, length, -1)
        raise ValueError(f"the head of {self.name} is not applied to one state for each token; use of='all'")

    def _replaced(self, calls: list[Call]) -> dict[Module, Any]:
        """The largest modules that return before the head is called, with what they return."""
        returned = {}
        for call in calls:
            if call.module is self.module:
                break
            returned[call.module] = call.returned
        inside = {id(each) for each in self.module.modules()}
        found = {}

        def descend(module: Module) -> None:
            for child in module.children():
                if id(child) not in inside and child in returned:
                    found[child] = returned[child]
                else:
                    descend(child)

        descend(self.network.module)
        return found

    def part(self, call: Call, own: str, kind: Kind) -> Part:
        """Return parameter `own` of a module that the probe called, as a part."""
        parameter = call.module.get_parameter(own)
        name = next(name for name, each in self.network.module.named_parameters() if each is parameter)
        return Part(name, parameter, call.module, own, kind, layouts(call.given, *self.probe.ids.shape)[0])

    @contextlib.contextmanager
    def _standing_in(self) -> Iterator[None]:
        """Let what comes before the head return what it returned for one token, without running."""
        with contextlib.ExitStack() as stack:
            for module, returned in self._before.items():
                before = module.__dict__.get("forward")
                stack.callback(_put_back, module, before)
                module.__dict__["forward"] = lambda *_, _returned=returned, **__: _returned
            yield

    def replayed(self, states: torch.Tensor) -> torch.Tensor:
        """Logits (1, c, V) for states (c, hidden)."""

        def swap(_: Module, args: Any, named: Any) -> Any:
            return _with_first(args, named, states[None])

        with self._standing_in(), contextlib.ExitStack() as stack:
            stack.callback(self.module.register_forward_pre_hook(swap, with_kwargs=True).remove)
            return self.network.every(self._alone)[0]

    def states_of(self, chunk: Chunk) -> torch.Tensor:
        """Run the network up to its head: states (m, hidden) from which the m live tokens are predicted."""
        found: list[torch.Tensor] = []

        def take(_: Module, args: Any, named: Any) -> Any:
            given = next(iter((*args, *named.values())))
            found.append(given)
            # What follows runs on one token.
            return _with_first(args, named, given.reshape(-1, given.shape[-1])[None, :1])

        with contextlib.closing(_Removing(self.module.register_forward_pre_hook(take, with_kwargs=True))):
            first = self.network.every(chunk)[1]
        states = self._states(found[0], chunk, first)
        rows, steps = chunk.live.nonzero(as_tuple=True)
        return states[rows, chunk.places[rows, steps] - 1 - first]

    def at_once(self, memory: int, dtype: torch.dtype) -> int:
        """How many tokens go through the head at a time."""
        size = max(4, dtype.itemsize) * self.size
        return max(1, min(_LARGEST, memory // 16) // size)

    def ends(
        self, states: torch.Tensor, targets: torch.Tensor, policy: Policy, within: Sequence[Module] = ()
    ) -> Ends:
        """Log-probabilities of `targets` (c,) from states (c, hidden), and gradients, in modules too."""
        notes: list[tuple[Module, torch.Tensor, torch.Tensor]] = []

        def note(module: Module, args: Any, named: Any, returned: torch.Tensor) -> None:
            notes.append((module, next(iter((*args, *named.values()))), returned))

        with torch.enable_grad(), contextlib.ExitStack() as stack:
            for module in within:
                stack.callback(module.register_forward_hook(note, with_kwargs=True).remove)
            states = states.detach().requires_grad_()
            logits = self.replayed(states)
            logp, log_sum_squares, error = errors(logits.detach()[0], targets, policy)
            outputs = [output for _, _, output in notes]
            by_state, *found = torch.autograd.grad(logits, [states, *outputs], error.to(logits.dtype)[None])
        pairs = {
            module: (given.detach().flatten(0, -2), gradient.flatten(0, -2))
            for (module, given, _), gradient in zip(notes, found, strict=True)
        }
        return Ends(logp, log_sum_squares, by_state, pairs)


def errors(
    logits: torch.Tensor, targets: torch.Tensor, policy: Policy
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Log-probabilities (c,), logs of sums of squares (c,) and d log pi / d logits (c, V)."""
    error = policy.log_probs(logits)
    logp = of_tokens(error, targets)
    error.exp_()
    log_sum_squares = 2 * error.norm(dim=-1).log()
    error.mul_(-1 / policy.temperature)
    error[torch.arange(len(targets), device=targets.device), targets] += 1 / policy.temperature
    if (removed := logp.isneginf()).any():
        error[removed] = 0.0  # they have no score
    return logp, log_sum_squares, error


class _Removing:
    """A hook's handle that can be closed."""

    def __init__(self, handle: torch.utils.hooks.RemovableHandle) -> None:
        self.close = handle.remove


def _put_back(module: Module, forward: Any) -> None:
    module.__dict__.pop("forward", None)
    if forward is not None:
        module.__dict__["forward"] = forward


def _with_first(args: Any, named: Any, value: torch.Tensor) -> tuple[Any, Any]:
    if args:
        return (value, *args[1:]), named
    return args, {**named, next(iter(named)): value}


def short(tokens: Tokens) -> Chunk:
    """The starts of the two longest rows, with all tokens after the first as response."""
    rows = np.argsort(-tokens.lengths, kind="stable")[:2]
    rows = rows[tokens.lengths[rows] > 1]
    lengths = np.minimum(tokens.lengths[rows], _SHORT)
    length = int(lengths.max())
    places = np.broadcast_to(np.arange(1, length), (len(rows), length - 1))
    attended = (np.arange(length) < lengths[:, None]).astype(np.int64)
    arrays = tokens.ids[rows, :length] * attended, attended, places.copy(), places < lengths[:, None]
    return Chunk(rows, *map(torch.from_numpy, arrays))


def _first_token(chunk: Chunk) -> Chunk:
    one = torch.ones_like(chunk.places[:1, :1])
    return Chunk(chunk.rows[:1], chunk.ids[:1, :1], chunk.attended[:1, :1], one, one.bool())
