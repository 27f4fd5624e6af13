r"""Gradients with respect to one parameter, a row a token, from what its module was given and the gradient of
its output.

The gradient of a matrix is d a^T, a the input of its module and d the gradient of its output; that of a gain
is d * xhat, xhat the normalised state; that of a bias is d. A module may handle several parts of a token, as
the heads of an attention: its gradient is their sum.

A sketch of a row never forms it: coordinate j is <row, v_j> / sqrt(k) with v_j = p_j q_j^T for a matrix, p
and q of independent random signs (a Khatri-Rao sketch), so (p_j . d)(q_j . a) / sqrt(k), and of independent
signs for a gain or bias. Several parameters add up. Coordinates are independent and equally distributed, and
E |sketch|^2 = |S|^2. For a row with blocks S_m, one per parameter,

    Var |sketch|^2 = (2 |S|^4 + sum_m (f_m - 3 |S_m|^4)) / k,   f_m = E <S_m, v>^4

    f_m = (3 |d|^4 - 2 sum_i d_i^4) (3 |a|^4 - 2 sum_i a_i^4)   of a matrix d a^T, at most 9 |S_m|^4
    f_m = 3 |S_m|^4 - 2 sum_i S_mi^4                            of a gain or bias

so at most 8 |S|^4 / k for one matrix (2 |S|^4 / k of a dense sketch), and near 2 |S|^4 / k for many alike.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch.func import functional_call

from rlvar.torch.sketch import Sketch

Module = torch.nn.Module
Kind = Literal["out x in", "in x out", "gain", "bias"]
Layout = Literal["positions second", "positions third", "flat"]


@dataclass(frozen=True)
class Rows:
    """Gradients of m tokens: the sum over g of d_g a_g^T for a matrix, of d_g * a_g for a gain or bias."""

    kind: Kind
    outward: torch.Tensor  # d, (m, g, out), or (m, g, *shape) of a gain or bias
    inward: torch.Tensor  # a, (m, g, in), or (m, g, *shape)

    @property
    def factored(self) -> bool:
        """Whether they are outer products."""
        return self.kind in ("out x in", "in x out")

    def dense(self) -> torch.Tensor:
        """Return them in full (m, *shape)."""
        if not self.factored:
            return (self.outward * self.inward).sum(1)
        letters = "mgo,mgi->moi" if self.kind == "out x in" else "mgo,mgi->mio"
        return torch.einsum(letters, self.outward, self.inward)

    def total(self, direction: torch.Tensor) -> torch.Tensor:
        """Return the sum of all rows, a matrix times a vector (of its second axis) behind it."""
        if not self.factored:
            return self.dense().sum(0)
        if self.kind == "out x in":
            return torch.einsum("mgo,mg->o", self.outward, self.inward @ direction)
        return torch.einsum("mgi,mg->i", self.inward, self.outward @ direction)


@dataclass(frozen=True)
class Part:
    """A parameter, and how its rows come about."""

    name: str
    parameter: torch.nn.Parameter
    module: Module
    own: str  # its name in the module
    kind: Kind
    layout: Layout = "positions second"

    @property
    def size(self) -> int:
        """Number of its coordinates."""
        return self.parameter.numel()

    def rows(self, given: torch.Tensor, gradient: torch.Tensor) -> Rows:
        """Rows of m tokens from what the module was given and the gradient of its output, both (m, ...)."""
        given, gradient, m = full(given), full(gradient), len(gradient)
        if self.kind in ("out x in", "in x out"):
            outward, inward = (each.reshape(m, -1, each.shape[-1]) for each in (gradient, given))
            return Rows(self.kind, outward, inward)
        slope = torch.ones_like(gradient) if self.kind == "bias" else unit(self.module, self.own, given)
        shape = (m, -1, *self.parameter.shape)
        return Rows(self.kind, gradient.reshape(shape), slope.reshape(shape))


class Signs:
    """Signs of a sketch for parameters, made once."""

    def __init__(self, sketch: Sketch) -> None:
        self.sketch = sketch
        self._made: dict[str, torch.Tensor] = {}

    def of(self, name: str, like: torch.Tensor) -> torch.Tensor:
        """Return directions (k, size) for the last axis of `like`."""
        if name not in self._made:
            options: Any = {"dtype": like.dtype, "device": like.device}
            self._made[name] = self.sketch.directions(name, like.shape[-1:], 0, self.sketch.k, **options)
        return self._made[name]

    def project(self, name: str, rows: Rows) -> torch.Tensor:
        """Coordinates (m, k) of the sketch of some rows."""
        if not rows.factored:
            flat = rows.dense().flatten(1)
            return flat @ self.of(name, flat).T
        along = [
            each @ self.of(f"{name} ({side})", each).T
            for side, each in (("output", rows.outward), ("input", rows.inward))
        ]
        return (along[0] * along[1]).sum(1) * math.sqrt(self.sketch.k)


def by_token(x: torch.Tensor, layout: Layout, n: int, length: int) -> torch.Tensor:
    """Bring what a module was given or returns to (n, length, ...)."""
    if layout == "positions second":
        return x
    return x.transpose(1, 2) if layout == "positions third" else x.reshape(n, length, *x.shape[1:])


def layouts(x: torch.Tensor, n: int, length: int) -> list[Layout]:
    """Return the layouts that a shape fits."""
    fits: dict[Layout, bool] = {
        "positions second": x.dim() > 2 and x.shape[:2] == (n, length),
        "positions third": x.dim() > 3 and (x.shape[0], x.shape[2]) == (n, length),
        "flat": x.dim() > 1 and x.shape[0] == n * length,
    }
    return [layout for layout in fits if fits[layout]]


def full(x: torch.Tensor) -> torch.Tensor:
    """In float32, or more if it has more."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def tensor_of(returned: Any) -> torch.Tensor | None:
    """Return what a module returns, or the first of it (a router's logits), if that is a tensor of floats."""
    first = returned[0] if isinstance(returned, tuple) and returned else returned
    return first if isinstance(first, torch.Tensor) and first.is_floating_point() else None


