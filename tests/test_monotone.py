"""The inverse of an increasing function: right wherever the root is, and in its derivatives."""

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from pyroflows.monotone import monotone_inverse
from pyroflows.numerics import newton_inverse
from pyroflows.transformers import Bernstein

FUNCTIONS = {
    "identity": lambda x: x,
    "cubic": lambda x: x + x**3,
    "flat": lambda x: torch.asinh(x) + 1e-3 * x,
    "steep": lambda x: torch.where(x > 0, torch.expm1(x.clamp(max=60)), x) + 1e-3 * x,
    "step": lambda x: 1e-3 * x + 10 * torch.tanh(50 * (x - 3)),
    "kink": lambda x: torch.where(x > 1, 100 * x - 99, x),
}
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4}


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_solutions_near_and_far(name: str, dtype: torch.dtype):
    y = torch.tensor([0.0, 1e-12, -1e-3, 1.0, -5.0, 1e2, -1e4, 1e6, -1e6, 1e15], dtype=dtype)
    calls = []

    def function(x: Tensor) -> Tensor:
        calls.append(1)
        return FUNCTIONS[name](x)

    x = monotone_inverse(function, y).detach()
    assert ((FUNCTIONS[name](x) - y).abs() <= TOLERANCE[dtype] * (1 + y.abs())).all()
    assert len(calls) < 100
    assert x.dtype == dtype


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_a_function_that_rounds_is_solved_to_its_rounding_in_few_steps(dtype: torch.dtype):
    y = torch.linspace(-1e-2, 1e-2, 1000, dtype=dtype)
    calls = []

    def function(x: Tensor) -> Tensor:
        calls.append(1)
        return (0.3 * x + 0.1 * torch.tanh(3 * x) + 30) - 30

    x = monotone_inverse(function, y).detach()
    assert ((function(x) - y).abs() <= 100 * torch.finfo(dtype).eps).all()
    assert len(calls) < 15


def test_a_function_along_which_newton_creeps_is_bracketed():
    y = torch.tensor([500.0, 3.0, -700.0], dtype=torch.float64)
    x = monotone_inverse(lambda x: torch.expm1(x) + x, y)
    assert_close(torch.expm1(x) + x, y)


@pytest.mark.parametrize("size", [1e-6, 1e-9, 1e-12])
def test_roots_near_zero_keep_their_digits(size: float):
    y = size * torch.tensor([1.0, -3.0, 7.0], dtype=torch.float64)
    start = torch.tensor([1.0, 0.0, -2.0], dtype=torch.float64)
    x = monotone_inverse(lambda x: torch.asinh(x) + 0.5 * x, y, start=start)
    assert_close(x, y / 1.5, rtol=1e-10, atol=0)


def test_first_and_second_derivatives_in_all_that_the_function_holds():
    torch.manual_seed(0)
    y, a = (torch.randn(5, dtype=torch.float64, requires_grad=True) for _ in range(2))

    def solve(y: Tensor, a: Tensor) -> Tensor:
        return monotone_inverse(lambda x: x + a.exp() * torch.tanh(x) + 0.1 * x**3, y)

    assert torch.autograd.gradcheck(solve, (y, a))
    assert torch.autograd.gradgradcheck(solve, (y, a))


def test_what_has_no_solution_is_an_error_with_a_count():
    y = torch.tensor([0.5, 2.0, 3.0])
    with pytest.raises(RuntimeError, match="2 of 3 numbers did not converge"):
        monotone_inverse(torch.tanh, y)
    with pytest.raises(RuntimeError, match="1 of 1 numbers"):
        monotone_inverse(lambda x: x * torch.nan, y[:1])


def test_images_that_are_not_finite_are_named_as_the_reason():
    y = torch.tensor([0.5, torch.nan, torch.inf])
    with pytest.raises(RuntimeError, match="2 of 3 values given are NaN or infinite: leave"):
        monotone_inverse(lambda x: x + x**3, y)
    with pytest.raises(RuntimeError, match="1 of 2 values given are NaN or infinite: leave"):
        newton_inverse(lambda x: x + x**3, y[:2, None])


def test_a_large_shift_in_single_precision_is_undone():
    """Images are rounded to more than roots are, and slopes change within such a rounding."""
    torch.manual_seed(0)
    polynomial = Bernstein()
    raws = 1000 * torch.randn(2000, polynomial.num_params, dtype=torch.float32)
    x = 3 * torch.randn(2000, dtype=torch.float32)
    y = polynomial.forward_and_log_det(x, raws)[0]
    for keeps_gradients in (True, False):
        with torch.set_grad_enabled(keeps_gradients):
            again = polynomial.inverse_and_log_det(y, raws)[0]
        image, log_slope = polynomial.forward_and_log_det(again, raws)
        size = y.abs() + log_slope.exp() * (1 + again.abs())
        assert ((image - y).abs() / size).max() < 256 * torch.finfo(y.dtype).eps


def test_functions_of_tensors_map_it():
    y = torch.randn(4, 3)

    def solve(y: Tensor) -> Tensor:
        return monotone_inverse(FUNCTIONS["cubic"], y)

    assert_close(torch.vmap(solve)(y), solve(y))
    slopes = 1 / (1 + 3 * solve(y[0]).square())
    assert_close(torch.func.jacrev(solve)(y[0]), slopes.diag())
    assert torch.vmap(lambda y: monotone_inverse(torch.tanh, y))(y + 5).isnan().all()


def test_shapes_without_values():
    assert monotone_inverse(FUNCTIONS["cubic"], torch.empty(0, 2)).shape == (0, 2)
    assert monotone_inverse(FUNCTIONS["cubic"], torch.empty(3, device="meta")).shape == (3,)
