"""Tokens and models as trainers have them, brought into one form.

Rows are aligned left and end with their last response token: padding on either side, and what follows, is
gone, so a row's scores do not depend on how it was padded. Response tokens, those that the policy chose and
the loss sees, are counted t = 0, 1, ...: gaps, such as a tool's answer, are skipped.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch.nn.attention import SDPBackend, sdpa_kernel

from rlvar import _check
from rlvar._types import Double

Module = torch.nn.Module


@dataclass(frozen=True)
class Tokens:
    """N rows of tokens, aligned left."""

    ids: NDArray[np.int64]  # (N, L); 0 behind the end of a row
    lengths: NDArray[np.int64]  # (N,) tokens up to the last of the response
    counts: NDArray[np.int64]  # (N,) tokens of the response
    places: NDArray[np.int64]  # (N, T) of response token t in `ids`; 1 where there is none
    columns: NDArray[np.int64]  # (N, T) of the same in the response mask
    mask_shape: tuple[int, int]

    @classmethod
    def of(cls, input_ids: ArrayLike, attention_mask: ArrayLike | None, response_mask: ArrayLike) -> Tokens:
        """Check a trainer's arrays: (N, L), (N, L) and (N, L), or (N, Tc) for the last Tc columns."""
        ids = _integers("input_ids", input_ids)
        n, length = ids.shape
        attended = np.ones(ids.shape, bool)
        if attention_mask is not None:
            attended = _marks("attention_mask", attention_mask)
            if attended.shape != ids.shape:
                raise ValueError(
                    f"attention_mask must have the shape of input_ids {ids.shape}, got {attended.shape}"
                )
        given = _marks("response_mask", response_mask)
        if len(given) != n or given.shape[1] > length:
            wanted = f"({n}, {length}), or ({n}, Tc) for the last Tc columns of input_ids"
            raise ValueError(f"response_mask must have shape {wanted}, got {given.shape}")
        response = np.zeros(ids.shape, bool)
        first = length - given.shape[1]
        response[:, first:] = given
        bad = response & ~attended
        if bad.any():
            row, column = np.argwhere(bad)[0]
            raise ValueError(
                f"attention_mask hides response token input_ids[{row}, {column}]: response_mask, of shape "
                f"{given.shape}, must be 0 on padding; with fewer columns than input_ids it is aligned with "
                "the last ones"
            )
        after = response[:, ::-1].cumsum(axis=1)[:, ::-1] > 0  # up to the last response token
        kept = attended & after
        place = kept.cumsum(axis=1) - 1
        alone = response & (place == 0)
        if alone.any():
            row = int(np.argwhere(alone)[0][0])
            raise ValueError(
                f"response_mask[{row}] marks the first token, which has no token before it to condition on"
            )
        lengths, counts = np.count_nonzero(kept, axis=1), np.count_nonzero(response, axis=1)
        aligned = np.zeros((n, max(lengths)), np.int64)
        rows, columns = np.nonzero(kept)
        aligned[rows, place[rows, columns]] = ids[rows, columns]
        places, at = np.ones((n, max(counts)), np.int64), np.zeros((n, max(counts)), np.int64)
        rows, columns = np.nonzero(response)
        step = (response.cumsum(axis=1) - 1)[rows, columns]
        places[rows, step], at[rows, step] = place[rows, columns], columns - first
        return cls(aligned, lengths, counts, places, at, given.shape)

    @cached_property
    def live(self) -> NDArray[np.bool_]:
        """Which (N, T) are tokens of the response."""
        return np.arange(self.places.shape[1]) < self.counts[:, None]

    def by_step(self, name: str, array: Double) -> Double:
        """Return numbers per token (N, T) from those in the shape of the response mask, or as they are."""
        if array.shape == self.mask_shape:
            return np.where(self.live, np.take_along_axis(array, self.columns, axis=1), 0.0)
        if array.shape == self.live.shape:
            return array
        wanted = f"that of response_mask {self.mask_shape}, or of the response tokens {self.live.shape}"
        raise ValueError(f"{name} must have one of the shapes {wanted}, got {array.shape}")

    def chunks(self, rows: int) -> Iterator[Chunk]:
        """Give at most so many rows of like lengths at a time."""
        order = np.argsort(self.lengths, kind="stable")
        order = order[self.counts[order] > 0]
        for start in range(0, len(order), rows):
            yield self.chunk(order[start : start + rows])

    def chunk(self, rows: NDArray[np.int64]) -> Chunk:
        """Return some rows as tensors, no wider than they need."""
        length, steps = int(self.lengths[rows].max()), int(self.counts[rows].max())
        ids, places = self.ids[rows, :length], self.places[rows, :steps]
        attended = np.arange(length) < self.lengths[rows, None]
        arrays = ids, attended.astype(np.int64), places, self.live[rows, :steps]
        return Chunk(rows, *map(torch.from_numpy, arrays))


