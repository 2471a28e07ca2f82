"""AutoFlow on trained bases: densities, gradients, copies, training, and what is refused."""

import copy
import math
import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO

import pyroflows as pf
from pyroflows import bases

REAL = ["diagonal_normal", "full_normal", "student_t", "gaussian_mixture"]
STANDARD_ERRORS = 5.0
OPTIONS = {"num_layers": 1, "hidden_dims": (8,), "num_bins": 4}


def model():
    x = pyro.sample("x", dist.Normal(torch.tensor([1.0, -1.0]), 2.0).to_event(1))
    pyro.sample("y", dist.Normal(x.sin().sum(-1), 0.5), obs=torch.tensor(0.3))


def heavy():
    pyro.sample("x", dist.StudentT(2.0, torch.zeros(2), torch.tensor([1.0, 3.0])).to_event(1))


def build(base, flow="nsf", noise=0.1, **options):
    options = {**(OPTIONS if flow == "nsf" else {}), **options}
    torch.manual_seed(1)
    guide = pf.AutoFlow(model, flow, base=base, **options)
    with torch.no_grad():
        for param in guide.parameters():
            param.add_(noise * torch.randn(param.shape, dtype=param.dtype))
    return guide


@pytest.mark.usefixtures("_double")
@pytest.mark.parametrize("base", REAL)
def test_log_prob_is_that_of_pyro_and_integrates_to_one(base):
    guide = build(base)
    u = torch.linspace(-12, 12, 350)
    axis, weight = u.sinh(), u.cosh() * (u[1] - u[0])
    points = torch.cartesian_prod(axis, axis)
    log_prob = guide.log_prob({"x": points})
    assert abs((log_prob.exp() * torch.cartesian_prod(weight, weight).prod(-1)).sum() - 1) < 1e-3
    law = dist.TransformedDistribution(guide.get_base_dist(), [guide.get_transform()])
    torch.testing.assert_close(log_prob[::7], law.log_prob(points[::7]))
    posterior = guide.get_posterior()
    draws = posterior.rsample((5,))
    torch.testing.assert_close(posterior.log_prob(draws), posterior.log_prob(draws.clone()))
    draws, log_q, score = guide.unregistered_posterior().rsample_and_score((5,))
    point = draws.detach().requires_grad_()
    expected = torch.autograd.grad(law.log_prob(point).sum(), point)[0]
    torch.testing.assert_close(score, expected, atol=1e-7, rtol=1e-6)
    torch.testing.assert_close(log_q, law.log_prob(draws))


@pytest.mark.usefixtures("_double")
@pytest.mark.parametrize("base", REAL)
def test_the_path_gradient_has_the_mean_of_the_ordinary_one(base):
    guide = build(base)
    params = dict(guide.named_parameters())
    assert any(name.startswith("base.") for name in params)

    def gradients(score_weight):
        elbo, found = pf.PathELBO(num_particles=300, score_weight=score_weight), []
        for _ in range(40):
            loss = elbo.differentiable_loss(model, guide)
            grads = torch.autograd.grad(loss, list(params.values()), materialize_grads=True)
            found.append(torch.cat([g.flatten() for g in grads]))
        found = torch.stack(found)
        return found.mean(0), found.var(0) / len(found)

    (path, path_error), (full, full_error) = gradients(0.0), gradients(1.0)
    error = (path_error + full_error).sqrt()
    assert ((path - full).abs() <= STANDARD_ERRORS * error + 1e-9).all()
    of_base = torch.cat(
        [torch.full((p.numel(),), n.startswith("base.")) for n, p in params.items()]
    )
    assert (path[of_base] != 0).any()


@pytest.mark.parametrize("base", REAL)
@pytest.mark.usefixtures("_double")
def test_the_path_gradient_vanishes_draw_by_draw_where_the_guide_is_exact(base):
    built = pf.build_base(base, 2)
    with torch.no_grad():
        for param in built.parameters():
            param.add_(0.5 * torch.randn(param.shape))
    truth = copy.deepcopy(built)

    def exact():
        pyro.sample("x", truth.distribution())

    guide = pf.AutoFlow(exact, "affine", base=built, init="point")
    guide.bijector.bijectors[-1].set_(torch.zeros(2), torch.eye(2))
    for make_elbo in (pf.PathELBO, Trace_ELBO):
        guide.zero_grad()
        make_elbo(num_particles=8).differentiable_loss(exact, guide).backward()
        assert all(p.grad.abs().max() < 1e-10 for p in guide.parameters())


@pytest.mark.usefixtures("_double")
@pytest.mark.parametrize("tail_weight", [0.0, 0.5])
@pytest.mark.parametrize("base", REAL)
def test_chunks_give_the_gradient_of_all_draws(base, tail_weight):
    found = []
    for chunk_size in (None, 7):
        guide = build(base)
        elbo = pf.PathELBO(num_particles=20, chunk_size=chunk_size, tail_weight=tail_weight)
        elbo.prepare(model, guide)
        pyro.set_rng_seed(3)
        loss = elbo.loss_and_grads(model, guide)
        found.append((loss, [p.grad for p in guide.parameters()]))
    torch.testing.assert_close(found[0], found[1])


