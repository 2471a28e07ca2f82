"""Flows of monotone networks and mixtures, inverted numerically."""

from __future__ import annotations

from collections.abc import Sequence

from ..bijector import Bijector, Compose
from ..bijectors import Elementwise, Householder
from ..networks import Activation
from ..transformers import DeepSigmoidal, MixtureCDF, MonotonicNetwork
from .layers import autoregressions, checked_layers
from .registry import register_flow

__all__ = ["gf", "naf", "unaf"]


@register_flow("naf")
def naf(
    dim: int,
    *,
    context_dim: int = 0,
    num_layers: int = 3,
    hidden_dims: Sequence[int] = (64, 64),
    num_components: int = 8,
    bound: float = 10.0,
    activation: Activation = "relu",
) -> Bijector:
    """Deep sigmoidal autoregressive layers, the order reversed in turn: cheap to sample."""
    network = {"hidden_dims": hidden_dims, "activation": activation}
    transformer = DeepSigmoidal(num_components, bound)
    return Compose(*autoregressions(dim, context_dim, num_layers, transformer, network))


@register_flow("unaf")
def unaf(
    dim: int,
    *,
    context_dim: int = 0,
    num_layers: int = 3,
    hidden_dims: Sequence[int] = (64, 64),
    num_units: int = 8,
    num_nodes: int = 32,
    bound: float = 5.0,
    activation: Activation = "relu",
) -> Bijector:
    """Autoregressive layers of integrals of positive networks: cheap to sample."""
    network = {"hidden_dims": hidden_dims, "activation": activation}
    transformer = MonotonicNetwork(num_units, num_nodes, bound)
    return Compose(*autoregressions(dim, context_dim, num_layers, transformer, network))


@register_flow("gf")
def gf(
    dim: int,
    *,
    context_dim: int = 0,
    num_layers: int = 3,
    hidden_dims: Sequence[int] = (64, 64),
    num_components: int = 8,
    bound: float = 10.0,
    activation: Activation = "relu",
) -> Bijector:
    """Rotations and distribution functions of mixtures take points to the base: cheap to score."""
    transformer = MixtureCDF(num_components, bound)
    layers: list[Bijector] = []
    for _ in range(checked_layers(num_layers)):
        if dim > 1:
            layers.append(Householder(dim, context_dim=context_dim, hidden_dims=hidden_dims))
        layers.append(
            Elementwise(
                dim,
                context_dim=context_dim,
                transformer=transformer,
                hidden_dims=hidden_dims,
                activation=activation,
            )
        )
    return Compose(*layers).inv
