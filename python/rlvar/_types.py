"""Types of arrays and of options that are strings."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.floating[Any]]
Double = NDArray[np.float64]

Importance = Literal["none", "token", "sequence", "geometric"]
Aggregation = Literal["sum", "sequence-mean", "token-mean"]
Scale = Literal["group", "batch", "none"]
Singleton = Literal["zero", "raw", "raise"]
Preset = Literal["trl", "verl", "openrlhf", "paper"]
Divergence = Literal["k1", "k2", "k3"]
