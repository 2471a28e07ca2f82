"""What is particular to one family, and what each refuses."""

import pytest
import torch
from torch.testing import assert_close

from pyroflows import Bijector, Compose, Inverse
from pyroflows.bijectors import (
    Autoregressive,
    Coupling,
    Elementwise,
    FullAffine,
    Householder,
    LocScale,
    LowRankAffine,
    LULinear,
    Permutation,
)
from pyroflows.numerics import newton_inverse
from tests.cases import TRANSFORMERS

pytestmark = pytest.mark.usefixtures("_double")
AFFINE = {
    "loc_scale": (LocScale, lambda loc, scale: (loc, scale)),
    "full": (FullAffine, lambda loc, scale: (loc, scale.diag())),
    "low_rank": (
        lambda dim: LowRankAffine(dim, 1),
        lambda loc, scale: (loc, scale, torch.eye(len(loc), 1), torch.zeros(1)),
    ),
}


@pytest.mark.parametrize("name", AFFINE)
@pytest.mark.parametrize("scale", [1e-8, 1e-3, 1e8])
def test_extreme_locations_and_scales_keep_their_precision(name: str, scale: float):
    build, arguments = AFFINE[name]
    b = build(3)
    b.set_(*arguments(torch.full((3,), 5e4), torch.full((3,), scale)))
    x = torch.randn(100, 3)
    y, log_det = b.forward_and_log_det(x)
    lost = 1e-11 / scale  # what rounding of y at 5e4 does to x
    assert_close(b.inverse_and_log_det(y)[0], x, atol=10 * lost + 1e-12, rtol=0)
    exact = torch.full((100,), 3 * torch.tensor(scale).log())
    assert_close(log_det, exact, atol=1e-12, rtol=1e-15)
    assert_close(b.inverse_and_log_det(y)[1], -exact, atol=1e-12, rtol=1e-15)


def test_set_gives_the_map_that_was_asked_for():
    loc, x = torch.randn(3), torch.randn(5, 3)
    scale_tril = torch.randn(3, 3).tril(-1) + torch.diag(torch.rand(3) + 0.1)
    full = FullAffine(3)
    full.set_(loc, scale_tril)
    assert_close(full(x), loc + x @ scale_tril.mT)
    low, basis = LowRankAffine(3, 2), torch.linalg.qr(torch.randn(3, 2)).Q
    stretch, scale = torch.randn(2), torch.rand(3) + 0.1
    low.set_(loc, scale, basis, stretch)
    matrix = torch.eye(3) + basis @ torch.diag(stretch.exp() - 1) @ basis.mT
    assert_close(low(x), loc + scale * (x @ matrix))


@pytest.mark.parametrize("context_dim", [0, 2])
def test_set_leaves_no_graph_and_keeps_parameters_trainable(context_dim: int):
    b = FullAffine(3, context_dim=context_dim)
    before = dict(b.named_parameters())
    b.set_(torch.ones(3), 2 * torch.eye(3))
    assert {n: id(p) for n, p in b.named_parameters()} == {n: id(p) for n, p in before.items()}
    assert all(p.requires_grad and p.grad_fn is None for p in b.parameters())


@pytest.mark.parametrize(
    ("b", "arguments", "message"),
    [
        (LocScale, (torch.zeros(3), torch.ones(2)), r"expected scale of shape \(2,\)|loc of sha"),
        (LocScale, (torch.zeros(2), torch.tensor([1.0, 0.0])), "scale to be positive, got 0"),
        (LocScale, (torch.tensor([0.0, torch.nan]), torch.ones(2)), "loc to be finite"),
        (FullAffine, (torch.zeros(2), torch.ones(2, 2)), "to be lower triangular"),
        (FullAffine, (torch.zeros(2), -torch.eye(2)), "diagonal of scale_tril to be positive"),
    ],
)
def test_set_refuses_what_is_no_bijection(b, arguments, message: str):
    with pytest.raises(ValueError, match=message):
        b(2).set_(*arguments)


def test_low_rank_refusals():
    with pytest.raises(ValueError, match=r"rank to be an int in 1..3, got 4"):
        LowRankAffine(3, 4)
    with pytest.raises(ValueError, match="orthonormal columns"):
        LowRankAffine(3, 1).set_(torch.zeros(3), torch.ones(3), torch.ones(3, 1), torch.zeros(1))


def test_low_rank_forms_no_full_matrix():
    b = LowRankAffine(20_000, 3)  # a full matrix would be 3 GB
    y, log_det = b.forward_and_log_det(torch.randn(2, 20_000))
    assert y.isfinite().all()
    assert log_det.shape == (2,)


