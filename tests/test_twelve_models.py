"""Twelve kinds of model, from a guide to ArviZ: right shapes and dims, or the reason why not."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.contrib.autoname import scope
from torch.distributions import constraints

import pyroflows as pf
from pyroflows.diagnostics import _arviz

pytestmark = pytest.mark.arviz
NUM = 30
Y = torch.tensor([0.3, -0.2, 1.1, 0.4])


@pytest.fixture(autouse=True)
def _fresh():
    pytest.importorskip("arviz")
    pyro.clear_param_store()
    pyro.set_rng_seed(0)


def convert(model, *args, guide=None, **options):
    guide = pf.AutoFlow(model, "diagonal", init="point") if guide is None else guide
    return pf.to_inference_data(
        guide, model, model_args=args, num_samples=NUM, num_prior_samples=5, seed=0, **options
    )


def shape(data, group, name):
    array = _arviz.get_group(data, group)[name]
    return dict(zip(array.dims, array.shape, strict=True))


def groups(data):
    return set(data.children if hasattr(data, "children") else data.groups())


DRAWS = {"chain": 1, "draw": NUM}
EVERY = {
    "posterior",
    "unconstrained_posterior",
    "sample_stats",
    "log_likelihood",
    "posterior_predictive",
    "observed_data",
    "prior",
    "prior_predictive",
}


def test_nested_plates():
    def model(y):
        with pyro.plate("column", 3):
            a = pyro.sample("a", dist.Normal(0.0, 1.0))
            with pyro.plate("row", 2):
                b = pyro.sample("b", dist.Normal(a, 1.0))
                pyro.sample("y", dist.Normal(b, 1.0), obs=y)

    data = convert(model, torch.zeros(2, 3))
    assert groups(data) == EVERY
    assert shape(data, "posterior", "a") == DRAWS | {"column": 3}
    for group in ("posterior", "unconstrained_posterior", "prior"):
        rows = NUM if group != "prior" else 5
        assert shape(data, group, "b") == {"chain": 1, "draw": rows, "row": 2, "column": 3}
    assert shape(data, "log_likelihood", "y") == DRAWS | {"row": 2, "column": 3}
    assert shape(data, "observed_data", "y") == {"row": 2, "column": 3}
    assert shape(data, "prior_predictive", "y")["draw"] == 5


def test_masks():
    keep = torch.tensor([True, False, True, True])

    def model(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("i", len(y)), pyro.poutine.mask(mask=keep):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    data = convert(model, Y)
    kept = _arviz.get_group(data, "log_likelihood")["y"]
    assert kept.sizes["i"] == 3
    assert list(kept.coords["i"].values) == [0, 2, 3]
    assert shape(data, "posterior_predictive", "y")["i"] == 4


def test_factor():
    def model():
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.factor("bend", -((x - 1) ** 2))

    def guide():
        pyro.sample("x", dist.Normal(2 / 3, 3**-0.5))

    data = convert(model, guide=guide)
    assert groups(data) == {"posterior", "unconstrained_posterior", "sample_stats", "prior"}
    log_z = float(_arviz.get_group(data, "sample_stats")["log_z"])
    assert log_z == pytest.approx(-0.5 * math.log(3) - 1 / 3, abs=1e-5)


def test_deterministic():
    def model(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("i", len(y)):
            eta = pyro.sample("eta", dist.Normal(0.0, 1.0))
            theta = pyro.deterministic("theta", mu + eta)
            pyro.sample("y", dist.Normal(theta, 1.0), obs=y)

    data = convert(model, Y)
    posterior = _arviz.get_group(data, "posterior")
    assert shape(data, "posterior", "theta") == DRAWS | {"i": 4}
    np.testing.assert_allclose(posterior["theta"], posterior["mu"] + posterior["eta"], atol=1e-6)
    assert "theta" not in _arviz.get_group(data, "unconstrained_posterior")


def test_simplex_and_cholesky_latents():
    def model(y):
        weights = pyro.sample("weights", dist.Dirichlet(torch.ones(3)))
        root = pyro.sample("root", dist.LKJCholesky(3, 1.0))
        spread = (root * weights.unsqueeze(-1)).sum((-2, -1))
        with pyro.plate("i", len(y)):
            pyro.sample("y", dist.Normal(0.0, spread.exp()), obs=y)

    data = convert(model, Y)
    assert shape(data, "posterior", "weights") == DRAWS | {"weights_dim_0": 3}
    assert shape(data, "posterior", "root") == DRAWS | {"root_dim_0": 3, "root_dim_1": 3}
    assert shape(data, "unconstrained_posterior", "weights") == DRAWS | {
        "weights_unconstrained_dim_0": 2
    }
    assert shape(data, "unconstrained_posterior", "root")["root_unconstrained_dim_0"] == 3
    free = torch.as_tensor(_arviz.get_group(data, "unconstrained_posterior")["weights"].values)
    again = torch.distributions.biject_to(constraints.simplex)(free)
    np.testing.assert_allclose(
        again, _arviz.get_group(data, "posterior")["weights"], rtol=1e-4, atol=1e-6
    )


def test_event_dim_likelihood():
    def model(y):
        mu = pyro.sample(
            "mu", dist.Normal(torch.zeros(2), 1.0).to_event(1), infer={"event_dims": ["axis"]}
        )
        with pyro.plate("i", len(y)):
            pyro.sample("y", dist.Normal(mu, 1.0).to_event(1), obs=y)

    data = convert(model, torch.zeros(4, 2), dims={"y": ["i", "axis"]}, coords={"axis": ["u", "v"]})
    assert shape(data, "posterior", "mu") == DRAWS | {"axis": 2}
    assert shape(data, "log_likelihood", "y") == DRAWS | {"i": 4}
    assert shape(data, "posterior_predictive", "y") == DRAWS | {"i": 4, "axis": 2}
    assert list(_arviz.get_group(data, "observed_data").coords["axis"].values) == ["u", "v"]


def test_enumerated_discrete():
    def model(y):
        share = pyro.sample("share", dist.Beta(2.0, 2.0))
        with pyro.plate("i", len(y)):
            kind = pyro.sample("kind", dist.Bernoulli(share), infer={"enumerate": "parallel"})
            pyro.sample("y", dist.Normal(kind, 1.0), obs=y)

    with pytest.warns(UserWarning, match="summed out"):
        data = convert(model, Y)
    assert "log_likelihood" not in groups(data)
    assert "kind" not in _arviz.get_group(data, "posterior")
    assert math.isfinite(float(_arviz.get_group(data, "sample_stats")["log_z"]))


def test_subsampled():
    def model(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("i", len(y), subsample_size=2) as rows:
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y[rows])

    def guide(y):
        pyro.sample("mu", dist.Normal(0.0, 1.0))

    with pytest.warns(UserWarning, match="subsampled"):
        data = convert(model, Y, guide=guide)
    assert "sample_stats" not in groups(data)
    assert shape(data, "posterior", "mu") == DRAWS


def test_conditional_on_an_argument():
    def model(x, y, *, is_robust):
        slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
        if is_robust:
            df = pyro.sample("df", dist.Gamma(2.0, 0.1))
        with pyro.plate("i", len(x)):
            law = dist.StudentT(df, slope * x, 1.0) if is_robust else dist.Normal(slope * x, 1.0)
            pyro.sample("y", law, obs=y)

    for is_robust in (True, False):
        kwargs = {"is_robust": is_robust}
        guide = pf.AutoFlow(model, "diagonal", init="point")
        data = pf.to_inference_data(
            guide, model, model_args=(2 * Y, Y), model_kwargs=kwargs, num_samples=NUM, seed=0
        )
        assert ("df" in _arviz.get_group(data, "posterior")) == is_robust
        assert shape(data, "constant_data", "x") == {"i": 4}
        assert "y" not in _arviz.get_group(data, "constant_data")


def test_conditional_on_a_latent_is_refused():
    def model(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        if (mu > 0).all():
            pyro.sample("extra", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    def guide(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        if (mu > 0).all():
            pyro.sample("extra", dist.Normal(0.0, 1.0))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for seed in range(4):
            with pytest.raises(ValueError, match=r"not the same.*'extra'"):
                pf.to_inference_data(guide, model, model_args=(Y[0],), num_samples=NUM, seed=seed)


def test_scalars_only():
    def model(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    with pytest.warns(UserWarning, match="one log likelihood"):
        data = convert(model, torch.tensor(0.5))
    assert shape(data, "posterior", "mu") == DRAWS
    assert shape(data, "observed_data", "y") == {}


def test_slashes_in_names(tmp_path):
    def model(y):
        with scope(prefix="left"):
            mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("i", len(y)):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    data = convert(model, Y)
    assert shape(data, "posterior", "left.mu") == DRAWS
    assert shape(data, "unconstrained_posterior", "left.mu") == DRAWS
    data.to_netcdf(str(tmp_path / "fit.nc"), engine="h5netcdf")


def test_reserved_names():
    def model(draw):
        with pyro.plate("chain", len(draw)):
            mu = pyro.sample("sample", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(mu, 1.0), obs=torch.zeros(4))

    data = convert(model, Y)
    assert shape(data, "posterior", "sample_site") == DRAWS | {"chain_plate": 4}
    assert shape(data, "constant_data", "draw_input") == {"chain_plate": 4}


def test_an_argument_called_like_a_plate_leaves_it_its_name():
    def model(i, y):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("i", len(i)):
            pyro.sample("y", dist.Normal(mu * i, 1.0), obs=y)

    data = convert(model, 2 * Y, Y)
    assert shape(data, "constant_data", "i_input") == {"i": 4}
