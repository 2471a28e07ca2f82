"""ArviZ data of a guide: groups, names, dims, values, and the same on both majors."""

from __future__ import annotations

import math
import sys
import warnings
from types import SimpleNamespace

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.contrib.autoname import scope
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal

from pyroflows import AutoFlow, importance_diagnostics, to_inference_data

DATA = torch.tensor([1.0, 2.0, 0.5])


@pytest.fixture(autouse=True)
def _clean():
    pyro.clear_param_store()
    pyro.set_rng_seed(0)


@pytest.fixture
def arviz():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("arviz")


def group(data, name):
    return data[name].to_dataset() if hasattr(data, "children") else data[name]


def groups(data):
    names = data.children if hasattr(data, "children") else data.groups()
    return set(names)


def schools(sigma, y):
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("school", len(y)):
        trans = pyro.sample("trans", dist.Normal(0.0, 1.0))
        theta = pyro.deterministic("theta", mu + tau * trans)
        pyro.sample("y", dist.Normal(theta, sigma), obs=y)


SCHOOLS = (torch.tensor([10.0, 5.0, 8.0]), DATA)


def convert(model, *args, guide=None, **kwargs):
    guide = AutoNormal(model) if guide is None else guide
    kwargs = {"num_samples": 20, "seed": 0, **kwargs}
    return to_inference_data(guide, model, model_args=args, **kwargs)


@pytest.mark.arviz
def test_groups_names_and_dims(arviz):
    fit = SimpleNamespace(losses=[3.0, 2.0, math.nan], learning_rates=[0.1] * 3, seconds=1.5)
    data = convert(schools, *SCHOOLS, fit=fit)
    expected = "InferenceData" if arviz.__version__.startswith("0.") else "DataTree"
    assert type(data).__name__ == expected
    assert groups(data) == {
        "posterior",
        "sample_stats",
        "log_likelihood",
        "posterior_predictive",
        "observed_data",
        "fit_stats",
        "constant_data",
        "unconstrained_posterior",
    }
    posterior = group(data, "posterior")
    dims = {name: array.dims for name, array in posterior.data_vars.items()}
    assert dims == {
        "mu": ("chain", "draw"),
        "tau": ("chain", "draw"),
        "trans": ("chain", "draw", "school"),
        "theta": ("chain", "draw", "school"),
    }
    assert posterior.sizes == {"chain": 1, "draw": 20, "school": 3}
    stats = group(data, "sample_stats")
    for name in ("lp", "lp_approx", "log_weight", "log_weight_psis"):
        assert stats[name].dims == ("chain", "draw")
        assert stats[name].dtype == np.float64
    for name in ("elbo", "elbo_se", "log_z", "log_z_se", "pareto_k", "good_k", "ess_is"):
        assert stats[name].shape == ()
    assert stats.attrs["verdict"] == "do not trust"
    for name in ("log_likelihood", "posterior_predictive"):
        assert group(data, name)["y"].dims == ("chain", "draw", "school")
    assert group(data, "observed_data")["y"].dims == ("school",)
    stats = group(data, "fit_stats")
    np.testing.assert_array_equal(stats["elbo"], [-3.0, -2.0, math.nan])
    assert stats["elbo"].dims == ("step",)
    assert stats.attrs["seconds"] == 1.5
    assert data.attrs["inference_library"] == "pyroflows"
    assert data.attrs["guide"] == "AutoNormal"


@pytest.mark.arviz
def test_values_agree_with_each_other_and_with_the_model(arviz):
    data = convert(schools, *SCHOOLS)
    posterior, stats = group(data, "posterior"), group(data, "sample_stats")
    theta = posterior["mu"] + posterior["tau"] * posterior["trans"]
    np.testing.assert_allclose(posterior["theta"], theta, rtol=1e-5)
    sigma, y = SCHOOLS
    theta = torch.as_tensor(posterior["theta"].values[0])
    expected = dist.Normal(theta, sigma).log_prob(y)
    found = group(data, "log_likelihood")["y"].values[0]
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    difference = stats["lp"] - stats["lp_approx"]
    np.testing.assert_allclose(stats["log_weight"], difference)
    assert np.exp(stats["log_weight_psis"].values).sum() == pytest.approx(1.0)
    values = {k: torch.as_tensor(posterior[k].values[0, 3]) for k in ("mu", "tau", "trans")}
    trace = pyro.poutine.trace(pyro.poutine.condition(schools, values)).get_trace(*SCHOOLS)
    assert stats["lp"].values[0, 3] == pytest.approx(trace.log_prob_sum().item(), rel=1e-5)