@pytest.mark.parametrize(
    "b",
    [
        LocScale(3),
        FullAffine(3),
        LowRankAffine(3, 2),
        LULinear(3),
        Householder(3),
        Householder(3, num_reflections=2),
    ],
    ids=lambda b: type(b).__name__,
)
def test_linear_bijectors_start_at_the_identity(b: Bijector):
    b, x = b.double(), torch.randn(5, 3)
    y, log_det = b.forward_and_log_det(x)
    assert_close(y, x)
    assert_close(log_det, torch.zeros(5))


def test_householder_is_orthogonal():
    b = Householder(4, num_reflections=6)
    torch.nn.init.normal_(b.vectors)
    matrix = b(torch.eye(4))
    assert_close(matrix @ matrix.mT, torch.eye(4))
    assert not torch.allclose(matrix, torch.eye(4), atol=0.1)


@pytest.mark.parametrize("number", [0, 3, -2, 1.5])
def test_householder_refuses_odd_numbers(number: float):
    with pytest.raises(ValueError, match=f"positive even number .*, got {number}"):
        Householder(3, num_reflections=number)


@pytest.mark.parametrize("order", [[0, 0, 1], [1, 2, 3], []])
def test_orders_have_to_be_permutations(order: list[int]):
    with pytest.raises(ValueError, match="expected order to be a permutation of 0"):
        Permutation(order)
    with pytest.raises(ValueError, match=r"Autoregressive expected order to be a permutation"):
        Autoregressive(3, order=torch.tensor(order))


@pytest.mark.parametrize(
    ("mask", "error", "message"),
    [
        ("halves", ValueError, "one of .*'last_half', .* or booleans, got 'halves'"),
        (torch.tensor([False] * 3), ValueError, "at least one coordinate, got none"),
        (torch.tensor([True]), ValueError, r"mask of shape \(3,\), got \(1,\)"),
        (torch.tensor([1, 0, 1]), TypeError, "a name or booleans, got torch.int64"),
        ([True, False, True], TypeError, "a name or booleans, got list"),
    ],
)
def test_bad_masks_are_refused(mask, error, message: str):
    with pytest.raises(error, match=message):
        Coupling(3, mask=mask)


@pytest.mark.parametrize(
    "mask", ["last_half", "first_half", "odd", "even", torch.tensor([True, False, True])]
)
def test_coupling_moves_what_the_mask_says(mask):
    b = Coupling(3, mask=mask)
    torch.nn.init.normal_(b.conditioner.net.linears[-1].weight)
    x = torch.randn(5, 3)
    moved = {"last_half": [1, 2], "first_half": [0, 1], "odd": [1], "even": [0, 2]}
    expected = moved[mask] if isinstance(mask, str) else [0, 2]
    assert (b(x) != x).any(0).nonzero()[:, 0].tolist() == expected


@pytest.mark.parametrize("mask", ["last_half", "first_half", "odd", "even"])
@pytest.mark.parametrize("context_dim", [0, 2])
def test_coupling_in_one_dimension(mask: str, context_dim: int):
    b = Coupling(1, mask=mask, context_dim=context_dim, transformer=TRANSFORMERS["spline"])
    x, c = torch.randn(5, 1), torch.randn(5, 2) if context_dim else None
    y, log_det, score = b.forward_with_score(x, -x, c)
    assert y.shape == score.shape == (5, 1)
    assert (y != x).any()
    assert log_det.shape == (5,)


def test_coupling_may_move_everything():
    b = Coupling(3, mask=torch.ones(3, dtype=torch.bool))
    assert b(torch.randn(5, 3)).shape == (5, 3)


def test_an_autoregressive_layer_takes_any_network():
    class Shifts(torch.nn.Module):
        def forward(self, x, context=None):
            before = torch.cat([torch.zeros_like(x[..., :1]), x[..., :-1]], -1)
            return torch.stack([before.square(), before.sin()], -1)

    b = Autoregressive(3)
    b.conditioner = Shifts()
    x = torch.randn(5, 3)
    y, _, score = b.forward_with_score(x, -x)
    point = y.detach().requires_grad_()
    again, log_det = b.inverse_and_log_det(point)
    log_q = log_det - 0.5 * again.square().sum(-1)
    assert_close(score, torch.autograd.grad(log_q.sum(), point)[0])


@pytest.mark.parametrize("build", [LocScale, Elementwise, Coupling, Autoregressive, Householder])
def test_sizes_are_checked(build):
    with pytest.raises(ValueError, match=f"{build.__name__} expected dim >= 1, got -1"):
        build(-1)
    with pytest.raises(TypeError, match="expected dim to be an int, got str"):
        build("3")
    with pytest.raises(TypeError, match="expected context_dim to be an int, got float"):
        build(3, context_dim=1.0)


