"""Figures of weights, of flows and of new data: what is drawn, against its formula."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

import pyroflows as pf
from pyroflows.diagnostics import _arviz
from pyroflows.diagnostics.flow_plots import _grid
from pyroflows.psis import fit_tail, smooth_log_weights

NUM = 2000


@pytest.fixture(autouse=True)
def _fresh():
    pytest.importorskip("matplotlib")
    pyro.clear_param_store()
    pyro.set_rng_seed(0)


def drawn(figure, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure.savefig(tmp_path / "figure.png")
    return (tmp_path / "figure.png").stat().st_size > 2000


# Weights


def model():
    pyro.sample("z", dist.Normal(0.0, 1.0))


def report(scale=0.7):
    def guide():
        pyro.sample("z", dist.Normal(0.0, scale))

    return pf.importance_diagnostics(model, guide, num_samples=NUM, seed=0)


def test_the_tail_drawn_is_the_one_that_k_hat_is_the_shape_of(tmp_path):
    found = report()
    figure = pf.plot_weights(found)
    assert drawn(figure, tmp_path)
    left, right = figure.axes
    assert f"k-hat {found.pareto_k:.2f} ± {found.pareto_k_se:.2f}" in left.get_title()
    dots, line, cutoff = left.get_lines()
    weights, share = line.get_data()
    tail = fit_tail(found.log_weights)
    assert tail.shape == found.pareto_k
    assert cutoff.get_xdata()[0] == pytest.approx(weights[0])
    assert share[0] == pytest.approx(len(tail.members) / NUM)
    # The survival function of the fitted law, in units of the mean weight.
    mean = float(found.log_weights.logsumexp(0)) - math.log(NUM)
    scale = tail.scale * math.exp(tail.largest - mean)
    law = share[0] * (1 + tail.shape * (weights - weights[0]) / scale) ** (-1 / tail.shape)
    np.testing.assert_allclose(share, law, rtol=1e-6)
    # The largest dot is the largest weight, above one draw of all.
    assert dots.get_xdata()[-1] == pytest.approx(float((found.log_weights.max() - mean).exp()))
    assert dots.get_ydata()[-1] == pytest.approx(1 / NUM)
    assert right.get_lines()[0].get_ydata()[-1] == pytest.approx(mean)


def test_fitting_the_tail_apart_changes_nothing():
    log_weights = report().log_weights
    smoothed, shape = smooth_log_weights(log_weights)
    tail = fit_tail(log_weights)
    assert shape == tail.shape
    body = torch.ones(NUM, dtype=torch.bool)
    body[tail.members] = False
    assert torch.equal(smoothed[body], log_weights[body])


def weights_of(log_weights):
    from types import SimpleNamespace

    log_weights = torch.as_tensor(log_weights, dtype=torch.float64)
    shape = pf.psis(log_weights)[1]
    return SimpleNamespace(log_weights=log_weights, pareto_k=shape, good_k=0.7, ess=0.5)


@pytest.mark.parametrize(
    ("log_weights", "said"),
    [
        (torch.zeros(1000), "weights are equal"),
        (torch.randn(10), "too few weights"),
        (torch.randn(1000).double() * 500, "k-hat"),
        (torch.where(torch.arange(1000) % 20 == 0, torch.randn(1000), -torch.inf), "k-hat"),
        (torch.arange(1000) % 2 * 1.0, "weights are equal"),
    ],
)
def test_weights_of_every_kind_are_drawn_without_a_warning(log_weights, said, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = pf.plot_weights(weights_of(log_weights))
    assert drawn(figure, tmp_path)
    assert said in figure.axes[0].get_title()


def test_weights_that_are_not_there_are_refused():
    with pytest.raises(TypeError, match="got dict without weights"):
        pf.plot_weights({})
    nothing = weights_of(torch.zeros(10))
    nothing.log_weights = torch.full((10,), -torch.inf)
    with pytest.raises(ValueError, match="expected a weight that is not zero"):
        pf.plot_weights(nothing)


# Flows


def test_each_panel_is_the_grid_after_so_many_layers(tmp_path):
    flow = pf.build_flow("nsf", 3, num_layers=2)
    for parameter in flow.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    figure = pf.plot_flow(flow, coordinates=(2, 0), extent=2.0)
    assert drawn(figure, tmp_path)
    first, *_, last = figure.axes
    points = _grid(3, (2, 0), 2.0)
    image = flow(points.float())[..., [2, 0]].detach()
    for axes, expected in ((first, points[..., [2, 0]]), (last, image)):
        segments = np.concatenate([c.get_segments() for c in axes.collections])
        np.testing.assert_allclose(segments, expected.flatten(0, 1), atol=1e-5)
    assert first.get_title() == "base"
    assert (points[..., 1] == 0).all()


def test_an_inverse_flow_is_taken_apart_too():
    flow = pf.build_flow("maf", 2, num_layers=3)
    figure = pf.plot_flow(flow)
    assert len(figure.axes) > 3
    many = pf.plot_flow(pf.build_flow("nsf", 2, num_layers=30))
    assert len(many.axes) == 9


def test_guides_and_densities_are_flows():
    target = pf.energy_model(lambda x: -x.square().sum(-1), dim=2)
    assert pf.plot_flow(pf.AutoFlow(target, "nsf", model_args=())).axes
    assert pf.plot_flow(pf.FlowDensity(2, "maf")).axes
    density = pf.FlowDensity(2, "maf", context_dim=1)
    assert pf.plot_flow(density, context=torch.zeros(1)).axes


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"coordinates": (0, 0)}, "two different coordinates from 0 to 1"),
        ({"coordinates": (0, 2)}, "two different coordinates"),
        ({"extent": 0.0}, "positive extent"),
        ({"context": torch.zeros(1)}, "takes no context"),
    ],
)
def test_what_cannot_be_a_panel_is_refused(options, said):
    with pytest.raises(ValueError, match=said):
        pf.plot_flow(pf.build_flow("nsf", 2), **options)
    with pytest.raises(ValueError, match="two dimensions or more"):
        pf.plot_flow(pf.build_flow("nsf", 1))
    with pytest.raises(TypeError, match="got dict"):
        pf.plot_flow({})


def positive(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    sigma = pyro.sample("sigma", dist.LogNormal(0.0, 0.5))
    pyro.sample("y", dist.Normal(mu, sigma), obs=y)


def test_the_target_is_drawn_in_the_coordinates_of_its_sites(tmp_path):
    args = (torch.tensor(0.5),)
    guide = pf.AutoFlow(positive, "affine", model_args=args)
    extent = (-2.0, 2.0, -0.5, 3.0)
    figure = pf.plot_target(positive, guide, model_args=args, extent=extent, num=60)
    assert drawn(figure, tmp_path)
    posterior = figure.axes[0]
    assert (posterior.get_xlabel(), posterior.get_ylabel()) == ("mu", "sigma")
    x, y = np.linspace(*extent[:2], 60), np.linspace(*extent[2:], 60)
    mu, sigma = (torch.from_numpy(v) for v in np.meshgrid(x, y))
    inside = sigma > 0
    sigma = sigma.clamp(min=1e-9)
    log_joint = (
        dist.Normal(0.0, 1.0).log_prob(mu)
        + dist.LogNormal(0.0, 0.5).log_prob(sigma)
        + dist.Normal(mu, sigma).log_prob(args[0])
    )
    joint = torch.where(inside, log_joint.exp(), 0.0)
    exact = joint / joint.sum() / ((x[1] - x[0]) * (y[1] - y[0]))  # nearly all of it is shown
    found = np.asarray(posterior.collections[0].get_array()).reshape(60, 60)
    np.testing.assert_allclose(found, exact, atol=0.05 * float(exact.max()))
    assert (found[y < 0] == 0).all()


def test_targets_of_other_sizes_are_refused():
    target = pf.energy_model(lambda x: -x.square().sum(-1), dim=3)
    with pytest.raises(ValueError, match="two coordinates in all, got 3"):
        pf.plot_target(target, pf.AutoFlow(target, "affine", model_args=()))
    flat = pf.energy_model(lambda x: -x.square().sum(-1), dim=2)
    guide = pf.AutoFlow(flat, "affine", model_args=())
    with pytest.raises(ValueError, match="left, right, bottom, top"):
        pf.plot_target(flat, guide, extent=(1.0, 0.0, 0.0, 1.0))
    with pytest.raises(TypeError, match="expected an AutoFlow"):
        pf.plot_target(flat, model)


# New data


def predicted(seen, new, dims=("i",)):
    import xarray as xr

    coords = {"i": [f"case {i}" for i in range(len(seen))]} if dims else {}
    groups = {
        "posterior": xr.Dataset({"mu": (("chain", "draw"), np.zeros((1, len(new))))}),
        "observed_data": xr.Dataset({"y": (dims, seen)}, coords=coords),
        "posterior_predictive": xr.Dataset({"y": (("chain", "draw", *dims), new[None])}),
    }
    return _arviz.build(groups, {})


@pytest.fixture
def rng():
    pytest.importorskip("arviz")
    return np.random.default_rng(0)


@pytest.mark.arviz
def test_intervals_are_the_quantiles_of_what_is_predicted(rng, tmp_path):
    seen, new = np.array([0.0, 5.0, 1.0]), rng.normal([0, 1, 2], 1.0, (1000, 3))
    figure = pf.plot_predictive(predicted(seen, new), kind="intervals")
    assert drawn(figure, tmp_path)
    (axes,) = figure.axes
    wide, narrow = (np.array(c.get_segments())[:, :, 0] for c in axes.collections)
    np.testing.assert_allclose(wide, np.quantile(new, (0.05, 0.95), 0).T)
    np.testing.assert_allclose(narrow, np.quantile(new, (0.25, 0.75), 0).T)
    dots, outside = axes.get_lines()
    np.testing.assert_array_equal(dots.get_xdata(), seen)
    np.testing.assert_array_equal(outside.get_xdata(), [5.0])  # beyond its interval: ringed
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["case 0", "case 1", "case 2"]


@pytest.mark.arviz
def test_densities_are_those_of_data_seen_and_made_anew(rng, tmp_path):
    seen, new = rng.normal(2, 1, 300), rng.normal(2, 1, (400, 300))
    figure = pf.plot_predictive(predicted(seen, new), num_draws=20)
    assert drawn(figure, tmp_path)
    (axes,) = figure.axes
    assert len(axes.get_lines()) == 22
    for line in axes.get_lines():
        x, y = line.get_data()
        assert np.trapezoid(y, x) == pytest.approx(1, abs=0.02)
    x, y = axes.get_lines()[-2].get_data()
    np.testing.assert_allclose(y, np.exp(-((x - 2) ** 2) / 2) / math.sqrt(2 * math.pi), atol=0.03)


@pytest.mark.arviz
def test_whole_numbers_are_counted(rng):
    seen, new = rng.poisson(3.0, 200), rng.poisson(3.0, (100, 200))
    (axes,) = pf.plot_predictive(predicted(seen, new)).axes
    x, y = axes.get_lines()[-1].get_data()
    np.testing.assert_allclose(y, [(seen == value).mean() for value in x])


@pytest.mark.arviz
def test_one_datum_lies_in_its_predictions(rng, tmp_path):
    figure = pf.plot_predictive(predicted(np.array(1.5), rng.normal(size=500), dims=()))
    assert drawn(figure, tmp_path)
    assert figure.axes[0].get_lines()[-1].get_xdata()[0] == 1.5
    assert drawn(
        pf.plot_predictive(predicted(np.array(1.5), rng.normal(size=500), ()), kind="intervals"),
        tmp_path,
    )


@pytest.mark.arviz
def test_what_is_left_out_of_new_data_is_said(rng):
    new = rng.normal(size=(50, 130))
    new[0, 0] = math.nan
    with pytest.warns(UserWarning, match="1 values of 'y' are NaN"):
        pf.plot_predictive(predicted(np.zeros(130), new))
    with pytest.warns(UserWarning, match="first 120 of 130"):
        pf.plot_predictive(predicted(np.zeros(130), rng.normal(size=(50, 130))), kind="intervals")


@pytest.mark.arviz
def test_new_data_that_are_not_there_are_refused(rng):
    data = predicted(np.zeros(3), rng.normal(size=(50, 3)))
    with pytest.raises(ValueError, match="no observed sites \\['x'\\]; there are \\['y'\\]"):
        pf.plot_predictive(data, ["x"])
    with pytest.raises(ValueError, match="expected kind 'density' or 'intervals', got 'ecdf'"):
        pf.plot_predictive(data, kind="ecdf")
    with pytest.raises(ValueError, match="num_draws of 1 or more"):
        pf.plot_predictive(data, num_draws=0)
    with pytest.raises(TypeError, match="got dict"):
        pf.plot_predictive({})
    with pytest.raises(ValueError, match="expected groups posterior_predictive"):
        pf.plot_predictive(_arviz.build({"posterior": _arviz.get_group(data, "posterior")}, {}))
