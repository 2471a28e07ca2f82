"""Flows in continuous time."""

from __future__ import annotations

from collections.abc import Sequence

from ..bijector import Bijector, Compose
from ..bijectors import Continuous
from .layers import checked_layers
from .registry import register_flow

__all__ = ["cnf"]


@register_flow("cnf")
def cnf(
    dim: int,
    *,
    context_dim: int = 0,
    num_layers: int = 1,
    hidden_dims: Sequence[int] = (64, 64),
    activation: str = "tanh",
    trace: str = "exact",
    solver: str = "dopri5",
    num_steps: int = 20,
    tolerance: float | None = None,
    adjoint: bool = False,
) -> Bijector:
    """The flow of a velocity field in continuous time: as cheap one way as the other."""
    layers = [
        Continuous(
            dim,
            context_dim=context_dim,
            hidden_dims=hidden_dims,
            activation=activation,
            trace=trace,
            solver=solver,
            num_steps=num_steps,
            tolerance=tolerance,
            adjoint=adjoint,
        )
        for _ in range(checked_layers(num_layers))
    ]
    return layers[0] if num_layers == 1 else Compose(*layers)
