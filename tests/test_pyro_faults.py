"""Faults of Pyro 1.9.2's flow guides and transforms, each a law that holds here.

Where it costs nothing, the fault itself is shown first, so that the law is known to be able to
fail; those tests say ``Pyro`` in their name and fail on a Pyro where the fault is mended.
"""

from __future__ import annotations

import copy
import math
import pickle
import subprocess
import sys
import textwrap
import warnings
from functools import partial
from pathlib import Path

import pyro
import pyro.distributions as dist
import pyro.distributions.transforms as T
import pytest
import torch
from pyro.infer import MCMC, NUTS, SVI, JitTrace_ELBO, Trace_ELBO
from pyro.infer.autoguide import AutoNormalizingFlow
from pyro.infer.mcmc.util import initialize_model
from pyro.infer.reparam import NeuTraReparam
from torch import Tensor
from torch.testing import assert_close

import pyroflows as pf

ROOT = Path(__file__).parent.parent
TINY = {"num_layers": 2, "hidden_dims": (8,)}


@pytest.fixture(autouse=True)
def _fresh():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    yield
    torch.set_default_dtype(before)


def model():
    mu = pyro.sample("mu", dist.Normal(torch.zeros(2), 5.0).to_event(1))
    with pyro.plate("data", 3):
        pyro.sample("y", dist.Normal(mu, 1.0).to_event(1), obs=torch.tensor([[-3.0, 2.0]] * 3))


def plated():
    with pyro.plate("groups", 6):
        scale = pyro.sample("scale", dist.LogNormal(-1.0, 1.0))
        pyro.sample("y", dist.Normal(0.0, scale), obs=torch.linspace(0.3, 1.5, 6))


def standard(flow, dim: int = 2) -> dist.TransformedDistribution:
    return dist.TransformedDistribution(dist.Normal(torch.zeros(dim), 1.0).to_event(1), [flow])


def parameters(module: torch.nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in module.parameters()]


def unmoved(module: torch.nn.Module, before: list[Tensor]) -> int:
    """How many parameters are what they were."""
    return sum(torch.equal(p, b) for p, b in zip(module.parameters(), before, strict=True))


def steps(guide, num_steps: int = 3, elbo=None, of=model, lr: float = 0.01) -> list[float]:
    svi = SVI(of, guide, pyro.optim.Adam({"lr": lr}), elbo or Trace_ELBO())
    return [svi.step() for _ in range(num_steps)]


# Two guides in one process -------------------------------------------------------------------


def test_pyros_second_guide_does_not_train():
    guides = [AutoNormalizingFlow(model, T.affine_autoregressive) for _ in range(2)]
    for guide in guides:
        guide()
    before = parameters(guides[1])
    steps(guides[0])
    steps(guides[1])
    assert unmoved(guides[1], before) >= len(before) - 1  # one goes by a second name too


@pytest.mark.parametrize("flow", ["affine", "realnvp", "nsf"])
def test_two_guides_in_one_process_both_train(flow: str):
    """Pyro: the second's parameters are taken from the store, where they are the first's."""
    guides = [pf.AutoFlow(model, flow, init="point") for _ in range(2)]
    for guide in guides:
        guide()
    for guide in guides:
        before = parameters(guide)
        steps(guide)
        assert unmoved(guide, before) == 0
    later = pf.AutoFlow(model, flow, init="point", init_scale=1.0)
    losses = steps(later, 300, Trace_ELBO(num_particles=8, vectorize_particles=True), lr=0.02)
    assert sum(losses[-20:]) / 20 < losses[0] - 1
    assert (later.median()["mu"] - torch.tensor([-3.0, 2.0])).abs().max() < 0.6


def test_two_guides_of_different_models_may_share_a_process():
    """Pyro: stale entries of another shape under the same name."""
    first, second = pf.AutoFlow(model, "affine"), pf.AutoFlow(plated, "affine")
    steps(first)
    losses = steps(second, of=plated)
    assert all(map(math.isfinite, losses))


# The inverse of a flow -----------------------------------------------------------------------


def test_pyros_inverse_trains_nothing():
    guide = AutoNormalizingFlow(model, lambda dim: T.affine_autoregressive(dim).inv)
    guide()
    assert not list(guide.parameters())


