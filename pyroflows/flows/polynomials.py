"""Flows of polynomials."""

from __future__ import annotations

from collections.abc import Sequence

from ..bijector import Bijector, Compose
from ..networks import Activation
from ..transformers import Bernstein, SOSPolynomial
from .layers import autoregressions
from .registry import register_flow

__all__ = ["bpf", "sospf"]


@register_flow("sospf")
def sospf(
    dim: int,
    *,
    context_dim: int = 0,
    num_layers: int = 3,
    hidden_dims: Sequence[int] = (64, 64),
    degree: int = 4,
    num_polynomials: int = 2,
    bound: float = 8.0,
    activation: Activation = "relu",
) -> Bijector:
    """Autoregressive layers of integrated sums of squares: cheap to sample."""
    network = {"hidden_dims": hidden_dims, "activation": activation}
    polynomial = SOSPolynomial(degree, num_polynomials, bound)
    return Compose(*autoregressions(dim, context_dim, num_layers, polynomial, network))


@register_flow("bpf")
def bpf(
    dim: int,
    *,
    context_dim: int = 0,
    num_layers: int = 3,
    hidden_dims: Sequence[int] = (64, 64),
    degree: int = 10,
    bound: float = 8.0,
    activation: Activation = "relu",
) -> Bijector:
    """Autoregressive layers of increasing Bernstein polynomials: cheap to sample."""
    network = {"hidden_dims": hidden_dims, "activation": activation}
    layers = autoregressions(dim, context_dim, num_layers, Bernstein(degree, bound), network)
    return Compose(*layers)
