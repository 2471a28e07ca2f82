"""Splines and autoregressive flows beside their peers, at shared numbers.

``frozen/splines.py`` and ``frozen/autoregressive.py`` wrote them.
"""

import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import pyroflows as pf
from pyroflows.bijectors import Autoregressive
from pyroflows.transformers import Affine, RationalQuadraticSpline

pytestmark = pytest.mark.usefixtures("_double")
FROZEN = Path(__file__).parent / "frozen"
SPLINES = json.loads((FROZEN / "splines.json").read_text())
FLOWS = json.loads((FROZEN / "autoregressive.json").read_text())
LIMIT = math.log(1e3)
TOLERANCE = {"atol": 1e-6, "rtol": 1e-6}


def unbounded(value: Tensor, limit: float) -> Tensor:
    """The raw parameter that is softly bounded to this value."""
    return value / (1 - (value / limit).abs())


@pytest.mark.parametrize("peer", ["zuko", "nflows", "pyro"])
@pytest.mark.parametrize("plain", [False, True])
def test_a_spline_is_that_of_its_peers(peer: str, plain: bool):
    widths, heights, slopes = (torch.tensor(SPLINES[k]) for k in ("widths", "heights", "slopes"))
    sizes = [v.log() - v.log().mean(-1, keepdim=True) for v in (widths, heights)]
    raws = [*(unbounded(v, LIMIT / 2) for v in sizes), unbounded(slopes.log(), LIMIT)]
    raws, x = torch.cat(raws, dim=-1), torch.tensor(SPLINES["x"])
    spline = RationalQuadraticSpline(widths.shape[-1], SPLINES["bound"])
    forward, inverse = (
        (spline.plain_forward, spline.plain_inverse)
        if plain
        else (spline.forward_and_log_det, spline.inverse_and_log_det)
    )
    for way, ours in (("forward", forward), ("inverse", inverse)):
        expected = tuple(torch.tensor(v) for v in SPLINES[peer][way])
        assert_close(ours(x, raws), expected, **TOLERANCE)


@pytest.mark.parametrize("name", sorted(set(FLOWS) - {"zuko"}))
def test_a_flow_with_the_weights_of_a_peer_is_that_flow(name: str):
    """Its parameterisation is the same: raws, bounds and what each unit sees."""
    case = FLOWS[name]
    transformer = Affine(LIMIT) if "maf" in name else RationalQuadraticSpline(4, 5.0)
    flow = pf.Compose(*(_layer(found, transformer, case) for found in case["layers"])).inv
    x, expected = torch.tensor(case["x"]), torch.tensor(case["base"])
    c = None if case["context"] is None else torch.tensor(case["context"])
    log_det = torch.tensor(case["log_det"])
    assert_close(flow.inverse_and_log_det(x, c), (expected, log_det), **TOLERANCE)
    assert_close(flow.forward_and_log_det(expected, c), (x, -log_det), **TOLERANCE)
    assert_close(flow.forward_and_log_det(x, c)[0], torch.tensor(case["inverse"]), **TOLERANCE)
    zeros = torch.zeros(len(x), x.shape[-1])
    base = torch.distributions.Independent(torch.distributions.Normal(zeros, zeros + 1), 1)
    density = torch.distributions.TransformedDistribution(base, [flow.condition(c)])
    assert_close(density.log_prob(x), torch.tensor(case["log_prob"]), **TOLERANCE)


@torch.no_grad()
def _layer(found: dict, transformer: object, case: dict) -> Autoregressive:
    weights, biases = ([torch.tensor(v) for v in found[k]] for k in ("weights", "biases"))
    layer = Autoregressive(
        len(found["order"]),
        context_dim=case["context_dim"],
        order=found["order"],
        transformer=transformer,
        hidden_dims=[len(b) for b in biases[:-1]],
    )
    by_raw = torch.arange(len(biases[-1])).view(layer.dim, -1).mT.flatten()
    weights[-1], biases[-1] = weights[-1][by_raw], biases[-1][by_raw]  # first raws first
    for linear, weight, bias in zip(layer.conditioner.net.linears, weights, biases, strict=True):
        assert not weight[linear.mask == 0].any()
        assert linear.mask.sum() == (weight != 0).sum()
        linear.weight.copy_(weight)
        linear.bias.copy_(bias)
    return layer
