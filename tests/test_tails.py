"""The last phase of a fit: steps for tails that the guide's own draws seldom see."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyroflows import AutoFlow, fit_guide
from pyroflows.bijectors import LocScale
from pyroflows.infer.tails import Tails

NEAR = 1.0  # nats: a tolerance with which each flow here counts as near
FAR_ENOUGH = 0.84  # of a scale that starts at 0.7, after 200 steps of that length
LATE = 100.0  # seconds that the fit took before


@pytest.fixture(autouse=True)
def _fresh():
    pyro.clear_param_store()
    torch.manual_seed(0)


def standard(u):
    return -0.5 * u.square().sum(-1) - math.log(2 * math.pi)


def tails_of(scale, log_density=standard, tolerance=NEAR, dtype=torch.float64):
    """A flow of two coordinates with scales of its own, and the phase that may mend it."""
    flow = LocScale(2).to(dtype)
    flow.set_(torch.zeros(2, dtype=dtype), torch.as_tensor(scale, dtype=dtype).expand(2))
    params = dict(flow.named_parameters())
    phase = Tails(lambda: flow, log_density, params, dim=2, num_draws=256, tolerance=tolerance)
    return flow, phase


@torch.no_grad()
def scale_of(flow):
    x = torch.ones(1, 2, dtype=next(flow.parameters()).dtype)
    return 0.5 * (flow(x) - flow(-x))[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_is_too_narrow_becomes_wide_enough(dtype):
    flow, phase = tails_of(0.7, dtype=dtype)
    told = phase.run(LATE)
    assert told.startswith("200 steps more, for the tails, took k-hat from 0.")
    assert float(scale_of(flow).min()) > FAR_ENOUGH
    assert next(flow.parameters()).grad is None


def test_a_good_tail_is_left_alone():
    flow, phase = tails_of(0.95)
    assert phase.run(LATE) == ""
    assert torch.equal(scale_of(flow), tails_of(0.95)[0](torch.ones(1, 2).double())[0])


def test_so_is_what_is_far_from_the_posterior():
    flow, phase = tails_of(0.7, tolerance=0.01)
    assert phase.run(LATE) == ""
    assert torch.allclose(scale_of(flow), torch.full((2,), 0.7, dtype=torch.float64))


def test_what_costs_the_elbo_is_not_kept():
    """Of an ELBO lost for an even tail nothing may stay."""
    flow, phase = tails_of(0.7)

    def spoil(log_z, limit):
        with torch.no_grad():  # half of the posterior, cut out: log weights are all the same
            for p in flow.parameters():
                p.sub_(5.0 * (p != 0))

    phase._minimise = spoil
    assert "made nothing better" in phase.run(LATE)
    assert torch.allclose(scale_of(flow), torch.full((2,), 0.7, dtype=torch.float64))


def test_an_interrupt_leaves_the_guide_as_it_was():
    flow, phase = tails_of(0.7)
    whole = phase._add_gradients

    def interrupted(log_z):
        if float(scale_of(flow)[0]) > 0.71:
            raise KeyboardInterrupt
        whole(log_z)

    phase._add_gradients = interrupted
    with pytest.raises(KeyboardInterrupt):
        phase.run(LATE)
    assert torch.allclose(scale_of(flow), torch.full((2,), 0.7, dtype=torch.float64))


def test_a_density_that_is_no_number_far_out_does_no_harm():
    def cut_off(u):
        return torch.where(u.abs().amax(-1) < 5.5, standard(u), torch.nan)

    flow, phase = tails_of(0.7, cut_off)
    assert "took k-hat" in phase.run(LATE)
    assert float(scale_of(flow).min()) > FAR_ENOUGH


def test_the_clock_shortens_it(monkeypatch):
    flow, phase = tails_of(0.7)
    monkeypatch.setattr("pyroflows.infer.tails._MIN_SECONDS", 0.0)
    phase.run(0.02)
    assert float(scale_of(flow).mean()) < 0.8


def regression(x, y):
    slope = pyro.sample("slope", dist.Normal(0.0, 10.0))
    sigma = pyro.sample("sigma", dist.LogNormal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(slope * x, sigma), obs=y)


@pytest.fixture
def data():
    x = torch.linspace(-1, 1, 100, dtype=torch.float64)
    return x, 2 * x + torch.randn_like(x)


@pytest.mark.slow
def test_a_fit_says_what_became_of_it(data, monkeypatch):
    monkeypatch.setattr("pyroflows.infer.tails._K", -math.inf)
    fit = fit_guide(
        regression, AutoFlow(regression, model_args=data), model_args=data, seed=0,
        progress_bar=False, num_diagnostic_samples=0,
    )  # fmt: skip
    assert "for the tails" in fit.tails
    assert fit.tails in str(fit)


def test_steps_that_were_counted_out_are_not_added_to(data, monkeypatch):
    monkeypatch.setattr("pyroflows.infer.tails._K", -math.inf)
    for limits in ({"num_steps": 20}, {"time_budget": 1.0}):
        guide = AutoFlow(regression, "affine", model_args=data)
        fit = fit_guide(
            regression, guide, model_args=data, seed=0, progress_bar=False,
            num_diagnostic_samples=0, **limits,
        )  # fmt: skip
        assert fit.tails == ""