def unit(module: Module, own: str, given: torch.Tensor) -> torch.Tensor:
    """Slope of a module's output with respect to its gain or bias `own`, elementwise.

    That of a norm's gain is the normalised state, whether the norm multiplies by w or by 1 + w.
    """
    given = full(given)
    zeros = {name: torch.zeros_like(each, dtype=given.dtype) for name, each in module.named_parameters()}
    return _called(module, {**zeros, own: torch.ones_like(zeros[own])}, given) - _called(module, zeros, given)


def kind_of(module: Module, own: str, given: torch.Tensor, returned: torch.Tensor) -> Kind | None:
    """How a module's output depends on its parameter `own`, tried on one call; None for another way."""
    parameter = full(module.get_parameter(own).detach())
    before = {name: full(each.detach()) for name, each in module.named_parameters()}
    x = full(given.detach())
    change = full(returned.detach()) - _called(module, {**before, own: torch.zeros_like(parameter)}, x)
    if parameter.dim() == 2:
        kinds: tuple[tuple[Kind, torch.Tensor], ...] = (("out x in", parameter.T), ("in x out", parameter))
        for kind, matrix in kinds:
            if (x.shape[-1], change.shape[-1]) == matrix.shape and agree(x @ matrix, change, returned):
                return kind
    if change.shape[-parameter.dim() :] != parameter.shape:
        return None
    slope = unit(module, own, x)
    if not agree(parameter * slope, change, returned):
        return None
    return "bias" if bool((slope == 1).all()) else "gain"


def _called(module: Module, parameters: dict[str, torch.Tensor], given: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor | None = tensor_of(functional_call(module, parameters, (given,)))
    assert result is not None
    return result


def agree(found: torch.Tensor, wanted: torch.Tensor, model: torch.Tensor | None = None) -> bool:
    """Whether they agree to half of the digits that `model` (or `wanted`) has, relative to its largest."""
    if found.shape != wanted.shape:
        return False
    scale = wanted if model is None else model
    off = (found.double() - wanted.double()).abs().max()
    return bool(off <= torch.finfo(scale.dtype).eps ** 0.5 * scale.double().abs().max())
