r"""The metric that an optimiser steps in, and blocks of coordinates.

A step of the optimiser moves coordinate d by P_d times its gradient: Adam's :math:`P_d = 1 / (\sqrt{v_d} +
\epsilon)`. What the noise does to a step is therefore the variance of P g. All moments are sums over
coordinates, so those of blocks add up to those of the whole:

    V = sum_b V_b,  V_b = sum over d in b of P_d^2 Var g_d,  and so S_b = sum P_d^2 (E g_d)^2

Coordinates are scaled and chosen where some columns of the gradients are made: there is no second copy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rlvar import _check
from rlvar._types import Double
from rlvar.stats.estimate import Estimate, Result, bounded
from rlvar.stats.inference import Inference
from rlvar.stats.moments import Sample
from rlvar.terms.passes import Gradients
from rlvar.weights.refit import Refit

_SHOWN = 12  # blocks in a table


@dataclass(frozen=True)
class BlockRow(Result):
    """One block of coordinates of one estimator: the numbers of a `ComparisonRow`, of these coordinates.

    Attributes
    ----------
    coordinates : int
        How many there are.
    share : float
        Share of the estimator's variance that is theirs.
    variance, ratio, signal, noise_scale : Estimate
        As in `ComparisonRow`. Variances and signals of all blocks add up to those of the whole.
    """

    coordinates: int
    share: float
    variance: Estimate
    ratio: Estimate
    signal: Estimate
    noise_scale: Estimate


@dataclass(frozen=True, eq=False)
class _Part:
    """Gradients (N, D) times a scale (D,), or some coordinates of them, made a few columns at a time."""

    gradients: Gradients
    scale: Double | None
    coordinates: NDArray[np.intp]

    @property
    def base(self) -> Double:
        return np.broadcast_to(np.float64(0.0), (len(self.gradients.base), len(self.coordinates)))

    def whole(self, coordinates: slice = slice(None)) -> Double:
        chosen = self.coordinates[coordinates]
        constant, base = self.gradients
        columns = np.take(base, chosen, axis=1)
        if constant is not None:
            columns *= constant[:, None]
        if self.scale is not None:
            columns *= self.scale[chosen]
        return columns


@dataclass(frozen=True, eq=False)
class Metric:
    """How much coordinates count, and the blocks that they belong to."""

    scale: Double | None = None
    blocks: Mapping[str | int, NDArray[np.intp]] = field(default_factory=dict)

    @classmethod
    def of(cls, scale: ArrayLike | None, blocks: Sequence[str | int] | NDArray[Any] | None, d: int) -> Metric:
        """Check a scale and labels for D coordinates."""
        if scale is not None:
            scale = _check.doubles("scale", scale)
            if scale.shape != (d,):
                raise ValueError(f"scale must have shape (D,) = ({d},), got {scale.shape}")
            scale = _check.non_negative("scale", scale, d)
        return cls(scale, {} if blocks is None else _coordinates(blocks, d))

    def sample(
        self, gradients: Gradients, sizes: Double, units: _check.Units | None, refit: Refit | None = None
    ) -> Sample:
        """Return the gradients in this metric; only where that is the plain one are constants refitted."""
        if self.scale is None:
            return Sample(gradients, sizes, units, refit)
        return Sample(_Part(gradients, self.scale, np.arange(len(self.scale))), sizes, units)

    def by_block(
        self,
        gradients: Mapping[str, Gradients],
        sizes: Double,
        units: _check.Units | None,
        inferred: Callable[[list[Sample]], list[Inference]],
    ) -> dict[str, dict[str | int, BlockRow]]:
        """Return the blocks of each estimator, from what is `inferred` of all estimators' samples."""
        found: dict[str | int, list[Inference]] = {}
        for label, coordinates in self.blocks.items():
            parts = (_Part(g, self.scale, coordinates) for g in gradients.values())
            found[label] = inferred([Sample(part, sizes, units) for part in parts])
        rows: dict[str, dict[str | int, BlockRow]] = {}
        for i, name in enumerate(gradients):
            of_row = {label: each[i] for label, each in found.items()}
            total = sum(each.variance.value for each in of_row.values())
            rows[name] = {
                label: BlockRow(
                    len(self.blocks[label]),
                    each.variance.value / total if total else 0.0,
                    each.variance,
                    each.ratio,
                    each.signal,
                    each.noise_scale,
                )
                for label, each in of_row.items()
            }
        return rows


def _coordinates(blocks: Any, d: int) -> dict[str | int, NDArray[np.intp]]:
    """Return the coordinates of each label, in the order of first appearance."""
    labels = blocks.tolist() if hasattr(blocks, "tolist") else blocks
    if isinstance(labels, (str, bytes)) or not isinstance(labels, Sequence):
        raise TypeError(f"blocks must be a label for each coordinate, got {type(blocks).__name__}")
    if len(labels) != d:
        raise ValueError(f"blocks must have a label for each of D = {d} coordinates, got {len(labels)}")
    members: dict[str | int, list[int]] = {}
    for i, label in enumerate(labels):
        if not isinstance(label, (str, int)):
            raise TypeError(f"blocks must be strings or integers, got blocks[{i}] = {label!r}")
        members.setdefault(label, []).append(i)
    return {label: np.array(coordinates, np.intp) for label, coordinates in members.items()}


def table_of_blocks(
    rows: Mapping[str, Mapping[str | int, BlockRow]], reference: str
) -> list[tuple[str, ...]]:
    """Return a table's lines: blocks of some estimators, those of most variance first, a dozen at most."""
    first = next(iter(rows.values()))
    order = sorted(first, key=lambda label: first[label].share, reverse=True)
    head = ("block", "coordinates", "estimator", "share of variance", f"ratio to {reference}", "noise scale")
    lines: list[tuple[str, ...]] = [head]
    for label in order[:_SHOWN]:
        for name, blocks in rows.items():
            each = blocks[label]
            cells = f"{each.share:.1%}", str(each.ratio), bounded(each.noise_scale)
            lines.append((str(label), str(each.coordinates), name, *cells))
    return lines
