"""What must not change between runs of a model: its latents, their shapes and supports."""

from __future__ import annotations

from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from ..latents import Latents, constraint_tensors

__all__ = ["StructureError", "check_structure"]


class StructureError(ValueError):
    """The model's latents are not what they were when the guide was made."""


def check_structure(trace: poutine.Trace, latents: Latents) -> list[Tensor]:
    """Raise unless the sites that were conditioned are all the latents there are.

    Args:
        trace: A trace of the model without subsample sites.
        latents: The latents as they were at the start.

    Returns:
        The tensors in the supports of the sites, whose values the caller compares.
    """
    gone = [name for name in latents.sites if name not in trace.nodes]
    new = [
        name
        for name, site in trace.nodes.items()
        if site["type"] == "sample" and not site["is_observed"] and name not in latents.enumerated
    ]
    if gone or new:
        raise StructureError(
            "The structure of the model changed between calls: latents that vanished "
            f"{gone}, latents that appeared {new}. A guide needs the same latents at every "
            "call: make branches depend on data only, and build a new guide for other data."
        )
    bounds: list[Tensor] = []
    for name, site in latents.sites.items():
        fn = trace.nodes[name]["fn"]
        shape = tuple(fn.shape())
        if shape[len(shape) - len(site.shape) :] != tuple(site.shape):
            raise StructureError(
                f"Site {name!r} has shape {shape}, but had {tuple(site.shape)} when the guide "
                "was made: build a new guide for data of another size."
            )
        if type(fn.support) is not type(site.support):
            raise StructureError(
                f"Site {name!r} now has support {fn.support}, and had {site.support} when the "
                "guide was made."
            )
        bounds += constraint_tensors(fn.support)
    return bounds


def check_bounds(trace: poutine.Trace, latents: Latents) -> None:
    """Raise if a support's bounds are not what they were."""
    for name, site in latents.sites.items():
        now = constraint_tensors(trace.nodes[name]["fn"].support)
        for a, b in zip(now, constraint_tensors(site.support), strict=False):
            if _is_batched(a) or not torch.allclose(a.to(b), b):
                raise StructureError(
                    f"The support of site {name!r} changes with the other latents or between "
                    "calls. Write it with fixed bounds, for instance as a fraction of a unit "
                    "interval."
                )


def _is_batched(tensor: Any) -> bool:
    """Whether a tensor under ``vmap`` differs from point to point."""
    return torch._C._functorch.is_batchedtensor(tensor)
