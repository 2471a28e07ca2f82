"""Normalisation: layers that start from data, or follow them."""

from functools import partial

import torch

from pyroflows import build_flow
from pyroflows.bijectors import ActNorm, BatchNorm
from tests.case import HIDDEN

EXCEPT = {
    "works_on_another_device": {
        "act_norm-initialized": "what starts from data needs values, which the meta device has not"
    }
}


def _initialized(dim, **options):
    layer = ActNorm(dim, hidden_dims=HIDDEN, **options)
    layer.initialize_(torch.linspace(-1, 5, 4 * dim).square().view(4, dim), direction="forward")
    return layer


def _batch_norm(dim, **options):
    """Laws are those of a bijector, which it is in evaluation mode."""
    layer = BatchNorm(dim, hidden_dims=HIDDEN, **options).eval()
    layer.running_mean.copy_(torch.linspace(-2, 3, dim))
    layer.running_var.copy_(torch.linspace(0.2, 4, dim))
    return layer


def builders():
    return {
        "act_norm": partial(ActNorm, hidden_dims=HIDDEN),
        "act_norm-initialized": _initialized,
        "batch_norm": _batch_norm,
        "flow:glow": partial(build_flow, "glow", num_layers=2, hidden_dims=HIDDEN),
    }
