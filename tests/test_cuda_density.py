"""Densities on CUDA, and on a device that stands in for it. On a GPU: ``pytest -m cuda``."""

from collections.abc import Iterator

import pyro
import pytest
import torch
from pyro.infer import MCMC, NUTS, Predictive
from torch import Tensor
from torch.distributions import constraints

import pyroflows as pf
from tests.pretended import pretended_device

CUDA = pytest.param("cuda", marks=pytest.mark.cuda)
PRETENDED = pytest.param("pretended", marks=pytest.mark.slow)
QUIET = {"progress_bar": False, "seed": 0}
TINY = {"hidden_dims": (8,)}


@pytest.fixture(params=["cpu", CUDA])
def device(request) -> torch.device:
    return torch.device("cuda", 0) if request.param == "cuda" else torch.device("cpu")


@pytest.fixture(params=["cpu", PRETENDED, CUDA])
def any_device(request) -> Iterator[torch.device]:
    if request.param == "pretended":
        with pretended_device() as device:
            yield device
    else:
        yield torch.device("cuda", 0) if request.param == "cuda" else torch.device("cpu")


@pytest.fixture(autouse=True)
def _fresh():
    pyro.clear_param_store()
    pyro.set_rng_seed(0)


def rows(device: torch.device, number: int = 60) -> tuple[Tensor, Tensor]:
    c = torch.linspace(-1, 1, number)[:, None]
    x = torch.cat([c + 0.3 * torch.cos(40 * c), (9 * c).sin() - c], -1)
    return x.to(device), c.to(device)


@pytest.mark.parametrize("flow", ["nsf", "realnvp", "maf"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_density_lives_where_it_is_put(any_device, flow, dtype):
    x, c = (v.to(dtype) for v in rows(any_device))
    density = pf.FlowDensity(2, flow, context_dim=1, **TINY).to(any_device, dtype).initialize(x, c)
    found = density(c)
    draws = found.rsample()
    score = found.log_prob(x)
    assert draws.device.type == score.device.type == any_device.type
    assert draws.dtype == score.dtype == dtype
    score.sum().backward()
    assert all(p.grad.device.type == any_device.type for p in density.parameters())


@pytest.mark.parametrize("support", [None, constraints.positive, constraints.unit_interval])
def test_bounds_are_kept(any_device, support):
    x = rows(any_device)[0].sigmoid()
    density = pf.FlowDensity(2, "realnvp", support=support, **TINY).to(any_device).initialize(x)
    assert density().log_prob(x).device.type == any_device.type
    assert density().log_prob(density().rsample((5,))).isfinite().all()


def test_it_is_fitted_to_rows_of_the_cpu_too(device):
    x, c = rows(torch.device("cpu"))
    density = pf.FlowDensity(2, context_dim=1, **TINY).to(device)
    fit = pf.fit_density(density, x, c, num_steps=5, lbfgs_steps=3, **QUIET)
    assert fit.log_likelihood == fit.log_likelihood  # no NaN
    assert density(c.to(device)).sample().device.type == device.type
    ranks = pf.calibrate_density(density, x, c, num_draws=9)
    assert ranks.num_simulations == len(x)


def test_flow_matching_stays_on_the_device(device):
    pytest.importorskip("torchdiffeq")
    x, _ = rows(device)
    density = pf.FlowDensity(2, "cnf", **TINY).to(device)
    fit = pf.fit_density(density, x, objective="flow_matching", num_steps=3, **QUIET)
    assert fit.log_likelihood == fit.log_likelihood


def test_ranks_and_grids_stay_on_the_device(device):
    density = pf.FlowDensity(2, "affine").to(device).initialize(rows(device)[0])
    assert pf.pit(density, rows(device)[0]).device.type == device.type
    axes, values = pf.density_grid(density, 10)
    assert values.device.type == axes[0].device.type == device.type


def test_as_a_prior(device):
    density = pf.FlowDensity(2, "realnvp", **TINY).to(device).initialize(rows(device)[0])

    def model() -> None:
        pyro.sample("x", density())

    assert Predictive(model, num_samples=3, parallel=True)()["x"].device.type == device.type
    chain = MCMC(NUTS(model, max_tree_depth=2), num_samples=3, warmup_steps=2, disable_progbar=True)
    chain.run()
    assert chain.get_samples()["x"].device.type == device.type
    guide = pf.AutoFlow(model, "affine")
    fit = pf.fit_guide(model, guide, num_steps=3, num_diagnostic_samples=50, **QUIET)
    assert fit.guide()["x"].device.type == device.type
