"""Angles: what stays on the circle, closes where the circle does, and mixes with numbers."""

import json
import math
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.autograd.functional import jacobian
from torch.testing import assert_close

import pyroflows as pf
from pyroflows.bases import build_base
from pyroflows.bijectors import Autoregressive, Coupling, Elementwise
from pyroflows.networks import Conditioner, MaskedConditioner, SeparateConditioner
from pyroflows.numerics import jacobian_rows
from pyroflows.transformers import (
    Affine,
    ByIndex,
    CircularSpline,
    RationalQuadraticSpline,
    Stacked,
)
from tests.case import HIDDEN

pytestmark = pytest.mark.usefixtures("_double")
FROZEN = json.loads((Path(__file__).parent / "frozen" / "circular.json").read_text())
SPLINE = CircularSpline(num_bins=4)
MIXED = ByIndex([(SPLINE, [0, 2]), (RationalQuadraticSpline(4, 3.0), [1, 3])])
STRUCTURES = [Elementwise, Coupling, Autoregressive]
PI = math.pi


def moved(layer: pf.Bijector, noise: float = 0.5) -> pf.Bijector:
    with torch.no_grad():
        for p in layer.parameters():
            p.add_(noise * torch.randn_like(p))
    return layer


def raws(*batch: int, noise: float = 1.0) -> torch.Tensor:
    return noise * torch.randn(*batch, SPLINE.num_params)


