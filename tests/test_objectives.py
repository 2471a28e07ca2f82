"""The path-gradient objective: its value, its gradient, what it leaves out and what it costs."""

import math
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoDiagonalNormal, AutoMultivariateNormal
from torch.testing import assert_close

from pyroflows import AutoFlow, PathELBO, energy_model
from pyroflows.networks import MaskedConditioner

pytestmark = pytest.mark.usefixtures("_double")

LOC = torch.tensor([1.0, -2.0, 0.5])
TRIL = torch.tensor([[1.0, 0.0, 0.0], [0.8, 0.5, 0.0], [-0.3, 0.2, 2.0]])


def gaussian():
    pyro.sample("x", dist.MultivariateNormal(LOC.double(), scale_tril=TRIL.double()))


def banana():
    x = pyro.sample("x", dist.Normal(torch.zeros(2).double(), 1.0).to_event(1))
    pyro.factor("curve", -2.0 * (x[..., 1] - x[..., 0] ** 2) ** 2)


def moved(model, flow="nsf", **options):
    """A guide away from its start."""
    guide = AutoFlow(model, flow, **options)
    with torch.no_grad():
        for p in guide.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return guide


def gradient(loss, model, guide, seed=0):
    guide.zero_grad()
    torch.manual_seed(seed)
    loss.differentiable_loss(model, guide).backward()
    return torch.cat([p.grad.flatten() for p in guide.parameters() if p.grad is not None])


@pytest.mark.parametrize("flow", ["affine", "nsf", "nsf_coupling", "maf"])
def test_no_gradient_is_left_where_the_guide_is_exact(flow):
    guide = AutoFlow(gaussian, flow)
    outer = guide.bijector.bijectors[-1]
    outer.set_(LOC.double(), TRIL.double())
    path = gradient(PathELBO(64), gaussian, guide)
    ordinary = gradient(PathELBO(64, score_weight=1.0), gaussian, guide)
    assert path.abs().max() < 1e-10
    assert ordinary.abs().max() > 1e-2
    tails = gradient(PathELBO(64, tail_weight=1.0), gaussian, guide)
    assert tails.abs().max() < 1e-10


@pytest.mark.parametrize("flow", ["affine", "nsf", "realnvp", "maf"])
def test_path_and_ordinary_gradients_have_one_mean(flow):
    guide = moved(banana, flow)
    path = torch.stack([gradient(PathELBO(2000), banana, guide, i) for i in range(20)])
    both = PathELBO(2000, score_weight=1.0)
    ordinary = torch.stack([gradient(both, banana, guide, i) for i in range(20)])
    error = ((path.var(0) + ordinary.var(0)) / 20).sqrt()
    z = (path.mean(0) - ordinary.mean(0)) / error.clamp_min(1e-12)
    assert z.square().mean() < 1.6  # of a chi square with as many parts as parameters
    assert path.abs().max() > 1e-2


def test_the_ordinary_gradient_is_that_of_pyros_elbo():
    guide = moved(banana, "affine")
    loss = PathELBO(64, score_weight=1.0)
    loss.loss(banana, guide)  # the check before the first step, which takes draws of its own
    ours = gradient(loss, banana, guide)
    guide.zero_grad()
    torch.manual_seed(0)
    x, log_q = guide.get_posterior().rsample_and_log_prob((64,))
    (log_q - guide.log_density()(x)).mean().backward()
    assert_close(ours, torch.cat([p.grad.flatten() for p in guide.parameters()]))


def test_full_tail_weight_is_the_gradient_of_the_forward_divergence():
    """One normal against another, in closed form: d KL(p | q) / d mu and / d log sigma."""

    def model():
        pyro.sample("x", dist.Normal(torch.zeros(1).double(), 1.0).to_event(1))

    guide = AutoFlow(model, "diagonal")
    outer = guide.bijector.bijectors[-1]
    mu, sigma = 0.1, 1.2
    outer.set_(torch.tensor([mu]).double(), torch.tensor([sigma]).double())
    loss = PathELBO(1_000_000, tail_weight=1.0)
    torch.manual_seed(0)
    loss.differentiable_loss(model, guide).backward()
    # The raws are relative to the anchor: mu = anchor + sigma * loc.
    forward = torch.tensor([mu / sigma**2 * sigma, 1 - (1 + mu**2) / sigma**2]).double()
    reverse = torch.tensor([mu * sigma, sigma**2 - 1]).double()
    got = torch.cat([outer.loc.grad, outer.log_scale.grad])
    expected = torch.lerp(reverse, forward, _ess(mu, sigma))
    assert_close(got, expected, atol=5e-3, rtol=0)
    assert (reverse - forward).abs().max() > 0.1


def _ess(mu, sigma):
    """Effective sample size, as a fraction, by a fine grid."""
    x = torch.linspace(-12, 12, 100_001).double()
    log_p, log_q = dist.Normal(0.0, 1.0).log_prob(x), dist.Normal(mu, sigma).log_prob(x)
    return 1 / ((2 * log_p - log_q).exp().sum() * (x[1] - x[0])).item()


