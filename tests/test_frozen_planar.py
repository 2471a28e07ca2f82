"""Layers beside Pyro's, at shared parameters: ``frozen/planar.py`` wrote the numbers."""

import json
import math
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from pyroflows import Bijector
from pyroflows.bijectors import Planar, Radial
from pyroflows.bijectors._ridge import _LIMIT

pytestmark = pytest.mark.usefixtures("_double")
FOUND = json.loads((Path(__file__).parent / "frozen" / "planar.json").read_text())


@pytest.mark.parametrize("case", FOUND["planar"], ids=lambda case: f"D={len(case['y'][0])}")
def test_planar_is_that_of_pyro(case: dict):
    _agrees(_planar(**_tensors(case, "shift", "direction", "bias")), case)


@pytest.mark.parametrize("case", FOUND["radial"], ids=lambda case: f"D={len(case['y'][0])}")
def test_radial_is_that_of_pyro(case: dict):
    _agrees(_radial(**_tensors(case, "centre", "radius", "strength")), case)


def _agrees(layer: Bijector, case: dict) -> None:
    numbers = _tensors(case, "x", "y", "log_det")
    x, y, log_det = numbers.values()
    assert_close(layer.forward_and_log_det(x), (y, log_det), atol=1e-6, rtol=1e-6)
    assert_close(layer.inverse_and_log_det(y), (x, -log_det), atol=1e-6, rtol=1e-6)


def _tensors(case: dict, *names: str) -> dict[str, torch.Tensor]:
    return {name: torch.tensor(case[name]) for name in names}


@torch.no_grad()
def _planar(shift: torch.Tensor, direction: torch.Tensor, bias: torch.Tensor) -> Planar:
    """The layer whose constrained shift is this."""
    layer = Planar(len(direction))
    along = shift @ direction
    raw = _unbounded(along.log1p())
    layer.shift.copy_(shift + (raw - along) * direction / direction.square().sum())
    layer.direction.copy_(direction)
    layer.bias.copy_(bias)
    return layer


@torch.no_grad()
def _radial(centre: torch.Tensor, radius: torch.Tensor, strength: torch.Tensor) -> Radial:
    layer = Radial(len(centre))
    layer.centre.copy_(centre)
    layer.log_radius.copy_(_unbounded((radius / math.sqrt(len(centre))).log()))
    layer.log_slope.copy_(_unbounded((strength / radius).log1p()))
    return layer


def _unbounded(value: torch.Tensor) -> torch.Tensor:
    return value / (1 - value.abs() / _LIMIT)
