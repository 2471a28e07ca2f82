"""Block autoregressive layers beside Pyro's, at shared parameters: see ``frozen/block.py``."""

import json
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from pyroflows.bijectors import BlockAutoregressive
from pyroflows.bijectors._ridge import _LIMIT
from pyroflows.bijectors.block_autoregressive import _START

pytestmark = pytest.mark.usefixtures("_double")
FOUND = json.loads((Path(__file__).parent / "frozen" / "block.json").read_text())


@pytest.mark.parametrize("case", FOUND["cases"], ids=lambda case: f"D={len(case['y'][0])}")
def test_it_is_that_of_pyro_with_a_residual_term(case: dict):
    x, y, log_det = (torch.tensor(case[name]) for name in ("x", "y", "log_det"))
    layer = _with(case, x.shape[-1])
    assert_close(layer.forward_and_log_det(x), (y, log_det), atol=1e-6, rtol=1e-6)
    assert_close(layer.inverse_and_log_det(y), (x, -log_det), atol=1e-6, rtol=1e-6)


@torch.no_grad()
def _with(case: dict, dim: int) -> BlockAutoregressive:
    """The layer of these parameters: a gate is a slope of the linear term and a last scale."""
    layer = BlockAutoregressive(dim, hidden_dims=(3, 2))
    numbers = zip(layer.layers, case["weights"], case["log_scales"], case["biases"], strict=True)
    for block, weight, log_scale, bias in numbers:
        block.weight.copy_(torch.tensor(weight).view_as(block.weight))
        block.raw_scale.copy_(_unbounded(torch.tensor(log_scale).view_as(block.bias)))
        block.bias.copy_(torch.tensor(bias).view_as(block.bias))
    scale = torch.tensor(case["log_scales"][-1]).exp().view(dim, 1)
    if case["gate"] is not None:
        gate = torch.tensor(case["gate"])
        layer.log_slope.copy_(_unbounded(gate.log()).expand(dim))
        scale = (1 - gate) * scale
        layer.layers[-1].bias.mul_(1 - gate)
    layer.layers[-1].raw_scale.copy_(scale - _START**2 / scale)
    return layer


def _unbounded(value: torch.Tensor) -> torch.Tensor:
    return value / (1 - value.abs() / _LIMIT)
