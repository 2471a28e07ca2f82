"""Look across the edge of a guide's support: a guide that is cut off looks exact from inside."""

from __future__ import annotations

import math
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from ..guides import AutoFlow
from ._log_prob import is_point_mass, log_densities, num_outside_support, per_draw
from ._sites import samples

__all__ = ["share_beyond_edge"]

_NUM_DRAWS = 2000
_STEP = 2.0  # standard deviations of the guide


def share_beyond_edge(run: Any) -> float:
    r"""Return a lower bound of the share of the posterior outside the support of a guide.

    Each draw takes one step of a random walk in one coordinate. In equilibrium as much mass steps
    out of any set as steps in, so the posterior has no less beyond the edge than

    .. math:: E_p[\min(1, p(x') / p(x)) \, 1(q(x') = 0)]

    Zero for guides whose draws are not the model's latents themselves: those of flows and of
    Pyro's automatic guides map the whole space onto the support.

    Args:
        run: The model and the guide, run once, whose draws go through together.

    References:
        Metropolis et al. (1953). Equation of state calculations by fast computing machines.
        Journal of Chemical Physics 21.
    """
    names = [name for name, _ in samples(run.guide_trace)]
    direct = not any(is_point_mass(node["fn"]) for _, node in samples(run.guide_trace))
    if isinstance(run.guide, AutoFlow) or set(names) != set(run.latents) or not direct:
        return 0.0
    before = run.traces(_NUM_DRAWS)
    moved = _moved(before[0], run)
    if moved is None:
        return 0.0
    old_q, old_p = _scores(run, before)
    new_q, new_p = _scores(run, run.traces(_NUM_DRAWS, moved))
    weights = torch.nan_to_num(old_p - old_q, nan=-math.inf, posinf=-math.inf).softmax(0)
    accepted = (new_p - old_p).clamp(max=0.0).exp()
    across = torch.where(new_q == -math.inf, accepted, 0.0)
    return float(torch.nan_to_num(weights * across).sum())


def _scores(run: Any, traces: tuple[poutine.Trace, poutine.Trace]) -> list[Tensor]:
    """Log densities of guide and model, ``-inf`` outside their supports and where not a number."""
    found = []
    for trace, single, marginal in zip(
        traces, run.single, (False, bool(run.marginalized)), strict=True
    ):
        total = log_densities(trace, _NUM_DRAWS, single, marginal=marginal).total
        outside = num_outside_support(trace, run.latents, _NUM_DRAWS)
        found.append(torch.where(outside | total.isnan(), -math.inf, total))
    return found


def _moved(trace: poutine.Trace, run: Any) -> poutine.Trace | None:
    """The draws of a guide with a step in one coordinate each, at random; None if discrete."""
    values = {name: trace.nodes[name]["value"] for name in run.latents}
    if not all(value.is_floating_point() for value in values.values()):
        return None
    shapes = {name: run.sites[name].shape for name in run.latents}
    flat = {
        name: per_draw(value, _NUM_DRAWS, shapes[name], name).reshape(_NUM_DRAWS, -1)
        for name, value in values.items()
    }
    chosen = torch.randint(sum(v.shape[1] for v in flat.values()), (_NUM_DRAWS, 1))
    moved, offset = poutine.Trace(), 0
    for name, value in flat.items():
        here = chosen.to(value.device) == offset + torch.arange(value.shape[1], device=value.device)
        step = _STEP * value.std(0) * torch.randn_like(value) * here
        node = trace.nodes[name]
        new = (value + step).reshape(values[name].shape)
        moved.add_node(name, **{**node, "value": new, "infer": dict(node["infer"])})
        offset += value.shape[1]
    return moved
