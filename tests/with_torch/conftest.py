"""Tests of rlvar.torch; each module is skipped, with its reason, where torch is absent."""

import pytest


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """Tiny models gain nothing from threads, and threads that wait for each other lose much."""
    torch = pytest.importorskip("torch", reason="needs torch")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