def test_without_a_base_and_with_the_normal_one_all_is_the_same():
    losses, draws = [], []
    for options in ({}, {"base": "normal"}, {"base": bases.StandardNormal}):
        pyro.set_rng_seed(0)
        guide = pf.AutoFlow(model, "nsf", **OPTIONS, **options)
        assert guide.base is None
        assert not any("base" in name for name in guide.state_dict())
        losses.append(pf.PathELBO(num_particles=8).loss_and_grads(model, guide))
        draws.append(guide.get_posterior().rsample((3,)))
    assert losses[0] == losses[1] == losses[2]
    assert torch.equal(draws[0], draws[1])
    assert torch.equal(draws[0], draws[2])


@pytest.mark.parametrize("base", REAL)
@pytest.mark.parametrize("make_elbo", [Trace_ELBO, lambda: pf.PathELBO(num_particles=4)])
def test_svi_trains_the_base(base, make_elbo):
    guide = build(base)
    before = {n: p.detach().clone() for n, p in guide.base.named_parameters()}
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), make_elbo())
    for _ in range(2):
        svi.step()
    assert f"{guide._pyro_name}.base$$$" in "".join(pyro.get_param_store().keys())
    for name, param in guide.base.named_parameters():
        assert not torch.equal(param, before[name])


@pytest.mark.parametrize("base", REAL)
def test_copies_files_and_state(base):
    guide = build(base)
    sites = {"x": torch.randn(5, 2)}
    expected = guide.log_prob(sites)
    fresh = pf.AutoFlow(model, "nsf", base=base, **OPTIONS)
    fresh.load_state_dict(guide.state_dict())
    for twin in (copy.deepcopy(guide), pickle.loads(pickle.dumps(guide)), fresh):
        torch.testing.assert_close(twin.log_prob(sites), expected, rtol=0, atol=0)
        with torch.no_grad():
            next(twin.base.parameters()).add_(0.5)
    torch.testing.assert_close(guide.log_prob(sites), expected, rtol=0, atol=0)


def test_a_base_that_is_built_or_a_recipe_is_taken():
    built = bases.StudentT(2, df=3.0)
    assert pf.AutoFlow(model, "affine", base=built).base is built
    guide = pf.AutoFlow(model, "affine", base=lambda dim, *, context_dim=0: bases.StudentT(dim))
    assert guide.double().base.raw_df.dtype == torch.float64
    assert guide.median_latent().shape == (2,)
    split = bases.Product([(bases.StudentT(1), [1]), (bases.DiagonalNormal(1), [0])])
    assert pf.AutoFlow(model, "affine", base=split).get_posterior().rsample((3,)).shape == (3, 2)


@pytest.mark.parametrize("base", ["uniform", "von_mises", lambda dim, **_: bases.Uniform(dim)])
def test_a_base_of_other_than_real_vectors_is_refused_by_name(base):
    with pytest.raises(ValueError, match=r"base of real vectors.*got (Uniform|VonMises)"):
        pf.AutoFlow(model, "nsf", base=base)


def test_a_base_of_another_size_or_name_is_refused():
    with pytest.raises(ValueError, match="was asked for dim=2"):
        pf.AutoFlow(model, "nsf", base=bases.StudentT(3))
    with pytest.raises(ValueError, match="Did you mean 'student_t'"):
        pf.AutoFlow(model, "nsf", base="studentt")


def test_nuts_on_the_base_has_the_models_density():
    guide = build("student_t")
    neutra = pf.NeuTraReparam(guide)
    trace = pyro.poutine.trace(neutra.reparam(model)).get_trace()
    noise = trace.nodes["x_shared_latent"]["value"]
    u, log_det = guide.get_transform().forward_and_log_det(noise)
    expected = guide.log_density()(u[None])[0] + log_det
    torch.testing.assert_close(trace.log_prob_sum(), expected)


def test_diagnostics_are_those_of_the_guides_own_draws():
    guide = build("student_t", noise=0.0)
    report = pf.importance_diagnostics(model, guide, num_samples=2000, seed=0)
    assert math.isnan(report.missed)
    normal = pf.importance_diagnostics(model, build("normal", noise=0.0), num_samples=2000, seed=0)
    assert abs(report.log_z - normal.log_z) < 5 * (report.log_z_se + normal.log_z_se)


@pytest.mark.slow
def test_heavy_tails_are_met_by_a_base_that_has_them():
    shapes = {}
    for base in ("normal", "student_t"):
        pyro.set_rng_seed(0)
        guide = pf.AutoFlow(heavy, "affine", base=base)
        pf.fit_guide(heavy, guide, num_steps=300, num_particles=128, progress_bar=False, seed=0)
        report = pf.importance_diagnostics(heavy, guide, num_samples=4000, seed=0)
        shapes[base] = report.pareto_k
    assert shapes["student_t"] < 0.5
    assert shapes["normal"] > 0.9
    torch.testing.assert_close(guide.base.df().detach(), torch.full((2,), 2.0), atol=0.3, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("base", ["student_t", "gaussian_mixture"])
def test_compiled_steps_are_the_eager_ones(base):
    found = []
    for compiled in (False, True):
        guide = build(base, flow="affine")
        elbo = pf.PathELBO(num_particles=16, compile=compiled)
        elbo.prepare(model, guide)
        pyro.set_rng_seed(3)
        loss = [elbo.loss_and_grads(model, guide) for _ in range(2)]
        found.append((loss, [p.grad for p in guide.parameters()]))
        assert not compiled or not elbo.compiled.reason
    torch.testing.assert_close(found[0], found[1], rtol=1e-3, atol=1e-4)
