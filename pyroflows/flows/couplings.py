"""Flows of coupling layers."""

from __future__ import annotations

from collections.abc import Sequence

from ..bijector import Bijector, Compose
from ..bijectors import LocScale
from ..networks import Activation
from ..transformers import Additive, Affine, RationalQuadraticSpline
from .layers import couplings
from .registry import register_flow

__all__ = ["nice", "nsf_coupling", "realnvp"]


@register_flow("nice")
def nice(
    dim: int,
    *,
    context_dim: int = 0,
    num_layers: int = 4,
    hidden_dims: Sequence[int] = (64, 64),
    activation: Activation = "relu",
) -> Bijector:
    """Additive coupling layers, then a scale for each coordinate: the volume is constant."""
    network = {"hidden_dims": hidden_dims, "activation": activation}
    layers = couplings(dim, context_dim, num_layers, Additive(), network)
    return Compose(*layers, LocScale(dim, context_dim=context_dim, hidden_dims=hidden_dims))


@register_flow("realnvp")
def realnvp(
    dim: int,
    *,
    context_dim: int = 0,
    num_layers: int = 4,
    hidden_dims: Sequence[int] = (64, 64),
    activation: Activation = "relu",
) -> Bijector:
    """Affine coupling layers that move other coordinates in turn: cheap both ways."""
    network = {"hidden_dims": hidden_dims, "activation": activation}
    return Compose(*couplings(dim, context_dim, num_layers, Affine(), network))


@register_flow("nsf_coupling")
def nsf_coupling(
    dim: int,
    *,
    context_dim: int = 0,
    num_layers: int = 4,
    hidden_dims: Sequence[int] = (64, 64),
    num_bins: int = 8,
    bound: float = 8.0,
    activation: Activation = "relu",
) -> Bijector:
    """Spline coupling layers that move other coordinates in turn: cheap both ways."""
    network = {"hidden_dims": hidden_dims, "activation": activation}
    spline = RationalQuadraticSpline(num_bins, bound)
    return Compose(*couplings(dim, context_dim, num_layers, spline, network))