def test_it_is_that_of_zuko_half_a_turn_away():
    x = torch.tensor(FROZEN["x"])
    widths, heights, slopes = (torch.tensor(FROZEN[k]) for k in ("widths", "heights", "slopes"))
    none = torch.zeros(len(x), 1)  # of a slope where the circle closes, and of a shift
    params = torch.cat([widths, heights, none, slopes, none], -1)
    spline = CircularSpline(5, max_slope=1e3)
    y, log_slope = spline.forward_and_log_det(x.remainder(2 * PI) - PI, params)
    expected = torch.tensor(FROZEN["y"]), torch.tensor(FROZEN["log_slope"])
    assert_close((y, log_slope), expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_zeros_are_the_identity(dtype: torch.dtype):
    x = torch.linspace(-20, 20, 321, dtype=dtype)
    zeros = torch.zeros(321, SPLINE.num_params, dtype=dtype)
    expected, tolerance = (x, torch.zeros_like(x)), 20 * torch.finfo(dtype).eps
    for method in (SPLINE.forward_and_log_det, SPLINE.inverse_and_log_det):
        assert_close(method(x, zeros), expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("noise", [0.0, 1.0, 1e3])
def test_the_circle_is_mapped_onto_itself(dtype: torch.dtype, noise: float):
    """Its upper end never comes out, so that a base on the circle can score every draw."""
    end = torch.tensor(PI, dtype=dtype)
    near = torch.nextafter(end, torch.zeros_like(end)).expand(2000)
    x = torch.cat([(2 * torch.rand(2000, dtype=dtype) - 1) * PI, near, -near, -end.expand(9)])
    params = raws(len(x), noise=noise).to(dtype)
    for method in (SPLINE.forward_and_log_det, SPLINE.inverse_and_log_det):
        y, log_slope = method(x, params)
        assert ((y >= -PI) & (y < PI)).all()
        assert log_slope.isfinite().all()


def test_both_ends_of_the_circle_are_one_point():
    params = raws(50)
    for method in (SPLINE.forward_and_log_det, SPLINE.inverse_and_log_det):
        (low, log_low), (high, log_high) = (
            method(torch.full((50,), end * (1 - 1e-12)), params) for end in (-PI, PI)
        )
        assert_close(torch.sin((high - low) / 2), torch.zeros(50), atol=1e-8, rtol=0)
        assert_close(log_high, log_low, atol=1e-6, rtol=0)


def test_a_value_keeps_its_turns():
    x, params, turns = PI * (2 * torch.rand(300) - 1), raws(300), torch.randint(-9, 10, (300,))
    for method in (SPLINE.forward_and_log_det, SPLINE.inverse_and_log_det):
        y, log_slope = method(x, params)
        expected = (y + 2 * PI * turns, log_slope)
        assert_close(method(x + 2 * PI * turns, params), expected, atol=1e-8, rtol=1e-8)


def test_the_last_raw_is_a_rotation():
    x, params = PI * (2 * torch.rand(300) - 1), raws(300)
    still = torch.cat([params[:, :-1], torch.zeros(300, 1)], -1)
    y, log_slope = SPLINE.forward_and_log_det(x, params)
    expected, same = SPLINE.forward_and_log_det(x, still)
    assert_close(log_slope, same)
    turn = torch.stack([(y - expected - params[:, -1]).cos(), (y - expected - params[:, -1]).sin()])
    assert_close(turn, torch.tensor([[1.0], [0.0]]).expand(2, 300))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("size", [1.0, 1e6, 1e20])
def test_finite_values_and_gradients(dtype: torch.dtype, size: float):
    x = (size * torch.tensor([-1.0, 1.0, 0.5, -2.0, 0.0], dtype=dtype)).requires_grad_()
    for noise in (0.0, 1.0, 1e6):
        params = raws(5, noise=noise).to(dtype).requires_grad_()
        for method in (SPLINE.forward_and_log_det, SPLINE.inverse_and_log_det):
            y, log_slope = method(x, params)
            gradients = torch.autograd.grad(y.sum() + log_slope.sum(), [x, params])
            assert all(v.isfinite().all() for v in (y, log_slope, *gradients))


def test_first_and_second_derivatives():
    x, params = torch.tensor([-2.9, -1.0, 0.2, 1.5, 3.0, 11.0]), raws(6, noise=0.5)
    inputs = (x.requires_grad_(), params.requires_grad_())
    for method in (SPLINE.forward_and_log_det, SPLINE.inverse_and_log_det):
        assert torch.autograd.gradcheck(method, inputs)
        assert torch.autograd.gradgradcheck(method, inputs)


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("transformer", [SPLINE, MIXED], ids=["circular", "mixed"])
def test_a_density_is_continuous_where_the_circle_closes(structure: type, transformer):
    layer = moved(structure(4, transformer=transformer, hidden_dims=HIDDEN))
    angles = [i for i in range(4) if transformer.period(i)]
    base = build_base("circular", 4, indices=angles)
    y = torch.rand(20, 4) * 2 - 1
    for i in angles:
        values = []
        for end in (-PI, PI):
            y[:, i] = end * (1 - 1e-12)
            x, log_det = layer.inverse_and_log_det(y)
            values.append(base.log_prob(x) + log_det)
        assert values[0].isfinite().all()
        assert_close(*values, atol=1e-6, rtol=0)


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("dim", [1, 2])
@pytest.mark.parametrize("circle", ["uniform", "von_mises"])
def test_a_density_on_the_torus_integrates_to_one(structure: type, dim: int, circle: str):
    layer = moved(structure(dim, transformer=SPLINE, hidden_dims=HIDDEN, activation="tanh"))
    base, number = build_base(circle, dim), {1: 100_000, 2: 1000}[dim]
    axis = PI * (2 * (torch.arange(number) + 0.5) / number - 1)
    grid = torch.stack(torch.meshgrid(*[axis] * dim, indexing="ij"), -1).flatten(0, -2)
    with torch.no_grad():
        x, log_det = layer.inverse_and_log_det(grid)
        mass = (base.log_prob(x) + log_det).exp().mean() * (2 * PI) ** dim
    assert abs(mass - 1) < 1e-4


def test_each_coordinate_has_its_own_transformer():
    x, params = 2 * torch.randn(7, 4), torch.randn(7, 4, MIXED.num_params)
    assert MIXED.num_params == 13
    assert MIXED.differs
    for method in ("forward_and_log_det", "inverse_and_log_det"):
        y, log_slope = getattr(MIXED, method)(x, params)
        for i, transformer in enumerate([SPLINE, RationalQuadraticSpline(4, 3.0)] * 2):
            own = getattr(transformer, method)(
                x[:, i], params[:, i, : transformer.num_params].contiguous()
            )
            assert_close((y[:, i], log_slope[:, i]), own)
            alone = MIXED.at([i])
            assert not alone.differs
            assert_close(getattr(alone, method)(x[:, i], params[:, i]), own)
        some = MIXED.at([3, 0])
        assert_close(
            getattr(some, method)(x[:, [3, 0]], params[:, [3, 0]]),
            (y[:, [3, 0]], log_slope[:, [3, 0]]),
        )
    assert [MIXED.period(i) for i in range(4)] == [2 * PI, None, 2 * PI, None]


def test_parts_of_a_stack_know_their_coordinates():
    stack = Stacked(MIXED, Affine())
    x, params = torch.randn(5, 4), torch.randn(5, 4, stack.num_params)
    y, log_slope = stack.forward_and_log_det(x, params)
    assert stack.differs
    assert stack.period(2) == 2 * PI
    some = stack.at([1, 2]).forward_and_log_det(x[:, 1:3], params[:, 1:3])
    assert_close(some, (y[:, 1:3], log_slope[:, 1:3]))


@pytest.mark.parametrize("network", [None, nn.Linear], ids=["masked", "own"])
@pytest.mark.parametrize("structure", [Coupling, Autoregressive])
def test_a_layer_of_a_mixture_has_an_inverse(structure: type, network):
    layer = moved(structure(4, transformer=MIXED, hidden_dims=HIDDEN, network=network), 0.3)
    x = torch.rand(30, 4) * 6 - 3
    y, log_det = layer.forward_and_log_det(x)
    assert_close(layer.inverse_and_log_det(y), (x, -log_det), atol=1e-8, rtol=1e-8)
    matrix = jacobian(lambda v: layer.forward_and_log_det(v)[0], x[0])
    assert_close(log_det[0], matrix.slogdet().logabsdet)


PERIODS = [2 * PI, None, 3.0]


@pytest.mark.parametrize(
    "network",
    [
        Conditioner(3, (3, 2), context_dim=1, hidden_dims=HIDDEN, periods=PERIODS),
        Conditioner(3, (3, 2), context_dim=1, network=nn.Linear, periods=PERIODS),
        MaskedConditioner(
            3, 2, order=[2, 0, 1], context_dim=1, hidden_dims=HIDDEN, periods=PERIODS
        ),
        MaskedConditioner(3, 2, hidden_dims=(), context_dim=1, periods=PERIODS),
        MaskedConditioner(3, 2, adjacency={2: [0], 1: [0, 2]}, context_dim=1, periods=PERIODS),
        SeparateConditioner(3, 2, nn.Linear, order=[2, 1, 0], context_dim=1, periods=PERIODS),
    ],
    ids=["perceptron", "own", "masked", "masked-linear", "graph", "separate"],
)
def test_networks_do_not_see_turns(network: nn.Module):
    network = moved(network.double())
    x, c = torch.randn(6, 3), torch.randn(6, 1)
    turned = x + torch.tensor([2 * PI, 0.0, -6.0])
    assert_close(network(turned, c), network(x, c))
    assert not torch.allclose(network(turned + 0.1, c), network(x, c))
    if isinstance(network, MaskedConditioner):
        each, total = torch.randn(6, 3, 2), torch.randn(6, 3, 2)
        point = x.requires_grad_()
        params, pull = network.forward_with_pullback(point, c)
        rows, last = pull(each, total)
        assert_close(rows.movedim(0, -2), jacobian_rows((params * each).sum(-1), point))
        expected = torch.autograd.grad((params * total).sum(), point)[0]
        assert_close(last, expected)


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: CircularSpline(1), ValueError, "num_bins expected an int of at least 2"),
        (lambda: ByIndex([(None, [0])]), TypeError, "ByIndex expected transformers, got NoneType"),
        (lambda: ByIndex([(SPLINE, [0, 2])]), ValueError, "each index from 0 on once"),
        (lambda: ByIndex([]), ValueError, "each index from 0 on once"),
        (lambda: Coupling(5, transformer=MIXED), ValueError, "was asked for coordinate 4"),
        (lambda: Conditioner(1, (1,), periods=[-1.0]), ValueError, "periods expected positive"),
        (lambda: pf.build_flow("ncsf", 2, circular=["wind"]), TypeError, "0..1, got 'wind': count"),
        (lambda: pf.build_flow("ncsf", 2, circular=[0.5]), TypeError, "0..1, got 0.5: count"),
        (lambda: pf.build_flow("ncsf", 2, circular=[2]), ValueError, "out of 0..1, each at most"),
    ],
)
def test_bad_settings_are_refused(build, error: type, message: str):
    with pytest.raises(error, match=message):
        build()


