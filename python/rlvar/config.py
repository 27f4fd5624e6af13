"""What runs here."""

from __future__ import annotations

from importlib.metadata import version as _version

import numpy as np

from rlvar import _core

version = _version("rlvar")  # of the installed package, as pyproject.toml states it


def show_config() -> None:
    """Print the versions, the instruction set and the threads that rlvar uses here.

    ``RLVAR_ISA`` chooses the instruction set when rlvar is imported, ``OMP_NUM_THREADS`` the number
    of threads.

    Examples
    --------
    >>> import rlvar
    >>> rlvar.show_config()  # doctest: +ELLIPSIS
    rlvar ...
    """
    lines = {
        "rlvar": version,
        "isa": f"{_core.isa} (available: {', '.join(_core.available_isas)})",
        "openmp": f"yes ({_core.openmp})" if _core.openmp else "no",
        "threads": _core.default_threads(),
        "eigen": _core.eigen_version,
        "numpy": np.__version__,
    }
    for name, value in lines.items():
        print(f"{name:<8} {value}")
