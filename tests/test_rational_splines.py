"""Linear rational splines: bounded slopes, joints, precision and Pyro's numbers."""

import json
import math
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from pyroflows.transformers import LinearRationalSpline

pytestmark = pytest.mark.usefixtures("_double")
FROZEN = json.loads((Path(__file__).parent / "frozen" / "rational_splines.json").read_text())


def unbounded(value: torch.Tensor, limit: float) -> torch.Tensor:
    """The raw parameter that is softly bounded to this value."""
    return value / (1 - (value / limit).abs())


def test_it_is_that_of_pyro_at_shared_knots():
    limit, spline = math.log(1e3), LinearRationalSpline(5, FROZEN["bound"])
    names = ("widths", "heights", "slopes", "shares")
    widths, heights, slopes, shares = (torch.tensor(FROZEN[name]) for name in names)
    sizes = [v.log() - v.log().mean(-1, keepdim=True) for v in (widths, heights)]
    raws = [unbounded(v, limit / 2) for v in sizes]
    raws += [unbounded(slopes.log(), limit), unbounded(shares.logit(), math.log(39))]
    raws, x = torch.cat(raws, dim=-1), torch.tensor(FROZEN["x"])
    ways = {"forward": spline.forward_and_log_det, "inverse": spline.inverse_and_log_det}
    for way, ours in ways.items():
        expected = tuple(torch.tensor(v) for v in FROZEN[way])
        assert_close(ours(x, raws), expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_zeros_are_the_identity_and_it_increases(dtype: torch.dtype):
    spline, x = LinearRationalSpline(4, 3.0), torch.linspace(-6, 6, 481, dtype=dtype)
    zeros = torch.zeros(481, spline.num_params, dtype=dtype)
    tolerance = 10 * torch.finfo(dtype).eps
    expected = (x, torch.zeros_like(x))
    for method in (spline.forward_and_log_det, spline.inverse_and_log_det):
        assert_close(method(x, zeros), expected, atol=tolerance, rtol=tolerance)
    params = 2 * torch.randn(spline.num_params, dtype=dtype).expand(481, -1)
    assert (spline.forward_and_log_det(x, params)[0].diff() > 0).all()


def test_the_slope_is_continuous_and_one_at_the_bound():
    spline = LinearRationalSpline(4, 3.0)
    params = 2 * torch.randn(spline.num_params)

    def largest_jump(number: int) -> torch.Tensor:
        x = torch.linspace(-3, 3, number)
        log_slope = spline.forward_and_log_det(x, params.expand(number, -1))[1]
        assert log_slope[[0, -1]].abs().max() < 1e-8
        assert log_slope[[1, -2]].abs().max() < 1e-2
        return log_slope.diff().abs().max()

    assert largest_jump(400_001) < 0.3 * largest_jump(100_001)


def test_slopes_are_bounded_on_both_sides():
    spline, x = LinearRationalSpline(4, 2.0, 10.0), torch.linspace(-2, 2, 500)
    for scale in (1.0, 10.0, 1e3, 1e3, 1e3):
        params = (scale * torch.randn(spline.num_params)).expand(500, -1)
        log_slope = spline.forward_and_log_det(x, params)[1]
        assert log_slope.abs().max() < 7 * math.log(10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("size", [1.0, 1e6, 1e20])
def test_finite_values_and_gradients(dtype: torch.dtype, size: float):
    spline = LinearRationalSpline(4, 3.0)
    x = (size * torch.tensor([-1.0, 1.0, 0.5, -2.0, 0.0], dtype=dtype)).requires_grad_()
    for scale in (0.0, 1.0, 1e3):
        params = scale * torch.randn(5, spline.num_params, dtype=dtype)
        params.requires_grad_()
        for method in (spline.forward_and_log_det, spline.inverse_and_log_det):
            y, log_slope = method(x, params)
            gradients = torch.autograd.grad(y.sum() + log_slope.sum(), [x, params])
            assert all(v.isfinite().all() for v in (y, log_slope, *gradients))


@pytest.mark.parametrize("noise", [1.0, 3.0, 6.0])
def test_the_inverse_is_as_exact_in_single_precision_as_slopes_allow(noise: float):
    spline = LinearRationalSpline(4, 3.0)
    y = 5.9 * torch.rand(20_000, dtype=torch.float32) - 2.95
    raws = noise * torch.randn(20_000, spline.num_params, dtype=torch.float32)
    exact, log_slope = spline.inverse_and_log_det(y.double(), raws.double())
    rounding = torch.finfo(torch.float32).eps * spline.bound * (1 + log_slope.exp())
    assert ((spline.inverse_and_log_det(y, raws)[0] - exact).abs() <= 6 * rounding).all()


def test_derivatives_of_both_directions():
    spline, x = LinearRationalSpline(3, 2.0), (2 * torch.randn(6)).requires_grad_()
    params = torch.randn(6, spline.num_params).requires_grad_()
    for method in (spline.forward_and_log_det, spline.inverse_and_log_det):
        assert torch.autograd.gradcheck(method, (x, params))
        assert torch.autograd.gradgradcheck(method, (x, params))


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="num_bins expected an int of at least 2, got 1"):
        LinearRationalSpline(1)
    with pytest.raises(ValueError, match="bound expected a positive, finite number"):
        LinearRationalSpline(8, -1.0)
    with pytest.raises(ValueError, match="max_slope expected a finite number above 1"):
        LinearRationalSpline(8, 5.0, 1.0)