@pytest.mark.arviz
def test_scalars_are_those_of_importance_diagnostics(arviz):
    guide = AutoMultivariateNormal(schools)
    stats = group(convert(schools, *SCHOOLS, guide=guide, num_samples=500), "sample_stats")
    report = importance_diagnostics(schools, guide, model_args=SCHOOLS, num_samples=500, seed=0)
    # New data are drawn after the latents of a pass, so that the latents are the same.
    assert float(stats["log_z"]) == report.log_z
    assert float(stats["pareto_k"]) == report.pareto_k
    assert float(stats["ess_is"]) == report.ess


@pytest.mark.arviz
@pytest.mark.parametrize("flow", ["affine", "nsf"])
def test_flow_guide(arviz, flow):
    guide = AutoFlow(schools, flow, model_args=SCHOOLS)
    data = convert(schools, *SCHOOLS, guide=guide)
    names = list(group(data, "posterior").data_vars)
    assert names == ["mu", "tau", "trans", "theta"]
    assert np.isfinite(group(data, "sample_stats")["log_weight"]).all()


@pytest.mark.arviz
def test_new_data_are_drawn_and_scatter_as_the_model_says(arviz):
    def model(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("n", len(y)):
            pyro.sample("y", dist.Normal(mu, 2.0), obs=y)

    def guide(y):
        pyro.sample("mu", dist.Normal(3.0, 0.5))

    predicted = group(convert(model, DATA, guide=guide, num_samples=4000), "posterior_predictive")
    assert float(predicted["y"].mean()) == pytest.approx(3.0, abs=0.1)
    assert float(predicted["y"].std()) == pytest.approx(math.sqrt(4.25), abs=0.1)


@pytest.mark.arviz
def test_netcdf_round_trip(arviz, tmp_path):
    pytest.importorskip("h5netcdf")
    fit = SimpleNamespace(losses=[3.0, 2.0], seconds=1.5, stop_reason="converged")
    data = convert(schools, *SCHOOLS, fit=fit)
    path = str(tmp_path / "fit.nc")
    data.to_netcdf(path, engine="h5netcdf")
    again = arviz.from_netcdf(path)
    assert groups(again) == groups(data)
    for name in groups(data):
        old, new = group(data, name), group(again, name)
        assert set(old.data_vars) == set(new.data_vars)
        for variable in old.data_vars:
            assert old[variable].dims == new[variable].dims
            np.testing.assert_array_equal(old[variable], new[variable])
    assert group(again, "sample_stats").attrs["verdict"] == "do not trust"


@pytest.mark.arviz
def test_arviz_takes_it(arviz):
    data = convert(schools, *SCHOOLS, num_samples=200)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        summary = arviz.summary(data, var_names=["mu", "theta"], kind="stats")
        loo = arviz.loo(data)
    assert len(summary) == 4
    assert loo.n_data_points == 3


# Dims


def dims_of(data, name, where="posterior"):
    return group(data, where)[name].dims[2:]


@pytest.mark.arviz
def test_nested_plates_events_and_axes_of_no_plate(arviz):
    def model(y):
        groups_, items = pyro.plate("group", 2, dim=-3), pyro.plate("item", 3, dim=-1)
        with groups_:
            a = pyro.sample("a", dist.Normal(0.0, 1.0))
            with items:
                pyro.sample("b", dist.Normal(a, 1.0))
                pyro.sample("c", dist.Dirichlet(torch.ones(4)), infer={"event_dims": ["part"]})
                pyro.sample("d", dist.Normal(torch.zeros(5), 1.0).to_event(1))
        with items:
            pyro.sample("y", dist.Normal(0.0, 1.0), obs=y)

    data = convert(model, DATA)
    assert dims_of(data, "a") == ("group",)
    assert dims_of(data, "b") == ("group", "item")
    assert dims_of(data, "c") == ("group", "item", "part")
    assert dims_of(data, "d") == ("group", "item", "d_dim_2")
    assert group(data, "posterior")["d"].shape == (1, 20, 2, 3, 5)


@pytest.mark.arviz
def test_plate_values_that_are_not_expanded_are_broadcast(arviz):
    def model(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("n", len(y)):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=torch.tensor(1.0))

    data = convert(model, DATA)
    assert group(data, "observed_data")["y"].shape == (3,)
    assert dims_of(data, "y", "log_likelihood") == ("n",)


@pytest.mark.arviz
def test_deterministic_sites_get_their_plates_back(arviz):
    def model(y):
        with pyro.plate("n", len(y)):
            x = pyro.sample("x", dist.Normal(torch.zeros(4), 1.0).to_event(1))
            pyro.deterministic("inside", x.sum(-1))
            pyro.deterministic("with_event", 2 * x)
            pyro.deterministic("event_said", 2 * x, event_dim=1)
        pyro.deterministic("outside", x.sum(-1))
        pyro.deterministic("constant", torch.arange(2.0))
        pyro.deterministic("scalar", x.sum((-1, -2)))

    data = convert(model, DATA)
    assert dims_of(data, "inside") == ("n",)
    assert dims_of(data, "with_event") == ("n", "with_event_dim_1")
    assert dims_of(data, "event_said") == ("n", "event_said_dim_1")
    assert dims_of(data, "outside") == ("outside_dim_0",)
    assert dims_of(data, "constant") == ("constant_dim_0",)
    assert group(data, "posterior")["constant"].shape == (1, 20, 2)


def as_many_events_as_plates(together):
    def model():
        with pyro.plate("row", 3):
            x = pyro.sample("x", dist.Normal(0.0, 1.0))
            both = torch.stack([x, x + 100, x + 200], -1)
            # A constant of all draws has no axis of draws to count from.
            pyro.deterministic("square", both if together else torch.ones(3, 3))
            pyro.deterministic("plain", 2 * x)
            pyro.deterministic("said", both, event_dim=1)

    return model


@pytest.mark.arviz
def test_an_event_as_large_as_its_plate_is_told_from_it(arviz):
    posterior = group(convert(as_many_events_as_plates(True)), "posterior")
    assert posterior["square"].dims[2:] == ("row", "square_dim_1")
    assert posterior["said"].dims[2:] == ("row", "said_dim_1")
    assert posterior["plain"].dims[2:] == ("row",)
    x, square = posterior["x"].values, posterior["square"].values
    np.testing.assert_allclose(square, x[..., None] + np.array([0, 100, 200]), rtol=1e-6)


@pytest.mark.arviz
def test_an_event_that_cannot_be_told_from_its_plate_keeps_neutral_names(arviz):
    with pytest.warns(UserWarning, match="as large as a plate") as caught:
        posterior = group(convert(as_many_events_as_plates(False)), "posterior")
    told = [str(w.message) for w in caught if "as large as" in str(w.message)]
    assert len(told) == 1
    assert "'square'" in told[0]
    assert "event_dim=" in told[0]
    assert posterior["square"].dims[2:] == tuple(f"square_dim_{i}" for i in range(2))
    assert posterior["said"].dims[2:] == ("row", "said_dim_1")


@pytest.mark.arviz
def test_names_that_arviz_keeps_are_changed(arviz, tmp_path):
    def inner():
        with pyro.plate("sample", 3):
            pyro.sample("theta", dist.Normal(0.0, 1.0))

    def model():
        with pyro.plate("chain", 2):
            pyro.sample("draw", dist.Normal(0.0, 1.0))
        scope(inner, prefix="part")()

    data = convert(model)
    posterior = group(data, "posterior")
    assert posterior["draw_site"].dims == ("chain", "draw", "chain_plate")
    assert posterior["part.theta"].dims[:2] == ("chain", "draw")
    assert "/" not in "".join(map(str, (*posterior.data_vars, *posterior.dims)))
    assert posterior["part.theta"].dims[2] not in ("chain", "draw")
    data.to_netcdf(str(tmp_path / "names.nc"), engine="h5netcdf")


@pytest.mark.arviz
def test_given_dims_and_coords(arviz):
    data = convert(
        schools,
        *SCHOOLS,
        dims={"trans": ["place"]},
        coords={"school": ["A", "B", "C"], "place": ["x", "y", "z"]},
    )
    posterior = group(data, "posterior")
    assert list(posterior["theta"].sel(school="B").dims) == ["chain", "draw"]
    assert posterior["trans"].dims[2:] == ("place",)
    assert list(group(data, "observed_data")["school"].values) == ["A", "B", "C"]


@pytest.mark.arviz
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"dims": {"thta": ["a"]}}, r"dims name \['thta'\], which the model lacks"),
        ({"dims": {"trans": ["a", "b"]}}, r"dims of 'trans' are \['a', 'b'\], but it has 1 axes"),
        ({"dims": {"trans": ["draw"]}}, r"dims use \['draw'\], which ArviZ keeps"),
        ({"coords": {"school": ["A"]}}, "coords of 'school' have 1 labels, but .* has 3"),
    ],
)
def test_dims_and_coords_that_do_not_fit_are_refused(arviz, given, message):
    with pytest.raises(ValueError, match=message):
        convert(schools, *SCHOOLS, **given)


