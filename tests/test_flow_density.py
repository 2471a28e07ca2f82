"""A density as a distribution of Pyro: what it is, where it may stand, what it starts from."""

import copy
import math
import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import MCMC, NUTS, SVI, Predictive, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from torch.distributions import biject_to, constraints

from pyroflows import AutoFlow, FlowDensity, PathELBO, build_base, fit_guide

MIXED = {
    "stack": constraints.stack([constraints.positive, constraints.unit_interval], -1),
    "cat": constraints.cat(
        [constraints.independent(c, 1) for c in (constraints.positive, constraints.unit_interval)],
        -1,
        [1, 1],
    ),
}
LINES = {
    "real": None,
    "positive": constraints.positive,
    "unit": constraints.unit_interval,
    "interval": constraints.interval(-2.0, 5.0),
}


@pytest.fixture(autouse=True)
def _fresh():
    pyro.clear_param_store()
    torch.manual_seed(0)


def perturbed(*args, **options):
    """A density whose parameters are not those of the start, in double precision."""
    density = FlowDensity(*args, **options).double()
    with torch.no_grad():
        for p in density.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return density


def draws_near(x, y, dims=(0,)):
    """Whether two samples have means and spreads within six standard errors."""
    scale = (x.var(0) / len(x) + y.var(0) / len(y)).sqrt()
    return bool(((x.mean(0) - y.mean(0)).abs() < 6 * scale).all()) and torch.allclose(
        x.std(0), y.std(0), rtol=0.35
    )


def mass(density, free, context=None):
    """What a density holds, by a sum over a grid of the coordinates that know no bounds."""
    to_support = biject_to(density.support)
    points = to_support(free)
    log_det = to_support.log_abs_det_jacobian(free, points)
    with torch.no_grad():
        log_prob = density(context).log_prob(points) + log_det.reshape(len(free), -1).sum(-1)
    return float(log_prob.exp().sum())


@pytest.mark.parametrize("flow", ["nsf", "maf", "realnvp", "affine"])
@pytest.mark.parametrize("line", LINES)
def test_it_integrates_to_one_on_a_line(flow, line):
    density = perturbed(1, flow, support=LINES[line])
    grid = torch.linspace(-15, 15, 6_001, dtype=torch.float64)
    assert mass(density, grid[:, None]) * 30 / 6_000 == pytest.approx(1, abs=2e-3)


@pytest.mark.parametrize("kind", MIXED)
@pytest.mark.parametrize("context_dim", [0, 1])
def test_it_integrates_to_one_in_a_plane_of_two_kinds(kind, context_dim):
    density = perturbed(2, "nsf", support=MIXED[kind], context_dim=context_dim, num_layers=2)
    grid = torch.linspace(-10, 10, 201, dtype=torch.float64)
    free = torch.stack(torch.meshgrid(grid, grid, indexing="ij"), -1).reshape(-1, 2)
    context = torch.tensor([0.7], dtype=torch.float64) if context_dim else None
    assert mass(density, free, context) * (20 / 200) ** 2 == pytest.approx(1, abs=0.01)


def test_a_simplex_has_one_coordinate_less():
    density = perturbed(3, "maf", support=constraints.simplex)
    draws = density().sample((5000,)).detach()
    assert density.dim == 2
    assert torch.allclose(draws.sum(-1), torch.ones(5000, dtype=torch.float64))
    # E[1 / q] over draws of q is the volume of the support: that of a triangle
    inner = draws[(draws > 0.05).all(-1)]
    share = (-density().log_prob(inner).detach()).exp().sum() / len(draws)
    assert float(share) == pytest.approx(0.5 * 0.85**2, rel=0.15)


@pytest.mark.parametrize("shape", [None, (1,), (4, 1), (3, 1, 1)])
def test_shapes(shape):
    density = FlowDensity(2, "realnvp", context_dim=0 if shape is None else 1)
    context = None if shape is None else torch.randn(shape)
    batch = () if shape is None else shape[:-1]
    given = density(context)
    assert (given.batch_shape, given.event_shape) == (batch, (2,))
    draw = given.rsample((5,))
    assert draw.shape == (5, *batch, 2)
    assert given.log_prob(draw).shape == (5, *batch)
    wide = given.expand((7, *batch)) if batch else given.expand((7,))
    assert wide.sample().shape == (7, *batch, 2)
    assert wide.log_prob(torch.zeros(2)).shape == (7, *batch)
    assert given.entropy(10).shape == batch
    if batch:
        assert given.to_event(1).log_prob(draw).shape == (5, *batch[:-1])
        assert given.mask(False).log_prob(draw).abs().sum() == 0


def test_an_own_draw_is_scored_for_free_and_as_others_are():
    density = perturbed(3, "nsf", context_dim=2)
    given = density(torch.randn(5, 2, dtype=torch.float64))
    draw = given.rsample()
    own = given.log_prob(draw)
    assert torch.allclose(own, given.log_prob(draw.clone()), atol=1e-8)
    with torch.no_grad():
        draw += 1.0
    assert not torch.allclose(own, given.log_prob(draw))


