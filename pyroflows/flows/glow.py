"""The flow of Glow, for vectors."""

from __future__ import annotations

from collections.abc import Sequence

from ..bijector import Bijector, Compose
from ..bijectors import ActNorm, LULinear
from ..networks import Activation
from ..transformers import Affine
from .layers import couplings
from .registry import register_flow

__all__ = ["glow"]


@register_flow("glow")
def glow(
    dim: int,
    *,
    context_dim: int = 0,
    num_layers: int = 4,
    hidden_dims: Sequence[int] = (64, 64),
    activation: Activation = "relu",
) -> Bijector:
    """Affine coupling layers, a linear map and a normalisation after each: cheap both ways."""
    network = {"hidden_dims": hidden_dims, "activation": activation}
    linear = {"context_dim": context_dim, "hidden_dims": hidden_dims}
    layers: list[Bijector] = []
    for coupling in couplings(dim, context_dim, num_layers, Affine(), network):
        layers += [coupling, LULinear(dim, **linear), ActNorm(dim, **linear)]
    return Compose(*layers)
