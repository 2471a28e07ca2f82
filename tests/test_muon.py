"""The optimizer of flows."""

import copy

import pytest
import torch

import pyroflows as pf
from pyroflows.infer.muon import Muon, MuonAdam, network_matrices

SINGULAR = (0.6, 1.3)  # where five steps of the polynomial leave singular values


@pytest.mark.parametrize("shape", [(8, 8), (4, 20), (20, 4)])
def test_a_step_turns_all_directions_alike(shape):
    torch.manual_seed(0)
    weight = torch.zeros(shape, requires_grad=True)
    weight.grad = torch.randn(shape) @ torch.diag(torch.logspace(0, -1, shape[1]))
    Muon([weight], lr=1.0).step()
    lengths = torch.linalg.svdvals(weight.detach()) / (0.2 * max(shape) ** 0.5)
    assert SINGULAR[0] < lengths.min()
    assert lengths.max() < SINGULAR[1]
    assert (weight * weight.grad).sum() < 0


@pytest.mark.parametrize("size", [1e-39, 1e-25, 1e25])
def test_a_step_is_as_long_whatever_the_size_of_the_gradient(size):
    """Small ones, whose squares are zero, are what is left where a fit has arrived."""
    torch.manual_seed(0)
    weight = torch.zeros(5, 8, requires_grad=True)
    weight.grad = size * torch.randn(5, 8)
    Muon([weight], lr=1.0).step()
    lengths = torch.linalg.svdvals(weight.detach()) / (0.2 * 8**0.5)
    assert SINGULAR[0] < lengths.min()
    assert lengths.max() < SINGULAR[1]


def test_a_zero_gradient_moves_nothing():
    weight = torch.ones(3, 4, requires_grad=True)
    weight.grad = torch.zeros(3, 4)
    Muon([weight], lr=1.0).step()
    assert torch.equal(weight.detach(), torch.ones(3, 4))


def test_matrices_that_go_together_go_as_each_alone():
    torch.manual_seed(0)
    grads = torch.randn(3, 5, 4)
    together = [torch.zeros(5, 4, requires_grad=True) for _ in grads]
    alone = [torch.zeros(5, 4, requires_grad=True) for _ in grads]
    optimizers = [Muon(together, lr=0.1), *(Muon([p], lr=0.1) for p in alone)]
    for _ in range(3):
        for p, q, grad in zip(together, alone, grads, strict=True):
            p.grad, q.grad = grad.clone(), grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    for p, q in zip(together, alone, strict=True):
        torch.testing.assert_close(p, q)


def test_networks_with_hidden_layers_are_its_matter_and_nothing_else():
    flow = pf.build_flow("hybrid", 3, hidden_dims=(8, 8))
    names = {id(p): name for name, p in flow.named_parameters()}
    found = {names[id(p)] for p in network_matrices(flow)}
    expected = {
        name
        for name, p in flow.named_parameters()
        if p.dim() == 2 and name.startswith("bijectors.0.")  # the last layer has no hidden ones
    }
    assert found == expected
    assert len(found) == 8 * 3


def make(params):
    return MuonAdam(params, params[:1], lr=0.1)


def steps(params, optimizer, number):
    for _ in range(number):
        optimizer.zero_grad()
        sum((p - 1).square().sum() for p in params).backward()
        optimizer.step()


def test_it_goes_on_from_its_state_to_the_same_numbers():
    params = [torch.zeros(3, 4, requires_grad=True), torch.zeros(5, requires_grad=True)]
    optimizer = make(params)
    steps(params, optimizer, 5)
    twins = [p.detach().clone().requires_grad_() for p in params]
    again = make(twins)
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    steps(params, optimizer, 5)
    steps(twins, again, 5)
    assert all(torch.equal(*pair) for pair in zip(params, twins, strict=True))


def test_the_rate_of_both_is_set_by_their_groups():
    params = [torch.zeros(3, 4, requires_grad=True), torch.zeros(5, requires_grad=True)]
    optimizer = make(params)
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    steps(params, optimizer, 2)
    assert not any(p.any() for p in params)


def test_it_finds_a_minimum():
    params = [torch.zeros(3, 4, requires_grad=True), torch.zeros(5, requires_grad=True)]
    optimizer = make(params)
    for step in range(500):
        for group in optimizer.param_groups:
            group["lr"] = 0.1 * (1 - step / 500)
        steps(params, optimizer, 1)
    for p in params:
        torch.testing.assert_close(p.detach(), torch.ones_like(p), rtol=0, atol=0.01)