@pytest.mark.parametrize("name", ["realnvp", "iaf", "nsf"])
def test_the_inverse_of_a_flow_keeps_its_parameters_in_a_guide(name: str):
    """Pyro: ``flow.inv`` is no module, so SVI runs without an error and trains nothing."""

    def inverse(dim, *, context_dim=0):
        return pf.build_flow(name, dim, context_dim=context_dim, **TINY).inv

    count = len(list(pf.build_flow(name, 2, **TINY).parameters()))
    stock = AutoNormalizingFlow(model, inverse)
    stock()
    assert len(list(stock.transform.parameters())) == count
    before = parameters(stock.transform)
    steps(stock)
    assert unmoved(stock.transform, before) == 0
    guide = pf.AutoFlow(model, inverse, model_args=())
    before = parameters(guide)
    assert len(before) >= count
    steps(guide)
    assert unmoved(guide, before) == 0


# NeuTra --------------------------------------------------------------------------------------


def potential_error(neutra, guide) -> float:
    """The largest error of the reparametrised potential, against the change of variables."""
    _, potential, _, _ = initialize_model(neutra.reparam(plated))
    _, exact, _, _ = initialize_model(plated)
    base, transform = guide.get_base_dist(), guide.get_transform()
    errors = []
    for z in base.sample((4,)):
        u = transform(z)
        truth = exact({"scale": u}) - transform.log_abs_det_jacobian(z, u)
        errors.append(abs(potential({"scale_shared_latent": z}) - truth).item())
    return max(errors)


def stretched_guide() -> pf.AutoFlow:
    guide = pf.AutoFlow(plated, "realnvp", model_args=(), **TINY)
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    guide()
    return guide


def test_pyros_neutra_counts_the_log_det_once_per_index():
    guide = stretched_guide()
    assert potential_error(NeuTraReparam(guide), guide) > 1.0


def test_neutra_counts_the_log_det_of_a_flow_once():
    """Pyro: where the first latent sits in a plate of N, the log-det enters N times."""
    guide = stretched_guide()
    assert potential_error(pf.NeuTraReparam(guide), guide) < 1e-3


def test_neutra_in_nuts_agrees_with_nuts():
    """The posterior mean of log scale differs by 0.7 under Pyro's reparametriser."""
    guide = stretched_guide()
    neutra = pf.NeuTraReparam(guide)

    def draws(of) -> dict[str, Tensor]:
        mcmc = MCMC(NUTS(of, max_tree_depth=3), 100, warmup_steps=40, disable_progbar=True)
        mcmc.run()
        return mcmc.get_samples()

    (latent,) = draws(neutra.reparam(plated)).values()
    flow = neutra.transform_sample(latent)["scale"].log().mean()
    plain = draws(plated)["scale"].log().mean()
    assert abs(flow - plain) < 0.2


# Storing and loading -------------------------------------------------------------------------


