"""Conditioners: what they depend on, where they start, what they refuse."""

import pytest
import torch
from torch import nn
from torch.autograd.functional import jacobian
from torch.testing import assert_close

from pyroflows.networks import Conditioner, MaskedConditioner

pytestmark = pytest.mark.usefixtures("_double")
ACTIVATIONS = ["relu", "tanh", "elu", "silu", "gelu", nn.Softplus]


def randomized(network: nn.Module) -> nn.Module:
    with torch.no_grad():
        for p in network.parameters():
            p.normal_()
    return network


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("residual", [False, True])
def test_conditioner_depends_on_inputs_and_context(activation, residual: bool):
    network = Conditioner(
        2, (3, 4), context_dim=1, hidden_dims=(16, 16), activation=activation, residual=residual
    )
    randomized(network)
    rows = jacobian(network, (torch.randn(2), torch.randn(1)))
    assert network(torch.randn(5, 2), torch.randn(5, 1)).shape == (5, 3, 4)
    assert all(row.any() for row in rows)


def test_conditioner_of_nothing_is_a_parameter():
    network = Conditioner(0, (3,))
    assert network() is next(network.parameters())


def test_networks_start_near_zero():
    x = torch.randn(100, 4)
    assert Conditioner(4, (9,))(x).abs().max() < 0.1
    assert MaskedConditioner(4, 5)(x).abs().max() < 0.1
    assert Conditioner(0, (1000,))().abs().max() < 0.1


@pytest.mark.parametrize("dim", [1, 2, 3, 5])
@pytest.mark.parametrize("context_dim", [0, 2])
@pytest.mark.parametrize("hidden_dims", [(), (3,), (16, 16), (2, 2)])
@pytest.mark.parametrize("residual", [False, True])
def test_masked_conditioner_sees_what_comes_before_and_no_more(
    dim: int, context_dim: int, hidden_dims: tuple[int, ...], residual: bool
):
    order = torch.randperm(dim).tolist()
    network = MaskedConditioner(
        dim,
        2,
        order=order,
        context_dim=context_dim,
        hidden_dims=hidden_dims,
        activation="tanh",
        residual=residual,
    )
    randomized(network)
    c = torch.randn(context_dim) if context_dim else None
    depends = jacobian(lambda x: network(x, c), torch.randn(dim)).abs().sum(1) > 0
    for place, i in enumerate(order):
        before, after = order[:place], order[place:]
        assert not depends[i, after].any()
        if min(hidden_dims, default=99) >= dim:  # else units are too few for all
            assert depends[i, before].all()
    if context_dim and min(hidden_dims, default=99) >= dim:
        by_context = jacobian(lambda v: network(torch.zeros(dim), v), c).abs().sum(1) > 0
        assert by_context.all()


@pytest.mark.parametrize("width", [1, 5, 40])
def test_few_hidden_units_still_see_the_coordinate_before_last(width: int):
    network = randomized(MaskedConditioner(30, 1, hidden_dims=(width,), activation="tanh"))
    depends = jacobian(network, torch.randn(30)).abs().sum(1) > 0
    assert depends[-1, :29].all()


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("hidden_dims", [(), (5,), (6, 6), (6, 6, 6, 6)])
@pytest.mark.parametrize("batch", [(), (4,), (2, 3), (0,)])
def test_pullback_is_that_of_autograd(activation, residual, hidden_dims, batch):
    network = MaskedConditioner(
        3,
        2,
        order=[1, 2, 0],
        context_dim=1,
        hidden_dims=hidden_dims,
        activation=activation,
        residual=residual,
    )
    randomized(network)
    x, c = torch.randn(*batch, 3, requires_grad=True), torch.randn(*batch, 1)
    params, pull = network.forward_with_pullback(x, c)
    assert_close(params, network(x, c))
    each, total = torch.randn(*batch, 3, 2), torch.randn(*batch, 3, 2)
    rows, last = pull(each, total)
    assert not rows.requires_grad
    rows = torch.stack([*rows, last])
    cotangents = [*(each * torch.eye(3)[i][:, None] for i in range(3)), total]
    for i, cotangent in enumerate(cotangents):
        (expected,) = torch.autograd.grad(
            params, x, cotangent, retain_graph=True, materialize_grads=True
        )
        assert_close(rows[i], expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hidden_dims": (64, 0)}, "positive ints"),
        ({"hidden_dims": 64}, r"sequence of positive ints such as \(64, 64\), got 64"),
        ({"activation": "rellu"}, "'relu', 'tanh', 'elu', 'silu', 'gelu' or a module class"),
        ({"residual": True, "hidden_dims": (4, 5)}, "hidden_dims of one size"),
    ],
)
def test_bad_options_are_refused(options: dict, message: str):
    with pytest.raises(ValueError, match=message):
        Conditioner(2, (3,), **options)
    with pytest.raises(ValueError, match=message):
        MaskedConditioner(2, 3, **options)


def test_wrong_inputs_are_refused():
    network = Conditioner(2, (3,), context_dim=1)
    with pytest.raises(TypeError, match=r"expected context of shape \(\*, 1\), got none"):
        network(torch.zeros(2))
    with pytest.raises(ValueError, match=r"expected inputs of shape \(\*, 2\), got \(5, 3\)"):
        network(torch.zeros(5, 3), torch.zeros(1))
    with pytest.raises(TypeError, match=r"expected no context, got \(1,\)"):
        MaskedConditioner(2, 3)(torch.zeros(2), torch.zeros(1))
