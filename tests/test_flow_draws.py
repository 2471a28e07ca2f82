"""Diagnostics of an AutoFlow use the density that it is fitted to."""

from __future__ import annotations

import math
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoNormal

from pyroflows import AutoFlow, PathELBO, fit_guide, importance_diagnostics, to_inference_data
from pyroflows.infer.draws import draw_from_guide
from pyroflows.log_density import LogDensity

DATA = torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)


@pytest.fixture(autouse=True)
def _clean():
    pyro.clear_param_store()
    pyro.set_rng_seed(0)


def _product(y):
    """``X @ w`` and a sum over all: right under vmap, wrong in a plate of particles."""
    w = pyro.sample("w", dist.Normal(y.new_zeros(2), 1.0).to_event(1))
    scale = pyro.sample("scale", dist.LogNormal(y.new_zeros(()), 0.1))
    x = torch.stack([torch.ones_like(y), y], -1)
    pyro.factor("f", dist.Normal(x @ w, scale).log_prob(y).sum())


def _branch(y):
    x = pyro.sample("x", dist.Normal(y.new_zeros(()), 1.0))
    slope = 1.0 if x.item() > 0 else 0.5
    pyro.sample("y", dist.Normal(slope * x, 1.0), obs=y[0])


def _counted(model):
    def counted(*args):
        counted.runs += 1
        return model(*args)

    counted.runs = 0
    return counted


def _mixture(y, mask=True, scale=1.0):
    p = pyro.sample("p", dist.Beta(y.new_tensor(2.0), 2.0))
    with poutine.scale(scale=scale), pyro.plate("n", len(y)), poutine.mask(mask=mask):
        z = pyro.sample("z", dist.Bernoulli(p), infer={"enumerate": "parallel"})
        pyro.sample("y", dist.Normal(2 * z, 1.0), obs=y)


def _beta(y, **options):
    pyro.sample("p", dist.Beta(y.new_tensor(2.0), 2.0))


def _log_p_of_mixture(p, mask=None, scale=1.0):
    keep = torch.ones(3, dtype=torch.bool) if mask is None else mask
    ones, zeros = (dist.Normal(m, 1.0).log_prob(DATA) * keep for m in (2.0, 0.0))
    terms = torch.logaddexp(zeros + (1 - p).log(), ones + p.log()).sum(-1)
    return scale * terms + dist.Beta(DATA.new_tensor(2.0), 2.0).log_prob(p[..., 0])


CASES = [
    {"mask": torch.tensor([True, False, True])},
    {"scale": 2.5},
    {"mask": torch.tensor([False, True, True]), "scale": 0.5},
]


# -- one density ---------------------------------------------------------------------------------


def test_a_model_that_runs_under_vmap_alone_takes_few_runs():
    model = _counted(_product)
    guide = AutoFlow(model, "nsf", model_args=(DATA,))
    model.runs = 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = importance_diagnostics(model, guide, model_args=(DATA,), seed=0)
    assert report.vectorized
    assert report.num_samples == len(report.log_weights) == 10_000
    assert model.runs < 150


def test_the_densities_are_those_of_each_draw_alone():
    guide = AutoFlow(_product, "nsf", model_args=(DATA,))
    draws = draw_from_guide(_product, guide, model_args=(DATA,), num_samples=50, batch_size=16)
    assert list(draws.values) == ["w", "scale"]
    assert draws.values["w"].shape == (50, 2)
    assert torch.allclose(draws.log_q, guide.log_prob(draws.values), atol=1e-6)
    for index in (0, 31, 49):
        values = {name: value[index] for name, value in draws.values.items()}
        alone = poutine.trace(poutine.condition(_product, values)).get_trace(DATA)
        assert draws.log_p[index].item() == pytest.approx(alone.log_prob_sum().item(), abs=1e-8)


def test_draws_are_those_of_the_objective():
    guide = AutoFlow(_product, "affine", model_args=(DATA,))
    report = importance_diagnostics(_product, guide, model_args=(DATA,), seed=0)
    loss = PathELBO(num_particles=10_000).loss(_product, guide, DATA)
    assert report.elbo == pytest.approx(-loss, abs=6 * report.elbo_se)


def test_draws_go_through_the_model_in_parts_that_fit(monkeypatch):
    """A sum over all data has one number a draw, and is made of as many as there are data."""
    monkeypatch.setattr("pyroflows.infer._passes._NUMBERS_PER_PASS", 600)
    rows = []
    call = LogDensity.__call__
    monkeypatch.setattr(LogDensity, "__call__", lambda s, u: (rows.append(len(u)), call(s, u))[1])
    y = torch.linspace(0.0, 1.0, 30, dtype=torch.float64)
    guide = AutoFlow(_product, "affine", model_args=(y,), init="point")
    rows.clear()
    draws = draw_from_guide(_product, guide, model_args=(y,), num_samples=100)
    assert len(draws.log_p) == 100
    assert rows.count(20) >= 5
    assert max(rows) <= 20


def test_widened_draws_need_no_inverse(monkeypatch):
    guide = AutoFlow(_product, "nsf", model_args=(DATA,))

    def refuse(*args):
        raise AssertionError("a draw was scored by the inverse")

    monkeypatch.setattr(type(guide.bijector), "inverse_and_log_det", refuse)
    report = importance_diagnostics(_product, guide, model_args=(DATA,), seed=0, num_samples=100)
    assert not math.isnan(report.missed)


def test_the_same_seed_gives_the_same_draws_to_arviz():
    def model(y):
        mu = pyro.sample("mu", dist.Normal(y.new_zeros(()), 1.0))
        with pyro.plate("n", len(y)):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    guide = AutoFlow(model, "affine", model_args=(DATA,))
    known = {"model_args": (DATA,), "num_samples": 200, "seed": 3}
    report = importance_diagnostics(model, guide, **known)
    stats = to_inference_data(guide, model, **known)["sample_stats"]
    weights = torch.as_tensor(stats["log_weight"].values[0])
    assert torch.allclose(report.log_weights, weights, atol=1e-8)