def test_a_param_store_file_means_the_same_in_a_fresh_process(tmp_path):
    """Pyro: random MADE permutations are in no store, so another seed is another density."""
    saved = []
    for flow in ("iaf", "maf", "nsf", "realnvp"):
        pyro.clear_param_store()
        guide = pf.AutoFlow(model, flow, model_args=(), **TINY)
        steps(guide, 5, lr=0.05)
        u = guide.get_posterior().rsample((4,)).detach()
        expected = guide.get_posterior().log_prob(u).detach()
        pyro.get_param_store().save(tmp_path / flow)
        saved.append((flow, str(tmp_path / flow), u, expected))
    torch.save(saved, tmp_path / "points")
    script = f"""
        import pyro, torch
        import pyroflows as pf
        from tests.test_pyro_faults import TINY, model
        for flow, path, u, expected in torch.load({str(tmp_path / "points")!r}):
            pyro.set_rng_seed(12345)
            pyro.get_param_store().load(path)
            guide = pf.AutoFlow(model, flow, model_args=(), **TINY)
            guide()
            torch.testing.assert_close(guide.get_posterior().log_prob(u), expected)
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_pyros_permutation_is_not_in_the_state_dict():
    first, second = T.permute(8), T.permute(8)
    second.permutation = first.permutation.flip(0)
    assert not isinstance(first, torch.nn.Module)


@pytest.mark.parametrize("flow", sorted(set(pf.available_flows()) - {"affine", "diagonal"}))
def test_a_state_dict_holds_all_of_a_flow(flow: str):
    """Pyro: ``Permute`` is no module, so its random permutation is lost on reload."""
    pyro.set_rng_seed(1)
    flow_1 = pf.build_flow(flow, 4, hidden_dims=(8,))
    pyro.set_rng_seed(2)
    flow_2 = pf.build_flow(flow, 4, hidden_dims=(8,))
    x = torch.randn(5, 4)
    flow_2.load_state_dict(flow_1.state_dict())
    assert_close(flow_2(x), flow_1(x))
    assert_close(standard(flow_2, 4).log_prob(x), standard(flow_1, 4).log_prob(x))


# Scores --------------------------------------------------------------------------------------


def test_pyros_scores_are_stale_after_an_update():
    d = standard(T.affine_autoregressive(2))
    x = d.rsample((5,))
    d.transforms[0].arn.layers[-1].bias.data.add_(0.5)
    assert not torch.allclose(d.log_prob(x), d.log_prob(x.clone()))


@pytest.mark.parametrize("flow", ["realnvp", "iaf", "nsf"])
def test_scores_follow_the_parameters(flow: str):
    """Pyro issue 2564: a score after a step, without ``clear_cache``, is that before it."""
    d = standard(pf.build_flow(flow, 2, **TINY))
    x = torch.randn(6, 2)
    before = d.log_prob(x)
    for parameter in d.transforms[0].parameters():
        parameter.data.add_(0.1)  # as fused optimizers do: no version is bumped
    assert not torch.allclose(before, d.log_prob(x))
    assert_close(d.log_prob(x), d.log_prob(x.clone()))


@pytest.mark.parametrize("flow", ["realnvp", "iaf", "nsf"])
def test_the_posterior_of_a_guide_follows_its_parameters(flow: str):
    guide = pf.AutoFlow(model, flow, model_args=(), **TINY)
    posterior = guide.get_posterior()
    x = posterior.rsample((6,)).detach()
    before = posterior.log_prob(x).detach()
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter.add_(0.1)
    after = guide.get_posterior().log_prob(x)
    assert not torch.allclose(before, after)
    assert_close(after, guide.get_posterior().log_prob(x.clone()))
    assert_close(posterior.log_prob(x.clone()), after)


def test_pyros_score_of_a_sample_has_no_gradient():
    d = standard(T.affine_autoregressive(2))
    assert not d.log_prob(d.sample((3,))).requires_grad


@pytest.mark.parametrize("flow", ["realnvp", "iaf", "nsf"])
def test_the_score_of_a_sample_carries_a_gradient(flow: str):
    """Pyro: ``sample()`` leaves a pass without a graph in the cache, and ``log_prob`` finds it."""
    d = standard(pf.build_flow(flow, 2, **TINY))
    assert d.log_prob(d.sample((3,))).requires_grad
    posterior = pf.AutoFlow(model, flow, model_args=(), **TINY).get_posterior()
    assert posterior.log_prob(posterior.sample((3,))).requires_grad


def density_step(flow, data: Tensor) -> SVI:
    def density():
        pyro.module("flow", flow)
        with pyro.plate("data", len(data)):
            pyro.sample("x", standard(flow), obs=data)

    return SVI(density, lambda: None, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())


def test_pyros_flow_cannot_see_the_same_data_twice():
    svi = density_step(T.affine_autoregressive(2), torch.randn(20, 2))
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        [svi.step() for _ in range(3)]


@pytest.mark.parametrize("flow", ["realnvp", "maf", "iaf", "nsf"])
def test_full_batch_density_estimation_trains(flow: str):
    """Pyro: the second step walks back through the graph that the first one freed."""
    bijector = pf.build_flow(flow, 2, **TINY)
    svi = density_step(bijector, torch.randn(20, 2) * 0.1 + 1)
    losses = [svi.step() for _ in range(30)]
    assert losses[-1] < losses[0]


# Compiling and copying -----------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_pyros_guide_fails_under_the_jit():
    guide = AutoNormalizingFlow(model, T.affine_autoregressive)
    with pytest.raises(AssertionError):
        steps(guide, 2, JitTrace_ELBO())


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("flow", ["affine", "realnvp", "nsf"])
def test_jit_trace_elbo_trains(flow: str):
    """Pyro issue 3132: one parameter is registered under two names."""
    guide = pf.AutoFlow(model, flow, model_args=(), **({} if flow == "affine" else TINY))
    before = parameters(guide)
    assert all(map(math.isfinite, steps(guide, 3, JitTrace_ELBO())))
    assert unmoved(guide, before) == 0
    names = [id(p) for _, p in guide.named_parameters(remove_duplicate=False)]
    assert len(names) == len(set(names))


def test_pyros_flow_cannot_be_copied_after_use():
    guide = AutoNormalizingFlow(model, T.affine_autoregressive)
    steps(guide, 1)
    with pytest.raises(RuntimeError, match="created explicitly by the user"):
        copy.deepcopy(guide)


@pytest.mark.parametrize("flow", ["affine", "realnvp", "iaf", "nsf"])
def test_a_guide_is_copied_and_pickled_after_a_step(flow: str):
    """Pyro: a graph is left in the flow, and writing a guide down takes its model away."""
    guide = pf.AutoFlow(model, flow, model_args=(), **({} if flow == "affine" else TINY))
    steps(guide, 1)
    points = guide.get_posterior().sample((4,))
    expected = guide.get_posterior().log_prob(points)
    for twin in (copy.deepcopy(guide), pickle.loads(pickle.dumps(guide))):
        assert_close(twin.get_posterior().log_prob(points), expected)
    assert guide.model is not None
    before = parameters(guide)
    steps(guide, 1)
    assert unmoved(guide, before) == 0


def test_a_fresh_guide_survives_being_pickled():
    """Pyro: ``__getstate__`` sets the model of the original to None before its first call."""
    guide = pf.AutoFlow(model, "nsf", **TINY)
    pickle.dumps(guide)
    assert set(guide()) == {"mu"}


# Precision -----------------------------------------------------------------------------------


def double_model():
    zero = torch.zeros(2, dtype=torch.float64)
    mu = pyro.sample("mu", dist.Normal(zero, 1.0).to_event(1))
    pyro.sample("y", dist.Normal(mu, 1.0).to_event(1), obs=zero + 1)


@pytest.mark.parametrize("flow", pf.available_flows())
def test_a_double_model_gets_a_double_guide(flow: str):
    """Pyro: flows are made in the default precision, and the autoregressive inverse stays there."""
    guide = pf.AutoFlow(double_model, flow, model_args=())
    assert {p.dtype for p in guide.parameters()} == {torch.float64}
    steps(guide, 2, of=double_model)
    posterior = guide.get_posterior()
    x, log_q = posterior.rsample_and_log_prob((3,))
    assert x.dtype == log_q.dtype == posterior.log_prob(x.clone()).dtype == torch.float64
    assert_close(posterior.log_prob(x.detach().clone()), log_q, atol=1e-8, rtol=1e-8)


# Subsampling ---------------------------------------------------------------------------------


def subsampled():
    with pyro.plate("groups", 20, subsample_size=5) as index:
        theta = pyro.sample("theta", dist.Normal(0.0, 4.0))
        data = torch.tensor([4.0, -4.0]).repeat(10)[index]
        pyro.sample("y", dist.Normal(theta, 0.5), obs=data)


def test_a_latent_in_a_subsampled_plate_is_refused():
    """Pyro: five slots are shared by all twenty groups: means near 0 where the truth is +-3.8."""
    with pytest.raises((ValueError, NotImplementedError), match=r"(?s)theta.*subsampl"):
        pf.AutoFlow(subsampled, "affine", model_args=())
    with pytest.raises((ValueError, NotImplementedError), match=r"(?s)theta.*subsampl"):
        pf.AutoFlow(subsampled, "affine")()


# Models that do not broadcast ----------------------------------------------------------------


def silent():
    """Summed over everything: right for one particle, silently wrong for a batch of them."""
    z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    pyro.factor("tilt", -0.5 * ((z - 1.0) ** 2).sum())


def loud():
    """``design @ w`` takes one vector of weights, and raises for a batch of another width."""
    design = torch.tensor([[1.0, 0.5], [0.3, -1.0], [0.2, 0.8]])
    w = pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    pyro.sample("y", dist.Normal(design @ w, 1.0).to_event(1), obs=torch.ones(3))


def branching():
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    sign = 1.0 if z > 0 else -0.5
    pyro.sample("y", dist.Normal(sign * z, 1.0), obs=torch.tensor(0.7))


def batch_safe():
    z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    pyro.factor("tilt", -0.5 * ((z - 1.0) ** 2).sum(-1))


@pytest.mark.filterwarnings("ignore:The model does not broadcast")
def test_pyros_vectorized_loss_is_silently_wrong():
    guide = pf.AutoFlow(silent, "affine", model_args=())
    one = Trace_ELBO(num_particles=64).loss(silent, guide)
    many = Trace_ELBO(num_particles=64, vectorize_particles=True).loss(silent, guide)
    assert abs(many - one) > 10


@pytest.mark.parametrize("of", [silent, loud, branching], ids=lambda f: f.__name__)
def test_a_model_that_does_not_broadcast_gets_right_numbers(of):
    """Pyro: vectorised particles give wrong numbers without a word."""
    guide = pf.AutoFlow(of, "affine", init="point", model_args=())
    elbo = pf.PathELBO(num_particles=64)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        loss = elbo.loss(of, guide)
    assert elbo.vectorized is (of is not branching)  # which no batching can hold
    assert any("does not broadcast" in str(w.message) for w in caught) is (of is branching)
    losses = torch.tensor([Trace_ELBO().loss(of, guide) for _ in range(64)])
    assert abs(loss - losses.mean()) < 6 * losses.std() / 8 + 0.02


def test_a_model_that_broadcasts_is_vectorized_without_a_word():
    guide = pf.AutoFlow(batch_safe, "affine", model_args=())
    elbo = pf.PathELBO(num_particles=64)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        elbo.loss(batch_safe, guide)
    assert elbo.vectorized is True


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("of", [silent, loud], ids=lambda f: f.__name__)
def test_a_fit_of_a_model_that_does_not_broadcast_is_right(of):
    guide = pf.AutoFlow(of, "affine")
    small = {"num_steps": 5, "num_particles": 4, "num_diagnostic_samples": 1000}
    fit = pf.fit_guide(of, guide, **small, progress_bar=False, seed=0)
    assert fit.diagnostics.pareto_k < 0.5  # both posteriors are Gaussian
    if of is silent:  # N(z; 0, 1) N(z; 1, 1) (2 pi)^{1/2} in each of two coordinates
        truth = 2 * (-0.25 - 0.5 * math.log(2))
        assert abs(fit.diagnostics.log_z - truth) < 0.02


# Conditional flows ---------------------------------------------------------------------------


def test_pyros_contexts_share_their_noise():
    flow = T.conditional_planar(2, context_dim=1)
    base = dist.Normal(torch.zeros(2), 1.0).to_event(1)
    d = dist.ConditionalTransformedDistribution(base, [flow]).condition(torch.zeros(6, 1))
    assert len(d.rsample().unique(dim=0)) == 1


@pytest.mark.parametrize("flow", ["realnvp", "iaf", "maf", "nsf", "nsf_coupling", "affine"])
def test_each_context_has_its_own_noise(flow: str):
    """Pyro: one base draw is shared by the whole batch of contexts."""
    bijector = pf.build_flow(flow, 2, context_dim=1)
    base = dist.Normal(torch.zeros(2), 1.0).to_event(1)
    d = dist.TransformedDistribution(base, [bijector.condition(torch.zeros(6, 1))])
    assert d.batch_shape == (6,)
    x = d.rsample()
    assert len(x.unique(dim=0)) == 6
    assert d.log_prob(x).shape == (6,)
    conditional = dist.ConditionalTransformedDistribution(base, [bijector])
    assert len(conditional.condition(torch.zeros(6, 1)).rsample().unique(dim=0)) == 6


# Sticking the landing ------------------------------------------------------------------------


def gaussian():
    z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    pyro.sample("y", dist.Normal(z, 1.0).to_event(1), obs=torch.tensor([0.5, -1.0]))


@pytest.mark.parametrize("flow", ["affine", "iaf", "nsf"])
@pytest.mark.parametrize("elbo", [Trace_ELBO, partial(pf.PathELBO, num_particles=16)])
def test_no_gradient_is_left_at_the_posterior_itself(flow: str, elbo):
    """Pyro: the score of the guide's own parameters is noise that does not vanish there."""
    guide = pf.AutoFlow(gaussian, flow, model_args=()).double()
    with torch.no_grad():  # the posterior itself: a flow of zero raw parameters is the identity
        for parameter in guide.parameters():
            parameter.zero_()
        data = torch.tensor([0.5, -1.0], dtype=torch.float64)
        sd = torch.tensor([0.5, 0.5], dtype=torch.float64).sqrt()
        guide.bijector.bijectors[-1].set_(data / 2, sd.diag())
    elbo().differentiable_loss(gaussian, guide).backward()
    gradients = [p.grad.abs().max() for p in guide.parameters() if p.grad is not None]
    assert gradients
    assert max(gradients) < 1e-6  # the data are in float32
