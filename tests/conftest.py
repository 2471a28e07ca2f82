"""Shared setup: a fixed seed, an empty param store, defaults put back after each test."""

import pyro
import pytest
import torch


@pytest.fixture(autouse=True)
def _clean_state():
    dtype = torch.get_default_dtype()
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    yield
    torch.set_default_dtype(dtype)
    torch.set_default_device(None)
    pyro.clear_param_store()


@pytest.fixture
def _double():
    """Tests of formulas run in double precision unless they say otherwise."""
    torch.set_default_dtype(torch.float64)


@pytest.fixture(autouse=True)
def _needs_cuda(request):
    if request.node.get_closest_marker("cuda") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
