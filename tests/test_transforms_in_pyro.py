"""Bijectors where Pyro takes transforms."""

import inspect
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import ComposeTransformModule
from pyro.infer import SVI, JitTrace_ELBO, Trace_ELBO
from pyro.infer.autoguide import AutoNormalizingFlow
from torch.testing import assert_close

from pyroflows import build_flow
from pyroflows.flows import registry
from tests.cases import BUILT_IN

pytestmark = pytest.mark.usefixtures("_double")
LINEAR = ("affine", "diagonal")


def normal(dim: int) -> dist.Distribution:
    return dist.Normal(torch.zeros(dim), torch.ones(dim)).to_event(1)


def model():
    mu = pyro.sample("mu", dist.Normal(0.0, 3.0).expand([2]).to_event(1))
    with pyro.plate("data", 3):
        pyro.sample("y", dist.Normal(mu.sum(-1, keepdim=True), 1.0), obs=torch.ones(3))


@pytest.mark.parametrize("flow", BUILT_IN)
def test_a_recipe_suits_the_stock_guide(flow: str):
    guide = AutoNormalizingFlow(model, partial(build_flow, flow))
    elbo = Trace_ELBO(num_particles=4, vectorize_particles=True)
    svi = SVI(model, guide, pyro.optim.ClippedAdam({"lr": 1e-3}), elbo)
    svi.step()
    before = [p.detach().clone() for p in guide.transform.parameters()]
    svi.step()
    trained = pyro.get_param_store().keys()
    names = [n for n, _ in guide.transform.named_parameters()]
    assert names
    assert all(any(k.endswith(n) for k in trained) for n in names)
    after = list(guide.transform.parameters())
    assert any((a != b).any() for a, b in zip(after, before, strict=True))


@pytest.mark.parametrize("flow", BUILT_IN)
def test_full_batch_density_estimation_trains_past_the_second_step(flow: str):
    density, data = build_flow(flow, 2, **_small(flow)), torch.randn(20, 2)

    def model(x: torch.Tensor) -> None:
        pyro.module("density", density)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.TransformedDistribution(normal(2), [density]), obs=x)

    svi = SVI(model, lambda x: None, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO())
    losses = [svi.step(data) for _ in range(5)]
    assert losses[-1] < losses[0]


def test_inverses_in_lists_of_transforms_train():
    flow = build_flow("iaf", 2)
    parts = ComposeTransformModule([flow.inv])
    assert {id(p) for p in parts.parameters()} == {id(p) for p in flow.parameters()}


def test_a_score_does_not_leave_a_graph_on_a_draw():
    flow = build_flow("nsf", 2)
    d = dist.TransformedDistribution(normal(2), [flow])
    y = d.sample()
    d.log_prob(y)
    assert not y.requires_grad
    assert not d.log_prob(y).detach().requires_grad


def test_other_parameters_give_other_results():
    """``functional_call`` with the same input: a memory by input would not notice."""
    flow, x = build_flow("realnvp", 2), torch.randn(5, 2)
    flow(x)
    others = {n: p + 0.3 for n, p in flow.named_parameters()}
    moved = torch.func.functional_call(flow, others, (x,))
    assert not torch.allclose(moved, flow(x))


def test_memory_dies_with_vmap():
    flow, x = build_flow("realnvp", 2), torch.randn(5, 2)
    mapped = torch.vmap(flow)(x)
    assert_close(mapped, flow(x))
    d = dist.TransformedDistribution(normal(2), [flow])
    assert_close(torch.vmap(lambda v: d.log_prob(v))(x), d.log_prob(x))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_jit_trace():
    def step_model():
        pyro.sample("x", dist.Normal(torch.zeros(2), 1.0).to_event(1))

    flow = build_flow("realnvp", 2)

    def guide():
        pyro.module("flow", flow)
        pyro.sample("x", dist.TransformedDistribution(normal(2), [flow]))

    svi = SVI(step_model, guide, pyro.optim.Adam({"lr": 1e-3}), JitTrace_ELBO())
    losses = [svi.step() for _ in range(3)]
    assert all(torch.tensor(losses).isfinite())


def test_chained_transforms_and_expanded_distributions():
    flow = build_flow("nsf", 2)
    d = dist.TransformedDistribution(
        normal(2), [flow, dist.transforms.SoftmaxTransform().inv.inv, build_flow("affine", 2)][::2]
    ).expand([4])
    y = d.rsample((3,))
    assert d.log_prob(y).shape == (3, 4)
    assert_close(d.log_prob(y), d.log_prob(y.clone()))


def _small(flow: str) -> dict:
    known = inspect.signature(registry._FLOWS[flow]).parameters
    return {"hidden_dims": (8,)} if "hidden_dims" in known and flow not in LINEAR else {}
