"""Networks that a user brings, and Hermite functions: what they see, where they start."""

import math
from functools import partial

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.autograd.functional import jacobian
from torch.testing import assert_close

from pyroflows import Compose
from pyroflows.bijectors import Autoregressive, Coupling, Elementwise, LocScale
from pyroflows.networks import Conditioner, Hermite, SeparateConditioner
from tests import laws
from tests.case import Case
from tests.families import conditioners
from tests.families.conditioners import Gated

pytestmark = pytest.mark.usefixtures("_double")
BUILDERS = conditioners.builders()


@pytest.mark.parametrize("name", BUILDERS)
def test_compiles(name: str):
    laws.compile_agrees(Case(BUILDERS[name]))


@pytest.mark.parametrize("name", BUILDERS)
@pytest.mark.parametrize("context_dim", [0, 2])
def test_layers_start_as_the_identity(name: str, context_dim: int):
    b, x = BUILDERS[name](3, context_dim=context_dim), torch.randn(20, 3)
    y, log_det = b.forward_and_log_det(x, torch.randn(20, 2) if context_dim else None)
    assert_close(y, x)
    assert_close(log_det, torch.zeros(20))


class Watched(nn.Linear):
    shapes: tuple = ()

    def forward(self, x):
        Watched.shapes += (tuple(x.shape),)
        return super().forward(x)


@pytest.mark.parametrize("direction", ["forward_and_log_det", "inverse_and_log_det"])
def test_modules_see_one_batch_dimension_once_a_pass(direction: str, monkeypatch):
    monkeypatch.setattr(Watched, "shapes", ())
    x, c = torch.randn(4, 1, 3), torch.randn(5, 2)
    getattr(Coupling(3, network=Watched, context_dim=2), direction)(x, c)
    assert Watched.shapes == ((20, 3),)
    Watched.shapes = ()
    getattr(Autoregressive(3, network=Watched, order=[2, 0, 1], context_dim=2), direction)(x, c)
    assert Watched.shapes == ((5, 2), (20, 3), (20, 4))
    Watched.shapes = ()
    getattr(Elementwise(3, network=Watched, context_dim=2), direction)(x, c)
    assert Watched.shapes == ((5, 2),)


def test_without_inputs_no_module_is_built():
    def refuse(input_dim: int, output_dim: int) -> nn.Module:
        raise AssertionError

    assert Conditioner(0, (3,), network=refuse)().shape == (3,)
    assert not list(Coupling(1, network=refuse).conditioner.children())


def test_the_module_itself_is_trained():
    torch.manual_seed(1)
    network = Conditioner(2, (3,), network=Gated)
    x = torch.randn(50, 2)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.05)
    losses = []
    for _ in range(100):
        optimizer.zero_grad()
        losses.append((network(x) - torch.sin(x.sum(-1, keepdim=True))).square().mean())
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.1 * losses[0]
    assert all(p.grad.any() for p in network.parameters())


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [2, 0, 3, 1]])
def test_separate_networks_see_what_comes_before_and_no_more(order: list[int]):
    network = SeparateConditioner(4, 2, Gated, order=order)
    with torch.no_grad():
        for p in network.parameters():
            p.normal_()
    depends = jacobian(network, torch.randn(4)).abs().sum(1) > 0
    for place, i in enumerate(order):
        assert depends[i, order[:place]].all()
        assert not depends[i, order[place:]].any()


def test_wrong_modules_are_refused():
    with pytest.raises(TypeError, match=r"network\(1, 4\) expected to return a torch.nn.Module, g"):
        Coupling(3, network=lambda i, o: None)
    with pytest.raises(TypeError, match=r"network expected .*, got a Linear that is built already"):
        Coupling(3, network=nn.Linear(1, 4))
    layer = Coupling(3, network=lambda i, o: nn.Linear(i, o + 1))
    with pytest.raises(ValueError, match=r"Linear, expected to give 4 outputs for each of 5 point"):
        layer(torch.zeros(5, 3))
    with pytest.raises(TypeError, match=r"expected context of shape \(\*, 1\), got none"):
        SeparateConditioner(3, 2, nn.Linear, context_dim=1)(torch.zeros(3))


