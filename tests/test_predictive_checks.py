"""Replicated data beside what was observed: p-values, places among predictions, masks."""

from __future__ import annotations

import warnings

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

from pyroflows import to_inference_data
from pyroflows.diagnostics import _arviz
from pyroflows.diagnostics.leave_one_out import loo_log_weights
from pyroflows.diagnostics.predictive import loo_pit, predictive_p_values

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    az = pytest.importorskip("arviz")

pytestmark = pytest.mark.arviz

LEAD = ("chain", "draw")


def data_of(made, seen, dims=("n",), likelihood=None, coords=None, **stats):
    import xarray as xr

    groups = {
        "posterior_predictive": xr.Dataset({"y": ((*LEAD, *dims), made)}),
        "observed_data": xr.Dataset({"y": (dims, seen)}, coords=coords),
    }
    if likelihood is not None:
        groups["log_likelihood"] = xr.Dataset({"y": likelihood})
    if stats:
        groups["sample_stats"] = xr.Dataset({name: (LEAD, v) for name, v in stats.items()})
    return _arviz.build(groups, {})


def chains(num=60, shape=(4, 500), scale=1.0, seed=0):
    """Draws of the mean of normal data of the given scale, under a model of scale one."""
    import xarray as xr

    rng = np.random.default_rng(seed)
    y = rng.normal(0.5, scale, num)
    mu = rng.normal(y.sum() / (num + 1), (num + 1) ** -0.5, shape)
    each = -0.5 * np.log(2 * np.pi) - (y - mu[..., None]) ** 2 / 2
    made = mu[..., None] + rng.normal(size=(*shape, num))
    groups = {
        "posterior": xr.Dataset({"mu": (LEAD, mu)}),
        "log_likelihood": xr.Dataset({"y": ((*LEAD, "n"), each)}),
        "posterior_predictive": xr.Dataset({"y": ((*LEAD, "n"), made)}),
        "observed_data": xr.Dataset({"y": ("n", y)}),
    }
    return _arviz.build(groups, {})


def masked_model(mask, y):
    def model():
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("n", len(y)), pyro.poutine.mask(mask=mask):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    return model


def guide():
    pyro.sample("mu", dist.Normal(0.0, 0.5))


def test_p_values_are_shares_with_ties_counted_half():
    made = np.array([[[0.0, 0.0], [1.0, 1.0], [2.0, 2.0], [3.0, 5.0]]])
    table = predictive_p_values(data_of(made, np.array([1.0, 1.0])))
    assert table.index.names == ["site", "statistic"]
    assert list(table.index) == [("y", t) for t in ("mean", "sd", "min", "max", "median")]
    assert list(table.columns) == ["observed", "predicted", "p_value"]
    assert tuple(table.loc[("y", "mean")]) == (1.0, 1.75, 2.5 / 4)
    assert tuple(table.loc[("y", "max")]) == (1.0, 2.0, 2.5 / 4)
    assert tuple(table.loc[("y", "sd")]) == (0.0, 0.25, 2.5 / 4)


def test_a_wrong_scale_shows_in_the_scale_alone():
    right, wrong = predictive_p_values(chains()), predictive_p_values(chains(scale=3.0))
    assert right["p_value"].between(0.05, 0.95).all()
    assert wrong.loc[("y", "sd"), "p_value"] == 0.0
    assert wrong.loc[("y", "max"), "p_value"] < 0.01
    assert wrong.loc[("y", "min"), "p_value"] > 0.99
    assert wrong.loc[("y", "mean"), "p_value"] == pytest.approx(0.5, abs=0.1)


def test_statistics_see_whole_data_sets():
    made = np.arange(12.0).reshape(1, 2, 2, 3)
    shapes = []

    def last(values):
        shapes.append(values.shape)
        return values[-1, -1]

    data = data_of(made, np.full((2, 3), 11), ("r", "c"))
    table = predictive_p_values(data, {"last": last}, ["y"])
    assert list(table.index) == [("y", "last")]
    assert tuple(table.loc[("y", "last")]) == (11.0, 8.0, 0.25)
    assert set(shapes) == {(2, 3)}


