"""A density that was fitted, as a prior: what samplers and guides draw is what it draws."""

import pyro
import pytest
import torch
from pyro.infer import MCMC, NUTS
from torch import Tensor

import pyroflows as pf

NUM, PERMUTATIONS, LEAST_P = 300, 499, 0.01


def energy_distance(x: Tensor, y: Tensor) -> float:
    within = torch.cdist(x, x).mean() + torch.cdist(y, y).mean()
    return float(2 * torch.cdist(x, y).mean() - within)


def two_sample_p(x: Tensor, y: Tensor) -> float:
    """The share of random splits that lie as far apart (Szekely and Rizzo, 2004)."""
    pooled, found = torch.cat([x, y]), energy_distance(x, y)
    generator = torch.Generator().manual_seed(0)
    as_far = 1
    for _ in range(PERMUTATIONS):
        order = torch.randperm(len(pooled), generator=generator)
        as_far += energy_distance(pooled[order[: len(x)]], pooled[order[len(x) :]]) >= found
    return as_far / (PERMUTATIONS + 1)


@pytest.fixture(scope="module")
def banana():
    pyro.clear_param_store()
    torch.manual_seed(0)
    z = torch.randn(2_000, 2)
    x = torch.stack([z[:, 0], 0.7 * z[:, 0].square() + 0.4 * z[:, 1]], -1)
    density = pf.FlowDensity(2)
    fit = pf.fit_density(density, x, num_steps=300, seed=0, progress_bar=False)
    assert fit.log_likelihood > fit.gaussian + 0.3  # it is no longer a Gaussian
    return density


def from_prior(density):
    def model():
        pyro.sample("x", density())

    return model


def test_the_test_can_fail(banana):
    torch.manual_seed(3)
    draws = banana().sample((2, NUM))
    assert two_sample_p(*draws) > LEAST_P
    gaussian = torch.distributions.MultivariateNormal(draws[0].mean(0), draws[0].T.cov())
    assert two_sample_p(draws[0], gaussian.sample((NUM,))) < LEAST_P


@pytest.mark.slow
def test_nuts_draws_from_it(banana):
    torch.manual_seed(1)
    chain = MCMC(
        NUTS(from_prior(banana), max_tree_depth=4),
        num_samples=400, warmup_steps=50, disable_progbar=True,
    )  # fmt: skip
    chain.run()
    x = chain.get_samples()["x"][::4]  # neighbours depend on each other
    assert two_sample_p(x, banana().sample((NUM,))) > LEAST_P


@pytest.mark.slow
def test_a_guide_draws_from_it(banana):
    torch.manual_seed(2)
    model = from_prior(banana)
    guide = pf.AutoFlow(model)
    before = {name: p.detach().clone() for name, p in banana.named_parameters()}
    fit = pf.fit_guide(model, guide, num_steps=200, seed=0, progress_bar=False)
    assert fit.diagnostics.pareto_k < 0.7
    x = guide.get_posterior().sample((NUM,))
    assert two_sample_p(x, banana().sample((NUM,))) > LEAST_P
    assert all(torch.equal(p, before[name]) for name, p in banana.named_parameters())
