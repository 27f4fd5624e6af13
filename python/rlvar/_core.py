"""The kernels' module for this machine, picked once, at import.

The package ships one extension module for each instruction set: ``_core_baseline`` runs
everywhere, ``_core_v3`` needs AVX2 and FMA. The best one that this machine runs is taken; the
environment variable ``RLVAR_ISA`` overrides the choice.
"""

import importlib
import importlib.util
import os
from typing import NamedTuple

from rlvar import _core_baseline

available_isas = tuple(
    isa for isa in _core_baseline.supported_isas() if importlib.util.find_spec(f"rlvar._core_{isa}")
)


def load(isa):
    """Return the extension module for the instruction set `isa`."""
    if isa not in available_isas:
        raise ImportError(
            f"RLVAR_ISA must be one of {', '.join(available_isas)} on this machine, got {isa!r}"
        )
    return importlib.import_module(f"rlvar._core_{isa}")


class Terms(NamedTuple):
    """What the kernels that sum over terms X[n,t] = weights[n,t] scores[n,t] read; see _core.pyi."""

    scores: object
    weights: object
    lengths: object
    mask: object
    sample_weight: object = None
    packed: object = None


isa = os.environ.get("RLVAR_ISA") or available_isas[-1]
globals().update({name: what for name, what in vars(load(isa)).items() if name[0] != "_"})
