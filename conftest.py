"""The fixture that tests and benchmarks share."""

import pytest

from rlvar import _core


@pytest.fixture(params=_core.available_isas)
def isa(request, monkeypatch):
    """Run once with the kernels of each instruction set that this machine has."""
    module = _core.load(request.param)
    for name, kernel in vars(module).items():
        if callable(kernel) and not name.startswith("_") and hasattr(_core, name):
            monkeypatch.setattr(_core, name, kernel)
    return request.param