def test_a_model_whose_density_has_no_gradient_is_judged_too():
    def model():
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.factor("f", -0.5 * x.detach().square())

    def detached():
        with torch.no_grad():
            x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.factor("f", -0.5 * x.square())

    guide = AutoFlow(model, "affine", init="point", model_args=())
    guide.bijector.bijectors[-1].set_(torch.zeros(1), 0.5**0.5 * torch.eye(1))
    report = importance_diagnostics(poutine.mask(detached, mask=True), guide, seed=0)
    assert report.log_z == pytest.approx(-0.5 * math.log(2), abs=1e-3)


def test_a_model_with_another_support_is_judged_as_any():
    guide = AutoFlow(lambda: pyro.sample("x", dist.Normal(0.0, 1.0)), "affine", model_args=())
    report = importance_diagnostics(
        lambda: pyro.sample("x", dist.Uniform(-1.0, 1.0)), guide, seed=0
    )
    assert report.log_z == pytest.approx(0.0, abs=0.05)
    assert "lie outside the model's support" in " ".join(report.reasons)


# -- one draw at a time --------------------------------------------------------------------------


def test_a_branch_is_run_one_draw_at_a_time_with_one_warning():
    guide = AutoFlow(_branch, "affine", init="point", model_args=(DATA,))
    with pytest.warns(UserWarning, match="evaluated one by one") as caught:
        report = importance_diagnostics(_branch, guide, model_args=(DATA,), seed=0, num_samples=100)
    assert len(caught) == 1
    assert not report.vectorized


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("make", [AutoFlow, AutoNormal])
def test_a_fit_by_any_loss_takes_fewer_draws_of_a_sequential_model(make, monkeypatch):
    monkeypatch.setattr("pyroflows.infer.diagnose._SECONDS_FOR_SEQUENTIAL_DIAGNOSTICS", 0.01)

    def loss(model, guide, *args):
        found = poutine.trace(guide).get_trace(*args)
        replayed = poutine.trace(poutine.replay(model, trace=found)).get_trace(*args)
        return found.log_prob_sum() - replayed.log_prob_sum()

    guide = make(_branch, **({"init": "point"} if make is AutoFlow else {}))
    fit = fit_guide(
        _branch,
        guide,
        model_args=(DATA,),
        num_steps=2,
        loss=loss,
        num_diagnostic_samples=1000,
        seed=0,
        progress_bar=False,
    )
    assert fit.vectorized is None
    assert fit.diagnostics.num_samples == 500
    assert "diagnostics from 500 draws, not 1000" in str(fit)


def test_a_fit_of_a_model_for_vmap_keeps_all_its_draws():
    model = _counted(_product)
    guide = AutoFlow(model, "affine", model_args=(DATA,))
    model.runs = 0
    fit = fit_guide(model, guide, model_args=(DATA,), num_steps=3, seed=0, progress_bar=False)
    assert fit.diagnostics.num_samples == 10_000
    assert fit.diagnostics.vectorized
    assert not fit.note
    assert model.runs < 300


# -- sums over discrete sites --------------------------------------------------------------------


@pytest.mark.parametrize("options", CASES, ids=lambda o: "-".join(o))
def test_masks_and_scales_of_enumerated_sites_are_those_of_the_fit(options):
    """A mask leaves its sites out of the sum; a scale is outside of it."""
    known = {"model_args": (DATA,), "model_kwargs": options}
    draws = draw_from_guide(_mixture, _beta, **known, num_samples=40)
    assert draws.vectorized
    assert draws.marginalized == ("z",)
    assert torch.allclose(draws.log_p, _log_p_of_mixture(draws.values["p"][:, None], **options))
    alone = draw_from_guide(_mixture, _beta, **known, num_samples=4, batch_size=1)
    assert torch.allclose(alone.log_p, _log_p_of_mixture(alone.values["p"][:, None], **options))
    flow = AutoFlow(_mixture, "nsf", **known)
    found = draw_from_guide(_mixture, flow, **known, num_samples=40)
    assert torch.allclose(found.log_p, _log_p_of_mixture(found.values["p"][:, None], **options))


def test_diagnostics_of_a_scaled_mixture_agree_with_its_fit():
    known = {"model_args": (DATA,), "model_kwargs": CASES[2]}
    guide = AutoFlow(_mixture, "affine", **known)
    report = importance_diagnostics(_mixture, guide, **known, seed=0)
    grid = torch.linspace(0, 1, 4001, dtype=torch.float64)[1:-1, None]
    log_z = _log_p_of_mixture(grid, **CASES[2]).exp().mean().log().item()
    assert report.log_z == pytest.approx(log_z, abs=max(4 * report.log_z_se, 1e-3))
    loss = PathELBO(num_particles=10_000).loss(_mixture, guide, DATA, **CASES[2])
    assert report.elbo == pytest.approx(-loss, abs=6 * report.elbo_se)


def test_several_scales_in_one_sum_are_refused_by_name():
    def model(y):
        p = pyro.sample("p", dist.Beta(y.new_tensor(2.0), 2.0))
        with pyro.plate("n", len(y)):
            z = pyro.sample("z", dist.Bernoulli(p), infer={"enumerate": "parallel"})
            with poutine.scale(scale=2.0):
                pyro.sample("y", dist.Normal(2 * z, 1.0), obs=y)

    with pytest.raises(ValueError, match="have different scales"):
        draw_from_guide(model, _beta, model_args=(DATA,), num_samples=40)