def test_weights_move_the_replicated_data():
    made = np.array([[[0.0], [2.0]]])
    data = data_of(made, np.array([1.0]), log_weight_psis=np.log([[0.75, 0.25]]))
    assert predictive_p_values(data).loc[("y", "mean"), "p_value"] == 0.5
    table = predictive_p_values(data, weighted=True)
    assert table.loc[("y", "mean"), "p_value"] == pytest.approx(0.25)
    assert table.loc[("y", "mean"), "predicted"] == pytest.approx(0.5)
    with pytest.raises(ValueError, match="expected log_weight_psis in sample_stats"):
        predictive_p_values(data_of(made, np.array([1.0])), weighted=True)
    nothing = data_of(made, np.array([1.0]), log_weight_psis=np.full((1, 2), -np.inf))
    with pytest.raises(ValueError, match="a weight for each of 2 draws, finite and not all zero"):
        predictive_p_values(nothing, weighted=True)


def test_masked_observations_are_left_out():
    y, mask = torch.tensor([0.1, 1e6, -0.2, 0.3]), torch.tensor([True, False, True, True])
    data = to_inference_data(guide, masked_model(mask, y), num_samples=500, seed=0)
    table = predictive_p_values(data)
    assert table.loc[("y", "max"), "observed"] == pytest.approx(0.3)
    assert 0.1 < table.loc[("y", "mean"), "p_value"] < 0.9
    found = loo_pit(data)
    assert found.dims == ("n",)
    np.testing.assert_array_equal(np.isnan(found), ~mask.numpy())
    short = to_inference_data(
        guide, masked_model(torch.ones(3).bool(), y[mask]), num_samples=500, seed=0
    )
    # Replicated noise differs; the draws of the mean, and so the weights, do not.
    np.testing.assert_allclose(loo_log_weights(data), loo_log_weights(short), atol=1e-5)
    np.testing.assert_allclose(found.values[mask.numpy()], loo_pit(short), atol=0.1)


def test_masks_that_are_nan_are_seen_too():
    rng = np.random.default_rng(0)
    likelihood = rng.normal(size=(1, 200, 2, 2))
    likelihood[..., 0, 1] = np.nan
    made, seen = rng.normal(size=(1, 200, 2, 2)), np.array([[0.0, 1e6], [0.1, -0.1]])
    made[..., 0, 1] = 1e7
    data = data_of(
        made,
        seen,
        ("r", "c"),
        likelihood=((*LEAD, "r", "c"), likelihood),
    )
    row = predictive_p_values(data).loc[("y", "max")]
    assert row["observed"] == 0.1
    assert row["predicted"] < 5
    found = loo_pit(data)
    np.testing.assert_array_equal(np.isnan(found), seen == 1e6)
    assert found.dims == ("r", "c")


def test_places_are_weighted_shares_with_ties_counted_half():
    rng = np.random.default_rng(0)
    made = rng.integers(0, 4, (2, 100, 3)).astype(float)
    likelihood = rng.normal(size=(2, 100, 3))
    seen = np.array([0.0, 1.0, 5.0])
    data = data_of(
        made, seen, likelihood=((*LEAD, "n"), likelihood), log_weight=rng.normal(size=(2, 100))
    )
    weights, flat = np.exp(loo_log_weights(data)), made.reshape(200, 3)
    expected = (weights * ((flat < seen) + 0.5 * (flat == seen))).sum(0)
    np.testing.assert_allclose(loo_pit(data), expected)
    assert float(loo_pit(data)[2]) == pytest.approx(1.0)
    assert loo_pit(data).name == "y"


def test_places_are_those_of_arviz():
    data = chains()
    theirs = az.loo_pit(data, y="y") if _arviz.major() == 0 else az.loo_pit(data)["y"]
    np.testing.assert_allclose(loo_pit(data), theirs, atol=0.02)


