from types import ModuleType
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from rlvar._types import Double, Float

_Lengths: TypeAlias = NDArray[np.int64] | None  # (N,)
_Marks: TypeAlias = NDArray[np.uint8] | None  # (N, T)
# gamma, gamma of each step, lengths, mask, terminated, truncated, next values, bootstrap values
_Options: TypeAlias = tuple[
    float, Double | None, _Lengths, _Marks, _Marks, _Marks, Float | None, Double | None
]

available_isas: tuple[str, ...]
isa: str
openmp: int
eigen_version: str

class Terms(NamedTuple):
    scores: Float  # (N, T, D), or (M, D) if packed
    weights: Double | None  # (N, T)
    lengths: _Lengths
    mask: _Marks
    sample_weight: Double | None = None  # (N,)
    packed: tuple[NDArray[np.int64], int] | None = None  # which row each rollout starts at (N,); T

def load(isa: str) -> ModuleType: ...
def default_threads() -> int: ...
def reward_to_go(rewards: Float, options: _Options, out: Float) -> bool: ...
def gae(
    rewards: Float, values: Float, lambda_: float, options: _Options, advantages: Float, returns: Float
) -> bool: ...
def covariance(
    terms: Terms,
    block: int,
    divisor: float,
    out: Double,
    mean: Double | None,
    tail: Double | None,
    threads: int | None,
) -> None: ...
def shared_moments(terms: Terms, weights: Double, sums: Double, threads: int | None) -> None: ...
def add_product(x: Double, factor: float, sums: Double, threads: int | None) -> None: ...
def add_matmul(a: Double, b: Double, out: Double, threads: int | None) -> None: ...
def gradients(terms: Terms, weights: Double, out: Double, threads: int | None) -> None: ...
def projections(terms: Terms, vectors: Double, out: Double, threads: int | None) -> None: ...
def means(terms: Terms, mean: Double, threads: int | None) -> None: ...
def unit_squares(
    terms: Terms,
    mean: Double,
    members: NDArray[np.int64],
    offsets: NDArray[np.int64],
    step: Double,
    growth: Double,
    step_sum: Double | None,
    growth_sum: Double | None,
    threads: int | None,
) -> None: ...
