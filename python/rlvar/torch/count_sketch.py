r"""Count sketches of gradients that arrive parameter by parameter, with one add for each number.

Number i of a parameter goes to place b(i) of k, with a random sign: places[b(i)] += s(i) g(i). Signs are bits
of the counter-based hash of a `Sketch`. For number c of row r of a matrix

    b = (c + m r + b_0) mod k ,

with b_0 random, and m random and coprime to k, both anew after k rows at the latest. So rows, each turned by
m places more than the last, are added up: a few passes over memory, no scattered additions, the same in every
run. Columns, where single inputs of a layer may be large, are spread over all places, and numbers in
different rows meet with a probability of about 1/k.

For any g and h, E <places(g), places(h)> = <g, h>, however numbers meet, because their signs are independent.
With M the covariance of gradients, or the difference of two,

    Var tr = 2 sum_{i != j} M_ij^2 P(i and j meet) ,

about 2/k times the squares off the diagonal, as for a dense sketch of k directions, which costs k adds.
Places that a few large numbers fill are unlike each other, though. So at the end they are mixed by random
signs and a Hartley transform, H_ij = (cos + sin)(2 pi i j / k) / sqrt(k): orthogonal, so nothing changes in
squares and inner products, but each coordinate is then a random direction like all the others, and the
jackknife over coordinates expects the variance above, with 1/(2 k) of the squares on the diagonal in
addition.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Protocol

import numpy as np
import torch
from torch.nn.functional import pad

from rlvar._types import Double
from rlvar.torch.sketch import Sketch

_PIECE = 1 << 20  # numbers at a time
_SIGNS, _TURNS, _MIXING = -1, -2, -3  # streams of the hash


class Coordinates(Protocol):
    """What keeps D coordinates of a gradient that arrives in parts."""

    size: int

    def add(self, name: str, gradient: torch.Tensor) -> None:
        """Take what a parameter's gradient adds."""

    def take(self) -> Double:
        """Return the coordinates (D,) and start anew."""


class CountSketch:
    """A count sketch of k places, mixed."""

    def __init__(self, sketch: Sketch) -> None:
        self.size = k = sketch.k
        self._sketch = sketch
        self._coprime = [m for m in range(1, k + 1) if math.gcd(m, k) == 1]
        # One sum on each device, whose backward pass runs in a separate thread.
        self._sums: dict[torch.device, torch.Tensor] = {}
        self._tables: dict[tuple[torch.device, torch.dtype], torch.Tensor] = {}
        # What is hashed for one gradient serves the next: a bit a number, 1/32 of the parameters' memory.
        self._hashed: dict[tuple[str, int, torch.device], torch.Tensor] = {}
        self._turned: dict[tuple[str, int], int] = {}

    def add(self, name: str, gradient: torch.Tensor) -> None:
        flat = gradient.reshape(-1)
        total = self._sums.get(flat.device, flat.new_zeros(self.size, dtype=_summed(flat.dtype)))
        # Rows of a matrix, several together if they are short; no more of them than places at a time.
        last = gradient.shape[-1] if gradient.ndim > 1 else self.size
        row = min(last * max(1, -(-self.size // last)), _PIECE)
        size = row * max(1, min(self.size, _PIECE // row))
        for number, begin in enumerate(range(0, len(flat), size)):
            if (name, number) not in self._turned:
                part = slice(number, number + 1)
                self._turned[name, number] = int(self._sketch.words(name, part, stream=_TURNS))
            turn = self._turned[name, number]
            total = total + self._folded(name, flat[begin : begin + size], begin, row, turn)
        self._sums[flat.device] = total

    def _folded(self, name: str, piece: torch.Tensor, begin: int, row: int, turn: int) -> torch.Tensor:
        """Places (k,) of some numbers of a parameter, from the one with index `begin` on."""
        k = self.size
        signed = _rows(piece * self._signs(name, piece, begin), row)
        m, first = self._coprime[(turn & 0xFFFFFFFF) % len(self._coprime)], ((turn >> 32) & 0x7FFFFFFF) % k
        # A row begins m places after the one before.
        return _rows(pad(signed, (0, (m - row) % k)).view(-1), k).sum(0).roll(first)

    def _signs(self, name: str, piece: torch.Tensor, begin: int) -> torch.Tensor:
        """Signs, eight from each byte of the hash."""
        device, dtype = piece.device, _summed(piece.dtype)
        if (device, dtype) not in self._tables:
            bits = torch.arange(256, device=device)[:, None] >> torch.arange(8, device=device)
            self._tables[device, dtype] = (1 - 2 * (bits & 1)).to(dtype)
        if (name, begin, device) not in self._hashed:
            words = slice(begin // 64, -(-(begin + len(piece)) // 64))
            self._hashed[name, begin, device] = self._sketch.words(name, words, device, _SIGNS)
        hashed = self._hashed[name, begin, device].view(torch.uint8)
        signs = self._tables[device, dtype].index_select(0, hashed.int()).view(-1)
        return signs[begin % 64 :][: len(piece)]

    def take(self) -> Double:
        """Return the coordinates (k,): the places, mixed."""
        places = sum((each.cpu().double().numpy() for each in self._sums.values()), np.zeros(self.size))
        self._sums.clear()
        signs = self._sketch.words("", slice(0, self.size), stream=_MIXING).numpy() & 1
        waves = np.fft.fft(np.where(signs, places, -places), norm="ortho")
        result: Double = waves.real - waves.imag
        return result


class Exact:
    """All coordinates, parameter after parameter."""

    def __init__(self, chosen: Mapping[str, torch.Tensor]) -> None:
        ends = np.cumsum([each.numel() for each in chosen.values()]).tolist()
        self._begin = dict(zip(chosen, [0, *ends], strict=False))
        self.size = int(ends[-1])
        self._sum = np.zeros(self.size)

    def add(self, name: str, gradient: torch.Tensor) -> None:
        begin = self._begin[name]
        self._sum[begin : begin + gradient.numel()] += gradient.reshape(-1).cpu().double().numpy()

    def take(self) -> Double:
        result, self._sum = self._sum, np.zeros(self.size)
        return result


def _summed(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _rows(flat: torch.Tensor, k: int) -> torch.Tensor:
    """Rows of k numbers, zeros behind the last."""
    short = -len(flat) % k
    return (pad(flat, (0, short)) if short else flat).view(-1, k)
