"""Monotone networks and mixtures: numbers, and what each promises beyond the laws."""

import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from pyroflows import build_flow
from pyroflows.transformers import DeepSigmoidal, MixtureCDF, MonotonicNetwork
from pyroflows.transformers.mixture import Components
from pyroflows.transformers.normal_tails import tail_quantile, tails
from tests.case import DIM, HIDDEN, Case
from tests.families.neural import SMALL, builders

pytestmark = pytest.mark.usefixtures("_double")
FROZEN = json.loads((Path(__file__).parent / "frozen" / "neural.json").read_text())
FLOWS = {name: build for name, build in builders().items() if name.startswith("flow:")}
BOTH = [torch.float64, torch.float32]
each = pytest.mark.parametrize("name", list(SMALL))


def frozen(case: str) -> dict[str, Tensor]:
    return {name: torch.tensor(values) for name, values in FROZEN[case].items()}


def inputs(name: str, number: int, noise: float) -> tuple[Tensor, Tensor]:
    x, params = 3 * torch.randn(number), noise * torch.randn(number, SMALL[name].num_params)
    return x.requires_grad_(), params.requires_grad_()


@each
@pytest.mark.parametrize("noise", [0.1, 0.5, 3.0])
@pytest.mark.parametrize("dtype", BOTH)
def test_a_scalar_map_is_undone(name: str, noise: float, dtype: torch.dtype):
    x, params = (v.detach().to(dtype) for v in inputs(name, 600, noise))
    x[-300:] = torch.tensor([1e2, -1e2, 1e4, -1e4, 1e6, -1e6]).repeat(50)
    y, log_slope = SMALL[name].forward_and_log_det(x, params)
    again, back = SMALL[name].inverse_and_log_det(y, params)
    # Where the map is flat, the image holds less of the point.
    rounding = torch.finfo(dtype).eps * (1 + x.abs() + y.abs() * (-log_slope).exp())
    assert ((again - x).abs() <= 64 * rounding).all()
    assert back.isfinite().all()


@each
def test_first_and_second_derivatives_in_both_directions(name: str):
    transformer, values = SMALL[name], inputs(name, 3, 0.5)
    for method in (transformer.forward_and_log_det, transformer.inverse_and_log_det):
        assert torch.autograd.gradcheck(method, values, fast_mode=True)
        assert torch.autograd.gradgradcheck(method, values, fast_mode=True)


@each
def test_zeros_are_the_identity_and_all_raws_learn_something_of_their_own(name: str):
    transformer, x = SMALL[name], torch.linspace(-30, 30, 61)
    params = torch.zeros(transformer.num_params, requires_grad=True)
    y, log_slope = transformer.forward_and_log_det(x, params)
    assert_close(y, x)
    assert_close(log_slope, torch.zeros_like(x), atol=1e-12, rtol=0)
    inner = slice(25, 36)  # the parts of the map move differently, or they would stay alike
    rows = torch.autograd.functional.jacobian(
        lambda p: transformer.forward_and_log_det(x[inner], p)[0], params.detach()
    )
    assert torch.linalg.matrix_rank(rows, rtol=1e-6) >= 3


@each
def test_slopes_are_those_of_the_value_in_single_precision_far_out(name: str):
    for noise in (0.1, 0.5, 3.0):
        params = noise * torch.randn(200, SMALL[name].num_params)
        x = torch.tensor([1e6, -1e6, 1e4, -1e4]).repeat(50)
        exact = SMALL[name].forward_and_log_det(x, params)
        x = x.float().requires_grad_()
        y, log_slope = SMALL[name].forward_and_log_det(x, params.float())
        assert_close(y.double(), exact[0], atol=0, rtol=1e-4)
        assert_close(log_slope.double(), exact[1], atol=1e-4, rtol=0)
        assert_close(torch.autograd.grad(y.sum(), x)[0].log(), log_slope, atol=1e-4, rtol=0)


@each
@pytest.mark.parametrize("dtype", BOTH)
def test_nothing_overflows_at_the_limits_of_the_raws(name: str, dtype: torch.dtype):
    params = 1e4 * torch.randn(100, SMALL[name].num_params, dtype=dtype).sign()
    x = torch.linspace(-1e6, 1e6, 100, dtype=dtype).requires_grad_()
    params.requires_grad_()
    y, log_slope = SMALL[name].forward_and_log_det(x, params)
    gradients = torch.autograd.grad(y.sum() + log_slope.sum(), [x, params])
    assert all(v.isfinite().all() for v in (y, log_slope, *gradients))


@pytest.mark.parametrize(
    ("case", "transformer"),
    [("gaussianization", MixtureCDF(4)), ("deep_sigmoidal", DeepSigmoidal(4))],
)
def test_mixtures_are_those_of_other_libraries(case: str, transformer: MixtureCDF):
    given = frozen(case)
    components = Components(given["loc"], given["log_scale"], given["log_weight"])
    x = given["x"].requires_grad_()
    y, slope = transformer.mix(x, components)
    assert_close(y, given["y"], atol=1e-6, rtol=1e-6)
    assert_close(slope, torch.autograd.grad(y.sum(), x)[0], atol=0, rtol=1e-10)
    if "log_slope" in given:
        assert_close(slope.log(), given["log_slope"], atol=1e-6, rtol=1e-6)


