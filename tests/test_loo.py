"""Leave-one-out from a guide's draws: exact values, ArviZ's own, masks, refusals."""

from __future__ import annotations

import dataclasses
import math
import warnings

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

from pyroflows import to_inference_data
from pyroflows.diagnostics import _arviz
from pyroflows.diagnostics.leave_one_out import Loo, loo, loo_log_weights
from pyroflows.psis import good_pareto_k

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    az = pytest.importorskip("arviz")

pytestmark = pytest.mark.arviz

NUM = 12
Y = torch.tensor(np.random.default_rng(1).normal(0.7, 1.0, NUM))
MEAN, SD = float(Y.sum()) / (NUM + 1), (NUM + 1) ** -0.5


def model(y=Y):
    mu = pyro.sample("mu", dist.Normal(torch.tensor(0.0, dtype=torch.float64), 1.0))
    with pyro.plate("n", len(y)):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def guide_of(scale=1.0, shift=0.0):
    def guide(y=Y):
        loc = torch.tensor(MEAN + shift * SD, dtype=torch.float64)
        pyro.sample("mu", dist.Normal(loc, scale * SD))

    return guide


def fit(scale=1.0, shift=0.0, seed=0, num_samples=4000, **kwargs):
    guide = guide_of(scale, shift)
    return to_inference_data(guide, model, seed=seed, num_samples=num_samples, **kwargs)


def exact():
    """Log density of each observation, normal, given all others."""
    y = Y.numpy()
    mean, var = (y.sum() - y) / NUM, 1 / NUM + 1
    return -0.5 * np.log(2 * np.pi * var) - (y - mean) ** 2 / (2 * var)


def exact_p_loo():
    y = Y.numpy()
    var = SD**2 + 1
    seen = -0.5 * np.log(2 * np.pi * var) - (y - MEAN) ** 2 / (2 * var)
    return (seen - exact()).sum()


def groups_of(data, *leave_out):
    names = ("posterior", "sample_stats", "log_likelihood", "posterior_predictive", "observed_data")
    found = {name: _arviz.get_group(data, name) for name in names if name not in leave_out}
    return {name: group for name, group in found.items() if group is not None}


def unweighted(data):
    return _arviz.build(groups_of(data, "sample_stats"), {})


def chains(seed=0, shape=(4, 1000)):
    """Independent draws of the posterior, in chains."""
    import xarray as xr

    rng = np.random.default_rng(seed)
    mu = rng.normal(MEAN, SD, shape)
    each = -0.5 * np.log(2 * np.pi) - (Y.numpy() - mu[..., None]) ** 2 / 2
    made = mu[..., None] + rng.normal(size=(*shape, NUM))
    dims = ("chain", "draw", "n")
    groups = {
        "posterior": xr.Dataset({"mu": (dims[:2], mu)}),
        "log_likelihood": xr.Dataset({"y": (dims, each)}),
        "posterior_predictive": xr.Dataset({"y": (dims, made)}),
        "observed_data": xr.Dataset({"y": ("n", Y.numpy())}),
    }
    return _arviz.build(groups, {})


def likelihood(values, weights=None, dims=("n",), **coords):
    import xarray as xr

    lead = ("chain", "draw")
    groups = {"log_likelihood": xr.Dataset({"y": ((*lead, *dims), values)}, coords=coords)}
    if weights is not None:
        groups["sample_stats"] = xr.Dataset({"log_weight": (lead, weights)})
    return _arviz.build(groups, {})


def test_exact_guide_gives_exact_leave_one_out():
    found = loo(fit(num_samples=10_000))
    np.testing.assert_allclose(found.elpd_i, exact(), atol=0.02)
    assert found.elpd == pytest.approx(exact().sum(), abs=0.05)
    assert found.p_loo == pytest.approx(exact_p_loo(), abs=0.05)
    assert found.se == pytest.approx(math.sqrt(NUM * exact().var()), abs=0.05)
    assert found.elpd == float(found.elpd_i.sum())
    assert (found.corrected, found.num_bad, found.num_masked) == (True, 0, 0)
    assert (found.num_observations, found.num_samples) == (NUM, 10_000)
    assert found.good_k == good_pareto_k(10_000)


@pytest.mark.parametrize(
    ("scale", "shift", "error"), [(2.0, 0.0, 0.5), (1.3, 1.0, 0.2)], ids=["wide", "shifted"]
)
def test_weights_correct_a_guide_that_is_off(scale, shift, error):
    data = fit(scale, shift, num_samples=10_000)
    found, naive = loo(data), loo(unweighted(data))
    assert found.elpd == pytest.approx(exact().sum(), abs=0.05)
    assert found.p_loo == pytest.approx(exact_p_loo(), abs=0.05)
    assert not naive.corrected
    assert abs(naive.elpd - exact().sum()) > error


