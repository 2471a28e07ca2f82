"""Whether a guide computes in double precision: where its model does, and lets it."""

from __future__ import annotations

import torch
from pyro import poutine
from torch import Tensor

from ..log_density import LogDensity

__all__ = ["in_double_precision", "runs_in_double"]


def in_double_precision(trace: poutine.Trace) -> bool:
    """Whether any part of the model, its data included, is in double precision."""
    sites = (s for s in trace.nodes.values() if s["type"] == "sample")
    return any(getattr(s.get("log_prob"), "dtype", None) == torch.float64 for s in sites)


def runs_in_double(loc: Tensor, log_density: LogDensity) -> bool:
    """Whether the model takes latents in double precision."""
    try:
        with poutine.block(), torch.no_grad():
            log_density._single(loc.double())
    except RuntimeError:  # a product of a float32 matrix with the latents, for instance
        return False
    return True
