"""How many draws the verdict at the end of a fit is made of."""

import pyro
import pyro.distributions as dist
import pytest

from pyroflows import AutoFlow, fit_guide

quick = {"progress_bar": False, "seed": 0, "num_steps": 1, "num_particles": 16}


@pytest.fixture
def unclear(monkeypatch):
    monkeypatch.setattr("pyroflows.infer.diagnose._EVEN", 0.0)
    monkeypatch.setattr("pyroflows.infer.diagnose._GOOD_K", -float("inf"))


def model():
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(0.1 * x**2, 1.0))


def one_by_one():
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(0.1 if x > 0 else 0.2, 1.0))


def num_samples(**options):
    pyro.clear_param_store()
    guide = AutoFlow(model, "affine", model_args=())
    return fit_guide(model, guide, **quick | options).diagnostics.num_samples


def test_a_clear_one_of_ten_thousand(monkeypatch):
    monkeypatch.setattr("pyroflows.infer.diagnose._GOOD_K", float("inf"))
    assert num_samples() == 10_000


@pytest.mark.usefixtures("unclear")
def test_one_that_few_draws_leave_unclear_of_more():
    assert num_samples() == 100_000


@pytest.mark.usefixtures("unclear")
def test_of_as_many_as_were_asked_for():
    assert num_samples(num_diagnostic_samples=2_000) == 2_000


@pytest.mark.usefixtures("unclear")
def test_of_no_more_than_are_affordable(monkeypatch):
    monkeypatch.setattr("pyroflows.infer.diagnose._AFFORDABLE", 10**5)
    assert num_samples() == 10_000


@pytest.mark.filterwarnings("ignore:The model does not broadcast")
@pytest.mark.usefixtures("unclear")
def test_of_no_more_where_the_model_is_run_one_by_one(monkeypatch):
    monkeypatch.setattr("pyroflows.infer.diagnose._SECONDS_FOR_SEQUENTIAL_DIAGNOSTICS", 0.0)
    guide = AutoFlow(one_by_one, "affine", model_args=())
    fit = fit_guide(one_by_one, guide, **quick)
    assert fit.diagnostics.num_samples == 500
