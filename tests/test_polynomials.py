"""Polynomials: beside zuko's at shared parameters, and what they are made with."""

import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from pyroflows.numerics import monotone_inverse
from pyroflows.transformers import Bernstein, SOSPolynomial
from pyroflows.transformers.sos_polynomial import _LEAST_SLOPE, _LIMIT

pytestmark = pytest.mark.usefixtures("_double")
FOUND = json.loads((Path(__file__).parent / "frozen" / "polynomials.json").read_text())


def raw(value: Tensor, limit: float) -> Tensor:
    """What is softly bounded to a value."""
    return value / (1 - value.abs() / limit)


@pytest.mark.parametrize("case", FOUND["sos"], ids=lambda case: f"B={case['bound']}")
def test_sums_of_squares_are_those_of_zuko(case: dict):
    """But for the least slope, which is added there and mixed in here."""
    a, x, y, log_slope = (torch.tensor(case[k]) for k in ("a", "x", "y", "log_slope"))
    polynomial = SOSPolynomial(a.shape[-1] - 1, a.shape[-2], case["bound"])
    expected = _LEAST_SLOPE * x + (1 - _LEAST_SLOPE) * (y - case["slope"] * x)
    slope = _LEAST_SLOPE + (1 - _LEAST_SLOPE) * (log_slope.exp() - case["slope"])
    params = raw(a, _LIMIT).flatten(-2)
    found = polynomial.forward_and_log_det(x, params)
    assert_close(found, (expected, slope.log()), atol=1e-6, rtol=1e-6)
    assert_close(polynomial.inverse_and_log_det(expected, params)[0], x, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("case", FOUND["bernstein"], ids=lambda case: f"B={case['bound']}")
def test_bernstein_polynomials_are_those_of_zuko(case: dict):
    theta, x, y, log_slope = (torch.tensor(case[k]) for k in ("theta", "x", "y", "log_slope"))
    degree, width = theta.shape[-1] - 1, 2 * case["bound"]
    polynomial = Bernstein(degree, case["bound"], max_slope=1e3)
    steps = theta.diff() * degree / width
    middle = (theta[:, degree // 2] + theta[:, (degree + 1) // 2]) / 2
    params = torch.cat([raw(steps.log(), math.log(1e3)), middle[:, None] * degree / width], -1)
    found = polynomial.forward_and_log_det(x, params)
    assert_close(found, (y, log_slope), atol=1e-6, rtol=1e-6)
    assert_close(polynomial.inverse_and_log_det(y, params)[0], x, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("degree", [1, 2, 3, 8])
@pytest.mark.parametrize("kind", [SOSPolynomial, Bernstein])
def test_zeros_are_the_identity_inside_and_outside(kind: type, degree: int):
    polynomial = kind(degree)
    x = torch.tensor([-1e6, -5.0, -0.3, 0.0, 4.9, 7.0])
    y, log_slope = polynomial.forward_and_log_det(x, torch.zeros(polynomial.num_params))
    assert_close(y, x, atol=0, rtol=1e-15)
    assert_close(log_slope, torch.zeros(6), atol=1e-15, rtol=0)


@pytest.mark.parametrize("kind", [SOSPolynomial, Bernstein])
def test_compiles_whole_and_is_inverted_under_the_compiler(kind: type):
    polynomial = kind(3)
    x, params = torch.randn(5), 0.3 * torch.randn(5, polynomial.num_params)
    for method, whole in (("forward_and_log_det", True), ("inverse_and_log_det", False)):
        torch._dynamo.reset()
        run = getattr(polynomial, method)
        compiled = torch.compile(run, fullgraph=whole, backend="aot_eager")
        assert_close(compiled(x, params), run(x, params))


@pytest.mark.parametrize("kind", [SOSPolynomial, Bernstein])
def test_the_inverse_takes_few_evaluations(kind: type):
    polynomial = kind()
    params = 2 * torch.randn(5000, polynomial.num_params)
    forward, calls = polynomial.forward_and_log_det, []
    spy = lambda x: calls.append(1) or forward(x, params)[0]  # noqa: E731
    for size in (1e-3, 1.0, 1e4):
        calls.clear()
        y = size * torch.randn(5000)
        x = monotone_inverse(spy, y).detach()
        assert len(calls) <= 20
        assert_close(forward(x, params)[0], y, atol=1e-12, rtol=1e-10)


def test_a_bounded_polynomial_maps_its_interval_onto_itself():
    polynomial = Bernstein(6, bound=2.0, bounded=True)
    ends = torch.tensor([-2.0, 2.0])
    y = polynomial.forward_and_log_det(ends, torch.randn(2, 6))[0]
    assert_close(y, ends)


@pytest.mark.parametrize("degree", [4, 5])
def test_slopes_are_bounded_whatever_the_raws(degree: int):
    polynomial = Bernstein(degree, bound=2.0, max_slope=10.0)
    raws = 1e8 * torch.randn(50, polynomial.num_params)
    log_slope = polynomial.forward_and_log_det(4 * torch.randn(50), raws)[1]
    assert (log_slope.abs() <= math.log(10.0) + 1e-9).all()
    squares = SOSPolynomial(degree, bound=2.0)
    raws = 1e8 * torch.randn(50, squares.num_params)
    log_slope = squares.forward_and_log_det(4 * torch.randn(50), raws)[1]
    assert (log_slope >= math.log(_LEAST_SLOPE) - 1e-9).all()
    assert (log_slope <= 2 * math.log(1 + _LIMIT * (degree + 1))).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SOSPolynomial(degree=0), "degree expected an int of at least 1, got 0"),
        (lambda: SOSPolynomial(num_polynomials=1.5), "num_polynomials expected an int"),
        (lambda: SOSPolynomial(bound=math.inf), "bound expected a positive, finite number"),
        (lambda: Bernstein(degree=True), "degree expected an int"),
        (lambda: Bernstein(bound=0), "bound expected a positive"),
        (lambda: Bernstein(max_slope=1), "max_slope expected a finite number above 1"),
    ],
)
def test_wrong_settings_are_named(make, message: str):
    with pytest.raises(ValueError, match=message):
        make()
