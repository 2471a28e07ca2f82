"""Scalar maps: monotone, the identity at zero, finite everywhere, right derivatives."""

import pytest
import torch
from torch.testing import assert_close

from pyroflows.transformers import Affine, RationalQuadraticSpline, Transformer
from tests.cases import TRANSFORMERS

pytestmark = pytest.mark.usefixtures("_double")
ALL = {**TRANSFORMERS, "steep": RationalQuadraticSpline(6, 1.0, 10.0)}
each = pytest.mark.parametrize("transformer", list(ALL.values()), ids=list(ALL))


@each
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_identity_at_zero_and_increasing(transformer: Transformer, dtype: torch.dtype):
    x = torch.linspace(-6, 6, 241, dtype=dtype)
    zeros = torch.zeros(241, transformer.num_params, dtype=dtype)
    tolerance = 10 * torch.finfo(dtype).eps
    y, log_slope = transformer.forward_and_log_det(x, zeros)
    assert_close((y, log_slope), (x, torch.zeros_like(x)), atol=tolerance, rtol=tolerance)
    params = 2 * torch.randn(transformer.num_params, dtype=dtype).expand(241, -1)
    assert (transformer.forward_and_log_det(x, params)[0].diff() > 0).all()


@each
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("size", [1.0, 1e6, 1e20])
def test_finite_values_and_gradients(transformer: Transformer, dtype: torch.dtype, size: float):
    x = (size * torch.tensor([-1.0, 1.0, 0.5, -2.0, 0.0], dtype=dtype)).requires_grad_()
    for scale in (0.0, 1.0, 1e3):
        params = scale * torch.randn(5, transformer.num_params, dtype=dtype)
        params.requires_grad_()
        for method in (transformer.forward_and_log_det, transformer.inverse_and_log_det):
            y, log_slope = method(x, params)
            gradients = torch.autograd.grad(
                y.sum() + log_slope.sum(), [x, params], materialize_grads=True
            )
            assert all(v.isfinite().all() for v in (y, log_slope, *gradients))
        y, log_slope, partials = transformer.partials(x, params)
        assert all(v.isfinite().all() for v in (y, log_slope, *partials))


@each
def test_partials_are_those_of_autograd(transformer: Transformer):
    x, params = 2 * torch.randn(50, 4), 1.5 * torch.randn(50, 4, transformer.num_params)
    x[0] = torch.tensor([1e6, -1e6, 1e20, -1e20])
    closed, automatic = (
        transformer.partials(x, params),
        Transformer.partials(transformer, x, params),
    )
    assert_close(closed, automatic, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("sign", [-1, 1])
def test_spline_slope_is_continuous_at_the_bound(sign: int):
    spline = TRANSFORMERS["spline"]
    x = sign * (spline.bound + torch.tensor([-1e-9, 1e-9]))
    log_slope = spline.forward_and_log_det(x, torch.randn(spline.num_params).expand(2, -1))[1]
    assert_close(log_slope[0], log_slope[1], atol=1e-6, rtol=0)


def test_spline_slopes_are_bounded_on_both_sides():
    spline = RationalQuadraticSpline(num_bins=4, bound=2.0, max_slope=10.0)
    x = torch.linspace(-2, 2, 500)
    for _ in range(20):
        params = (1e3 * torch.randn(spline.num_params)).expand(500, -1)
        log_slope = spline.forward_and_log_det(x, params)[1]
        assert log_slope.abs().max() < 3.5 * torch.tensor(10.0).log()


def test_spline_round_trip_in_single_precision_with_wild_parameters():
    spline = RationalQuadraticSpline()
    x = torch.linspace(-6, 6, 500, dtype=torch.float32).expand(20, -1)
    params = 3 * torch.randn(20, 1, spline.num_params, dtype=torch.float32).expand(20, 500, -1)
    y, _ = spline.forward_and_log_det(x, params)
    again, _ = spline.inverse_and_log_det(y, params)
    back, _ = spline.forward_and_log_det(again, params)
    assert (back - y).abs().max() < 1e-3


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Affine(0.0), "max_log_scale > 0, got 0.0"),
        (lambda: RationalQuadraticSpline(1), "num_bins expected an int of at least 2, got 1"),
        (lambda: RationalQuadraticSpline(8, -1.0), "bound expected a positive, finite number"),
        (lambda: RationalQuadraticSpline(8, 5.0, 1.0), "max_slope expected a finite number above"),
    ],
)
def test_bad_options_are_refused(build, message: str):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize("noise", [1.0, 3.0, 6.0])
def test_the_inverse_of_a_spline_is_as_exact_as_its_slopes_allow(noise: float):
    """In single precision, where a difference of large numbers would cost digits."""
    spline = RationalQuadraticSpline(num_bins=4, bound=3.0)
    y = 5.9 * torch.rand(20_000, dtype=torch.float32) - 2.95
    raws = noise * torch.randn(20_000, spline.num_params, dtype=torch.float32)
    exact, log_slope = spline.inverse_and_log_det(y.double(), raws.double())
    rounding = torch.finfo(torch.float32).eps * spline.bound * (1 + log_slope.exp())
    for inverse in (spline.inverse_and_log_det, spline.plain_inverse):
        assert ((inverse(y, raws)[0] - exact).abs() <= 6 * rounding).all()
