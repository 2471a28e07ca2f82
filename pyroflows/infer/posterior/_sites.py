"""What a model computes of its latents, for many draws of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor
from tqdm.auto import tqdm

from .._log_prob import is_deterministic
from .._sites import GuideDraws, samples

__all__ = ["with_deterministic"]

_NUMBERS_PER_PASS = 2**24


def with_deterministic(
    model: Callable,
    args: tuple,
    kwargs: Mapping[str, Any],
    draws: GuideDraws,
    values: dict[str, Tensor],
) -> dict[str, Tensor]:
    """Return all sites in the order of the model, the deterministic ones computed from latents.

    The model is run under ``vmap``, or for one draw at a time where it cannot be or where two of
    the draws show that this would be wrong. Where discrete latents are summed out there is nothing
    to compute deterministic sites from, and latents are all there is.

    Args:
        model: The model.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
        draws: What is known of its sites.
        values: Latents, shape ``(S, *shape)``.
    """
    names = [name for name, site in draws.sites.items() if site.kind == "deterministic"]
    if not names or draws.marginalized:
        return {name: values[name] for name in draws.sites if name in values}

    def compute(latents: dict[str, Tensor]) -> dict[str, Tensor]:
        with poutine.block(), pyro.validation_enabled(False):
            conditioned = poutine.condition(model, data=latents)
            trace = poutine.trace(conditioned).get_trace(*args, **kwargs)
        found = {n: node["value"] for n, node in samples(trace) if is_deterministic(node)}
        return {name: torch.as_tensor(found[name]) for name in names}

    with torch.no_grad():
        found = _all_together(compute, values)
        found = _one_by_one(compute, values) if found is None else found
    values = values | found
    return {name: values[name] for name in draws.sites if name in values}


def _all_together(compute: Callable, values: dict[str, Tensor]) -> dict[str, Tensor] | None:
    """Under ``vmap``; None where that fails, or differs from what two draws have alone."""
    size = len(next(iter(values.values())))
    alone = {i: compute({n: v[i] for n, v in values.items()}) for i in (0, size - 1)}
    numbers = sum(v.numel() for v in values.values()) // size
    numbers += sum(v.numel() for v in alone[0].values())
    chunk = max(_NUMBERS_PER_PASS // max(numbers, 1), 1)
    try:
        together = torch.vmap(compute, chunk_size=chunk, randomness="different")(values)
    except Exception:  # any failure of a model that is run in another way means the same
        return None
    agree = all(
        torch.allclose(value[i], alone[i][name], rtol=1e-4, atol=1e-6, equal_nan=True)
        for i in alone
        for name, value in together.items()
    )
    return together if agree else None


def _one_by_one(compute: Callable, values: dict[str, Tensor]) -> dict[str, Tensor]:
    size = len(next(iter(values.values())))
    steps = tqdm(range(size), desc="deterministic sites", leave=False)
    rows = [compute({n: v[i] for n, v in values.items()}) for i in steps]
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
