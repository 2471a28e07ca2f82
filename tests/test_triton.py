"""Triton's spline kernels beside the eager ones, and when which of them serves.

The kernels run here under Triton's interpreter, on the CPU: a process of its own sets
``TRITON_INTERPRET=1`` before Triton is imported and runs this file again. They are also compiled
for GPUs, which needs none. What they do on a GPU is tested under ``-m cuda``.
"""

import importlib.util
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.testing import assert_close

from pyroflows.bijectors import Autoregressive
from pyroflows.transformers import RationalQuadraticSpline, spline_dispatch, triton_spline
from pyroflows.transformers.spline_kernel import Box, SplineState
from pyroflows.transformers.triton_spline import TritonBox, trial
from tests import laws
from tests.cases import HIDDEN, Case

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
HAS_TRITON = importlib.util.find_spec("triton") is not None
needs_triton = pytest.mark.skipif(not HAS_TRITON, reason="Triton is not installed")
interpreted = pytest.mark.skipif(
    not (HAS_TRITON and INTERPRETED), reason="runs with TRITON_INTERPRET=1, in its own process"
)
compiled = pytest.mark.skipif(
    not HAS_TRITON or INTERPRETED, reason="Triton is not installed, or it interprets"
)
DTYPES = {torch.float64: 1e-11, torch.float32: 2e-3}
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _one_program(request, monkeypatch):
    """The interpreter takes its time for each program, so there is one, of all values."""
    if "in_blocks" not in request.node.name:
        monkeypatch.setattr(triton_spline, "_BLOCK", 512)


def box(num_bins: int, bound: float = 3.0, max_slope: float = 1e3) -> Box:
    return Box(num_bins, bound, math.log(max_slope))


def both(one: Box, name: str, *inputs: Tensor) -> tuple[tuple, tuple]:
    """Results of the eager kernels and of Triton's: value, log-slope, state."""
    return getattr(one, name)(*inputs), getattr(TritonBox(*one), name)(*inputs)


def cotangents(value: Tensor, bound: float) -> list[tuple[Tensor | None, Tensor | None]]:
    of_y, of_log = torch.cos(value) / bound, torch.sin(2 * value)
    return [(of_y, of_log), (of_y, None), (None, of_log)]


