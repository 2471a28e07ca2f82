"""Flows of networks that are monotone in each coordinate."""

from __future__ import annotations

from collections.abc import Sequence

from ..bijector import Bijector, Compose
from ..bijectors import BlockAutoregressive, Permutation
from .layers import checked_layers
from .registry import register_flow

__all__ = ["bnaf"]


@register_flow("bnaf")
def bnaf(
    dim: int,
    *,
    context_dim: int = 0,
    num_layers: int = 2,
    hidden_dims: Sequence[int] = (8, 8),
) -> Bijector:
    """Block autoregressive networks, the order reversed in turn: flexible, cheap to sample."""
    layers: list[Bijector] = []
    for i in range(checked_layers(num_layers)):
        block = BlockAutoregressive(dim, context_dim=context_dim, hidden_dims=hidden_dims)
        turned = [Permutation.reverse(dim)] if i % 2 else []
        layers += [*turned, block, *turned]
    return Compose(*layers)
