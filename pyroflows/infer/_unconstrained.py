"""Draws on unconstrained coordinates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from ..latents import bijection_onto
from ._log_prob import per_draw

__all__ = ["unconstrained_values"]


def unconstrained_values(
    trace: poutine.Trace, single: poutine.Trace, names: Sequence[str], num: int | None
) -> dict[str, Tensor]:
    """Take latents of a trace to where they are free, ``(num, *unconstrained shape)``.

    Supports are those of each draw, as one may depend on other latents. Latents without a map from
    there, discrete ones among them, are left out.

    Args:
        trace: A trace of ``num`` particles.
        single: One without particles, for shapes.
        names: The latents.
        num: Number of particles, or None.
    """
    found = {}
    for name in names:
        alone = _free(single.nodes[name])
        if alone is not None:
            value = _free(trace.nodes[name])
            found[name] = per_draw(value, num, alone.shape, name).cpu()
    return found


def _free(node: dict[str, Any]) -> Tensor | None:
    fn = node["fn"]
    try:
        if fn.support.is_discrete:
            return None
        return bijection_onto(fn.support).inv(torch.as_tensor(node["value"]).detach())
    except NotImplementedError:
        return None