def everything(one: Box, name: str, value: Tensor, raws: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Pairs of eager and Triton results: values, log-slopes, and all there is on the way back."""
    (*eager, eager_state), (*fast, fast_state) = both(one, name, value, raws)
    for of_y, of_log in cotangents(value, one.bound):
        eager += one.pull(eager_state, of_y, of_log)
        fast += TritonBox(*one).pull(fast_state, of_y, of_log)
    eager.append(one.log_slope_x(eager_state))
    fast.append(TritonBox(*one).log_slope_x(fast_state))
    return list(zip(eager, fast, strict=True))


def assert_alike(pairs: list[tuple[Tensor, Tensor]], dtype: torch.dtype) -> None:
    for eager, fast in pairs:
        scale = 1 + float(eager[eager.isfinite()].abs().amax()) if eager.numel() else 1.0
        assert_close(fast / scale, eager / scale, atol=DTYPES[dtype], rtol=0, equal_nan=True)


# Kernels, interpreted


@interpreted
@each_dtype
@pytest.mark.parametrize("name", ["forward", "inverse"])
@pytest.mark.parametrize("num_bins", [2, 3, 16])
def test_results_are_those_of_the_eager_kernels(num_bins: int, name: str, dtype: torch.dtype):
    one = box(num_bins)
    assert_alike(everything(one, name, *trial(one, dtype, CPU)), dtype)


@interpreted
@pytest.mark.parametrize("settings", [(0.01, 1e3), (50.0, 10.0), (1.0, 1.01)], ids=str)
def test_results_with_other_settings(settings: tuple[float, float]):
    one = box(5, *settings)
    for name in ("forward", "inverse"):
        assert_alike(everything(one, name, *trial(one, torch.float64, CPU)), torch.float64)


@interpreted
@pytest.mark.parametrize("size", [0, 1, 128, 129])
def test_any_number_of_values_in_blocks(size: int):
    one = box(4)
    value, raws = (v[..., :size] for v in trial(one, torch.float64, CPU))
    for name in ("forward", "inverse"):
        pairs = everything(one, name, value, raws)
        assert {fast.shape for _, fast in pairs} == {(size,), (11, size)}
        assert_alike(pairs, torch.float64)


@interpreted
def test_memory_beyond_the_last_value_is_left_alone_in_blocks():
    one, sentinel = box(4), -7.0
    value, raws = trial(one, torch.float64, CPU)
    size = 200
    out, log_slope = (torch.full((256,), sentinel).double() for _ in range(2))
    TritonBox(*one)._launch(
        triton_spline._evaluate, value[:size], raws, out, log_slope, log_slope, INVERSE=False
    )
    assert out[:size].ne(sentinel).all()
    assert out[size:].eq(sentinel).all()
    assert log_slope[size:].eq(sentinel).all()


@interpreted
@each_dtype
@pytest.mark.parametrize("name", ["forward", "inverse"])
def test_outside_at_the_ends_and_what_is_no_number(name: str, dtype: torch.dtype):
    one = box(4)
    end = torch.tensor(one.bound, dtype=dtype)
    inner = torch.nextafter(end, torch.zeros_like(end))
    value = torch.stack([end, -end, inner, -inner, 2 * end, *torch.tensor(SPECIAL, dtype=dtype)])
    raws = trial(one, dtype, CPU)[1][:, : len(value)]
    pairs = everything(one, name, value, raws)
    assert_alike(pairs, dtype)
    outside = value.abs() >= end
    assert torch.equal(pairs[0][1][outside], value[outside])
    assert pairs[1][1][outside].eq(0).all()
    assert pairs[0][1][value.isnan()].isnan().all()


SPECIAL = [0.0, 1e30, -1e30, math.inf, -math.inf, math.nan]


@interpreted
@pytest.mark.filterwarnings("ignore:invalid value encountered")  # NumPy's word, which GPUs lack
@each_dtype
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf], ids=str)
def test_raws_that_are_no_number_spoil_their_own_value_alone(bad: float, dtype: torch.dtype):
    one = box(4)
    value, raws = trial(one, dtype, CPU)
    good = [fast for _, fast in everything(one, "forward", value, raws)]
    raws[2, 150] = raws[9, 170] = bad
    pairs = everything(one, "forward", value, raws)
    others = torch.ones(len(value), dtype=torch.bool)
    others[[150, 170]] = False
    for (eager, fast), before in zip(pairs, good, strict=True):
        assert torch.equal(fast[..., others], before[..., others])
        spoilt = [v.isnan().view(-1, len(value)).any(0) for v in (eager, fast)]
        assert torch.equal(*spoilt)
        assert spoilt[0][150]


def mean_errors(one: Box, name: str, value: Tensor, raws: Tensor) -> list[tuple[float, float]]:
    """Of each result in single precision, eager and Triton's, against double precision."""
    exact = [eager for eager, _ in everything(one, name, value.double(), raws.double())]
    pairs = zip(exact, everything(one, name, value, raws), strict=True)
    return [tuple(float((v - e).abs().mean() / e.abs().mean()) for v in p) for e, p in pairs]


@interpreted
@pytest.mark.parametrize("size", [30.0, 1e6, 3e38])
def test_huge_raws(size: float):
    one = box(4)
    value, raws = trial(one, torch.float32, CPU)
    raws = size * torch.where(raws > 1, 1, -1)
    for name in ("forward", "inverse"):
        pairs = everything(one, name, value.double(), raws.double())
        for eager, fast in pairs:
            assert_close(fast, eager, atol=1e-9 * float(eager.abs().max()) + 1e-30, rtol=0)
        assert all(fast.isfinite().all() for _, fast in everything(one, name, value, raws))
        assert all(fast < 3 * eager + 1e-6 for eager, fast in mean_errors(one, name, value, raws))


@interpreted
@pytest.mark.parametrize("num_bins", [8])
def test_single_precision_is_as_good_as_that_of_the_eager_kernels(num_bins: int):
    one = box(num_bins)
    value, raws = trial(one, torch.float32, CPU)
    for name in ("forward", "inverse"):
        assert all(fast < 3 * eager + 1e-6 for eager, fast in mean_errors(one, name, value, raws))


# The transformer on these kernels, interpreted


@pytest.fixture
def on_triton(monkeypatch):
    """Let the CPU pass for a device that Triton serves, and count what it is asked."""
    calls = []
    for name in ("_evaluate", "pull"):
        method = getattr(TritonBox, name)

        def counted(*args, _method=method, _name=name, **options):
            calls.append(_name)
            return _method(*args, **options)

        monkeypatch.setattr(TritonBox, name, counted)
    monkeypatch.setattr(spline_dispatch, "_DEVICES", ("cpu",))
    monkeypatch.setattr(spline_dispatch, "_decided", {})
    monkeypatch.setattr(spline_dispatch, "_reported", set())
    return calls


def spline_inputs(*batch: int) -> tuple[RationalQuadraticSpline, Tensor, Tensor]:
    spline = RationalQuadraticSpline(4, 3.0)
    x, params = 2 * torch.randn(batch), torch.randn(*batch, spline.num_params)
    return spline, x.requires_grad_(), params.requires_grad_()


@interpreted
@pytest.mark.usefixtures("_double")
def test_derivatives_of_the_transformer(on_triton):
    spline, *values = spline_inputs(2)
    for fused, plain in (
        (spline.forward_and_log_det, spline.plain_forward),
        (spline.inverse_and_log_det, spline.plain_inverse),
    ):
        assert torch.autograd.gradcheck(fused, values, fast_mode=True)
        second = []
        for method in (fused, plain):
            first = torch.autograd.grad(
                sum(v.sum() for v in method(*values)), values, create_graph=True
            )
            second.append(torch.autograd.grad(sum(g.square().sum() for g in first), values))
        assert_close(*second)
    assert set(on_triton) == {"_evaluate", "pull"}


@interpreted
@pytest.mark.usefixtures("_double")
def test_any_layout_and_cotangents_that_are_expanded(on_triton):
    spline, x, params = spline_inputs(5, 3)
    for fused, plain in (
        (spline.forward_and_log_det, spline.plain_forward),
        (spline.inverse_and_log_det, spline.plain_inverse),
    ):
        moved = params.detach().permute(2, 1, 0).contiguous().permute(2, 1, 0).requires_grad_()
        found = [(*f(x, p), p) for f, p in ((fused, moved), (plain, params))]
        grads = [torch.autograd.grad(y.sum() + log.sum(), [x, p]) for y, log, p in found]
        assert_close(found[0][:2], found[1][:2])
        assert_close(*grads)
    assert "pull" in on_triton


@interpreted
@pytest.mark.usefixtures("_double")
@pytest.mark.parametrize(
    "law",
    [
        "inverse_undoes_forward",
        "log_det_is_that_of_the_jacobian",
        "the_score_is_the_gradient_of_the_log_density",
        "pushing_a_score_keeps_the_gradients",
    ],
)
def test_laws_of_a_bijector(law: str, on_triton):
    def build(dim: int) -> Autoregressive:
        spline = RationalQuadraticSpline(3, 3.0)
        return Autoregressive(dim, transformer=spline, hidden_dims=HIDDEN)

    laws.LAWS[law](Case(build, dim=2))
    assert on_triton


# Compiled for GPUs, without one


@compiled
@pytest.mark.parametrize("architecture", [80, 90])
@pytest.mark.parametrize(("dtype", "inverse"), [("fp32", False), ("fp32", True), ("fp64", True)])
def test_compiles(architecture: int, dtype: str, inverse: bool, tmp_path, monkeypatch):
    from triton import compile
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    settings = {"K": 3, "BOUND": 3.0, "LIMIT": math.log(1e3), "INVERSE": inverse, "BLOCK": 128}
    for kernel, flags in (
        (triton_spline._evaluate, {}),
        (triton_spline._pull, {"HAS_Y": True, "HAS_LOG": True}),
    ):
        constants = settings | flags
        pointers = {name: f"*{dtype}" for name in kernel.arg_names if name.endswith("_at")}
        kinds = {"size": "i32", **pointers, **dict.fromkeys(constants, "constexpr")}
        source = ASTSource(kernel, {n: kinds[n] for n in kernel.arg_names}, constexprs=constants)
        target = GPUTarget("cuda", architecture, 32)
        made = compile(source, target=target, options=dict(triton_spline._OPTIONS))
        assert made.asm["cubin"]
        # Constants of a double kernel that went through single precision would be converted.
        assert dtype == "fp32" or "cvt.f64.f32" not in made.asm["ptx"]


# Which kernels serve, on any machine


class StandIn:
    """What a Triton box does, done by the eager kernels; it may fail or be wrong."""

    error: Exception | None = None
    factor = 1.0

    def forward(self, x: Tensor, raws: Tensor) -> tuple:
        if self.error:
            raise self.error
        y, log_slope, _ = Box.forward(self, x, raws)
        return self.factor * y, log_slope, (x, raws)

    def inverse(self, y: Tensor, raws: Tensor) -> tuple:
        x, log_slope, state = Box.inverse(self, y, raws)
        return x, log_slope, (y, raws, Box.log_slope_x(self, state))

    def pull(self, state: tuple, *grads: Tensor | None) -> tuple[Tensor, Tensor]:
        evaluate = Box.forward if len(state) == 2 else Box.inverse
        return Box.pull(self, evaluate(self, *state[:2])[2], *grads)

    def log_slope_x(self, state: tuple) -> Tensor:
        evaluate = Box.forward if len(state) == 2 else Box.inverse
        return Box.log_slope_x(self, evaluate(self, *state[:2])[2])


class StandInBox(StandIn, Box):
    __hash__ = Box.__hash__


@pytest.fixture
def stand_in(monkeypatch):
    monkeypatch.setattr(triton_spline, "HAS_TRITON", True)
    monkeypatch.setattr(triton_spline, "TritonBox", StandInBox)
    monkeypatch.setattr(spline_dispatch, "_DEVICES", ("cpu",))
    monkeypatch.setattr(spline_dispatch, "_decided", {})
    monkeypatch.setattr(spline_dispatch, "_reported", set())
    return StandInBox


def served(spline: RationalQuadraticSpline, x: Tensor, raws: Tensor) -> bool:
    """Whether Triton's kernels serve, by the state that they leave."""
    return len(spline.evaluate(x, raws)[2]) != len(SplineState._fields)


SPLINE = RationalQuadraticSpline(4, 3.0)


def raw_rows(dtype: torch.dtype = torch.float32, bins: int = 4) -> tuple[Tensor, Tensor]:
    return torch.linspace(-4, 4, 9, dtype=dtype), torch.ones(3 * bins - 1, 9, dtype=dtype)


@pytest.mark.skipif(INTERPRETED, reason="this is the interpreted run")
def test_the_package_does_not_ask_for_triton():
    code = (
        "import sys, torch, pyroflows\n"
        "pyroflows.transformers.RationalQuadraticSpline().forward_and_log_det("
        "torch.zeros(2), torch.zeros(2, 23))\n"
        "assert 'pyroflows.transformers.triton_spline' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])


def test_the_cpu_is_eager():
    assert not served(SPLINE, *raw_rows())


def test_proven_kernels_serve_and_are_proven_once(stand_in, monkeypatch):
    trials = []
    monkeypatch.setattr(triton_spline, "trial", lambda *a: trials.append(a) or trial(*a))
    for _ in range(3):
        for dtype in DTYPES:
            assert served(SPLINE, *raw_rows(dtype))
    assert [dtype for _, dtype, _ in trials] == list(DTYPES)


def test_the_trial_draws_nothing(stand_in):
    state = torch.get_rng_state()
    assert served(SPLINE, *raw_rows())
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_and_mixed_dtypes_are_eager(stand_in, dtype: torch.dtype):
    assert spline_dispatch.kernels_for(SPLINE._box, *raw_rows(dtype)) == SPLINE._box
    x, raws = raw_rows()
    assert not served(SPLINE, x, raws.double())


def test_many_bins_are_eager(stand_in):
    assert not served(RationalQuadraticSpline(40), *raw_rows(bins=40))


def test_without_triton_the_eager_kernels_serve_silently(stand_in, monkeypatch):
    monkeypatch.setattr(triton_spline, "HAS_TRITON", False)
    assert not served(SPLINE, *raw_rows())


def test_kernels_that_fail_are_given_up_with_one_warning(stand_in, monkeypatch):
    monkeypatch.setattr(stand_in, "error", RuntimeError("no C compiler"))
    with pytest.warns(UserWarning, match=r"not used.*eager.*RuntimeError: no C compiler") as seen:
        assert not any(served(SPLINE, *raw_rows(dtype)) for dtype in DTYPES)
    assert len(seen) == 1


@pytest.mark.parametrize("factor", [1.01, math.nan], ids=str)
def test_kernels_that_are_wrong_are_given_up_with_a_warning(stand_in, monkeypatch, factor: float):
    monkeypatch.setattr(stand_in, "factor", factor)
    with pytest.warns(UserWarning, match=r"torch\.float32, 4 bins they differ from the eager"):
        assert not served(SPLINE, *raw_rows())
    assert not served(SPLINE, *raw_rows())


def test_who_records_operations_records_those_of_the_eager_kernels(stand_in):
    x, raws = raw_rows()
    params = raws.mT.contiguous()
    expected = SPLINE.forward_and_log_det(x, params)
    for mode in ("real", "fake"):
        graph = make_fx(lambda *v: SPLINE.forward_and_log_det(*v), tracing_mode=mode)(x, params)
        assert len(graph.graph.nodes) > 20
        assert_close(graph(2 * x / 2, params), expected)
    assert not served(SPLINE, x.to("meta"), raws.to("meta"))


def test_a_way_back_that_is_recorded_needs_no_way_there(stand_in):
    x, raws = raw_rows(torch.float64)
    grads = torch.cos(x), torch.sin(x)
    for evaluate in (SPLINE.evaluate, SPLINE.evaluate_inverse):
        state = evaluate(x, raws)[2]
        expected = SPLINE.pull(state, *grads)

        def back(*grads: Tensor, state: tuple = state) -> tuple[Tensor, Tensor]:
            return SPLINE.pull(state, *grads)

        graph = make_fx(back)(*grads)
        assert len(graph.graph.nodes) > 20
        assert_close(graph(*grads), expected)
        assert_close(graph(*(2 * g for g in grads)), tuple(2 * v for v in expected))


# This file again, interpreted


@pytest.mark.slow
@needs_triton
@pytest.mark.skipif(INTERPRETED, reason="this is the interpreted run")
def test_kernels_under_the_interpreter():
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", __file__]
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, env=environment, cwd=Path(__file__).parents[1], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
