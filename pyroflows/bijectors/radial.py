"""A stretch around a point."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..transformers.fused import bounded
from ._raws import RawLinear
from ._ridge import log_slope_at_zero

__all__ = ["Radial"]

_LIMIT = 6.9  # the radius is within a thousandfold of its start


class Radial(RawLinear):
    r"""A stretch or a contraction around a point, which fades away from it.

    .. math:: y = x + \frac{\beta\, (x - z)}{\alpha + r}, \qquad r = \lVert x - z \rVert, \quad
        \beta = (\lambda - 1)\, \alpha

    The slope at the centre, :math:`\lambda > 0`, is between 1e-3 and 1e3, and 1 at the start, which
    is the identity; the radius :math:`\alpha` is :math:`\sqrt{D}` there. The centre :math:`z`
    starts at a random point, so that layers differ from one another.

    Both directions are in closed form and cost :math:`O(D)`: the inverse solves a quadratic
    equation for :math:`r`.

    References:
        | Variational Inference with Normalizing Flows (Rezende and Mohamed, 2015)
        | https://arxiv.org/abs/1505.05770

    Args:
        dim: Size :math:`D` of the vectors.
        context_dim: Size of the context, or 0 for a free map.
        hidden_dims: Sizes of the hidden layers of the network of the context.

    Example:
        >>> y = Radial(3)(torch.ones(5, 3))
    """

    def __init__(
        self, dim: int, *, context_dim: int = 0, hidden_dims: Sequence[int] = (64, 64)
    ) -> None:
        shapes = {"centre": (dim,), "log_radius": (), "log_slope": ()}
        super().__init__(dim, shapes, context_dim=context_dim, hidden_dims=hidden_dims)
        nn.init.normal_(self.centre)

    def forward_and_log_det(
        self, x: Tensor, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        centre, radius, slope = self._maps(context)
        away = x - centre
        across, along = _slopes(_norm(away), radius, slope)
        y = centre + across[..., None] * away
        return y, self._log_det(across, along)

    def inverse_and_log_det(
        self, y: Tensor, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        centre, radius, slope = self._maps(context)
        away = y - centre
        across, along = _slopes(_root(_norm(away), radius, slope), radius, slope)
        x = centre + away / across[..., None]
        return x, -self._log_det(across, along)

    def _forward_with_score(
        self, x: Tensor, score: Tensor, context: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        # One slope along the line from the centre, another one across it: J is symmetric.
        y, log_det = self.forward_and_log_det(x, context)
        with torch.no_grad():
            centre, radius, slope = self._maps(context)
            away = x - centre
            r = _norm(away)
            across, along = _slopes(r, radius, slope)
            near = radius / (radius + r)
            bend = -(slope - 1) * near.square() / radius  # the derivatives of both by r
            log_by_r = (self.dim - 1) * bend / across + 2 * bend * near / along
            unit = away / r[..., None]
            own = (score * unit).sum(-1)
            change = (own - log_by_r) / along - own / across
            return y, log_det, score / across[..., None] + change[..., None] * unit

    def _maps(self, context: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """The centre, the radius and the slope at the centre."""
        centre, log_radius, log_slope = self.raws(context)
        radius = math.sqrt(self.dim) * bounded(log_radius, _LIMIT).exp()
        return centre, radius, log_slope_at_zero(log_slope).exp()

    def _log_det(self, across: Tensor, along: Tensor) -> Tensor:
        return (self.dim - 1) * across.log() + along.log()


def _slopes(r: Tensor, radius: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
    """The slopes across and along the line from the centre, as sums of positive terms."""
    near, far = radius / (radius + r), r / (radius + r)
    return slope * near + far, slope * near.square() + far * (1 + near)


def _norm(away: Tensor) -> Tensor:
    """The length of each vector, of any size; at zero it is tiny, with a gradient of zero."""
    size = away.detach().abs().amax(-1).clamp_min(torch.finfo(away.dtype).tiny)
    return size * (away / size[..., None]).square().sum(-1).clamp_min(0.25).sqrt()


def _root(image: Tensor, radius: Tensor, slope: Tensor) -> Tensor:
    r"""The positive solution of :math:`r^2 + (\lambda \alpha - R)\, r = \alpha R`."""
    middle = slope * radius - image
    large = (middle.abs() + torch.hypot(middle, 2 * (radius * image).sqrt())) / 2
    return torch.where(middle > 0, radius * image / large, large)
