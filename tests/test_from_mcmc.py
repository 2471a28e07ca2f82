"""Pyro's chains in ArviZ, beside guides: the same groups, names and values as the model says."""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import MCMC, NUTS

import pyroflows as pf
from pyroflows.diagnostics import _arviz
from tests.test_twelve_models import groups, shape

pytestmark = pytest.mark.arviz
Y = torch.tensor([0.3, -0.2, 1.1, 0.4])
SIGMA = torch.tensor([1.0, 2.0, 1.0, 0.5])
NUM, CHAINS = 12, 2


def model(y, sigma):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    tau = pyro.sample("tau", dist.HalfNormal(1.0))
    with pyro.plate("i", len(y)):
        eta = pyro.sample("eta", dist.Normal(0.0, 1.0))
        theta = pyro.deterministic("theta", mu + tau * eta)
        pyro.sample("y", dist.Normal(theta, sigma), obs=y)


class Chains(MCMC):
    """Chains whose draws are given, so that no test waits for NUTS."""

    def __init__(self, samples, model, args):
        super().__init__(NUTS(model), num_samples=NUM, warmup_steps=1, num_chains=1)
        self._samples, self._args, self._kwargs = samples, args, {}
        self._diagnostics = [{"divergences": [1, 3]}, {"divergences": []}]


@pytest.fixture
def chains():
    pytest.importorskip("arviz")
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    samples = {
        "mu": torch.randn(CHAINS, NUM),
        "tau": torch.rand(CHAINS, NUM) + 0.1,
        "eta": torch.randn(CHAINS, NUM, 4),
    }
    return Chains(samples, model, (Y, SIGMA))


DRAWS = {"chain": CHAINS, "draw": NUM}


def test_groups_dims_and_values(chains):
    data = pf.from_mcmc(chains, num_prior_samples=5, seed=0)
    assert groups(data) == {
        "posterior", "unconstrained_posterior", "sample_stats", "log_likelihood",
        "posterior_predictive", "observed_data", "constant_data", "prior", "prior_predictive",
    }  # fmt: skip
    posterior = _arviz.get_group(data, "posterior")
    assert shape(data, "posterior", "theta") == DRAWS | {"i": 4}
    for name in ("mu", "tau", "eta"):
        np.testing.assert_array_equal(posterior[name], chains._samples[name])
    theta = posterior["mu"] + posterior["tau"] * posterior["eta"]
    np.testing.assert_allclose(posterior["theta"], theta, atol=1e-6)
    free = _arviz.get_group(data, "unconstrained_posterior")["tau"]
    np.testing.assert_allclose(free, np.log(posterior["tau"]), atol=1e-6)
    found = _arviz.get_group(data, "log_likelihood")["y"].values
    expected = dist.Normal(torch.as_tensor(theta.values), SIGMA).log_prob(Y)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert shape(data, "posterior_predictive", "y") == DRAWS | {"i": 4}
    assert shape(data, "constant_data", "sigma") == {"i": 4}


def test_log_density_is_that_of_the_model_and_divergences_are_marked(chains):
    data = pf.from_mcmc(chains, seed=0)
    stats = _arviz.get_group(data, "sample_stats")
    draw = {name: value[1, 5] for name, value in chains._samples.items()}
    trace = pyro.poutine.trace(pyro.poutine.condition(model, draw)).get_trace(Y, SIGMA)
    assert float(stats["lp"][1, 5]) == pytest.approx(float(trace.log_prob_sum()), abs=1e-4)
    assert np.flatnonzero(stats["diverging"].values.ravel()).tolist() == [1, 3]


def test_batches_and_draws_one_by_one_give_the_same(chains):
    whole = pf.from_mcmc(chains, seed=0)
    parts = pf.from_mcmc(chains, seed=0, batch_size=7)

    def stubborn(y, sigma):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        tau = pyro.sample("tau", dist.HalfNormal(1.0))
        assert mu.numel() == 1
        with pyro.plate("i", len(y)):
            eta = pyro.sample("eta", dist.Normal(0.0, 1.0))
            theta = pyro.deterministic("theta", mu + tau * eta)
            pyro.sample("y", dist.Normal(theta, sigma), obs=y)

    def refusing(y, sigma):
        try:
            return stubborn(y, sigma)
        except AssertionError:
            raise ValueError("one at a time, please") from None

    with pytest.warns(UserWarning, match="one at a time"):
        single = pf.from_mcmc(chains, refusing, seed=0)
    for other in (parts, single):
        for group, name in (
            ("posterior", "theta"),
            ("log_likelihood", "y"),
            ("sample_stats", "lp"),
        ):
            one, two = (_arviz.get_group(d, group)[name].values for d in (whole, other))
            np.testing.assert_allclose(one, two, atol=1e-4)


def test_chains_and_guides_carry_the_mark_of_their_model(chains):
    def other(y, sigma):
        with pyro.poutine.scale(scale=2.0):
            return model(y, sigma)

    guide = pf.AutoFlow(model, "diagonal", init="point")
    of_guide = pf.to_inference_data(guide, model, model_args=(Y, SIGMA), num_samples=20, seed=0)
    of_chains = pf.from_mcmc(chains, seed=0)
    of_other = pf.from_mcmc(chains, other, seed=0)
    marks = [list(d.attrs["model_fingerprint"]) for d in (of_guide, of_chains, of_other)]
    assert marks[0] == marks[1] != marks[2]


def test_real_chains():
    pytest.importorskip("arviz")
    pyro.set_rng_seed(0)
    mcmc = MCMC(NUTS(model), num_samples=10, warmup_steps=10, disable_progbar=True)
    with pytest.raises(TypeError, match="have not run yet"):
        pf.from_mcmc(mcmc)
    mcmc.run(Y, SIGMA)
    data = pf.from_mcmc(mcmc, seed=0)
    assert shape(data, "posterior", "theta") == {"chain": 1, "draw": 10, "i": 4}
    assert "diverging" in _arviz.get_group(data, "sample_stats")


def test_what_does_not_fit_is_refused(chains):
    with pytest.raises(TypeError, match="expected a pyro"):
        pf.from_mcmc({"mu": torch.zeros(3)})
    with pytest.raises(ValueError, match="pass the arguments that the chains ran with"):
        pf.from_mcmc(chains, model_args=(Y[:3], SIGMA[:3]))
    with pytest.raises(ValueError, match="num_prior_samples: expected 0 or more"):
        pf.from_mcmc(chains, num_prior_samples=-1)


def test_an_improper_prior_is_left_out_with_a_word():
    pytest.importorskip("arviz")

    def flat(y):
        mu = pyro.sample("mu", dist.ImproperUniform(dist.constraints.real, (), ()))
        with pyro.plate("i", len(y)):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    guide = pf.AutoFlow(flat, "affine")
    with pytest.warns(UserWarning, match="prior has no draws"):
        data = pf.to_inference_data(
            guide, flat, model_args=(Y,), num_samples=20, num_prior_samples=5, seed=0
        )
    assert "prior" not in groups(data)