def test_the_integral_is_that_of_another_library():
    given, transformer = frozen("integral"), MonotonicNetwork(num_units=3, num_nodes=40)
    height = given["height"]
    height = height / (1 - height.abs().sum() / math.log(transformer.max_slope))
    sharpest = 0.2 * transformer.num_nodes / transformer.bound
    starts = transformer.bound * torch.tensor([-2 / 3, 0.0, 2 / 3])
    raws = [
        torch.zeros(1),
        height,
        unbounded(2 * given["sharpness"] / sharpest - 1, 1.0),
        unbounded(given["centre"] - starts, transformer.bound),
    ]
    y, log_slope = transformer.forward_and_log_det(given["x"], torch.cat(raws))
    assert_close(y, given["y"], atol=1e-6, rtol=1e-6)
    assert_close(log_slope, given["log_slope"], atol=1e-6, rtol=1e-6)


def unbounded(value: Tensor, limit: float) -> Tensor:
    return value / (1 - (value / limit).abs())


def test_the_quadrature_resolves_the_sharpest_network():
    transformer = MonotonicNetwork(num_units=2, num_nodes=16, bound=2.0)
    params = 30 * torch.randn(400, 1, transformer.num_params)
    x = torch.linspace(-2, 2, 101)
    log_slope = transformer.forward_and_log_det(x, params)[1]
    log_g = transformer._network(x[:, None], params[..., 1:])[0][..., 0]
    assert_close(log_slope, log_g, atol=0.02, rtol=0)
    assert log_g.max() > math.log(50)  # it was asked for much
    assert log_g.min() < -math.log(50)


def test_tails_of_the_normal():
    z = torch.tensor([-8.0, -1.0, 0.0, 2.0, 19.99, 20.01, 1e4])
    above = [  # mpmath, 60 digits: log(erfc(z / sqrt(2)) / 2)
        -6.220960574271786e-16,
        -0.17275377902344988,
        -0.6931471805599453,
        -3.783184333682032,
        -203.7167077172084,
        -204.11770277865995,
        -50000010.12927891,
    ]
    found = tails(z)
    assert_close(found.log_above, torch.tensor(above), atol=1e-300, rtol=1e-14)
    assert_close(tails(-z).log_below, found.log_above, atol=0, rtol=0)
    hazard = [
        5.052271083536895e-15,
        0.2875999709391784,
        0.7978845608028654,
        2.373215532822841,
        20.03977771328628,
        20.059728448042083,
        10000.000099999997,
    ]
    assert_close(found.hazard_above, torch.tensor(hazard), atol=1e-300, rtol=1e-12)
    right = z >= 0
    assert_close(tail_quantile(found.log_above[right])[0], z[right], atol=1e-14, rtol=1e-14)


@pytest.mark.parametrize("family", [DeepSigmoidal, MixtureCDF])
def test_mixtures_name_what_is_wrong(family: type):
    with pytest.raises(ValueError, match="num_components expected an int of at least 2, got 1"):
        family(1)
    with pytest.raises(ValueError, match="bound expected a positive, finite number, got -1"):
        family(bound=-1.0)
    with pytest.raises(ValueError, match=r"max_slope expected a finite number above 1, got 1\.0"):
        family(max_slope=1.0)


def test_the_network_names_what_is_wrong():
    with pytest.raises(ValueError, match="num_units expected a positive int, got 0"):
        MonotonicNetwork(0)
    with pytest.raises(ValueError, match=r"num_nodes expected a positive int, got 2\.5"):
        MonotonicNetwork(num_nodes=2.5)
    with pytest.raises(ValueError, match="bound expected a positive, finite number, got inf"):
        MonotonicNetwork(bound=math.inf)
    with pytest.raises(ValueError, match="max_slope expected a number above 1 and at most 1000"):
        MonotonicNetwork(max_slope=1e4)


@pytest.mark.parametrize("name", ["naf", "unaf", "gf"])
def test_flows_name_a_wrong_number_of_layers(name: str):
    with pytest.raises(ValueError, match="num_layers expected a positive int, got 0"):
        build_flow(name, 2, num_layers=0, hidden_dims=HIDDEN)


@pytest.mark.parametrize("name", FLOWS)
def test_compiles(name: str):
    b, x = Case(FLOWS[name]).bijector(), torch.randn(4, DIM)
    method = b.inverse_and_log_det if name == "flow:gf" else b.forward_and_log_det
    torch._dynamo.reset()
    compiled = torch.compile(method, fullgraph=True, backend="aot_eager")
    assert_close(compiled(x), method(x))


@pytest.mark.parametrize("name", FLOWS)
def test_one_direction_needs_no_search(name: str, monkeypatch: pytest.MonkeyPatch):
    b = Case(FLOWS[name]).bijector()
    for transformer in {type(t) for t in SMALL.values()}:
        monkeypatch.setattr(transformer, "inverse_and_log_det", None)
    method = b.inverse_and_log_det if name == "flow:gf" else b.forward_and_log_det
    assert all(v.isfinite().all() for v in method(torch.randn(4, DIM)))
