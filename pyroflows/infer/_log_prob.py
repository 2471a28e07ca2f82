"""Log densities of traces, one number a draw, summed in float64."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions.torch_distribution import MaskedDistribution
from torch import Tensor
from torch.distributions import constraints

from ..log_density.enumeration import sum_out

PARTICLES = "num_particles_vectorized"  # as in Pyro

Bound = Tensor | float | None


class NotVectorized(Exception):
    """Draws taken together do not equal draws taken alone."""


@dataclass(frozen=True)
class LogDensities:
    """Sum of the sites' log densities, and what is needed to check it.

    Attributes:
        total: scaled and masked, float64, shape ``(num,)``, or ``(1,)`` for a single draw.
        terms: by site, its part in the total; under no name, the sum over discrete sites.
        sizes: how many numbers each site's log density had.
        rounding: relative rounding error of the least precise site.
    """

    total: Tensor
    terms: dict[str, Tensor]
    sizes: dict[str, int]
    rounding: float

    def differs(self, other: LogDensities, index: int, skip: Collection[str] = ()) -> str | None:
        """Name a site that this one draw, alone, scores in another way than draw ``index`` there.

        Each site has a tolerance of its own: a constant of 1e6 would hide the errors of another.

        Args:
            other: the log densities of many draws.
            index: which of them this is.
            skip: sites that are not compared.
        """
        for name, term in self.terms.items():
            if name in skip:
                continue
            alone, together = float(term[0]), other.terms[name]
            usual = together[together.isfinite()].abs()
            size = float(usual.median()) if len(usual) else 0.0
            there = float(together[index])
            if math.isfinite(alone) and math.isfinite(there):
                if abs(alone - there) <= 1e-3 * (1 + size + abs(alone)):
                    continue
            elif alone == there or (math.isnan(alone) and math.isnan(there)):
                continue
            where = f" at site '{name}'" if name else ""
            return f"{where} of one draw is {alone:.6g} alone and {there:.6g} among {len(together)}"
        return None


def log_densities(
    trace: poutine.Trace, num: int | None, single: LogDensities | None, *, marginal: bool = False
) -> LogDensities:
    """Score every site of a trace of num particles (None: one draw, no particle axis).

    Args:
        trace: a trace without subsample sites.
        num: size of the particle plate, the leftmost batch axis.
        single: the same for one draw, whose sizes this must multiply; None for the first one.
        marginal: sum out the sites enumerated in parallel.
    """
    trace.compute_log_prob(lambda _, node: marginal or not is_deterministic(node))
    nodes = {
        name: node
        for name, node in trace.nodes.items()
        if node["type"] == "sample" and not is_deterministic(node)
    }
    sizes = {name: node["log_prob"].numel() for name, node in nodes.items()}
    if single is not None and set(sizes) != set(single.sizes):
        raise NotVectorized(f"sites change between calls: {set(sizes) ^ set(single.sizes)}")
    rounding = max(torch.finfo(node["log_prob"].dtype).eps for node in nodes.values())
    done, parts = set(), {}
    if marginal:
        done, parts[""] = _summed_out(trace, num)
    total = parts.get("", torch.zeros(num or 1, dtype=torch.float64))
    for name, node in nodes.items():
        if name in done:
            continue
        size = None if single is None else (single.sizes[name],)
        terms = per_draw(node["log_prob"], num, size, name).to(torch.float64)
        parts[name] = terms.reshape(num or 1, -1).sum(-1).cpu()
        total = total + parts[name]
    return LogDensities(total, parts, sizes, rounding)


def per_draw(
    value: Tensor | float, num: int | None, shape: Sequence[int] | None, name: str
) -> Tensor:
    """Give a site's tensor the shape ``(num, *shape)``, where shape is that of one draw.

    Args:
        value: what the site holds under num particles, or of one draw (num None).
        num: number of particles.
        shape: shape of one draw, or None to take it as it comes.
        name: the site, for the message.

    Raises:
        NotVectorized: if the tensor holds neither num draws, leading, nor one for all.
    """
    value = torch.as_tensor(value).detach()
    shape = value.shape if shape is None else torch.Size(shape)
    if num is None:
        if value.numel() != shape.numel():
            raise NotVectorized(
                f"site '{name}' changes shape between calls: {tuple(shape)} to {tuple(value.shape)}"
            )
        return value.reshape(1, *shape)
    if value.numel() == num * shape.numel() and (num == 1 or value.shape[:1] == (num,)):
        return value.reshape(num, *shape)
    if value.numel() == shape.numel():
        return value.reshape(shape).expand(num, *shape)
    raise NotVectorized(
        f"site '{name}' has shape {tuple(value.shape)} for {num} draws and {tuple(shape)} for one"
    )


def _summed_out(trace: poutine.Trace, num: int | None) -> tuple[set[str], Tensor]:
    """Sum the enumerated sites out: their names, and one number a draw, in float64."""
    for node in trace.nodes.values():
        if node["type"] == "sample":
            for part in ("log_prob", "unscaled_log_prob"):
                node[part] = torch.as_tensor(node[part]).to(torch.float64)
    done, total = sum_out(trace, PARTICLES, num or 1)
    return done, per_draw(total, num, (), "").cpu()


def num_outside_support(trace: poutine.Trace, latents: list[str], num: int | None) -> Tensor:
    """Tell which draws lie outside an interval support, where densities are not to be believed."""
    outside = torch.zeros(num or 1, dtype=torch.bool)
    for name in latents:
        node = trace.nodes[name]
        lower, upper = _bounds(node["fn"])
        for bound, sign in ((lower, 1), (upper, -1)):
            if bound is None:
                continue
            beyond = sign * (node["value"] - torch.as_tensor(bound).to(node["value"])) < 0
            if num is None or beyond.shape[:1] == (num,):
                outside |= beyond.reshape(num or 1, -1).any(-1).cpu()
    return outside


def _bounds(fn: dist.Distribution) -> tuple[Bound, Bound]:
    try:
        support = fn.support
    except NotImplementedError:
        return None, None
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return getattr(support, "lower_bound", None), getattr(support, "upper_bound", None)


def is_deterministic(node: dict) -> bool:
    """Tell ``pyro.deterministic`` from other observed sites."""
    return bool((node["infer"] or {}).get("_deterministic"))


def is_factor(node: dict) -> bool:
    """Tell ``pyro.factor`` from other observed sites."""
    return isinstance(_innermost(node["fn"]), dist.Unit)


def is_point_mass(fn: dist.Distribution) -> bool:
    """Tell a site that is a function of others."""
    return isinstance(_innermost(fn), dist.Delta)


def _innermost(fn: dist.Distribution) -> dist.Distribution:
    while isinstance(fn, (dist.Independent, dist.ExpandedDistribution, MaskedDistribution)):
        fn = fn.base_dist
    return fn