@pytest.mark.parametrize("kind", [AutoDiagonalNormal, AutoMultivariateNormal])
def test_pyros_own_guides_get_path_gradients_too(kind):
    guide = kind(gaussian, init_scale=0.5)
    guide()
    for values, weight in ((LOC, 1.0), (LOC + 1, 1.0)):
        with torch.no_grad():
            guide.loc.copy_(values)
        loss = PathELBO(2000)
        torch.manual_seed(0)
        loss.differentiable_loss(gaussian, guide).backward()
        path = guide.loc.grad.clone()
        guide.zero_grad()
        torch.manual_seed(0)
        ordinary = Trace_ELBO(2000, vectorize_particles=True)
        ordinary.differentiable_loss(gaussian, guide).backward()
        assert_close(path, guide.loc.grad, atol=0.3 * weight, rtol=0.1)
        guide.zero_grad()


def test_draws_that_are_not_finite_are_left_out_and_counted():
    def log_density(x):
        value = -0.5 * x.square().sum(-1)
        return torch.where(x[..., 0] >= 0, value, torch.nan)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        target = energy_model(log_density, 2)
        guide = AutoFlow(target, "affine", init="point", init_scale=1.0)
    loss = PathELBO(1000)
    value = loss.differentiable_loss(target, guide)
    value.backward()
    assert math.isfinite(value.item())
    assert 300 < loss.num_nonfinite_particles < 700
    assert all(p.grad.isfinite().all() for p in guide.parameters())


def test_a_gradient_that_is_not_finite_is_left_out_and_counted():
    def log_density(x):  # the square root has no slope at zero, where half of the draws end
        return -0.5 * x.square().sum(-1) + (x[..., 0] * (x[..., 0] > 0)).sqrt()

    target = energy_model(log_density, 2)
    guide = AutoFlow(target, "affine", init="point", init_scale=1.0)
    loss = PathELBO(1000)
    loss.differentiable_loss(target, guide).backward()
    assert loss.num_nonfinite_particles > 300
    assert all(p.grad.isfinite().all() for p in guide.parameters())


def test_a_model_that_cannot_be_batched_gets_the_right_numbers_and_a_warning():
    def model():
        x = pyro.sample("x", dist.Normal(torch.zeros(2).double(), 1.0).to_event(1))
        pyro.factor("f", -(x - 1.0).square().sum() if x.sum() > -50 else x.sum())

    guide = AutoFlow(model, "affine", init="point")
    loss = PathELBO(16)
    torch.manual_seed(0)
    with pytest.warns(UserWarning, match="one by one"):
        value = loss.differentiable_loss(model, guide)
    assert loss.vectorized is False
    alone = PathELBO(16, vectorize_particles=False)
    torch.manual_seed(1)
    expected = alone.differentiable_loss(model, guide)
    assert_close(value, expected, rtol=0.2, atol=0.3)  # other draws, the same scale


def test_an_autoregressive_draw_and_its_score_cost_one_pass_a_layer():
    guide = AutoFlow(gaussian, "nsf")
    loss = PathELBO(8)
    loss.differentiable_loss(gaussian, guide)  # the check before the first step
    calls = []
    for module in guide.modules():
        if isinstance(module, MaskedConditioner):
            for name in ("forward", "forward_with_pullback"):
                method = getattr(module, name)
                setattr(module, name, lambda *a, m=method: (calls.append(1), m(*a))[1])
    loss.differentiable_loss(gaussian, guide).backward()
    assert len(calls) == 3


def test_it_works_inside_svi_and_trains():
    guide = AutoFlow(banana, "realnvp", init="point", init_scale=0.5)
    svi = SVI(banana, guide, pyro.optim.Adam({"lr": 0.01}), PathELBO(64))
    losses = [svi.step() for _ in range(80)]
    assert sum(losses[-10:]) < sum(losses[:10])


def test_the_spread_is_that_of_the_log_weights():
    guide = AutoFlow(gaussian, "affine")
    guide.bijector.bijectors[-1].set_(LOC.double(), 2 * TRIL.double())
    loss = PathELBO(20_000)
    loss.loss(gaussian, guide)
    assert loss.spread == pytest.approx(3 * math.sqrt(3 / 2), rel=0.05)  # of -1.5 chi2(3)


@pytest.mark.parametrize("number", [0, -3])
def test_a_number_of_particles_below_one_is_refused(number):
    with pytest.raises(ValueError, match=f"num_particles >= 1, got {number}"):
        PathELBO(number)


def test_data_of_another_shape_are_checked_again():
    """One datum broadcasts with anything; 64 data would be paired with 64 particles."""

    def model(y):
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(a, 1.0), obs=y)

    guide = AutoFlow(model, "affine", model_args=(torch.zeros(1),))
    loss = PathELBO(64)
    loss.loss(model, guide, torch.zeros(1))
    assert loss.loss(model, guide, torch.full((64,), 0.5)) > 60