# --- Hermite functions ----------------------------------------------------------------------


def test_hermite_functions_are_those_of_numpy():
    x = torch.linspace(-6, 6, 101)[:, None]
    one, *functions = Hermite(1, 1, degree=6)._functions(x)
    assert_close(one, torch.ones(101, 1))
    for n, function in enumerate(functions):
        norm = math.sqrt(2.0**n * math.factorial(n) * math.sqrt(math.pi))
        series = np.polynomial.hermite.hermval(x.numpy(), [0.0] * n + [1.0])
        assert_close(function, torch.from_numpy(series) * torch.exp(-x * x / 2) / norm)
        assert function.abs().max() <= 0.7512


@pytest.mark.parametrize(("dim", "degree"), [(1, 1), (1, 4), (2, 1), (2, 3), (4, 2)])
def test_hermite_has_each_product_once(dim: int, degree: int):
    network = Hermite(dim, 1, degree=degree)
    number = math.comb(dim + degree, degree) - 1
    assert network.coefficients.shape == (1, number)
    x = torch.randn(7 * number, dim)
    with torch.no_grad():
        columns = [_one_term(network, term, x) for term in range(number)]
    assert torch.linalg.matrix_rank(torch.cat(columns, -1)) == number


def _one_term(network: Hermite, term: int, x: torch.Tensor) -> torch.Tensor:
    network.coefficients.zero_()
    network.coefficients[0, term] = 1.0
    return network(x)


def test_a_product_of_two_inputs_is_the_product_of_their_functions():
    network = Hermite(2, 1, degree=2)
    term = network.terms.tolist().index([2, 3])  # the first function of either input
    x = torch.randn(9, 2)
    with torch.no_grad():
        out = _one_term(network, term, x)
    weight = 5 * math.tanh(1 / 5) / math.sqrt(math.pi)
    assert_close(out[:, 0], weight * torch.exp(-x.square().sum(-1) / 2))


def test_hermite_is_bounded_however_large_its_parameters_and_inputs_are():
    network = Hermite(3, 4, degree=3, bound=2.0)
    with torch.no_grad():
        for p in network.parameters():
            p.mul_(0).add_(1e6 * torch.randn_like(p))
        network.bias.zero_()
    x = torch.cat([4 * torch.randn(500, 3), torch.tensor([[1e6, -1e200, 0.0], [1e300] * 3])])
    x.requires_grad_()
    out = network(x)
    assert out.abs().max() <= 2 * 19
    assert (out[-1] == 0).all()
    (gradient,) = torch.autograd.grad(out.sum(), x)
    assert gradient.isfinite().all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"degree": 0}, "Hermite expected degree to be a positive int, got 0"),
        ({"degree": 2.0}, "Hermite expected degree to be a positive int, got 2.0"),
        ({"bound": 0.0}, "Hermite expected bound > 0, got 0.0"),
    ],
)
def test_bad_options_are_refused(options: dict, message: str):
    with pytest.raises(ValueError, match=message):
        Hermite(2, 3, **options)


@pytest.mark.parametrize("structure", [Coupling, Autoregressive])
def test_hermite_fits_a_bent_density(structure):
    z = torch.randn(1000, 2)
    y = torch.stack([z[:, 0], 0.3 * z[:, 1] + z[:, 0].square() - 1], -1)
    flow = Compose(structure(2, network=partial(Hermite, degree=4)), LocScale(2))
    base = dist.Normal(torch.zeros(2), 1.0).to_event(1)
    optimizer = torch.optim.Adam(flow.parameters(), lr=0.03)
    for _ in range(300):
        optimizer.zero_grad()
        loss = -dist.TransformedDistribution(base, [flow]).log_prob(y).mean()
        loss.backward()
        optimizer.step()
    exact = 1 + math.log(2 * math.pi) + math.log(0.3)
    assert loss < exact + 0.1