@dataclass(frozen=True)
class Chunk:
    """Some rows of `Tokens`, as tensors."""

    rows: NDArray[np.int64]  # their indices
    ids: torch.Tensor  # (n, l)
    attended: torch.Tensor  # (n, l)
    places: torch.Tensor  # (n, t)
    live: torch.Tensor  # (n, t)

    @property
    def first(self) -> int:
        """Column of the first logits that any response token needs."""
        return int(self.places[self.live].min()) - 1

    def to(self, device: torch.device) -> Chunk:
        """Move it to a device."""
        return Chunk(
            self.rows, *(each.to(device) for each in (self.ids, self.attended, self.places, self.live))
        )


def _integers(name: str, value: ArrayLike) -> NDArray[np.int64]:
    array = _check.floats(name, value)
    if array.ndim != 2 or 0 in array.shape:
        raise ValueError(f"{name} must have shape (N, L) with at least one row and token, got {array.shape}")
    if array.dtype != np.float64 or (array != np.floor(array)).any():
        raise TypeError(f"{name} must be integers, got {getattr(value, 'dtype', type(value).__name__)}")
    return array.astype(np.int64)


def _marks(name: str, value: ArrayLike) -> NDArray[np.bool_]:
    array = _check.floats(name, value)
    if array.ndim != 2:
        raise ValueError(f"{name} must have two dimensions, got shape {array.shape}")
    if not np.isin(array, (0.0, 1.0)).all():
        raise ValueError(f"{name} must be True or False (1 or 0) for each token")
    return array.astype(bool)