def test_inputs_and_contexts_are_checked():
    free, conditional = Coupling(3), Coupling(3, context_dim=2)
    with pytest.raises(ValueError, match=r"expected value of shape \(\*, 3\), got \(5, 2\)"):
        free(torch.randn(5, 2))
    with pytest.raises(ValueError, match=r"expected value of shape \(\*, 3\), got \(\)"):
        free.inv(torch.tensor(1.0))
    with pytest.raises(ValueError, match=r"expected value of shape \(\*, 3\), got \(5, 2\)"):
        conditional.condition(torch.randn(2))(torch.randn(5, 2))
    with pytest.raises(ValueError, match=r"expected context of shape \(\*, 2\), got \(5, 3\)"):
        conditional.condition(torch.randn(5, 3))
    with pytest.raises(TypeError, match=r"needs a context .* but got None"):
        conditional.condition(None)
    with pytest.raises(TypeError, match="takes no context"):
        free.condition(torch.randn(5, 2))
    with pytest.raises(TypeError, match="takes a context: call condition"):
        conditional(torch.randn(5, 3))
    assert free.condition(None) is free


def test_compositions_are_checked():
    with pytest.raises(ValueError, match="one or more bijectors of one dim, got none"):
        Compose()
    with pytest.raises(ValueError, match=r"of one dim, got sizes \[2, 3\]"):
        Compose(LocScale(2), LocScale(3))
    with pytest.raises(ValueError, match=r"share one context, got context_dim \[1, 2\]"):
        Compose(LocScale(2, context_dim=1), LocScale(2, context_dim=2))
    with pytest.raises(TypeError, match="expected bijectors, got Linear"):
        Compose(torch.nn.Linear(2, 2))
    with pytest.raises(TypeError, match="expected a Bijector, got Linear"):
        Inverse(torch.nn.Linear(2, 2))


def test_inverses_nest():
    b, x = Coupling(3), torch.randn(5, 3)
    assert_close(Inverse(Inverse(b))(x), b(x))
    assert b.inv.inv is b
    assert Inverse(b).inv is b


class Cubic(Bijector):
    def forward_and_log_det(self, x, context=None):
        return x + x**3, (1 + 3 * x.square()).log().sum(-1)


class Halfline(Bijector):
    """No bijection: nothing reaches below zero."""

    def forward_and_log_det(self, x, context=None):
        return x.exp(), x.sum(-1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("size", [1.0, 1e3, 1e6])
def test_newton_reaches_the_precision_of_the_dtype(dtype: torch.dtype, size: float):
    y = size * torch.randn(50, 3, dtype=dtype)
    x, _ = Cubic(3).inverse_and_log_det(y)
    assert_close(x + x**3, y, rtol=200 * torch.finfo(dtype).eps, atol=0)


def test_newton_has_the_gradients_of_the_inverse():
    y = torch.randn(4, 2, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v: Cubic(2).inverse_and_log_det(v), y)
    assert torch.autograd.gradgradcheck(lambda v: Cubic(2).inverse_and_log_det(v), y)


def test_newton_spends_no_step_on_points_that_are_solved():
    calls = []

    def function(x):
        calls.append(1)
        return x + x**3

    y = torch.cat([torch.randn(500, 1), torch.tensor([[1e6], [1e9]])])  # some need many steps
    x = newton_inverse(function, y)
    assert_close(x + x**3, y, rtol=1e-13, atol=1e-13)
    assert len(calls) < 60


def test_newton_says_how_many_points_failed():
    y = torch.tensor([[1.0], [-1.0], [2.0], [-3.0]])
    with pytest.raises(RuntimeError, match="2 of 4 points did not converge"):
        Halfline(1).inverse_and_log_det(y)
    with pytest.raises(RuntimeError, match="1 of 1 points did not converge"):
        newton_inverse(lambda x: x, torch.tensor([torch.nan]))


def test_newton_under_vmap_says_what_to_do():
    with pytest.raises(RuntimeError, match="call it with a batch"):
        torch.vmap(lambda y: newton_inverse(lambda x: x + x**3, y))(torch.randn(3, 2))


@pytest.mark.parametrize("context_dim", [0, 2])
@pytest.mark.parametrize("build", [FullAffine, LULinear])
def test_one_coordinate_has_no_parameter_that_nothing_trains(build, context_dim):
    bijector = build(1, context_dim=context_dim)
    with torch.no_grad():
        for parameter in bijector.parameters():
            parameter.normal_()
    x, context = torch.randn(5, 1), torch.randn(5, 2) if context_dim else None
    y, log_det = bijector.forward_and_log_det(x, context)
    back, inverse_log_det = bijector.inverse_and_log_det(y, context)
    torch.testing.assert_close(back, x)
    torch.testing.assert_close(inverse_log_det, -log_det)
    (y.square().sum() + log_det.sum()).backward()
    assert all(p.grad is not None and p.grad.any() for p in bijector.parameters())
    assert bijector.forward_with_score(x, -x, context)[2].shape == x.shape
