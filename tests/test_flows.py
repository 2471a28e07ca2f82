"""The registry, the recipes, and what they cost."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.autograd.functional import jacobian

import pyroflows as pf
from pyroflows.bijectors import LocScale, LULinear, Permutation
from pyroflows.flows import registry
from pyroflows.networks import Conditioner, MaskedConditioner
from tests.cases import BUILT_IN

pytestmark = pytest.mark.usefixtures("_double")
RICH = ["iaf", "maf", "nice", "nsf", "nsf_coupling", "realnvp"]  # coupling and autoregressive


@pytest.fixture
def _registry(monkeypatch):
    monkeypatch.setattr(registry, "_FLOWS", dict(registry._FLOWS))


def randomized(flow: pf.Bijector) -> pf.Bijector:
    with torch.no_grad():
        for p in flow.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return flow


def test_the_recipes_of_the_package():
    names = ["affine", "diagonal", "iaf", "maf", "nice", "nsf", "nsf_coupling", "realnvp"]
    assert {*names} <= {*BUILT_IN}


@pytest.mark.parametrize("name", BUILT_IN)
def test_flows_start_near_the_identity(name: str):
    flow, x = pf.build_flow(name, 5), torch.randn(100, 5)
    y, log_det = flow.forward_and_log_det(x)
    assert (y - x).abs().max() < 0.2
    assert log_det.abs().max() < 0.2


@pytest.mark.parametrize("name", RICH)
@pytest.mark.parametrize("dim", [1, 2, 3, 4, 5, 6])
def test_every_coordinate_moves_and_depends_on_all(name: str, dim: int):
    flow = randomized(pf.build_flow(name, dim, hidden_dims=(32, 32), activation=Watched))
    matrix = sum(
        jacobian(lambda x: flow.forward_and_log_det(x)[0], torch.randn(dim)).abs() for _ in range(5)
    )
    assert (matrix > 0).all()
    x = torch.randn(20, dim)
    assert ((flow.forward_and_log_det(x)[0] - x).abs().amax(0) > 0).all()


@pytest.mark.parametrize("name", BUILT_IN)
def test_construction_needs_no_seed_beyond_parameters(name: str):
    """Permutations and masks are the same in every process: parameters alone say it all."""
    torch.manual_seed(1)
    first = pf.build_flow(name, 4)
    torch.manual_seed(2)
    second = pf.build_flow(name, 4)
    second.load_state_dict(dict(first.named_parameters()), strict=False)
    x = torch.randn(5, 4)
    torch.testing.assert_close(first(x), second(x))


@pytest.mark.parametrize("name", RICH)
def test_options(name: str):
    options = {"num_layers": 2, "hidden_dims": (7,), "activation": "silu"}
    if "nsf" in name:
        options |= {"num_bins": 3, "bound": 2.5}
    flow = pf.build_flow(name, 3, context_dim=2, **options)
    networks = [m for m in flow.modules() if isinstance(m, Conditioner | MaskedConditioner)]
    assert len([n for n in networks if isinstance(n.net.activation, torch.nn.SiLU)]) == 2
    y, log_det = flow.forward_and_log_det(torch.randn(4, 3), torch.randn(4, 2))
    assert y.isfinite().all()
    assert log_det.shape == (4,)


class Watched(torch.nn.ReLU):
    """Every use of it can be seen; that of the usual one may be in place."""


@pytest.mark.parametrize(
    ("name", "sample", "score"),
    [("realnvp", 4, 4), ("nsf_coupling", 4, 4), ("nsf", 3, 3), ("iaf", 3, 3), ("maf", 3, 3)],
)
def test_cost_in_network_passes(name: str, sample: int, score: int):
    flow = pf.build_flow(name, 3, activation=Watched)
    passes = _count_passes(flow, num_points=2)
    zeros = torch.zeros(3)
    d = torch.distributions.TransformedDistribution(
        torch.distributions.Independent(torch.distributions.Normal(zeros, zeros + 1), 1), [flow]
    )
    y = d.rsample((2,))
    assert passes() == sample
    d.log_prob(y)
    assert passes() == sample  # scoring one's own draw is free
    d.log_prob(y.clone())
    assert passes() == sample + score


@pytest.mark.parametrize(("name", "cost"), [("realnvp", 4), ("nsf", 3), ("iaf", 3), ("maf", 6)])
def test_cost_of_draw_density_and_score_together(name: str, cost: int):
    flow = pf.build_flow(name, 3, activation=Watched)
    passes = _count_passes(flow, num_points=5)
    x = torch.randn(5, 3)
    flow.forward_with_score(x, -x)
    assert passes() == cost


def _count_passes(flow: pf.Bijector, num_points: int) -> Callable[[], float]:
    """Passes through networks: in one, each hidden unit is computed once for every point."""
    parts: list[float] = []
    for m in flow.modules():
        if isinstance(m, Conditioner | MaskedConditioner) and m.net is not None:
            total = num_points * sum(linear.out_features for linear in m.net.linears[:-1])

            def count(module: object, inputs: object, output: Tensor, total: int = total) -> None:
                parts.append(output.numel() / total)

            m.net.activation.register_forward_hook(count)
    return lambda: round(sum(parts), 6)


@pytest.mark.parametrize("name", BUILT_IN)
def test_bad_sizes_are_refused(name: str):
    with pytest.raises(ValueError, match="expected dim >= 1, got 0"):
        pf.build_flow(name, 0)
    with pytest.raises(ValueError, match="expected context_dim >= 0, got -1"):
        pf.build_flow(name, 2, context_dim=-1)
    with pytest.raises(TypeError, match="expected dim to be an int, got float"):
        pf.build_flow(name, 2.0)


@pytest.mark.parametrize(
    ("name", "options", "error", "message"),
    [
        ("nsf", {"num_layers": 0}, ValueError, "num_layers expected a positive int, got 0"),
        ("nsf", {"num_layers": 1.5}, ValueError, "num_layers expected a positive int, got 1.5"),
        ("nsf", {"num_bins": 1}, ValueError, "num_bins expected an int of at least 2"),
        ("nsf", {"bound": -2.0}, ValueError, "bound expected a positive, finite number"),
        ("realnvp", {"hidden_dims": [0]}, ValueError, "hidden_dims expected a sequence"),
        ("maf", {"activation": "nope"}, ValueError, "activation expected one of 'relu'"),
        ("maf", {"num_bins": 3}, TypeError, "'maf' takes no option 'num_bins': it takes num_lay"),
    ],
)
def test_bad_options_are_refused(name, options, error, message):
    with pytest.raises(error, match=message):
        pf.build_flow(name, 2, **options)


def test_unknown_names_get_the_closest_match():
    with pytest.raises(ValueError, match=r"choose one of affine, .*Did you mean 'realnvp'"):
        pf.build_flow("RealNVP2", 2)
    with pytest.raises(ValueError, match=r"Unknown flow 'zzz': choose one of affine, .*realnvp"):
        pf.build_flow("zzz", 2)
    with pytest.raises(TypeError, match="expected a name or a recipe, got int"):
        pf.build_flow(3, 2)


@pytest.mark.usefixtures("_registry")
def test_registering_a_recipe():
    @pf.register_flow("mine")
    def mine(dim, *, context_dim=0, num_layers=1):
        layers = [LULinear(dim, context_dim=context_dim) for _ in range(num_layers)]
        return pf.Compose(*layers)

    assert "mine" in pf.available_flows()
    assert len(pf.build_flow("mine", 2, num_layers=3).bijectors) == 3
    with pytest.raises(ValueError, match=r"'mine' is already registered: .*replace=True"):
        pf.register_flow("mine")(mine)
    pf.register_flow("mine", replace=True)(LocScale)
    assert isinstance(pf.build_flow("mine", 2), LocScale)
    assert isinstance(pf.build_flow(LULinear, 2), LULinear)
    assert pf.build_flow(partial(mine, num_layers=2), 2).dim == 2


@pytest.mark.usefixtures("_registry")
def test_what_is_not_a_recipe_is_refused():
    with pytest.raises(TypeError, match="expected a recipe to call, got int"):
        pf.register_flow("three")(3)
    with pytest.raises(TypeError, match="write @register_flow"):
        pf.register_flow(LocScale)
    with pytest.raises(TypeError, match="returned Linear: a recipe returns a Bijector"):
        pf.build_flow(lambda dim, *, context_dim: torch.nn.Linear(dim, dim), 2)
    with pytest.raises(ValueError, match="asked for dim=3, context_dim=0 and returned dim=2"):
        pf.build_flow(lambda dim, *, context_dim: Permutation([1, 0]), 3)
