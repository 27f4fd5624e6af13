r"""Random sketches of gradients: k numbers that keep squared norms and inner products, on average.

Direction v_j has a random sign for each parameter, and coordinate j of a sketch is <g, v_j> / sqrt(k). Signs
are bits of a hash of (seed, name of the parameter, index), a counter-based generator: no state, the same bits
on every device and process. One hash gives 64 signs, so the first 32 directions of 64 are those of 32.

For fixed g, E |sketch(g)|^2 = |g|^2 with a variance of at most 2 |g|^4 / k (Achlioptas 2003): the standard
deviation of a variance from a sketch is about c / sqrt(k) of it, c = sqrt(2 / effective dimension) and less.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import torch

from rlvar import _check

_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)  # as a signed word
_FIRST = 0xBF58476D1CE4E5B9 - (1 << 64)
_SECOND = 0x94D049BB133111EB - (1 << 64)


@dataclass(frozen=True)
class Sketch:
    """A random sketch of gradients with `k` coordinates.

    Parameters
    ----------
    k : int, default 64
        Number of coordinates. The sketch's own error of a variance goes as ``1 / sqrt(k)``.
    seed : int, default 0
        The same seed gives the same directions on every device and in every process. Those of a smaller `k`
        are the first of a larger one.

    Examples
    --------
    >>> import rlvar.torch
    >>> sketch = rlvar.torch.Sketch(64, seed=1)
    >>> sketch.directions("lm_head.weight", (5, 3), 0, 2).shape
    torch.Size([2, 5, 3])
    """

    k: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "k", _check.positive_integer("k", self.k))
        if isinstance(self.seed, bool) or not isinstance(self.seed, int):
            raise TypeError(f"seed must be an integer, got {type(self.seed).__name__}")

    def directions(
        self,
        name: str,
        shape: tuple[int, ...] | torch.Size,
        start: int,
        stop: int,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> torch.Tensor:
        """Return directions `start` to `stop` of a parameter (stop - start, ...), each 1 or -1 over sqrt(k).

        Parameters
        ----------
        name : str
            Name of the parameter in its model.
        shape : tuple of int
            Its shape.
        start, stop : int
            The first direction, and one past the last.
        dtype, device
            Of the result.

        Returns
        -------
        torch.Tensor
            Shape ``(stop - start, *shape)``.
        """
        size = math.prod(shape)
        result = torch.empty(stop - start, size, dtype=dtype, device=device)
        for first in range(start - start % 64, stop, 64):
            # In pieces: a hash is a word of 8 bytes for each parameter.
            for begin in range(0, size, 1 << 22):
                part = slice(begin, min(begin + (1 << 22), size))
                hashed = self.words(name, part, device, first // 64)
                for j in range(max(first, start), min(first + 64, stop)):
                    result[j - start, part] = (hashed >> (j - first)) & 1
        return result.mul_(2).sub_(1).div_(math.sqrt(self.k)).view(stop - start, *shape)

    def words(
        self, name: str, part: slice, device: torch.device | str = "cpu", stream: int = 0
    ) -> torch.Tensor:
        """Return a word of 64 random bits (int64) for each index in `part` of a parameter.

        The finaliser of SplitMix64 (Steele, Lea, Flood 2014) over a counter that starts at a hash of the
        rest.
        """
        digest = hashlib.blake2b(f"{self.seed}/{stream}/{name}".encode(), digest_size=8).digest()
        x = torch.arange(part.start, part.stop, dtype=torch.int64, device=device)
        x = x.mul_(_GOLDEN).add_(int.from_bytes(digest, "little", signed=True))
        for shift, factor in ((30, _FIRST), (27, _SECOND)):
            x = x.bitwise_xor_(_shifted(x, shift)).mul_(factor)
        return x.bitwise_xor_(_shifted(x, 31))


def _shifted(x: torch.Tensor, bits: int) -> torch.Tensor:
    """Shift right with zeros: torch's shift of a signed word copies its sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
