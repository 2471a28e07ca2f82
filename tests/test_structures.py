"""Autoregressive layers by number of passes and by graph: what depends on what, and the cost."""

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.functional import jacobian
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

import pyroflows as pf
from pyroflows.bijectors import Autoregressive, Coupling
from pyroflows.transformers import Affine, RationalQuadraticSpline, Stacked, Transformer
from tests.families.structures import chain, wide

pytestmark = pytest.mark.usefixtures("_double")
DIM, CONTEXT_DIM = 6, 2
TREE = {1: [0], 2: [0], 3: [1], 4: [1, 2], 5: [0, 4]}


class Counted(Transformer):
    """A transformer that is not one of ours, and counts the inversions."""

    num_params = 2
    calls = 0

    def forward_and_log_det(self, x, params):
        return Affine().forward_and_log_det(x, params)

    def inverse_and_log_det(self, y, params):
        self.calls += 1
        return Affine().inverse_and_log_det(y, params)


class Foreign(nn.Module):
    """A network of another make, run as a whole."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.calls = network, 0

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        self.calls += 1
        return self.network(x, context)


def moved(b: pf.Bijector, noise: float = 0.5) -> pf.Bijector:
    with torch.no_grad():
        for p in b.parameters():
            p.add_(noise * torch.randn_like(p))
    return b


def sees(b: pf.Bijector) -> Tensor:
    """Which inputs each coordinate was seen to depend on, at some points."""
    context = torch.randn(b.context_dim) if b.context_dim else None

    def whole(v: Tensor) -> Tensor:
        return b.forward_and_log_det(v[: b.dim], v[b.dim :] if b.context_dim else None)[0]

    found = [jacobian(whole, torch.randn(b.dim + b.context_dim)) != 0 for _ in range(10)]
    assert context is None or context.shape == (b.context_dim,)
    return torch.stack(found).any(0)


@pytest.mark.parametrize("hidden_dims", [(), (12,), (12, 12)])
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("context_dim", [0, CONTEXT_DIM])
def test_a_graph_is_what_depends_on_what(hidden_dims: tuple, residual: bool, context_dim: int):
    options = {"hidden_dims": hidden_dims, "residual": residual, "activation": "tanh"}
    matrix = torch.eye(DIM, dtype=torch.bool)
    for i, parents in TREE.items():
        matrix[i, parents] = True
    every = torch.ones(DIM, context_dim, dtype=torch.bool)
    for adjacency in (TREE, matrix, matrix.tolist()):
        b = moved(Autoregressive(DIM, context_dim=context_dim, adjacency=adjacency, **options))
        assert_close(sees(b), torch.cat([matrix, every], 1))
    if context_dim:
        part = chain(DIM, context_dim, partly=True)
        b = moved(Autoregressive(DIM, context_dim=context_dim, adjacency=part, **options))
        assert_close(sees(b), part | torch.eye(*part.shape, dtype=torch.bool))


@pytest.mark.parametrize(("num_passes", "groups"), [(2, [3, 3]), (4, [2, 1, 2, 1]), (9, [1] * 6)])
def test_groups_depend_on_the_groups_before(num_passes: int, groups: list[int]):
    order = torch.tensor([4, 0, 3, 5, 1, 2])
    b = moved(Autoregressive(DIM, order=order, num_passes=num_passes, activation="tanh"))
    level = torch.repeat_interleave(torch.arange(len(groups)), torch.tensor(groups))
    expected = level[:, None] > level
    found = sees(b)[order][:, order]
    assert_close(found, expected | torch.eye(DIM, dtype=torch.bool))
    assert b.num_passes == len(groups)


def test_two_passes_move_what_a_coupling_moves_and_the_rest():
    two = moved(Autoregressive(DIM, num_passes=2, activation="tanh"))
    coupling = moved(Coupling(DIM, activation="tanh"))
    assert_close(sees(two), sees(coupling))


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({}, 6),
        ({"num_passes": 1}, 1),
        ({"num_passes": 2}, 2),
        ({"num_passes": 3, "order": range(6)[::-1]}, 3),
        ({"adjacency": TREE}, 4),
        ({"adjacency": {}}, 1),
        ({"adjacency": torch.ones(6, 6).tril() > 0}, 6),
    ],
)
@pytest.mark.parametrize("hidden_dims", [(32, 32), ()])
def test_cost_of_each_direction(options: dict, steps: int, hidden_dims: tuple):
    """One pass forward; so many steps back, which together are one pass in arithmetic."""
    counted = Counted()
    b = moved(Autoregressive(DIM, transformer=counted, hidden_dims=hidden_dims, **options), 0.2)
    assert b.num_passes == steps
    x = torch.randn(40, DIM)
    with FlopCounterMode(display=False) as one, torch.no_grad():
        y, log_det = b.forward_and_log_det(x)
    with FlopCounterMode(display=False) as all_steps, torch.no_grad():
        again = b.inverse_and_log_det(y)
    assert counted.calls == steps
    assert all_steps.get_total_flops() <= 1.1 * one.get_total_flops() + 40 * 2 * DIM * 33
    assert_close(again, (x, -log_det))
    b.conditioner = foreign = Foreign(b.conditioner)
    assert_close(b.inverse_and_log_det(y), (x, -log_det))
    assert foreign.calls == steps


def test_a_whole_triangle_is_the_order():
    """Units see the same sets; numbers of units differ where sets are not as many."""
    triangle = torch.ones(4, 4).tril() > 0
    ours = Autoregressive(4, adjacency=triangle, hidden_dims=(6, 6)).conditioner
    usual = Autoregressive(4, hidden_dims=(6, 6)).conditioner
    for a, b in zip(ours.net.linears, usual.net.linears, strict=True):
        assert_close(a.mask, b.mask)
    assert ours.degrees == usual.degrees


@pytest.mark.parametrize(
    "options",
    [
        {"num_passes": 2},
        {"num_passes": 4, "order": [3, 1, 5, 0, 2, 4]},
        {"adjacency": TREE},
        {"adjacency": chain(DIM)},
        {"adjacency": chain(DIM), "hidden_dims": ()},
        {"num_passes": 3, "hidden_dims": ()},
        {"num_passes": 3, "hidden_dims": (9, 9, 9), "residual": True, "activation": "silu"},
    ],
)
@pytest.mark.parametrize("context_dim", [0, CONTEXT_DIM])
def test_steps_give_what_passes_give(options: dict, context_dim: int):
    """Values and both orders of derivatives, beside a network that is run as a whole."""
    spline = RationalQuadraticSpline(4, 3.0)
    b = moved(Autoregressive(DIM, context_dim=context_dim, transformer=spline, **options))
    y = torch.randn(5, DIM).requires_grad_()
    c = torch.randn(5, context_dim).requires_grad_() if context_dim else None
    inputs = [y, *b.parameters(), *([] if c is None else [c])]
    results = []
    own = b.conditioner
    for network in (own, Foreign(own)):
        b.conditioner = network
        x, log_det = b.inverse_and_log_det(y, c)
        total = x.sin().sum() + log_det.square().sum()
        first = torch.autograd.grad(total, inputs, create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), inputs)
        x0 = y.detach()
        pushed = b.forward_with_score(x0, -x0, c)
        results.append((x, log_det, *first, *second, *pushed))
    assert_close(*results)


def test_wide_graphs_of_many_coordinates():
    dim = 40
    b = Autoregressive(dim, adjacency=chain(dim), hidden_dims=wide(dim)).float()
    moved(b, 0.05)
    x = torch.randn(30, dim, dtype=torch.float32)
    y, log_det = b.forward_and_log_det(x)
    assert_close(b.inverse_and_log_det(y), (x, -log_det), atol=1e-3, rtol=1e-3)


def test_a_triangular_map_is_one():
    options = {"hidden_dims": (12, 12), "activation": "tanh"}
    whole = moved(pf.build_flow("triangular", DIM, **options))
    assert_close(sees(whole), torch.ones(DIM, DIM).tril() > 0)
    flow = moved(pf.build_flow("triangular", DIM, adjacency=TREE, **options))
    expected = torch.eye(DIM, dtype=torch.bool)
    for i, parents in TREE.items():
        expected[i, parents] = True
    assert_close(sees(flow), expected)
    assert flow.num_passes == 4


def test_stacked_transformers_are_one_after_the_other():
    spline, affine = RationalQuadraticSpline(4, 3.0), Affine()
    both = Stacked(spline, affine)
    x, raws = torch.randn(9), torch.randn(9, both.num_params)
    first, slope = spline.forward_and_log_det(x, raws[:, :-2])
    second, other = affine.forward_and_log_det(first, raws[:, -2:])
    assert_close(both.forward_and_log_det(x, raws), (second, slope + other))
    assert_close(both.inverse_and_log_det(second, raws), (x, -slope - other))
    with pytest.raises(TypeError, match="expected one or more transformers, got float"):
        Stacked(affine, 2.0)
    with pytest.raises(TypeError, match="expected one or more transformers, got none"):
        Stacked()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"num_passes": 0}, ValueError, "num_passes expected a positive int, got 0"),
        ({"num_passes": 1.5}, ValueError, "num_passes expected a positive int, got 1.5"),
        (
            {"adjacency": {0: [2], 1: [0], 2: [1]}},
            ValueError,
            "without cycles, got 0 depends on 2 depends on 1 depends on 0: leave out one",
        ),
        ({"adjacency": {0: [3]}}, ValueError, r"adjacency expected edges in 0..2, got 0: 3"),
        ({"adjacency": torch.ones(3, 3)}, TypeError, "expected booleans or a mapping, got torch.f"),
        (
            {"adjacency": torch.ones(2, 3) > 2},
            ValueError,
            r"adjacency expected shape \(3, 3\) or \(3, 5\), got \(2, 3\)",
        ),
        (
            {"adjacency": {1: [0], 2: [1]}, "hidden_dims": (8, 1)},
            ValueError,
            "hidden_dims expected at least 3 units in each layer, .* got 1",
        ),
        ({"adjacency": {}, "order": [0, 1, 2]}, ValueError, "leave out order and num_passes"),
        ({"adjacency": {}, "num_passes": 2}, ValueError, "leave out order and num_passes"),
        (
            {"num_passes": 2, "network": nn.Linear},
            ValueError,
            "takes no num_passes beside a network",
        ),
    ],
)
def test_what_is_no_structure_is_refused(options: dict, error: type, message: str):
    with pytest.raises(error, match=message):
        Autoregressive(3, context_dim=2, **options)
