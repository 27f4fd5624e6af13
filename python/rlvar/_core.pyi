from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

_Float = NDArray[np.floating[Any]]
_Double = NDArray[np.float64]
_Lengths = NDArray[np.int64] | None
_Mask = NDArray[np.uint8] | None

available_isas: tuple[str, ...]
isa: str
openmp: int
eigen_version: str

def load(isa: str) -> ModuleType: ...
def default_threads() -> int: ...
def all_finite(array: _Float) -> bool: ...
def reward_to_go(
    rewards: _Float,
    gamma: float,
    gammas: _Float | None,
    lengths: _Lengths,
    mask: _Mask,
    terminated: _Mask,
    truncated: _Mask,
    next_values: _Float | None,
    bootstrap: _Float | None,
    out: _Float,
) -> bool: ...
def gae(
    rewards: _Float,
    values: _Float,
    lambda_: float,
    gamma: float,
    gammas: _Float | None,
    lengths: _Lengths,
    mask: _Mask,
    terminated: _Mask,
    truncated: _Mask,
    next_values: _Float | None,
    bootstrap: _Float | None,
    advantages: _Float,
    returns: _Float,
) -> bool: ...
def vtrace(
    rewards: _Float,
    values: _Float,
    rho: _Float,
    cut: _Float,
    gamma: float,
    gammas: _Float | None,
    lengths: _Lengths,
    mask: _Mask,
    terminated: _Mask,
    truncated: _Mask,
    next_values: _Float | None,
    bootstrap: _Float | None,
    targets: _Float,
    advantages: _Float,
) -> bool: ...
def comoments(
    scores: _Float,
    weights: _Double,
    lengths: _Lengths,
    mask: _Mask,
    sample_weight: _Double | None,
    block: int,
    divisor: float,
    out: _Double,
    mean: _Double | None,
    tail: _Double | None,
    threads: int | None,
) -> None: ...
def shared_moments(
    scores: _Float,
    weights: _Double,
    lengths: _Lengths,
    mask: _Mask,
    sample_weight: _Double | None,
    sums: _Double,
    threads: int | None,
) -> None: ...
def add_product(x: _Double, factor: float, sums: _Double, threads: int | None) -> None: ...
def add_matmul(a: _Double, b: _Double, out: _Double, threads: int | None) -> None: ...
def gradients(
    scores: _Float, weights: _Double, lengths: _Lengths, mask: _Mask, out: _Double, threads: int | None
) -> None: ...
def projections(
    scores: _Float, lengths: _Lengths, mask: _Mask, vectors: _Double, out: _Double, threads: int | None
) -> None: ...
def means(
    scores: _Float,
    weights: _Double,
    lengths: _Lengths,
    mask: _Mask,
    sample_weight: _Double | None,
    mean: _Double,
    threads: int | None,
) -> None: ...
def unit_squares(
    scores: _Float,
    weights: _Double,
    lengths: _Lengths,
    mask: _Mask,
    sample_weight: _Double | None,
    mean: _Double,
    members: NDArray[np.int64],
    offsets: NDArray[np.int64],
    step: _Double,
    growth: _Double,
    step_sum: _Double | None,
    growth_sum: _Double | None,
    threads: int | None,
) -> None: ...