def test_places_are_uniform_where_the_model_is_right():
    from scipy.stats import kstest

    assert kstest(loo_pit(chains(400)), "uniform").pvalue > 0.05
    assert kstest(loo_pit(chains(400, scale=2.0)), "uniform").pvalue < 1e-6


def test_places_are_of_predictions_without_the_observation():
    # One observation far off drags the mean of three along; left out, it is yet farther off.
    y = torch.tensor([0.0, 0.0, 3.0])

    def model():
        mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
        with pyro.plate("n", 3):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    def wide():
        pyro.sample("mu", dist.Normal(1.0, 1.2))

    data = to_inference_data(wide, model, num_samples=20_000, seed=0)
    without = torch.distributions.Normal(0.0, 1.5**0.5).cdf(torch.tensor(3.0))
    assert float(loo_pit(data)[2]) == pytest.approx(float(without), abs=0.01)
    others = torch.distributions.Normal(1.5, 1.5**0.5).cdf(torch.tensor(0.0))
    assert float(loo_pit(data)[0]) == pytest.approx(float(others), abs=0.02)


def test_missing_groups_and_sites_are_named():
    data = chains(5, (1, 10))
    groups = {
        name: _arviz.get_group(data, name) for name in ("observed_data", "posterior_predictive")
    }
    for name in groups:
        rest = _arviz.build({k: v for k, v in groups.items() if k != name}, {})
        with pytest.raises(ValueError, match=f"expected a group {name}, got none"):
            predictive_p_values(rest)
    with pytest.raises(ValueError, match="loo_log_weights: expected a group log_likelihood"):
        loo_pit(_arviz.build(groups, {}))
    with pytest.raises(ValueError, match=r"observed and replicated, \['y'\], got \['x'\]"):
        predictive_p_values(data, var_names=["x"])
    with pytest.raises(ValueError, match=r"observed and replicated, \['y'\], got none"):
        predictive_p_values(data, var_names=[])
    with pytest.raises(TypeError, match=r"predictive_p_values: expected InferenceData .* got dict"):
        predictive_p_values({})
    with pytest.raises(ValueError, match="at least one statistic"):
        predictive_p_values(data, {})


def test_what_is_no_number_is_refused():
    made, seen = np.zeros((1, 5, 2)), np.array([0.0, np.nan])
    with pytest.raises(ValueError, match=r"expected numbers for 'y', got NaN .* mask missing"):
        predictive_p_values(data_of(made, seen))
    data = data_of(made, np.zeros(2))
    with pytest.raises(ValueError, match="statistic 'skew' of 'y' to be a number, got NaN"):
        predictive_p_values(data, {"skew": lambda values: np.nan})
    with pytest.raises(ValueError, match=r"statistic 'all' .* an array of shape \(2,\)"):
        predictive_p_values(data, {"all": lambda values: values})
    with pytest.raises(ValueError, match=r"in the shape of the observed, \(2,\), got \(3,\)"):
        predictive_p_values(data_of_unequal())


def data_of_unequal():
    import xarray as xr

    groups = {
        "posterior_predictive": xr.Dataset({"y": ((*LEAD, "m"), np.zeros((1, 5, 3)))}),
        "observed_data": xr.Dataset({"y": ("n", np.zeros(2))}),
    }
    return _arviz.build(groups, {})


def test_vectors_have_no_place():
    rng = np.random.default_rng(0)
    data = data_of(
        rng.normal(size=(1, 50, 4, 2)),
        rng.normal(size=(4, 2)),
        ("n", "e"),
        likelihood=((*LEAD, "n"), rng.normal(size=(1, 50, 4))),
    )
    with pytest.raises(ValueError, match=r"one number for each .* an event of shape \(2,\)"):
        loo_pit(data)
    assert len(predictive_p_values(data)) == 5
