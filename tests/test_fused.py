"""Derivatives by hand, against automatic ones of the plain formula and finite differences."""

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.testing import assert_close

from pyroflows.compiling import for_a_compiler
from pyroflows.transformers import FusedTransformer, RationalQuadraticSpline
from tests.cases import TRANSFORMERS

pytestmark = pytest.mark.usefixtures("_double")
ALL = {**TRANSFORMERS, "steep": RationalQuadraticSpline(6, 1.0, 10.0)}
FUSED = {name: t for name, t in ALL.items() if isinstance(t, FusedTransformer)}
each = pytest.mark.parametrize("transformer", list(FUSED.values()), ids=list(FUSED))


def inputs(transformer: FusedTransformer, *batch: int, scale: float = 2.0) -> tuple[Tensor, Tensor]:
    x = scale * torch.randn(batch)
    params = torch.randn(*batch, transformer.num_params)
    return x.requires_grad_(), params.requires_grad_()


def pairs(transformer: FusedTransformer) -> list:
    return [
        (transformer.forward_and_log_det, transformer.plain_forward),
        (transformer.inverse_and_log_det, transformer.plain_inverse),
    ]


@each
def test_first_and_second_derivatives_beside_finite_differences(transformer: FusedTransformer):
    values = inputs(transformer, 4, 2)
    for fused, _ in pairs(transformer):
        assert torch.autograd.gradcheck(fused, values)
        assert torch.autograd.gradgradcheck(fused, values)


@each
@pytest.mark.parametrize("which", [(1.0, 0.0), (0.0, 1.0), (0.7, -0.3)], ids=str)
@pytest.mark.parametrize("scale", [0.1, 2.0, 20.0])
def test_agrees_with_the_plain_formula(
    transformer: FusedTransformer, which: tuple[float, float], scale: float
):
    x, params = inputs(transformer, 50, 3, scale=scale)
    for fused, plain in pairs(transformer):
        found = []
        for method in (fused, plain):
            values = method(x, params)
            total = sum(w * v.sum() for w, v in zip(which, values, strict=True) if w)
            found.append(
                (*values, *torch.autograd.grad(total, [x, params], materialize_grads=True))
            )
        assert_close(found[0], found[1], atol=1e-10, rtol=1e-8)


@each
@pytest.mark.parametrize("scale", [0.1, 2.0, 20.0])
def test_what_a_compiler_gets_agrees_with_the_plain_formula(
    transformer: FusedTransformer, scale: float
):
    for which in ((1.0, 0.0), (0.0, 1.0), (0.7, -0.3)):
        with for_a_compiler():
            test_agrees_with_the_plain_formula(transformer, which, scale)


@each
def test_what_a_compiler_gets_gives_partials_and_inverses(transformer: FusedTransformer):
    x, params = (v.detach() for v in inputs(transformer, 40, 2, scale=3.0))
    expected = transformer.partials(x, params)
    with for_a_compiler():
        assert_close(transformer.partials(x, params), expected)
        y, _ = transformer.forward_and_log_det(x, params)
        assert_close(transformer.inverse_and_log_det(y, params)[0], x)
        empty = transformer.forward_and_log_det(x[:0], params[:0])
    assert [tuple(v.shape) for v in empty] == [(0, 2), (0, 2)]


def test_a_compiler_gets_no_sums_and_no_lookups():
    spline = RationalQuadraticSpline()
    x, params = (v.detach() for v in inputs(spline, 7))
    with for_a_compiler():
        graph = make_fx(lambda x, p: spline.partials(x, p)[0])(x, params)
    names = {str(node.target) for node in graph.graph.nodes if node.op == "call_function"}
    assert not {n for n in names if any(w in n for w in ("gather", "sum", "index", "cat"))}


@each
def test_one_node_of_the_graph(transformer: FusedTransformer):
    y, log_slope = transformer.forward_and_log_det(*inputs(transformer, 5))
    assert y.grad_fn is log_slope.grad_fn
    assert type(y.grad_fn).__name__ == "_FusedBackward"


@each
def test_any_layout_of_memory(transformer: FusedTransformer):
    x, params = inputs(transformer, 5, 3, 2)
    for fused, _ in pairs(transformer):
        expected = fused(x, params)
        for order in ((2, 0, 1), (1, 2, 0), (2, 1, 0)):
            back = tuple(sorted(range(3), key=order.__getitem__))
            moved = (
                params.detach().permute(3, *order).contiguous().permute(*(i + 1 for i in back), 0)
            )
            assert moved.stride() != params.stride()
            assert_close(fused(x, moved), expected)
            assert_close(fused(x.mT.contiguous().mT, moved), expected)


@each
@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")  # torch's own use of it
def test_under_the_transforms_of_torch_func(transformer: FusedTransformer):
    x, params = (v.detach() for v in inputs(transformer, 6, 2))
    for fused, plain in pairs(transformer):
        assert_close(torch.func.vmap(fused)(x, params), plain(x, params))
        expected = torch.autograd.functional.jacobian(lambda v, f=plain: f(v, params)[0], x)
        for jacobian in (torch.func.jacrev, torch.func.jacfwd):
            assert_close(jacobian(lambda v, f=fused: f(v, params)[0])(x), expected)


@each
def test_empty_batches(transformer: FusedTransformer):
    x, params = inputs(transformer, 0, 3)
    for fused, _ in pairs(transformer):
        y, log_slope = fused(x, params)
        assert y.shape == log_slope.shape == (0, 3)
        (y.sum() + log_slope.sum()).backward()
        assert params.grad.shape == params.shape
