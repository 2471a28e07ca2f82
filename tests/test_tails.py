"""Transformers of tails: precision far out, what they do to tails, derivatives."""

import math

import pytest
import torch
from torch.testing import assert_close

from pyroflows.bijectors import Elementwise
from pyroflows.transformers import SinhArcsinh, TailTransform, Transformer

pytestmark = pytest.mark.usefixtures("_double")
ALL = {
    "sinh_arcsinh": SinhArcsinh(),
    "tail_transform": TailTransform(),
    "tail_transform-paper": TailTransform(threshold=0.0),
    "tail_transform-heavy": TailTransform(4.0, start_weight=0.5, max_weight=1.5),
}
each = pytest.mark.parametrize("transformer", list(ALL.values()), ids=list(ALL))
both = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)


@each
@both
def test_both_directions_undo_each_other_far_out(transformer: Transformer, dtype: torch.dtype):
    far = torch.tensor([1e2, 1e4, 0.0, 8.0, 7.99, 8.01, 2.0, 20.0], dtype=dtype)
    x = torch.cat([3 * torch.randn(500, dtype=dtype), far, -far])
    tolerance = 1e-8 if dtype is torch.float64 else 1e-5
    for noise in (0.0, 0.5, 3.0, 100.0):
        params = noise * torch.randn(len(x), 2, dtype=dtype)
        there, back = transformer.forward_and_log_det, transformer.inverse_and_log_det
        for first, second in ((there, back), (back, there)):
            y, log_slope = first(x, params)
            again, other = second(y, params)
            assert_close(again, x, atol=tolerance, rtol=tolerance)
            assert_close(other, -log_slope, atol=tolerance, rtol=tolerance)


@each
@both
@pytest.mark.parametrize("size", [1.0, 30.0, 1e6, 1e10])
def test_finite_values_and_gradients(transformer: Transformer, dtype: torch.dtype, size: float):
    x = (size * torch.tensor([-1.0, 1.0, 0.5, -0.5, 0.0], dtype=dtype)).requires_grad_()
    for noise in (0.0, 1.0, 1e3):
        params = (noise * torch.randn(5, 2, dtype=dtype)).requires_grad_()
        for method in (transformer.forward_and_log_det, transformer.inverse_and_log_det):
            y, log_slope = method(x, params)
            gradients = torch.autograd.grad(y.sum() + log_slope.sum(), [x, params])
            assert all(v.isfinite().all() for v in (y, log_slope, *gradients))