def test_values_of_another_size_are_refused():
    with pytest.raises(ValueError, match=r"ByIndex of 4 coordinates expected values of shape"):
        MIXED.forward_and_log_det(torch.zeros(3), torch.zeros(3, 13))


@pytest.mark.parametrize("circular", [None, [1], []])
def test_ncsf_fits_angles_beside_numbers(circular: list[int] | None):
    torch.manual_seed(0)
    angle = (torch.randn(400) * 0.4 + PI + PI).remainder(2 * PI) - PI
    data = torch.stack([angle.cos() / 2 + 0.1 * torch.randn(400), angle], -1)
    flow = pf.build_flow("ncsf", 2, circular=circular, hidden_dims=HIDDEN, num_layers=2)
    index = [0, 1] if circular is None else circular
    base = build_base("circular", 2, indices=index)
    optimizer = torch.optim.Adam(flow.parameters(), 0.02)
    losses = []
    for _ in range(60):
        x, log_det = flow.inverse_and_log_det(data)
        loss = -(base.log_prob(x) + log_det).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 1


def test_one_transformer_object_may_serve_two_groups():
    spline = RationalQuadraticSpline()
    layer = Coupling(3, transformer=ByIndex([(spline, [0]), (spline, [1, 2])]), hidden_dims=(8,))
    x = torch.randn(5, 3)
    assert_close(layer.inv(layer(x).clone()), x)
