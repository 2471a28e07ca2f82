"""Triangular maps."""

from __future__ import annotations

from collections.abc import Sequence

from ..bijector import Bijector
from ..bijectors import Autoregressive
from ..networks import Activation, Adjacency
from ..transformers import Affine, RationalQuadraticSpline, Stacked
from .registry import register_flow

__all__ = ["triangular"]


@register_flow("triangular")
def triangular(
    dim: int,
    *,
    context_dim: int = 0,
    order: Sequence[int] | None = None,
    adjacency: Adjacency | None = None,
    hidden_dims: Sequence[int] = (64, 64),
    num_bins: int = 16,
    bound: float = 8.0,
    activation: Activation = "relu",
) -> Bijector:
    r"""One layer of splines and affine maps, without permutations: a Knothe-Rosenblatt map.

    .. math:: y_i = e^{a_i} \, s_i(x_i) + b_i, \qquad (a_i, b_i, s_i) = p_i(x_{<i}, c)

    Such a map between two densities is unique, so its parts can be read: each is one conditional.
    With ``adjacency``, coordinates depend on those that a graph names, and on no other.

    References:
        | Inference via low-dimensional couplings (Spantini, Bigoni and Marzouk, 2018)
        | https://arxiv.org/abs/1703.06131
    """
    return Autoregressive(
        dim,
        context_dim=context_dim,
        order=order,
        adjacency=adjacency,
        transformer=Stacked(RationalQuadraticSpline(num_bins, bound), Affine()),
        hidden_dims=hidden_dims,
        activation=activation,
    )
