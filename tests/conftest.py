"""Fixtures shared by the tests."""

import numpy as np
import pytest
from hypothesis import settings

settings.register_profile("rlvar", deadline=None)  # tests never assert a time
settings.load_profile("rlvar")


@pytest.fixture
def rng():
    return np.random.default_rng(20261123)
