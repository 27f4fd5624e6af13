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
def reward_to_go(
    rewards: _Float, gamma: float, lengths: _Lengths, mask: _Mask, out: _Float, threads: int | None
) -> None: ...
def covariance(
    scores: _Float,
    weights: _Double,
    lengths: _Lengths,
    mask: _Mask,
    sample_weight: _Double | None,
    normaliser: float,
    out: _Double,
    threads: int | None,
) -> None: ...
def gradients(
    scores: _Float, weights: _Double, lengths: _Lengths, mask: _Mask, out: _Double, threads: int | None
) -> None: ...
def moments(
    scores: _Float,
    weights: _Double,
    lengths: _Lengths,
    mask: _Mask,
    sample_weight: _Double | None,
    mean: _Double,
    step_squares: _Double,
    growth_squares: _Double,
    threads: int | None,
) -> None: ...
def deletion_losses(
    scores: _Float,
    weights: _Double,
    lengths: _Lengths,
    mask: _Mask,
    mean: _Double,
    members: NDArray[np.int64],
    offsets: NDArray[np.int64],
    step_loss: _Double,
    growth_loss: _Double,
    threads: int | None,
) -> None: ...
