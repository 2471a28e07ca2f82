"""Residual layers: contractions for sure, and an estimate that is right in the mean."""

import pytest
import torch
from torch.testing import assert_close

from pyroflows.bijectors import Residual
from pyroflows.bijectors.residual import _at_most

pytestmark = pytest.mark.usefixtures("_double")


def moved(dim: int = 4, **options) -> Residual:
    torch.manual_seed(0)
    layer = Residual(dim, hidden_dims=(16, 16), **options)
    with torch.no_grad():
        for p in layer.parameters():
            p.add_(0.5 * torch.randn_like(p))
    return layer


@pytest.mark.parametrize("size", [1e-8, 0.1, 1.0, 1e8])
@pytest.mark.parametrize("shape", [(1, 1), (3, 20), (20, 3), (64, 64)])
def test_no_singular_value_exceeds_the_bound(shape: tuple[int, int], size: float):
    weight = size * torch.randn(shape)
    largest = torch.linalg.matrix_norm(_at_most(weight, 0.9), ord=2)
    assert largest <= 0.9 * (1 + 1e-9)
    before = torch.linalg.matrix_norm(weight, ord=2)
    assert largest >= min(before, 0.75 * 0.9)  # nor is it made much smaller than it has to be


def test_weights_of_zero_have_finite_derivatives():
    weight = torch.zeros(3, 3, requires_grad=True)
    (grad,) = torch.autograd.grad(_at_most(weight, 0.9).sum(), weight)
    assert grad.isfinite().all()


def test_what_is_added_is_a_contraction():
    layer = moved(lipschitz=0.9)
    x = 10 * torch.randn(500, 4)
    added = layer.forward_and_log_det(x)[0] - x
    apart = (x[1:] - x[:-1]).norm(dim=-1)
    assert ((added[1:] - added[:-1]).norm(dim=-1) <= 0.9 * apart).all()


def test_the_estimate_is_right_in_the_mean_and_a_function_in_evaluation():
    exact, rough = moved(), moved(max_exact_dim=0, num_terms=4)
    x = torch.randn(1, 4)
    expected = exact.forward_and_log_det(x)[1]
    with torch.no_grad():
        many = torch.stack([rough.forward_and_log_det(x.expand(50, 4))[1] for _ in range(400)])
        means = many.mean(1)  # one number of terms for each call
        error = means.std() / len(means) ** 0.5
        assert (means.mean() - expected).abs() < 5 * error + 1e-6
        assert error < 0.1
        rough.eval()
        first, second = (rough.forward_and_log_det(x.expand(3, 4))[1] for _ in range(2))
    assert_close(first, second, atol=0, rtol=0)
    assert_close(first[0], first[1], atol=1e-12, rtol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lipschitz": 1.0}, "lipschitz between 0 and 1"),
        ({"hidden_dims": ()}, "one or more hidden_dims"),
        ({"hidden_dims": (4, 0)}, r"hidden_dims\[1\] to be positive"),
        ({"num_terms": 0}, "num_terms to be positive"),
    ],
)
def test_wrong_options_are_named(options: dict, message: str):
    with pytest.raises(ValueError, match=f"Residual expected {message}"):
        Residual(2, **options)
