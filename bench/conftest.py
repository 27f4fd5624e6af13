"""pytest -m is not needed here: `pytest bench` runs every timing, each result checked."""

import pytest

from rlvar import _core


@pytest.fixture(params=_core.available_isas)
def isa(request, monkeypatch):
    """Time the kernels of each instruction set."""
    module = _core.load(request.param)
    for kernel in ("reward_to_go", "covariance", "moments", "deletion_losses"):
        monkeypatch.setattr(_core, kernel, getattr(module, kernel))
    return request.param
