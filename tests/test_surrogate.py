"""The path gradient as a pure function: it can be traced, replayed and cut into parts."""

import math

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.utils.stateless import _reparametrize_module
from torch.testing import assert_close

from pyroflows import build_flow
from pyroflows.infer.surrogate import draw_weights, flow_surrogate, flow_terms, weighted_surrogate

pytestmark = pytest.mark.usefixtures("_double")
DIM = 3


def banana(x):
    return -0.5 * x.square().sum(-1) - 2 * (x[..., 1] - x[..., 0] ** 2) ** 2


def half(x):
    """Not a number on one side of zero, and without a slope next to it."""
    value = banana(x) + (x[..., 1] * (x[..., 1] > 0)).sqrt()
    return torch.where(x[..., 0] >= 0, value, torch.nan)


def moved(flow):
    torch.manual_seed(0)
    bijector = build_flow(flow, DIM).double()
    with torch.no_grad():
        for p in bijector.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return bijector


def value_and_grads(bijector, log_density, score_weight, tail_weight):
    names = [name for name, _ in bijector.named_parameters()]

    def evaluate(noise, tally, *params):
        with _reparametrize_module(bijector, dict(zip(names, params, strict=True))):
            found = flow_surrogate(
                bijector,
                log_density,
                noise,
                score_weight=score_weight,
                tail_weight=tail_weight,
                tally=tally,
            )
            grads = torch.autograd.grad(found.loss, [tally, *params], allow_unused=True)
        return (*(v.detach() for v in found), *grads)

    return evaluate


@pytest.mark.parametrize("weights", [(0.0, 1.0), (1.0, 0.0), (0.3, 0.5)])
@pytest.mark.parametrize("flow", ["affine", "nsf", "realnvp", "maf"])
def test_value_and_gradient_are_traced_and_replayed(flow, weights):
    bijector = moved(flow)
    evaluate = value_and_grads(bijector, half, *weights)
    tally = torch.zeros((), requires_grad=True)
    params = list(bijector.parameters())
    graph = make_fx(evaluate)(torch.randn(64, DIM), tally, *params)
    other = [(p + 0.01 * torch.randn_like(p)).detach().requires_grad_() for p in params]
    noise = torch.randn(64, DIM)
    expected = evaluate(noise, tally, *other)
    with torch.no_grad():
        got = graph(noise, tally, *other)
    assert len(got) == len(expected)
    for g, e in zip(got, expected, strict=True):
        assert (g is None) == (e is None)
        if e is not None:
            assert_close(g, e, equal_nan=True)
    assert expected[3] > 0  # gradients that are not finite were counted
    assert 0 < expected[2] < 64


@pytest.mark.parametrize("tail_weight", [0.0, 1.0])
def test_parts_add_up_to_the_whole(tail_weight):
    bijector = moved("realnvp")
    params = list(bijector.parameters())
    noise = torch.randn(20, DIM)
    whole = flow_surrogate(bijector, half, noise, tail_weight=tail_weight)
    expected = torch.autograd.grad(whole.loss, params)
    terms = [flow_terms(bijector, half, part) for part in noise.split(7)]
    weights = draw_weights(torch.cat([t.log_weights for t in terms]), tail_weight)
    grads = [torch.zeros_like(p) for p in params]
    for part, values in zip(terms, weights.values.split(7), strict=True):
        found = weighted_surrogate(part, weights._replace(values=values))
        assert_close(found.loss, whole.loss)
        assert found.num_nonfinite == whole.num_nonfinite
        grads = [g + h for g, h in zip(grads, torch.autograd.grad(found.loss, params), strict=True)]
    for g, e in zip(grads, expected, strict=True):
        assert_close(g, e)


def test_draws_that_are_not_finite_weigh_nothing():
    log_weights = torch.tensor([0.0, math.nan, -1.0, math.inf, -math.inf]).double()
    for tail_weight in (0.0, 1.0):
        weights = draw_weights(log_weights, tail_weight)
        assert weights.num_nonfinite == 3
        assert weights.elbo == -0.5
        assert weights.values[[1, 3, 4]].eq(0).all()
        assert weights.values.sum() == pytest.approx(1.0)


def test_without_finite_draws_there_is_no_loss_and_no_gradient():
    bijector = moved("affine")
    found = flow_surrogate(bijector, lambda x: banana(x) * math.nan, torch.randn(5, DIM))
    assert found.loss.isnan()
    assert found.num_nonfinite == 5
