"""What Pyro checks of its own transforms, of every registered flow, free and conditional."""

import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import (
    ComposeTransformModule,
    ConditionalTransformedDistribution,
)
from pyro.distributions.conditional import ConditionalComposeTransformModule
from torch import Size, Tensor
from torch.distributions import Transform
from torch.testing import assert_close

from pyroflows import Bijector
from pyroflows.bijectors import Autoregressive
from tests.cases import BUILT_IN, CASES, Case

pytestmark = pytest.mark.usefixtures("_double")
NAMES = [f"flow:{name}{kind}" for name in BUILT_IN for kind in ("", "|context")]
each_flow = pytest.mark.parametrize("case", [CASES[name] for name in NAMES], ids=NAMES)
BATCHES = [(), (1,), (4,), (2, 3)]


def transform(case: Case, *batch: int) -> tuple[Bijector, Transform]:
    """The flow, moved off its start, and what Pyro is given: bound to a context if it takes one."""
    b = case.bijector(noise=0.1)
    return b, b.condition(case.context(*batch))


def by_differences(t: Transform, x: Tensor, h: float = 1e-5) -> Tensor:
    steps = h * torch.eye(x.shape[-1])
    columns = [(t(x + step) - t(x - step)) / (2 * h) for step in steps]
    return torch.stack(columns, dim=-1)


@each_flow
def test_round_trip(case: Case):
    _, t = transform(case)
    for dim_first in (t, t.inv):
        x = case.x(20)
        y = dim_first(x)
        assert_close(dim_first.inv(y.clone()), x, atol=1e-6, rtol=1e-6)
        there = dim_first.log_abs_det_jacobian(x, y)
        back = dim_first.inv.log_abs_det_jacobian(y, x)
        assert_close(there, -back, atol=1e-6, rtol=1e-6)


@each_flow
def test_shapes(case: Case):
    _, t = transform(case)
    assert (t.domain.event_dim, t.codomain.event_dim) == (1, 1)
    assert t.bijective
    for batch in BATCHES:
        shape = Size((*batch, case.dim))
        assert t.forward_shape(shape) == t.inverse_shape(shape) == shape
        x = case.x(*batch)
        y = t(x)
        assert y.shape == t.inv(y.clone()).shape == shape
        assert t.log_abs_det_jacobian(x, y).shape == batch


@each_flow
def test_jacobian_by_differences(case: Case):
    _, t = transform(case)
    x = case.x(5)
    log_det = t.log_abs_det_jacobian(x, t(x))
    expected = torch.linalg.slogdet(by_differences(t, x)).logabsdet
    assert_close(log_det, expected, atol=1e-4, rtol=1e-4)


@each_flow
def test_layers_that_are_autoregressive_are_triangular(case: Case):
    flow, _ = transform(case)
    for layer in (m for m in flow.modules() if isinstance(m, Autoregressive)):
        t = layer.condition(case.context() if layer.context_dim else None)
        matrix = by_differences(t, case.x())[layer.order][:, layer.order]
        assert not matrix.triu(1).any()
        assert (matrix.diagonal() > 0).all()


@pytest.mark.parametrize("name", [name for name in NAMES if "|" in name])
def test_each_context_has_its_own_map(name: str):
    case = CASES[name]
    b, x, c = case.bijector(noise=0.3), case.x(4), case.context(4)
    whole = b.condition(c)
    y = whole(x)
    for i in range(4):
        one = b.condition(c[i])
        assert_close(one(x[i]), y[i], atol=1e-6, rtol=1e-6)
        assert_close(one.inv(y[i].clone()), x[i], atol=1e-6, rtol=1e-6)
    d = ConditionalTransformedDistribution(normal(case.dim), [b]).condition(c)
    assert d.batch_shape == (4,)
    assert d.log_prob(d.rsample((3,))).shape == (3, 4)


@each_flow
def test_composition(case: Case):
    parts = [case.bijector(noise=0.1) for _ in range(2)]
    c = case.context(6)
    if case.context_dim:
        both = ConditionalComposeTransformModule(parts).condition(c)
    else:
        both = ComposeTransformModule(parts)
    x = case.x(6)
    y = both(x)
    middle, first = parts[0].forward_and_log_det(x, c)
    expected, second = parts[1].forward_and_log_det(middle, c)
    assert_close(y, expected)
    assert_close(both.log_abs_det_jacobian(x, y), first + second)
    assert_close(both.inv(y), x, atol=1e-6, rtol=1e-6)
    if case.context_dim:
        return
    d = dist.TransformedDistribution(normal(case.dim), both.parts)
    assert_close(d.log_prob(y), normal(case.dim).log_prob(x) - first - second, atol=1e-6, rtol=1e-6)


def normal(dim: int) -> dist.Distribution:
    return dist.Normal(torch.zeros(dim), torch.ones(dim)).to_event(1)
