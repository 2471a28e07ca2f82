"""Weigh draws of a guide whose noise is widened."""

from __future__ import annotations

import math
from typing import Any

import torch
from pyro import poutine
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor

from ._flow_draws import finite_or_zero
from ._log_prob import log_densities, num_outside_support
from ._probe import Widened, noise_size
from ._sites import samples

__all__ = ["batches", "probe_with_wider_noise"]

_MIN_PROBE_DRAWS = 500


def probe_with_wider_noise(
    run: Any, num_samples: int, batch_size: int | None, vectorized: bool
) -> Tensor | None:
    """Weigh draws with widened noise, twice; None where the guide's noise is not known.

    Args:
        run: The model and the guide, run once.
        num_samples: Number of draws.
        batch_size: Of them that go through together; chosen by size unless given.
        vectorized: Whether draws go through together at all.
    """
    sizes = {n: noise_size(node["fn"]) for n, node in samples(run.guide_trace)}
    sizes = {name: size for name, size in sizes.items() if size}
    if not run.complete or not sizes:
        return None
    together = vectorized if run.flow is None else run.flow.vectorized
    if not together:
        num_samples = max(num_samples // 4, min(num_samples, _MIN_PROBE_DRAWS))
    parts = batches(num_samples, batch_size or run.draws_together(num_samples))
    if run.flow is not None:
        return torch.cat([run.flow.widened(num) for num in parts])
    if not together:
        return torch.cat([_part(run, None, sizes) for _ in range(num_samples)])
    return torch.cat([_part(run, num, sizes) for num in parts])


def _part(run: Any, num: int | None, sizes: dict[str, int]) -> Tensor:
    widened = Widened(sizes, num)
    # Outermost, where the particle plate has expanded the site already.
    with widened, run.particles(num):
        guide_trace = poutine.trace(run.guide).get_trace(*run.args, **run.kwargs)
    guide_trace = prune_subsample_sites(guide_trace)
    model_trace = run.replayed(run.model, guide_trace, num)
    single_q, single_p = run.single
    log_q = log_densities(guide_trace, num, single_q).total
    log_p = log_densities(model_trace, num, single_p, marginal=bool(run.marginalized)).total
    outside = num_outside_support(model_trace, run.latents, num)
    return widened.weigh(finite_or_zero((log_p - log_q).masked_fill(outside, -math.inf)))


def batches(num_samples: int, batch_size: int) -> list[int]:
    """Sizes of the parts in which so many draws go through."""
    rest = num_samples % batch_size
    return [batch_size] * (num_samples // batch_size) + ([rest] if rest else [])