@each
def test_it_increases_and_slopes_are_those_of_the_map(transformer: Transformer):
    x = torch.linspace(-12, 12, 24_001)
    params = torch.tensor([0.5, -0.7]).expand(len(x), -1)
    y, log_slope = transformer.forward_and_log_det(x, params)
    assert (y.diff() > 0).all()
    steps = ((log_slope[1:].exp() + log_slope[:-1].exp()) / 2) * x.diff()
    assert_close(steps, y.diff(), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("name", ["sinh_arcsinh", "tail_transform", "tail_transform-paper"])
def test_first_and_second_derivatives(name: str):
    transformer = ALL[name]  # the heaviest is beyond what differences resolve
    x = torch.tensor([-9.0, -4.7, -2.3, -0.4, 0.3, 1.2, 2.8, 4.4, 8.6]).requires_grad_()
    params = (0.5 * torch.randn(len(x), 2)).requires_grad_()
    for method in (transformer.forward_and_log_det, transformer.inverse_and_log_det):
        assert torch.autograd.gradcheck(method, (x, params), rtol=1e-4)
        assert torch.autograd.gradgradcheck(method, (x, params), rtol=1e-4, atol=1e-4)


def test_zeros_are_the_identity():
    x = torch.linspace(-1.99, 1.99, 401)
    expected, zeros = (x, torch.zeros_like(x)), torch.zeros(401, 2)
    assert_close(SinhArcsinh().forward_and_log_det(x, zeros), expected)
    assert_close(TailTransform().forward_and_log_det(x, zeros), expected)


def test_sinh_arcsinh_is_that_of_the_formula_and_bounded():
    x, power, skewness = torch.linspace(-5, 5, 101), math.exp(-0.3), 0.8
    raws = torch.tensor([0.8 / (1 - 0.8 / 3), -0.3 / (1 - 0.3 / math.log(2))]).expand(101, -1)
    y, _ = SinhArcsinh().forward_and_log_det(x, raws)
    assert_close(y, ((x.asinh() + skewness) / power).sinh())
    y, _ = SinhArcsinh().forward_and_log_det(torch.tensor(1e6), torch.tensor([0.0, -1e9]))
    assert_close(y, torch.tensor(1e6).asinh().mul(2).sinh())


@pytest.mark.parametrize("raw", [-1.0, 0.0, 2.0])
def test_without_a_threshold_it_is_that_of_the_paper(raw: float):
    start = math.log(0.1 / 0.9)
    weight = 1 / (1 + math.exp(-start - raw / (1 + abs(raw) / 4)))
    x = torch.linspace(-7, 7, 301)
    tail = torch.special.erfc(x.abs() / math.sqrt(2))
    expected = x.sign() * (tail**-weight - 1) / weight * math.sqrt(math.pi / 2)
    y, _ = TailTransform(0.0).forward_and_log_det(x, torch.full((301, 2), raw))
    assert_close(y, expected, rtol=1e-10, atol=1e-10)


def test_a_normal_gets_a_power_law_on_either_side():
    transformer = TailTransform(start_weight=0.5)
    x = torch.tensor([-7.0, -6.0, 6.0, 7.0])
    y, _ = transformer.forward_and_log_det(x, torch.tensor([-0.7, 0.7]).expand(4, -1))
    log_tail = torch.special.log_ndtr(-x.abs())
    weights = y.abs().log().view(2, 2).diff(dim=-1) / -log_tail.view(2, 2).diff(dim=-1)
    raw = 0.7 / (1 + 0.7 / 4)
    expected = torch.tensor([-raw, raw]).sigmoid()[:, None]
    assert_close(weights, expected, rtol=1e-2, atol=0)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: SinhArcsinh(1.0), "SinhArcsinh expected max_power above 1 and at most 3"),
        (lambda: SinhArcsinh(max_skewness=9.0), "SinhArcsinh expected max_skewness above 0"),
        (lambda: TailTransform(-1.0), "TailTransform expected threshold between 0 and 5"),
        (lambda: TailTransform(max_weight=4.0), "TailTransform expected max_weight above 0"),
        (lambda: TailTransform(start_weight=1.0), "TailTransform expected start_weight between"),
    ],
)
def test_bad_settings_are_refused(build, message: str):
    with pytest.raises(ValueError, match=message):
        build()


def test_the_weight_of_each_tail_is_learned():
    """Draws of known weights, a half on the left and next to none on the right."""
    torch.manual_seed(0)
    truth = TailTransform(threshold=1.0, start_weight=0.5)
    lightest = torch.tensor([0.0, -1e6])
    data, _ = truth.forward_and_log_det(torch.randn(10_000, 1), lightest)
    layer = Elementwise(1, transformer=TailTransform(threshold=1.0))
    optimizer = torch.optim.Adam(layer.parameters(), 0.1)
    for _ in range(150):
        x, log_det = layer.inverse_and_log_det(data)
        loss = (x.square().sum(-1) / 2 - log_det).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    far = torch.tensor([[-6.0], [-7.0], [6.0], [7.0]])
    y = layer.forward_and_log_det(far)[0].detach().abs().log()
    log_tail = torch.special.log_ndtr(-far.abs())
    left, right = (y.view(2, 2).diff(dim=-1) / -log_tail.view(2, 2).diff(dim=-1)).flatten()
    assert 0.44 < left < 0.56
    assert right < 0.1
