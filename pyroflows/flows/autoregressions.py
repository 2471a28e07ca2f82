"""Flows of autoregressive layers."""

from __future__ import annotations

from collections.abc import Sequence

from ..bijector import Bijector, Compose
from ..networks import Activation
from ..transformers import Affine, RationalQuadraticSpline
from .layers import autoregressions
from .registry import register_flow

__all__ = ["iaf", "maf", "nsf"]


@register_flow("iaf")
def iaf(
    dim: int,
    *,
    context_dim: int = 0,
    num_layers: int = 3,
    hidden_dims: Sequence[int] = (64, 64),
    activation: Activation = "relu",
) -> Bijector:
    """Affine autoregressive layers, the order reversed in turn: cheap to sample."""
    network = {"hidden_dims": hidden_dims, "activation": activation}
    return Compose(*autoregressions(dim, context_dim, num_layers, Affine(), network))


@register_flow("maf")
def maf(
    dim: int,
    *,
    context_dim: int = 0,
    num_layers: int = 3,
    hidden_dims: Sequence[int] = (64, 64),
    activation: Activation = "relu",
) -> Bijector:
    """The inverse of an ``iaf``: cheap to score."""
    return iaf(
        dim,
        context_dim=context_dim,
        num_layers=num_layers,
        hidden_dims=hidden_dims,
        activation=activation,
    ).inv


@register_flow("nsf")
def nsf(
    dim: int,
    *,
    context_dim: int = 0,
    num_layers: int = 3,
    hidden_dims: Sequence[int] = (64, 64),
    num_bins: int = 8,
    bound: float = 8.0,
    activation: Activation = "relu",
) -> Bijector:
    """Spline autoregressive layers, the order reversed in turn: cheap to sample."""
    network = {"hidden_dims": hidden_dims, "activation": activation}
    spline = RationalQuadraticSpline(num_bins, bound)
    return Compose(*autoregressions(dim, context_dim, num_layers, spline, network))