def test_gradients_reach_all_parameters_both_ways():
    for score in (True, False):
        density = perturbed(2, "nsf", base="diagonal_normal")
        if score:
            (-density().log_prob(torch.randn(50, 2, dtype=torch.float64)).sum()).backward()
        else:
            density().rsample((50,)).square().sum().backward()
        assert all(p.grad is not None for p in density.parameters())


def test_moments_are_exact_where_the_flow_is_affine():
    x = torch.randn(400, 3, dtype=torch.float64) @ torch.randn(3, 3, dtype=torch.float64) + 5
    density = FlowDensity(3, "affine").double().initialize(x)
    assert torch.allclose(density().mean, x.mean(0))
    assert torch.allclose(density().variance, x.var(0))
    curved = FlowDensity(3, "nsf").double().initialize(x)
    assert torch.allclose(curved().mean, x.mean(0), atol=0.2)
    assert torch.allclose(curved().variance, x.var(0), rtol=0.2)


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_starts_at_mean_and_covariance(scale, dtype):
    z = torch.randn(2000, 2, dtype=torch.float64)
    z[:, 1] = 0.999 * z[:, 0] + 0.04 * z[:, 1]
    x = (scale * (z + 3)).to(dtype)
    density = FlowDensity(2, "nsf").to(dtype).initialize(x)
    draws = density().sample((20_000,))
    assert draws.dtype == dtype
    assert torch.allclose(draws.mean(0), x.mean(0), rtol=0.02)
    assert torch.allclose(draws.T.cov(), x.T.cov(), rtol=0.08)


def test_as_a_likelihood_with_part_of_the_data():
    x, c = torch.randn(100, 2), torch.randn(100, 1)
    density = FlowDensity(2, "maf", context_dim=1).initialize(x, c)

    def model():
        pyro.module("density", density)
        with pyro.plate("rows", 100, subsample=torch.arange(10)) as rows:
            pyro.sample("x", density(c[rows]), obs=x[rows])

    loss = Trace_ELBO().loss(model, lambda: None)
    truth = -10 * density(c[:10]).log_prob(x[:10]).sum()
    assert loss == pytest.approx(float(truth.detach()), rel=1e-4)
    before = [p.detach().clone() for p in density.parameters()]
    svi = SVI(model, lambda: None, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO())
    for _ in range(3):
        svi.step()
    moved = [not torch.equal(p, q) for p, q in zip(density.parameters(), before, strict=True)]
    assert all(moved)


def banana_prior():
    density = FlowDensity(2, "nsf")
    z = torch.randn(500, 2)
    return density.initialize(torch.stack([z[:, 0], z[:, 0] + 0.5 * z[:, 1] + 1], -1))


@pytest.mark.parametrize("make", [AutoFlow, AutoNormal])
def test_as_a_prior_under_guides(make):
    density = banana_prior()

    def model():
        pyro.sample("x", density())

    guide = make(model)
    fit = fit_guide(model, guide, num_steps=100, seed=0, progress_bar=False,
                    num_diagnostic_samples=500)  # fmt: skip
    assert fit.elbo > (-0.1 if make is AutoFlow else -3.0)
    loss = PathELBO(8)
    loss.loss(model, guide)
    assert loss.vectorized


def test_as_a_prior_under_nuts():
    density = banana_prior()

    def model():
        pyro.sample("x", density())

    chain = MCMC(NUTS(model), num_samples=150, warmup_steps=50, disable_progbar=True)
    chain.run()
    assert draws_near(chain.get_samples()["x"][::3], density().sample((2000,)))


def test_in_predictive_and_given_another_latent():
    density = FlowDensity(2, "realnvp", context_dim=3)

    def model():
        z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        with pyro.plate("rows", 4):
            pyro.sample("x", density(z))

    for parallel in (False, True):
        found = Predictive(model, num_samples=6, parallel=parallel)()
        assert found["x"].shape[0] == 6
        assert found["x"].shape[-2:] == (4, 2)


def test_as_what_a_guide_draws_from():
    target = dist.MultivariateNormal(torch.ones(2), torch.tensor([[1.0, 0.8], [0.8, 1.0]]))
    density = FlowDensity(2, "affine")

    def model():
        pyro.sample("x", target)

    def guide():
        pyro.module("density", density)
        pyro.sample("x", density())

    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.05}), Trace_ELBO(32, vectorize_particles=True))
    for _ in range(300):
        svi.step()
    assert torch.allclose(density().mean, target.mean, atol=0.15)


def test_it_is_kept_whole():
    density = FlowDensity(2, "maf", context_dim=1).initialize(
        torch.randn(50, 2), torch.randn(50, 1)
    )
    x, c = torch.randn(5, 2), torch.randn(5, 1)
    truth = density(c).log_prob(x)
    again = FlowDensity(2, "maf", context_dim=1)
    again.load_state_dict(density.state_dict())
    for other in (again, copy.deepcopy(density), pickle.loads(pickle.dumps(density))):
        assert torch.equal(other(c).log_prob(x), truth)
        assert other.is_initialized
    assert density.double()(c.double()).log_prob(x.double()).dtype == torch.float64