def unwrapped(model: Module) -> Module:
    """Return the model inside of DistributedDataParallel, DataParallel and torch.compile."""
    if not isinstance(model, Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    while True:
        kind = type(model).__name__
        if kind == "FullyShardedDataParallel" or any(_sharded(p) for p in model.parameters()):
            raise ValueError(
                "the model's parameters are sharded (FSDP or DeepSpeed ZeRO-3), so that no process has them "
                "all; load a checkpoint of it into one process"
            )
        if kind in ("DistributedDataParallel", "DataParallel", "DeepSpeedEngine"):
            model = model.module  # type: ignore[assignment]
        elif kind == "OptimizedModule":
            model = model._orig_mod  # type: ignore[assignment]
        else:
            return model


def _sharded(parameter: torch.nn.Parameter) -> bool:
    return type(parameter).__name__ == "DTensor" or hasattr(parameter, "ds_id")


def named(model: Module) -> dict[str, torch.nn.Parameter]:
    """Return what is trained by its name, tied parameters once; everything where nothing is."""
    every = dict(model.named_parameters())
    trained = {name: each for name, each in every.items() if each.requires_grad and each.is_floating_point()}
    return trained or {name: each for name, each in every.items() if each.is_floating_point()}


def described(model: Module, chosen: dict[str, torch.nn.Parameter]) -> str:
    """Return "all 162,368 parameters of LlamaForCausalLM", or the trainable ones of them."""
    count = f"{sum(each.numel() for each in chosen.values()):,}"
    frozen = "trainable " if len(chosen) < sum(1 for _ in model.parameters()) else ""
    return f"all {count} {frozen}parameters of {name_of(model)}"


def name_of(model: Module) -> str:
    """Return the name of the architecture, without PEFT's around it."""
    return type(base(model)).__name__


def base(model: Module) -> Module:
    """Return the model inside of PEFT's."""
    inner: Any = model
    return inner.get_base_model() if hasattr(inner, "get_base_model") else model


@contextlib.contextmanager
def still(model: Module, *, forward_mode: bool = False) -> Iterator[None]:
    """Put a model into evaluation mode, and what forward mode cannot do aside; restore it all afterwards."""
    training = [(module, module.training) for module in model.modules()]
    with contextlib.ExitStack() as stack:
        stack.callback(_restore, training)
        model.eval()
        if forward_mode:
            # Fused attention has no forward-mode derivative; nor have grouped products of experts.
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
            for switch in ("attn", "experts"):
                _switched(model, switch, stack)
            for module in model.modules():
                if isinstance(module, torch.nn.Embedding) and module.padding_idx is not None:
                    stack.callback(module.register_forward_hook(_without_padding).remove)
        yield


def _without_padding(module: Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
    """Let nothing flow to the padding token's row of an embedding: backward passes leave it out, so do we."""
    padding = torch.eq(args[0], module.padding_idx)  # type: ignore[arg-type]
    return torch.where(padding[..., None], output.detach(), output)


_DIFFERENTIABLE = {"attn": ("sdpa", ("eager", "sdpa")), "experts": ("eager", ("eager", "batched_mm"))}


def _switched(model: Module, what: str, stack: contextlib.ExitStack) -> None:
    better, fine = _DIFFERENTIABLE[what]
    for module in model.modules():
        set_to, config = getattr(module, f"set_{what}_implementation", None), getattr(module, "config", None)
        before = getattr(config, f"_{what}_implementation", None)
        if set_to is not None and before is not None and before not in fine:
            set_to(better)
            stack.callback(set_to, before)


@contextlib.contextmanager
def only_requiring_grad(model: Module, chosen: Mapping[str, torch.nn.Parameter]) -> Iterator[None]:
    """Let gradients flow to some parameters and to no others; restore it afterwards."""
    before = [(each, each.requires_grad) for each in model.parameters()]
    try:
        for each, _ in before:
            each.requires_grad_(False)
        for each in chosen.values():
            each.requires_grad_(True)
        with torch.enable_grad():
            yield
    finally:
        for each, required in before:
            each.requires_grad_(required)


def _restore(training: list[tuple[Module, bool]]) -> None:
    for module, mode in training:
        module.training = mode


class Network:
    """A causal model as a function of its tokens: logits of the response's tokens."""

    def __init__(self, model: Module) -> None:
        self.module = unwrapped(model)
        config = getattr(self.module, "config", None)
        if getattr(config, "is_encoder_decoder", False):
            raise ValueError(
                f"{name_of(self.module)} is an encoder-decoder; a causal language model is needed"
            )
        known = inspect.signature(base(self.module).forward).parameters
        anything = any(each.kind is each.VAR_KEYWORD for each in known.values())
        self._windowed = "logits_to_keep" in known
        self._options = {"use_cache": False} if "use_cache" in known else {}
        self._masked = "attention_mask" in known or anything
        parameter = next(self.module.parameters(), None)
        if parameter is None:
            raise ValueError("the model has no parameters")
        self.device = parameter.device

    def width(self, tokens: Tokens, *, head: bool = True) -> int:
        """Numbers that pass through the widest place of the network, its head or not, per token, roughly."""
        config = getattr(self.module, "config", None)
        config = getattr(config, "get_text_config", lambda: config)()
        vocabulary, hidden, heads = (
            getattr(config, name, None) or other
            for name, other in (("vocab_size", 1024), ("hidden_size", 256), ("num_attention_heads", 1))
        )
        inner = getattr(config, "intermediate_size", None) or 4 * hidden
        return int(max(4 * vocabulary * head, 3 * inner + 8 * hidden, 3 * heads * int(tokens.lengths.max())))

    def check(self, tokens: Tokens) -> None:
        """Raise for token ids that the model's embedding does not have."""
        embedding = getattr(self.module, "get_input_embeddings", lambda: None)()
        size = getattr(embedding, "num_embeddings", None)
        if tokens.ids.min() < 0 or (size is not None and tokens.ids.max() >= size):
            bad = tokens.ids.min() if tokens.ids.min() < 0 else tokens.ids.max()
            last = "V - 1" if size is None else size - 1
            raise ValueError(f"input_ids has token {bad}; the model's tokens are 0 to {last}")

    def logits(self, chunk: Chunk, parameters: dict[str, torch.Tensor] | None = None) -> torch.Tensor:
        """Logits (n, t, V) of each response token, from those before it; with other parameters if given."""
        every, first = self.every(chunk, parameters)
        before = (chunk.places - 1 - first).clamp(min=0)
        return every.gather(1, before[..., None].expand(-1, -1, every.shape[-1]))

    def every(
        self, chunk: Chunk, parameters: dict[str, torch.Tensor] | None = None
    ) -> tuple[torch.Tensor, int]:
        """Logits (n, l - first, V) of tokens from the first that is needed on, and its column `first`."""
        options: dict[str, Any] = dict(self._options)
        first = 0
        if self._masked:
            options["attention_mask"] = chunk.attended
        if self._windowed:  # no logits of prompts
            first = chunk.first
            options["logits_to_keep"] = torch.arange(first, chunk.ids.shape[1], device=chunk.ids.device)
        if parameters is None:
            result = self.module(chunk.ids, **options)
        else:
            result = torch.func.functional_call(self.module, parameters, (chunk.ids,), options)
        return (result if isinstance(result, torch.Tensor) else result.logits), first

    def targets(self, chunk: Chunk) -> torch.Tensor:
        """Response tokens (n, t)."""
        return chunk.ids.gather(1, chunk.places)


def prepared(
    model: Module, input_ids: ArrayLike, attention_mask: ArrayLike | None, response_mask: ArrayLike
) -> tuple[Network, Tokens]:
    """Check a trainer's tokens, and that the model knows them."""
    tokens = Tokens.of(input_ids, attention_mask, response_mask)
    if not tokens.counts.any():
        raise ValueError("response_mask marks no token")
    network = Network(model)
    network.check(tokens)
    return network, tokens
