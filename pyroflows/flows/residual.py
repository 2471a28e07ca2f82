"""Flows of residual layers."""

from __future__ import annotations

from collections.abc import Sequence

from ..bijector import Bijector, Compose
from ..bijectors import Residual
from .layers import checked_layers
from .registry import register_flow

__all__ = ["residual"]


@register_flow("residual")
def residual(
    dim: int,
    *,
    context_dim: int = 0,
    num_layers: int = 8,
    hidden_dims: Sequence[int] = (64, 64),
    lipschitz: float = 0.97,
    max_exact_dim: int = 32,
    noise: str = "fixed",
) -> Bijector:
    """Residual layers whose network is a contraction: every coordinate moves at once."""
    layers = [
        Residual(
            dim,
            context_dim=context_dim,
            hidden_dims=hidden_dims,
            lipschitz=lipschitz,
            max_exact_dim=max_exact_dim,
            noise=noise,
            seed=number,
        )
        for number in range(checked_layers(num_layers))
    ]
    return Compose(*layers)
