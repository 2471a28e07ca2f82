"""What block autoregressive networks promise beyond the laws."""

import pytest
import torch
from torch.autograd.functional import jacobian
from torch.testing import assert_close

from pyroflows import build_flow
from pyroflows.bijectors import BlockAutoregressive
from tests import laws
from tests.case import Case

pytestmark = pytest.mark.usefixtures("_double")


def test_compiles():
    laws.compile_agrees(Case(BlockAutoregressive))


def test_the_jacobian_is_triangular_with_a_positive_diagonal():
    layer = Case(BlockAutoregressive, dim=5).bijector(noise=1.0)
    matrix = jacobian(lambda x: layer.forward_and_log_det(x)[0], torch.randn(5))
    assert_close(matrix.triu(1), torch.zeros(5, 5))
    assert (matrix.diagonal() > 0).all()
    assert (matrix.tril(-1) != 0).sum() == 10


@pytest.mark.parametrize("size", [1e2, 1e6, 1e12])
def test_it_is_onto_and_linear_far_out(size: float):
    layer = Case(BlockAutoregressive, dim=2).bijector(noise=0.5)
    y = torch.tensor([[size, -size], [-size, size]])
    x, log_det = layer.inverse_and_log_det(y)
    assert_close(layer.forward_and_log_det(x)[0], y)
    if size > 1e3:
        assert_close(log_det, -layer._maps(None)[0].log().sum().expand(2), atol=1e-6, rtol=0)


def test_the_last_layer_grows_in_proportion_to_its_raw_scale():
    last = BlockAutoregressive(2).layers[-1]
    raw = torch.tensor([-10.0, 0.0, 3.0], requires_grad=True)
    scale = last.scale(raw)
    assert_close(scale, torch.tensor([1e-5, 0.01, 3.0]), atol=1e-4, rtol=0)
    assert torch.autograd.grad(scale.sum(), raw)[0][1] == 0.5


def test_a_flow_keeps_the_order_of_the_coordinates():
    for num_layers in (1, 2, 3):
        x = torch.randn(20, 4)
        y = build_flow("bnaf", 4, num_layers=num_layers).forward_and_log_det(x)[0]
        assert (y - x).abs().max() < 0.2


@pytest.mark.parametrize(
    ("hidden_dims", "words"),
    [((), "expected one or more hidden_dims"), ((3, 0), "sequence of positive ints"), (8, "ints")],
)
def test_wrong_sizes_are_named(hidden_dims: object, words: str):
    with pytest.raises(ValueError, match=words):
        BlockAutoregressive(3, hidden_dims=hidden_dims)
