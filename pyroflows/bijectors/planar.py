"""A bend across a hyperplane."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ._raws import RawLinear
from ._ridge import find_ridge, log_slope_at_zero

__all__ = ["Planar"]


class Planar(RawLinear):
    r"""A bend along one direction, across a hyperplane.

    .. math:: y = x + \hat u\, h(w^\top x + b), \qquad
        \hat u = u + \bigl(\lambda - 1 - w^\top u\bigr) \frac{w}{\lVert w \rVert^2}

    So :math:`w^\top \hat u = \lambda - 1`, where :math:`\lambda > 0` is the slope across the
    hyperplane, which a smooth function of :math:`w^\top u` keeps between 1e-3 and 1e3. It is 1 at
    :math:`u = 0`, which is the identity and the start. The direction :math:`w` starts at a random
    unit vector and the bias :math:`b` at a random number, so that layers differ from one another.

    The inverse takes one scalar root along :math:`w`: Newton's method for the hyperbolic tangent,
    in closed form for the leaky ReLU. So both directions cost :math:`O(D)`.

    References:
        | Variational Inference with Normalizing Flows (Rezende and Mohamed, 2015)
        | https://arxiv.org/abs/1505.05770

    Args:
        dim: Size :math:`D` of the vectors.
        context_dim: Size of the context, or 0 for a free map.
        activation: The function :math:`h`, ``"tanh"`` or ``"leaky_relu"``.
        hidden_dims: Sizes of the hidden layers of the network of the context.

    Raises:
        ValueError: If ``activation`` is another one.

    Example:
        >>> y = Planar(3)(torch.ones(5, 3))
    """

    def __init__(
        self,
        dim: int,
        *,
        context_dim: int = 0,
        activation: str = "tanh",
        hidden_dims: Sequence[int] = (64, 64),
    ) -> None:
        shapes = {"shift": (dim,), "direction": (dim,), "bias": ()}
        super().__init__(dim, shapes, context_dim=context_dim, hidden_dims=hidden_dims)
        self.activation = activation
        self.ridge = find_ridge(type(self), activation)
        with torch.no_grad():
            self.direction.normal_().div_(self.direction.norm())
            self.bias.normal_()

    def forward_and_log_det(
        self, x: Tensor, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        shift, direction, bias, log_slope = self._maps(context)
        s = (x * direction).sum(-1) + bias
        y = x + shift * self.ridge.value(s)[..., None]
        return y, self.ridge.log_slope(s, log_slope)

    def inverse_and_log_det(
        self, y: Tensor, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        shift, direction, bias, log_slope = self._maps(context)
        s = self.ridge.root((y * direction).sum(-1) + bias, log_slope)
        x = y - shift * self.ridge.value(s)[..., None]
        return x, -self.ridge.log_slope(s, log_slope)

    def _forward_with_score(
        self, x: Tensor, score: Tensor, context: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        # J = I + h' u w': by Sherman and Morrison its inverse, transposed, takes two products.
        shift, direction, bias, log_slope = self._maps(context)
        s = (x * direction).sum(-1) + bias
        y = x + shift * self.ridge.value(s)[..., None]
        log_det = self.ridge.log_slope(s, log_slope)
        with torch.no_grad():
            by_s, log_by_s = self.ridge.derivatives(s, log_slope)
            pulled = (log_by_s + by_s * (score * shift).sum(-1)) / log_det.exp()
            return y, log_det, score - pulled[..., None] * direction

    def _maps(self, context: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The constrained shift, the direction, the bias and the log-slope."""
        shift, direction, bias = self.raws(context)
        along = (shift * direction).sum(-1)
        log_slope = log_slope_at_zero(along)
        square = direction.square().sum(-1).clamp_min(torch.finfo(direction.dtype).tiny)
        excess = (log_slope.expm1() - along) / square
        shift = shift + excess[..., None] * direction
        return shift, direction, bias, log_slope
