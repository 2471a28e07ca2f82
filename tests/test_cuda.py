"""Bijectors and transformers on CUDA, with stand-ins elsewhere.

    pytest -m cuda

runs what needs a GPU, here and in other files. Elsewhere the CPU stands in, which proves the tests,
and ``meta``, which refuses tensors that were made on the CPU.
"""

import copy

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from pyroflows.transformers import FusedTransformer, RationalQuadraticSpline, spline_dispatch
from pyroflows.transformers.spline_kernel import Box
from tests import laws
from tests.cases import CASES, TRANSFORMERS, Case
from tests.lawbook import TOLERANCE
from tests.pretended import Pretended, pretended_device
from tests.test_laws import IN_BOTH_DTYPES, applies

CUDA = pytest.param("cuda", marks=pytest.mark.cuda)
each_case = pytest.mark.parametrize("case", list(CASES.values()), ids=list(CASES))
NAMES = {id(case): name for name, case in CASES.items()}


@pytest.fixture(params=["cpu", CUDA])
def device(request) -> torch.device:
    return torch.device(request.param, 0) if request.param == "cuda" else torch.device("cpu")


# Bijectors


@pytest.mark.cuda
@each_case
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_laws(case: Case, dtype: torch.dtype):
    torch.set_default_dtype(torch.float64)
    torch.set_default_device("cuda")
    for name, law in laws.LAWS.items():
        if name in {"compile_agrees", "works_on_another_device"}:
            continue
        if dtype is torch.float64 and applies(name, NAMES[id(case)], case):
            law(case)
        elif dtype is torch.float32 and name in IN_BOTH_DTYPES:
            law(case, dtype)


@each_case
@pytest.mark.parametrize("device_type", ["meta", CUDA])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_a_bijector_that_was_moved(case: Case, device_type: str, dtype: torch.dtype):
    """No default device helps here: what is made on the way is made where the inputs are."""
    if device_type == "meta" and dtype is torch.float32:
        pytest.skip("where a constant is made does not depend on its dtype")
    if device_type == "meta" and ("continuous" in NAMES[id(case)] or "cnf" in NAMES[id(case)]):
        pytest.skip("the solver needs values, which the meta device has not")
    b, x, c = case.bijector(dtype), case.x(4, dtype=dtype), case.context(4, dtype=dtype)
    there = copy.deepcopy(b).to(device_type)
    methods = ["forward_and_log_det", "inverse_and_log_det"]
    if device_type == "meta" and laws._needs_newton(b):
        methods.remove("inverse_and_log_det")
    for name in methods:
        args = [None if v is None else v.to(device_type).requires_grad_() for v in (x, c)]
        results = getattr(there, name)(*args)
        sum(r.sum() for r in results).backward()
        assert {r.device.type for r in (*results, args[0].grad)} == {device_type}
        if device_type != "meta":
            on_cpu = getattr(b, name)(x, c)
            laws.close([r.cpu() for r in results], list(on_cpu), torch.float32)
    score = there.forward_with_score(x.to(device_type), -x.to(device_type), args[1])[2]
    assert score.device.type == device_type


def test_the_pretended_device_refuses_what_a_gpu_refuses():
    with pretended_device() as device:
        a = torch.arange(3.0, device=device, requires_grad=True)
        (2.0 * a * torch.tensor(3.0)).sum().backward()
        assert isinstance(a.grad, Pretended)
        assert torch.equal(a.grad.cpu(), torch.full((3,), 6.0))
        with pytest.raises(RuntimeError, match="same device"):
            a + torch.ones(3)


# Transformers


def transformer_inputs(
    transformer: FusedTransformer, dtype: torch.dtype, device: torch.device, size: int = 300
) -> tuple[Tensor, Tensor]:
    x = 2 * torch.randn(size, dtype=dtype)
    params = torch.randn(size, transformer.num_params, dtype=dtype)
    return tuple(v.to(device).requires_grad_() for v in (x, params))


FUSED = {n: t for n, t in TRANSFORMERS.items() if isinstance(t, FusedTransformer)}
FUSED |= {f"spline-{k}": RationalQuadraticSpline(k, 5.0) for k in (2, 8, 16)}


@pytest.mark.parametrize("transformer", list(FUSED.values()), ids=list(FUSED))
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_fused_beside_plain(transformer: FusedTransformer, dtype: torch.dtype, device):
    for size in (1, 128, 300):
        x, params = transformer_inputs(transformer, dtype, device, size)
        for fused, plain in (
            (transformer.forward_and_log_det, transformer.plain_forward),
            (transformer.inverse_and_log_det, transformer.plain_inverse),
        ):
            found = []
            for method, is_exact in ((fused, False), (plain, True)):
                args = [v.detach().cpu().double() if is_exact else v.detach() for v in (x, params)]
                args = [v.requires_grad_() for v in args]
                y, log_slope = method(*args)
                grads = torch.autograd.grad(y.cos().sum() + (log_slope * y.sin()).sum(), args)
                found.append([v.detach().cpu().double() for v in (y, log_slope, *grads)])
            for actual, exact in zip(*found, strict=True):
                scale = 1 + float(exact.abs().max())
                assert_close(actual / scale, exact / scale, atol=TOLERANCE[dtype], rtol=0)


@pytest.mark.cuda
def test_triton_serves_on_cuda_and_agrees_with_eager():
    pytest.importorskip("triton", reason="Triton is not installed")
    for dtype in (torch.float32, torch.float64):
        for num_bins in (2, 8, 16):
            spline = RationalQuadraticSpline(num_bins)
            x, params = transformer_inputs(spline, dtype, torch.device("cuda"), 10_000)
            kernels = spline_dispatch.kernels_for(spline._box, x, params.mT.contiguous())
            assert not isinstance(kernels, Box)
            values = x.detach(), params.detach().mT.contiguous()
            cotangents = torch.cos(x.detach()), torch.sin(x.detach())
            both = [
                spline_dispatch._results(k, *values, cotangents) for k in (kernels, spline._box)
            ]
            for fast, eager in zip(*both, strict=True):
                error = (fast - eager).abs().mean() / eager.abs().mean()
                assert error < (1e-4 if dtype is torch.float32 else 1e-12)


@pytest.mark.cuda
def test_a_spline_on_a_stream_in_a_graph_and_on_the_last_device():
    spline = RationalQuadraticSpline(8)
    last = torch.device("cuda", torch.cuda.device_count() - 1)
    x, params = (v.detach() for v in transformer_inputs(spline, torch.float32, last))
    expected = spline.forward_and_log_det(x, params)
    stream = torch.cuda.Stream(last)
    stream.wait_stream(torch.cuda.current_stream(last))
    with torch.cuda.stream(stream):
        assert_close(spline.forward_and_log_det(x, params), expected)
    stream.synchronize()
    with torch.cuda.device(last):
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = spline.forward_and_log_det(x, params)
        x.neg_()
        graph.replay()
        torch.cuda.synchronize()
    assert_close(captured, spline.forward_and_log_det(x, params))


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_eager(dtype: torch.dtype):
    spline = RationalQuadraticSpline(4)
    x = torch.linspace(-2, 2, 9, dtype=dtype, device="cuda")
    rows = torch.zeros(spline.num_params, 9, dtype=dtype, device="cuda")
    assert isinstance(spline_dispatch.kernels_for(spline._box, x, rows), Box)
