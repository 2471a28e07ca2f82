"""Named flows: recipes that compose bijectors, and the registry that finds them by name.

A recipe is any callable ``(dim, *, context_dim=0, **options) -> Bijector``: a function, a
partial, or a bijector class. Pyro's own ``AutoNormalizingFlow`` accepts one too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from .bijector import Bijector, Compose
from .bijectors import Autoregressive, Coupling, FullAffine, LocScale, Permutation
from .transformers import Affine, RationalQuadraticSpline, Transformer

__all__ = ["Flow", "available_flows", "build_flow", "register_flow"]

Flow = Callable[..., Bijector]

_FLOWS: dict[str, Flow] = {}


def register_flow(name: str) -> Callable[[Flow], Flow]:
    """Register a recipe under a name."""

    def register(flow: Flow) -> Flow:
        if name in _FLOWS:
            raise ValueError(f"A flow named {name!r} is already registered.")
        _FLOWS[name] = flow
        return flow

    return register


def available_flows() -> list[str]:
    """Return the registered names, sorted."""
    return sorted(_FLOWS)


def build_flow(flow: str | Flow, dim: int, *, context_dim: int = 0, **options) -> Bijector:
    """Build a flow from its registered name or its recipe."""
    if isinstance(flow, str):
        if flow not in _FLOWS:
            raise ValueError(
                f"Unknown flow {flow!r}: choose one of {', '.join(available_flows())}."
            )
        flow = _FLOWS[flow]
    return flow(dim, context_dim=context_dim, **options)


@register_flow("realnvp")
def realnvp(
    dim: int,
    *,
    context_dim: int = 0,
    num_layers: int = 4,
    transformer: Transformer = Affine(),
    hidden_dims: Sequence[int] = (64, 64),
) -> Bijector:
    """Coupling layers that keep each half in turn: cheap both ways."""
    return Compose(
        *(
            Coupling(
                dim,
                context_dim=context_dim,
                transformer=transformer,
                hidden_dims=hidden_dims,
                keep_last=i % 2 == 1,
            )
            for i in range(num_layers)
        )
    )


@register_flow("nsf")
def nsf(
    dim: int, *, context_dim: int = 0, num_bins: int = 8, bound: float = 5.0, **options
) -> Bijector:
    """Coupling layers with spline transformers (a neural spline flow)."""
    spline = RationalQuadraticSpline(num_bins, bound)
    return realnvp(dim, context_dim=context_dim, transformer=spline, **options)


@register_flow("iaf")
def iaf(
    dim: int,
    *,
    context_dim: int = 0,
    num_layers: int = 3,
    transformer: Transformer = Affine(),
    hidden_dims: Sequence[int] = (64, 64),
) -> Bijector:
    """Autoregressive layers, reversed in between: cheap to sample."""
    parts: list[Bijector] = []
    for _ in range(num_layers):
        layer = Autoregressive(
            dim, context_dim=context_dim, transformer=transformer, hidden_dims=hidden_dims
        )
        parts += [layer, Permutation(torch.arange(dim).flip(0))]
    return Compose(*parts)


@register_flow("maf")
def maf(dim: int, **options) -> Bijector:
    """The inverse of an ``iaf``: cheap to score."""
    return iaf(dim, **options).inv


@register_flow("affine")
def affine(dim: int, *, context_dim: int = 0) -> Bijector:
    """A location and a full triangular matrix: as a guide, a full-rank Gaussian."""
    return FullAffine(dim, context_dim=context_dim)


@register_flow("diagonal")
def diagonal(dim: int, *, context_dim: int = 0) -> Bijector:
    """A location and a scale for each coordinate: as a guide, mean field."""
    return LocScale(dim, context_dim=context_dim)
