"""Layers that recipes share."""

from __future__ import annotations

from ..bijector import Bijector
from ..bijectors import Autoregressive, Coupling
from ..transformers import Transformer

__all__ = ["autoregressions", "checked_layers", "couplings"]


def couplings(
    dim: int, context_dim: int, num_layers: int, transformer: Transformer, options: dict
) -> list[Bijector]:
    """Coupling layers that move other coordinates in turn."""
    masks = ("last_half", "first_half", "odd", "even")
    return [
        Coupling(
            dim, context_dim=context_dim, mask=masks[i % 4], transformer=transformer, **options
        )
        for i in range(checked_layers(num_layers))
    ]


def autoregressions(
    dim: int, context_dim: int, num_layers: int, transformer: Transformer, network: dict
) -> list[Bijector]:
    """Autoregressive layers, the order reversed in turn."""
    return [
        Autoregressive(
            dim,
            context_dim=context_dim,
            order=range(dim - 1, -1, -1) if i % 2 else None,
            transformer=transformer,
            **network,
        )
        for i in range(checked_layers(num_layers))
    ]


def checked_layers(num_layers: int) -> int:
    """The number of layers, or an error that names it."""
    if isinstance(num_layers, bool) or not isinstance(num_layers, int) or num_layers < 1:
        raise ValueError(f"num_layers expected a positive int, got {num_layers!r}.")
    return num_layers
