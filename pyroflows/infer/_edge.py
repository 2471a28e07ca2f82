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
_FEWEST = 50  # together, to tell their spread
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
    size = max(run.draws_together(_NUM_DRAWS), _FEWEST)
    parts = [_step(run, size) for _ in range(math.ceil(_NUM_DRAWS / size))]
    if any(part is None for part in parts):
        return 0.0
    log_weights, across = (torch.cat(column) for column in zip(*parts, strict=True))
    return float(torch.nan_to_num(log_weights.softmax(0) * across).sum())


def _step(run: Any, num: int) -> tuple[Tensor, Tensor] | None:
    """Log weights of draws, and the probability that each steps out of the guide's support."""
    before = run.traces(num)
    moved = _moved(before[0], run, num)
    if moved is None:
        return None
    old_q, old_p = _scores(run, before, num)
    new_q, new_p = _scores(run, run.traces(num, moved), num)
    accepted = (new_p - old_p).clamp(max=0.0).exp()
    log_weights = torch.nan_to_num(old_p - old_q, nan=-math.inf, posinf=-math.inf)
    return log_weights, torch.where(new_q == -math.inf, accepted, 0.0)


def _scores(run: Any, traces: tuple[poutine.Trace, poutine.Trace], num: int) -> list[Tensor]:
    """Log densities of guide and model, ``-inf`` outside their supports and where not a number."""
    found = []
    for trace, single, marginal in zip(
        traces, run.single, (False, bool(run.marginalized)), strict=True
    ):
        total = log_densities(trace, num, single, marginal=marginal).total
        outside = num_outside_support(trace, run.latents, num)
        found.append(torch.where(outside | total.isnan(), -math.inf, total))
    return found


def _moved(trace: poutine.Trace, run: Any, num: int) -> poutine.Trace | None:
    """The draws of a guide with a step in one coordinate each, at random; None if discrete."""
    values = {name: trace.nodes[name]["value"] for name in run.latents}
    if not all(value.is_floating_point() for value in values.values()):
        return None
    shapes = {name: run.sites[name].shape for name in run.latents}
    flat = {
        name: per_draw(value, num, shapes[name], name).reshape(num, -1)
        for name, value in values.items()
    }
    chosen = torch.randint(sum(v.shape[1] for v in flat.values()), (num, 1))
    moved, offset = poutine.Trace(), 0
    for name, value in flat.items():
        here = chosen.to(value.device) == offset + torch.arange(value.shape[1], device=value.device)
        step = _STEP * value.std(0) * torch.randn_like(value) * here
        node = trace.nodes[name]
        new = (value + step).reshape(values[name].shape)
        moved.add_node(name, **{**node, "value": new, "infer": dict(node["infer"])})
        offset += value.shape[1]
    return moved
