"""Fixtures shared by the tests."""

import numpy as np
import pytest
from hypothesis import settings

from rlvar import _core

settings.register_profile("rlvar", deadline=None)  # tests never assert a time
settings.load_profile("rlvar")

KERNELS = ("reward_to_go", "gae", "vtrace", "covariance", "gradients", "moments", "deletion_losses")


@pytest.fixture(params=_core.available_isas)
def isa(request, monkeypatch):
    """Run the test once for each instruction set that this machine has."""
    module = _core.load(request.param)
    for kernel in KERNELS:
        monkeypatch.setattr(_core, kernel, getattr(module, kernel))
    return request.param


@pytest.fixture
def rng():
    return np.random.default_rng(20261123)