# Likelihoods


@pytest.mark.arviz
@pytest.mark.parametrize("own", [False, True])
def test_masked_observations_leave_the_log_likelihood(arviz, own):
    mask = torch.tensor([True, False, True])

    def model(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("n", 3), pyro.poutine.scale(scale=2.0):
            law = dist.Normal(mu, 1.0)
            if own:
                pyro.sample("y", law.mask(mask), obs=y)
            else:
                with pyro.poutine.mask(mask=mask):
                    pyro.sample("y", law, obs=y)

    data = convert(model, DATA, guide=AutoNormal(pyro.poutine.block(model, hide=["y"])))
    likelihood = group(data, "log_likelihood")["y"]
    assert list(likelihood["n"].values) == [0, 2]
    mu = torch.as_tensor(group(data, "posterior")["mu"].values[0])[:, None]
    expected = dist.Normal(mu, 1.0).log_prob(DATA[[0, 2]])
    np.testing.assert_allclose(likelihood.values[0], expected, rtol=1e-5)
    assert list(group(data, "observed_data")["n"].values) == [0, 1, 2]
    lp = group(data, "sample_stats")["lp"].values[0]
    prior = dist.Normal(0.0, 1.0).log_prob(mu[:, 0])
    np.testing.assert_allclose(lp, prior + 2 * expected.sum(-1), rtol=1e-5)


@pytest.mark.arviz
def test_masked_matrix_of_observations_is_nan_there(arviz):
    mask = torch.tensor([[True, False, True], [True, True, True]])

    def model(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        rows, columns = pyro.plate("row", 2, dim=-2), pyro.plate("column", 3, dim=-1)
        with rows, columns, pyro.poutine.mask(mask=mask):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    with pytest.warns(UserWarning, match="masked observations of 'y' are NaN"):
        data = convert(model, DATA.expand(2, 3))
    likelihood = group(data, "log_likelihood")["y"]
    assert np.isnan(likelihood.values[0, :, 0, 1]).all()
    assert np.isfinite(likelihood.values[0][:, mask.numpy()]).all()


@pytest.mark.arviz
@pytest.mark.parametrize("order", [("a", "b", "c"), ("c", "b", "a"), ("b", "a", "c")])
def test_outcomes_of_one_plate_with_masks_of_their_own(arviz, order):
    masks = {"a": [True, True, True], "b": [True, False, True], "c": [False, True, True]}

    def model(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("n", 3):
            for name in order:
                with pyro.poutine.mask(mask=torch.tensor(masks[name])):
                    pyro.sample(name, dist.Normal(mu, 1.0), obs=y)

    with pytest.warns(UserWarning, match="masked observations") as caught:
        data = convert(model, DATA)
    told = [str(w.message) for w in caught if "masked" in str(w.message)]
    assert len(told) == 1
    assert "'a'" not in told[0]
    assert all(f"'{name}'" in told[0] for name in "bc")
    likelihood = group(data, "log_likelihood")
    assert list(likelihood["n"].values) == [0, 1, 2]
    mu = torch.as_tensor(group(data, "posterior")["mu"].values[0])[:, None]
    expected = dist.Normal(mu, 1.0).log_prob(DATA).numpy()
    for name, mask in masks.items():
        found = likelihood[name].values[0]
        assert np.isnan(found[:, ~np.array(mask)]).all()
        np.testing.assert_allclose(found[:, mask], expected[:, mask], rtol=1e-5)


@pytest.mark.arviz
def test_outcomes_of_one_plate_with_one_mask_are_dropped_together(arviz):
    def model(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("n", 3), pyro.poutine.mask(mask=torch.tensor([True, False, True])):
            pyro.sample("a", dist.Normal(mu, 1.0), obs=y)
            pyro.sample("b", dist.Normal(mu, 2.0), obs=y)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        likelihood = group(convert(model, DATA), "log_likelihood")
    assert list(likelihood["n"].values) == [0, 2]
    assert np.isfinite(likelihood["b"].values).all()


@pytest.mark.arviz
def test_factor_model_has_no_data_groups(arviz):
    def model():
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.factor("energy", -(x**2))

    assert groups(convert(model)) == {"posterior", "unconstrained_posterior", "sample_stats"}


@pytest.mark.arviz
def test_likelihood_without_plate_says_that_loo_is_meaningless(arviz):
    def model(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(mu.unsqueeze(-1).expand(*mu.shape, 3), 1.0).to_event(1), obs=y)

    with pytest.warns(UserWarning, match="one log likelihood for all its data"):
        data = convert(model, DATA)
    assert group(data, "log_likelihood")["y"].dims == ("chain", "draw")


# What is left out


@pytest.mark.arviz
def test_subsampled_plate_leaves_out_what_would_be_wrong(arviz):
    def model(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("n", len(y), subsample_size=2) as index:
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y[index])

    with pytest.warns(UserWarning, match=r"plates \['n'\] are subsampled"):
        data = convert(model, DATA)
    assert groups(data) == {"posterior"}


@pytest.mark.arviz
def test_missing_latent_leaves_out_what_would_be_wrong(arviz):
    def model(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        sigma = pyro.sample("sigma", dist.HalfNormal(1.0))
        with pyro.plate("n", len(y)):
            pyro.sample("y", dist.Normal(mu, sigma), obs=y)

    with pytest.warns(UserWarning, match=r"latents \['sigma'\] are missing from the guide"):
        data = convert(model, DATA, guide=lambda y: pyro.sample("mu", dist.Normal(0.0, 1.0)))
    assert groups(data) == {"posterior", "observed_data"}
    assert list(group(data, "posterior").data_vars) == ["mu"]


@pytest.mark.arviz
def test_enumerated_latent_keeps_the_weights(arviz):
    def model(y):
        p = pyro.sample("p", dist.Beta(2.0, 2.0))
        with pyro.plate("n", len(y)):
            z = pyro.sample("z", dist.Bernoulli(p), infer={"enumerate": "parallel"})
            pyro.sample("y", dist.Normal(2 * z, 1.0), obs=y)

    with pytest.warns(UserWarning, match=r"discrete latents \['z'\] are summed out"):
        data = convert(model, DATA, guide=lambda y: pyro.sample("p", dist.Beta(2.0, 2.0)))
    assert groups(data) == {"posterior", "sample_stats", "observed_data"}
    assert list(group(data, "posterior").data_vars) == ["p"]


@pytest.mark.arviz
def test_auxiliary_sites_are_no_part_of_the_posterior(arviz):
    data = convert(schools, *SCHOOLS, guide=AutoMultivariateNormal(schools))
    assert not any("latent" in name for name in group(data, "posterior").data_vars)


@pytest.mark.arviz
def test_model_that_does_not_broadcast_gives_the_same_groups(arviz):
    def model(y):
        mu = pyro.sample("mu", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with pyro.plate("n", len(y)):
            pyro.sample("y", dist.Normal(mu[0] + mu[1], 1.0), obs=y)

    with pytest.warns(UserWarning, match="taking 20 draws one at a time"):
        data = convert(model, DATA)
    assert group(data, "log_likelihood")["y"].shape == (1, 20, 3)
    assert group(data, "posterior_predictive")["y"].shape == (1, 20, 3)


# Tensors


@pytest.mark.arviz
def test_bfloat16_and_gradients_are_taken_off(arviz):
    def model(y):
        mu = pyro.sample("mu", dist.Normal(torch.zeros((), dtype=torch.bfloat16), 1.0))
        pyro.deterministic("scaled", mu * torch.ones((), requires_grad=True))

    def guide(y):
        pyro.sample("mu", dist.Normal(torch.zeros((), dtype=torch.bfloat16), 1.0))

    data = convert(model, DATA, guide=guide)
    assert group(data, "posterior")["mu"].dtype == np.float32
    assert np.isfinite(group(data, "posterior")["scaled"]).all()


@pytest.mark.arviz
def test_seed(arviz):
    first, second = (convert(schools, *SCHOOLS, guide=AutoNormal(schools)) for _ in range(2))
    np.testing.assert_array_equal(
        group(first, "posterior_predictive")["y"], group(second, "posterior_predictive")["y"]
    )


def test_without_arviz_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "arviz", None)
    with pytest.raises(ImportError, match=r"pip install pyroflows\[arviz\]"):
        convert(schools, *SCHOOLS)