def test_chains_give_what_arviz_gives():
    data = chains()
    found, theirs = loo(data), az.loo(data, pointwise=True)
    elpd, p_loo, each = (
        (theirs.elpd_loo, theirs.p_loo, theirs.loo_i)
        if _arviz.major() == 0
        else (theirs.elpd, theirs.p, theirs.elpd_i)
    )
    assert found.elpd == pytest.approx(float(elpd), abs=0.05)
    assert found.se == pytest.approx(float(theirs.se), abs=0.05)
    assert found.p_loo == pytest.approx(float(p_loo), abs=0.05)
    np.testing.assert_allclose(found.elpd_i, each, atol=0.01)
    np.testing.assert_allclose(found.pareto_k, theirs.pareto_k, atol=0.05)
    assert not found.corrected


@pytest.mark.skipif(_arviz.major() == 0, reason="not in ArviZ 0.x")
@pytest.mark.parametrize("scale", [1.0, 2.0, 0.8])
def test_guides_give_what_arviz_gives(scale):
    data = fit(scale)
    stats = _arviz.get_group(data, "sample_stats")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a narrow guide has large shapes
        theirs = az.loo_approximate_posterior(data, stats["lp"], stats["lp_approx"], pointwise=True)
    found = loo(data)
    assert found.elpd == pytest.approx(float(theirs.elpd), abs=0.05)
    assert found.se == pytest.approx(float(theirs.se), abs=0.05)
    np.testing.assert_allclose(found.elpd_i, theirs.elpd_i, atol=0.01)
    np.testing.assert_allclose(found.pareto_k, theirs.pareto_k, atol=0.05)


def test_weights_are_normalised_and_make_the_elpd():
    data = fit(1.5)
    log_weights = loo_log_weights(data)
    assert log_weights.shape == (4000, NUM)
    assert log_weights.dtype == np.float64
    np.testing.assert_allclose(np.exp(log_weights).sum(0), 1.0)
    each = _arviz.get_group(data, "log_likelihood")["y"].values[0]
    np.testing.assert_allclose(np.log(np.exp(log_weights + each).sum(0)), loo(data).elpd_i)


def test_parts_change_nothing(monkeypatch):
    import sys

    whole = loo(fit(1.5))
    monkeypatch.setattr(sys.modules["pyroflows.diagnostics.leave_one_out"], "_AT_ONCE", 5 * 4000)
    np.testing.assert_array_equal(loo(fit(1.5)).elpd_i, whole.elpd_i)


def test_draws_of_no_weight_change_nothing_whatever_their_likelihood():
    rng = np.random.default_rng(0)
    values, weights = rng.normal(size=(1, 1000, 3)), rng.normal(size=(1, 1000))
    weights[:, ::4] = -np.inf
    results = []
    for rubbish in (0.0, -np.inf, np.inf, np.nan):
        values[:, ::4] = rubbish
        results.append(loo(likelihood(values, weights)))
    for found in results:
        np.testing.assert_array_equal(found.elpd_i, results[0].elpd_i)
        assert math.isfinite(found.elpd)
        assert math.isfinite(found.p_loo)
    assert np.isneginf(loo_log_weights(likelihood(values, weights))[::4]).all()


def test_masked_observations_are_left_out_and_counted():
    mask = torch.tensor([[True, False, True], [True, True, True]])

    def masked():
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        rows, columns = pyro.plate("r", 2, dim=-2), pyro.plate("c", 3, dim=-1)
        with rows, columns, pyro.poutine.mask(mask=mask):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=torch.arange(6.0).reshape(2, 3) / 6)

    with pytest.warns(UserWarning, match="masked observations of 'y' are NaN"):
        data = to_inference_data(
            lambda: pyro.sample("mu", dist.Normal(0.4, 0.4)), masked, num_samples=1000, seed=0
        )
    found = loo(data)
    assert found.elpd_i.dims == found.pareto_k.dims == ("r", "c")
    np.testing.assert_array_equal(np.isnan(found.elpd_i), ~mask.numpy())
    np.testing.assert_array_equal(np.isnan(found.pareto_k), ~mask.numpy())
    assert (found.num_masked, found.num_observations) == (1, 5)
    each = found.elpd_i.values[mask.numpy()]
    assert found.elpd == pytest.approx(each.sum())
    assert found.se == pytest.approx(math.sqrt(5 * each.var()))
    assert math.isfinite(found.p_loo)
    assert "5 observations, 1 masked" in str(found)
    assert found.to_arviz()["pareto_k"].shape == (5,)
    assert np.isnan(loo_log_weights(data)).all(0).sum() == 1


def test_dims_and_labels_are_those_of_the_observations():
    labels = [f"school {i}" for i in range(NUM)]
    found = loo(fit(coords={"n": labels}))
    assert found.elpd_i.dims == ("n",)
    assert list(found.elpd_i.coords["n"].values) == labels
    assert found.var_name == "y"


def test_what_the_data_say_of_themselves_comes_along():
    data = fit()
    data.attrs["model_fingerprint"] = [1.0, 2.0]
    found = loo(data)
    np.testing.assert_array_equal(found.attrs["model_fingerprint"], [1.0, 2.0])
    assert found.attrs["latents"] == ("mu",)
    assert found.attrs["verdict"] == "usable"