def test_points_outside_have_no_density():
    density = FlowDensity(1, "nsf", support=constraints.positive)
    found = density().log_prob(torch.tensor([[-1.0], [1.0]]))
    assert found[0] == -math.inf
    assert found[1].isfinite()
    found[1].backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in density.parameters())


def test_refusals():
    with pytest.raises(ValueError, match=r"points of shape \(\*, 2\), got \(5, 3\)"):
        FlowDensity(2)().log_prob(torch.zeros(5, 3))
    with pytest.raises(TypeError, match="floating points, got"):
        FlowDensity(2)().log_prob(torch.zeros(5, 2).long())
    with pytest.raises(TypeError, match="takes no covariates"):
        FlowDensity(2)(torch.zeros(1))
    with pytest.raises(TypeError, match="needs a floating tensor of covariates"):
        FlowDensity(2, context_dim=1)()
    with pytest.raises(ValueError, match=r"covariates of shape \(\*, 1\), got \(4, 2\)"):
        FlowDensity(2, context_dim=1)(torch.zeros(4, 2))
    with pytest.raises(ValueError, match="expected dim, the number of coordinates"):
        FlowDensity()
    with pytest.raises(ValueError, match="Unknown flow 'nfs'"):
        FlowDensity(2, "nfs")
    with pytest.raises(TypeError, match="support to be a constraint"):
        FlowDensity(2, support="positive")
    with pytest.raises(ValueError, match=r"real vectors, and this one turns coordinates \[0, 1\]"):
        FlowDensity(2, "ncsf")


@pytest.mark.parametrize(
    ("kind", "said", "options"),
    [
        (TypeError, "dim to be an int, got '3'", {"dim": "3"}),
        (ValueError, "dim >= 1, got 0", {"dim": 0}),
        (TypeError, "context_dim to be an int, got 1.5", {"dim": 2, "context_dim": 1.5}),
        (ValueError, "context_dim >= 0, got -1", {"dim": 2, "context_dim": -1}),
        (ValueError, "depends on parameters", {"dim": 2, "support": dist.Uniform.support}),
        (
            ValueError,
            r"write constraints.stack\(..., dim=-1\)",
            {"support": constraints.stack([constraints.positive, constraints.real], 0)},
        ),
        (ValueError, "base on all reals", {"dim": 2, "base": build_base("uniform", 2)}),
    ],
)
def test_it_is_not_made_of_anything(kind, said, options):
    with pytest.raises(kind, match=said):
        FlowDensity(**options)


@pytest.mark.parametrize("shape", [(3,), (5, 1), ()])
def test_it_expands_to_more_points_only(shape):
    conditioned = FlowDensity(2, context_dim=1)(torch.randn(5, 1))
    with pytest.raises(ValueError, match="covariates need a row for each point of the plate"):
        conditioned.expand(torch.Size(shape))
    assert conditioned.expand(torch.Size((4, 5))).sample().shape == (4, 5, 2)


def test_a_draw_is_scored_anew_when_parameters_have_changed():
    density = FlowDensity(2)
    found = density()
    x = found.rsample((10,))
    before = found.log_prob(x).detach()
    with torch.no_grad():
        for p in density.parameters():
            p.add_(0.1)
    torch.testing.assert_close(found.log_prob(x), density().log_prob(x.detach()))
    assert (found.log_prob(x) - before).abs().max() > 0.1


def test_points_on_an_edge_are_refused_as_data():
    unit = FlowDensity(1, support=constraints.unit_interval)
    with pytest.raises(ValueError, match=r"1 of 3 rows .* or on its edge \(the first: \[0\]\)"):
        unit.initialize(torch.tensor([[0.0], [0.5], [0.7]]))
    mixed = FlowDensity(2, support=MIXED["stack"])
    with pytest.raises(ValueError, match=r"1 of 3 rows .* or on its edge \(the first: \[1\]\)"):
        mixed.initialize(torch.tensor([[1.0, 0.5], [2.0, 1.0], [3.0, 0.7]]))


def test_a_column_far_from_zero_is_no_constant():
    x = torch.stack([torch.randn(100), 1e6 + torch.randn(100)], -1)
    assert FlowDensity(2).initialize(x).is_initialized
    with pytest.raises(ValueError, match=r"column \[1\] of 2 is constant"):
        FlowDensity(2).initialize(torch.stack([x[:, 0], torch.full((100,), 1e6)], -1))


def test_it_is_printed_and_copied_with_a_draw():
    found = FlowDensity(2)()
    found.rsample()
    for copied in (copy.deepcopy(found), pickle.loads(pickle.dumps(found))):
        assert copied.event_shape == (2,)
    assert repr(found).startswith("DensityDistribution(batch_shape=(), event_shape=(2,)")
    with pytest.raises(TypeError, match="tensor of points, got list"):
        found.log_prob([1.0, 2.0])
