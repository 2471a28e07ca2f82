"""Planar layers beside Pyro's, at shared parameters: ``frozen/planar.py`` wrote the numbers."""

import json
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from pyroflows.bijectors import Planar
from pyroflows.bijectors._ridge import _LIMIT

pytestmark = pytest.mark.usefixtures("_double")
FOUND = json.loads((Path(__file__).parent / "frozen" / "planar.json").read_text())


@pytest.mark.parametrize("case", FOUND["cases"], ids=lambda case: f"D={len(case['direction'])}")
def test_planar_is_that_of_pyro(case: dict):
    numbers = {name: torch.tensor(value) for name, value in case.items()}
    layer = _with(numbers["shift"], numbers["direction"], numbers["bias"])
    y, log_det = layer.forward_and_log_det(numbers["x"])
    assert_close(y, numbers["y"], atol=1e-6, rtol=1e-6)
    assert_close(log_det, numbers["log_det"], atol=1e-6, rtol=1e-6)
    x, log_det = layer.inverse_and_log_det(numbers["y"])
    assert_close(x, numbers["x"], atol=1e-6, rtol=1e-6)
    assert_close(log_det, -numbers["log_det"], atol=1e-6, rtol=1e-6)


@torch.no_grad()
def _with(shift: torch.Tensor, direction: torch.Tensor, bias: torch.Tensor) -> Planar:
    """The layer whose constrained shift is this."""
    layer = Planar(len(direction))
    along = shift @ direction
    log_slope = along.log1p()
    raw = log_slope / (1 - log_slope.abs() / _LIMIT)
    layer.shift.copy_(shift + (raw - along) * direction / direction.square().sum())
    layer.direction.copy_(direction - layer.anchor_direction)
    layer.bias.copy_(bias - layer.anchor_bias)
    return layer
