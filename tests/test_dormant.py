"""A part of a flow that is the identity while it sleeps."""

import copy

import pytest
import torch

import pyroflows as pf
from pyroflows.bijectors import Coupling, Dormant
from pyroflows.transformers import Affine


def moved(bijector):
    torch.manual_seed(0)
    with torch.no_grad():
        for p in bijector.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return bijector


@pytest.fixture
def part():
    return moved(Dormant(Coupling(3, context_dim=2, hidden_dims=(8,))))


def test_asleep_it_is_the_identity_and_awake_its_bijector(part):
    x, context = torch.randn(5, 3), torch.randn(5, 2)
    awake = part.forward_and_log_det(x, context)
    assert all(map(torch.equal, awake, part.bijector.forward_and_log_det(x, context)))
    part.awake = False
    for found in (part.forward_and_log_det(x, context), part.inverse_and_log_det(x, context)):
        assert torch.equal(found[0], x)
        assert torch.equal(found[1], torch.zeros(5))
    score = torch.randn(5, 3)
    assert torch.equal(part.forward_with_score(x, score, context)[2], score)


def test_asleep_each_context_has_an_image(part):
    part.awake = False
    y, log_det = part.forward_and_log_det(torch.randn(3), torch.randn(7, 1, 2))
    assert (y.shape, log_det.shape) == ((7, 1, 3), (7, 1))


def test_asleep_its_parameters_get_no_gradient(part):
    flow = pf.Compose(part, moved(Coupling(3, hidden_dims=(8,))))
    part.awake = False
    y, log_det, _ = flow.forward_with_score(torch.randn(5, 3), torch.randn(5, 3), torch.randn(5, 2))
    (y.sum() + log_det.sum()).backward()
    assert all(p.grad is None for p in part.parameters())
    assert any(p.grad is not None for p in flow.parameters())


def test_copies_sleep_and_what_is_loaded_is_awake(part):
    part.awake = False
    assert not copy.deepcopy(part).awake
    fresh = Dormant(Coupling(3, context_dim=2, hidden_dims=(8,)))
    fresh.load_state_dict(part.state_dict())
    assert fresh.awake


def test_only_bijectors_sleep():
    with pytest.raises(TypeError, match="Dormant expected a Bijector, got ReLU"):
        Dormant(torch.nn.ReLU())


@pytest.mark.parametrize("dim", [1, 2, 5, 17, 130])
def test_a_hybrid_starts_as_the_identity(dim):
    flow, x = pf.build_flow("hybrid", dim), 3 * torch.randn(20, dim)
    y, log_det = flow.forward_and_log_det(x)
    torch.testing.assert_close(y, x, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(log_det, torch.zeros(20), rtol=0, atol=1e-5)


def test_a_hybrid_holds_a_funnel_without_its_couplings():
    """Log-scales that are linear in the first coordinate, far out too."""
    flow = pf.build_flow("hybrid", 3, num_layers=2, hidden_dims=(8,)).double()
    rest, shapes, last = flow.bijectors
    rest.awake = shapes.awake = False
    weight = last.conditioner.net.linears[0].weight
    with torch.no_grad():
        weight.view(2, 3, 3)[1, 1:, 0] = 1.5
    x = torch.tensor([[4.0, 1.0, -1.0], [-4.0, 1.0, 2.0]], dtype=torch.float64)
    scale = torch.exp(1.5 * x[:, :1])
    torch.testing.assert_close(flow(x)[:, 1:], scale * x[:, 1:], rtol=0.02, atol=0)


@pytest.mark.parametrize("sharpness", [0, 3, -2, 1.5, True])
def test_sharpness_is_one_or_even(sharpness):
    with pytest.raises(ValueError, match="sharpness to be 1 or an even int > 0"):
        Affine(sharpness=sharpness)


def test_a_sharp_bound_is_felt_late_and_is_kept():
    raw = torch.tensor([-1e30, -50.0, -5.0, 0.0, 5.0, 50.0, 1e30])
    log_scale = Affine(20.0, sharpness=4)._unpack(torch.stack([raw, raw], -1))[1]
    torch.testing.assert_close(log_scale[2:5], raw[2:5], rtol=1e-3, atol=0)
    assert torch.equal(log_scale[[0, -1]], torch.tensor([-20.0, 20.0]))
    assert (log_scale.diff() > 0).all()