def test_report_says_what_to_do():
    good = loo(fit())
    assert str(good) == repr(good)
    assert f"elpd     {good.elpd:.2f} ± {good.se:.2g}" in str(good)
    assert "No observation has k above 0.70: usable." in str(good)
    assert "4000, weighted by log p - log q" in str(good)
    bad = loo(fit(0.3, 0.5))
    assert bad.num_bad == int((bad.pareto_k > bad.good_k).sum()) > 0
    assert f"{bad.num_bad} of 12 observations have k above 0.70: do not trust" in str(bad)
    assert "improve the guide" in str(bad)
    with pytest.raises(dataclasses.FrozenInstanceError):
        good.elpd = 0.0


@pytest.mark.parametrize("bad", [False, True])
def test_arviz_takes_the_result(bad):
    ours = {"one": loo(fit(0.3 if bad else 1.0)), "two": loo(fit(1.0, 0.3))}
    elpds = {name: found.to_arviz() for name, found in ours.items()}
    assert "loo" in str(elpds["one"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of few observations, and what 0.x does with pandas 3
        table = az.compare(elpds)
        az.plot_khat(elpds["one"])
    column = "elpd_loo" if _arviz.major() == 0 else "elpd"
    for name, found in ours.items():
        assert float(table.loc[name, column]) == pytest.approx(found.elpd, abs=0.51)  # rounded
        assert bool(elpds[name]["warning"]) == (found.num_bad > 0)
    assert (ours["one"].num_bad > 0) == bad


def test_khat_of_masked_grids_is_drawn():
    values = np.random.default_rng(0).normal(size=(1, 500, 2, 3))
    values[..., 1, 1] = np.nan
    found = loo(likelihood(values, dims=("r", "c")))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what 0.x does with Matplotlib 3.11
        az.plot_khat(found.to_arviz())
    assert found.num_masked == 1


def test_arviz_gets_what_is_left_of_a_row_with_its_labels():
    values = np.random.default_rng(0).normal(size=(1, 500, 3))
    values[..., 1] = np.nan
    found = loo(likelihood(values, n=["a", "b", "c"])).to_arviz()
    assert list(found["pareto_k"].coords["n"].values) == ["a", "c"]
    assert found["n_data_points"] == 2
    assert np.isfinite(found["pareto_k"]).all()


def test_flat_likelihood_has_no_tail():
    found = loo(likelihood(np.zeros((1, 1000, 2))))
    assert np.isneginf(found.pareto_k).all()
    assert (found.elpd, found.num_bad) == (pytest.approx(0.0), 0)


def test_few_draws_are_no_ground_for_trust():
    found = loo(likelihood(np.random.default_rng(0).normal(size=(1, 15, 2))))
    assert found.num_bad == 2
    assert isinstance(found, Loo)


def test_no_likelihood_for_each_observation_is_refused():
    data = likelihood(np.zeros((1, 100)), dims=())
    with pytest.raises(ValueError, match=r"loo: expected one log likelihood for .*Use a plate"):
        loo(data)
    with pytest.raises(ValueError, match="loo_log_weights: expected one log likelihood"):
        loo_log_weights(data)
    with pytest.raises(ValueError, match="loo: expected a group log_likelihood, got none"):
        loo(_arviz.build(groups_of(chains(), "log_likelihood"), {}))


def test_several_variables_have_to_be_told_apart():
    data = chains()
    groups = groups_of(data)
    groups["log_likelihood"] = groups["log_likelihood"].assign(
        x=groups["log_likelihood"]["y"].isel(n=slice(3)).rename(n="m")
    )
    both = _arviz.build(groups, {})
    with pytest.raises(ValueError, match=r"loo: expected var_name, .* one of \['x', 'y'\]"):
        loo(both)
    assert loo(both, "y").elpd == loo(data).elpd
    assert loo(both, "x").elpd_i.shape == (3,)
    with pytest.raises(ValueError, match=r"var_name among \['x', 'y'\], got 'z'"):
        loo(both, "z")


def test_numbers_that_are_not_finite_are_refused():
    values = np.random.default_rng(0).normal(size=(1, 100, 3))
    for bad in (np.nan, np.inf, -np.inf):
        broken = values.copy()
        broken[0, 7, 1] = bad
        with pytest.raises(ValueError, match=r"at some draws of 1 of 3 .* the first at 1"):
            loo(likelihood(broken))
    with pytest.raises(ValueError, match=r"not masked, got none of 3"):
        loo(likelihood(np.full_like(values, np.nan)))
    for weight, found in ((np.nan, "100 that are NaN or inf"), (-np.inf, "-inf only")):
        with pytest.raises(ValueError, match=f"expected log weights .* got {found}"):
            loo(likelihood(values, np.full((1, 100), weight)))


def test_other_data_are_refused():
    with pytest.raises(TypeError, match="loo: expected InferenceData or a DataTree, got dict"):
        loo({"y": 1})
    data = likelihood(np.zeros((1, 10, 2)), np.zeros((1, 10)))
    groups = groups_of(data)
    groups["log_likelihood"] = groups["log_likelihood"].isel(draw=slice(5))
    with pytest.raises(ValueError, match=r"as many \(chain, draw\).*\(1, 5\), got \(1, 10\)"):
        loo(_arviz.build(groups, {}))
