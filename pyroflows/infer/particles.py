"""How many draws a step takes where nobody says."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from ..guides import AutoFlow
from .objectives import PathELBO

__all__ = ["LEAST_PARTICLES", "fill_in_particles", "halved"]

LEAST_PARTICLES = 256
_MOST_PARTICLES = 1024
_NUMBERS = 2**19  # that the likelihood of all draws may take together, about


def fill_in_particles(
    loss: PathELBO, model: Callable, guide: Callable, args: tuple, kwargs: dict[str, Any]
) -> None:
    """Let a step take as many draws as cost little more than the fewest do."""
    if not isinstance(guide, AutoFlow) or not loss.takes_all_at_once(model, guide, args, kwargs):
        return
    affordable = _NUMBERS / max(_num_observed(model, guide, args, kwargs), 1)
    power = 2 ** round(math.log2(affordable))
    loss.num_particles = int(min(max(power, LEAST_PARTICLES), _MOST_PARTICLES))


def halved(number: int) -> int:
    """Half as many draws, but no fewer than the fewest."""
    return max(number // 2, min(number, LEAST_PARTICLES))


def _num_observed(model: Callable, guide: Callable, args: tuple, kwargs: dict[str, Any]) -> int:
    with poutine.block(), torch.no_grad():
        drawn = poutine.trace(guide).get_trace(*args, **kwargs)  # a flat prior cannot be drawn from
        trace = poutine.trace(poutine.replay(model, trace=drawn)).get_trace(*args, **kwargs)
    values = [trace.nodes[name]["value"] for name in trace.observation_nodes]
    return sum(value.numel() if isinstance(value, Tensor) else 1 for value in values)
