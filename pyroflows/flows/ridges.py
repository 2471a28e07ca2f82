"""Flows of many small layers, each of which bends or stretches along few directions."""

from __future__ import annotations

from collections.abc import Sequence

from ..bijector import Bijector, Compose
from ..bijectors import Planar, Radial, Sylvester
from .layers import checked_layers
from .registry import register_flow

__all__ = ["planar", "radial", "sylvester"]


@register_flow("planar")
def planar(
    dim: int,
    *,
    context_dim: int = 0,
    num_layers: int = 16,
    activation: str = "tanh",
    hidden_dims: Sequence[int] = (64, 64),
) -> Bijector:
    """Bends along one direction each: few parameters, cheap both ways."""
    options = {"context_dim": context_dim, "hidden_dims": hidden_dims}
    layers = [
        Planar(dim, activation=activation, **options) for _ in range(checked_layers(num_layers))
    ]
    return Compose(*layers)


@register_flow("radial")
def radial(
    dim: int,
    *,
    context_dim: int = 0,
    num_layers: int = 16,
    hidden_dims: Sequence[int] = (64, 64),
) -> Bijector:
    """Stretches around one point each: few parameters, both ways in closed form."""
    options = {"context_dim": context_dim, "hidden_dims": hidden_dims}
    return Compose(*(Radial(dim, **options) for _ in range(checked_layers(num_layers))))


@register_flow("sylvester")
def sylvester(
    dim: int,
    *,
    context_dim: int = 0,
    num_layers: int = 8,
    rank: int | None = None,
    frame: str = "qr",
    activation: str = "tanh",
    hidden_dims: Sequence[int] = (64, 64),
) -> Bijector:
    """Bends along several directions at once: cheap both ways."""
    options = {"context_dim": context_dim, "hidden_dims": hidden_dims, "rank": rank}
    options |= {"frame": frame, "activation": activation}
    return Compose(*(Sylvester(dim, **options) for _ in range(checked_layers(num_layers))))
