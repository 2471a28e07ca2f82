"""What a density says of points: their ranks in it, and its values on a grid."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ._points import as_points
from .module import FlowDensity

__all__ = ["density_grid", "pit"]

_TAIL = 1e-3  # share of draws beyond each side of a grid
_MARGIN = 0.1  # of the width between
_NUM_DRAWS = 10_000
_AT_ONCE = 8_192
_MOST = 2  # coordinates of a grid


@torch.no_grad()
def pit(density: FlowDensity, x: Any, context: Any = None) -> Tensor:
    r"""The probability integral transform of points: uniform where the density is right.

    .. math:: u_i = F_i\big(z_i\big), \qquad z = f^{-1}(x; c)

    with the distribution functions :math:`F_i` of the base's coordinates. If and only if points are
    draws of the density, these numbers are independent and uniform on (0, 1).

    References:
        | Remarks on a multivariate transformation (Rosenblatt, 1952)
        | https://doi.org/10.1214/aoms/1177729394

    Args:
        density: The density.
        x: Points, shape ``(N, *event_shape)``.
        context: Covariates of these, shape ``(N, context_dim)``.

    Returns:
        Numbers in [0, 1], shape ``(N, dim)``.

    Raises:
        TypeError: If data are no floating numbers, or covariates are missing or not wanted.
        ValueError: If data are of the wrong shape or outside the support, or the coordinates of the
            base have no distribution functions.

    Example:
        >>> import torch
        >>> density = FlowDensity(1, "affine")
        >>> pit(density, torch.tensor([[0.0], [1.0]])).flatten()
        tensor([0.5000, 0.8413])
    """
    x, context = as_points(density, x, context, owner="pit", least=1)
    context = None if context is None else density.standardized(context)
    z = density.bijector.inverse_and_log_det(density.unbounded(x), context)[0]
    base = density.base.distribution(context if density.base.context_dim else None)
    coordinates = getattr(base, "base_dist", None)
    try:
        return coordinates.cdf(z)
    except (NotImplementedError, AttributeError) as error:
        raise ValueError(
            f"pit needs a base whose coordinates have distribution functions, 'normal' or "
            f"'diagonal_normal', and {type(density.base).__name__} has none."
        ) from error


@torch.no_grad()
def density_grid(
    density: FlowDensity,
    num: int = 200,
    *,
    limits: Any = None,
    context: Tensor | None = None,
) -> tuple[list[Tensor], Tensor]:
    """The log density on a grid, in one or two dimensions.

    Args:
        density: The density.
        num: Points along each axis.
        limits: The least and the largest number of each axis, shape ``(dim, 2)``; by default where
            all draws but two in a thousand lie, and a tenth more.
        context: Covariates, shape ``(context_dim)``.

    Returns:
        The numbers along each axis, shape ``(num)`` each, and log densities in the order of
        ``torch.meshgrid(..., indexing="ij")``, shape ``(num,)`` or ``(num, num)``; ``-inf`` outside
        the support.

    Raises:
        ValueError: If points have more than two coordinates, or ``limits`` another shape.

    Example:
        >>> axes, log_prob = density_grid(FlowDensity(2, "affine"), 50)
        >>> log_prob.shape
        torch.Size([50, 50])
    """
    size = density.event_shape.numel()
    if size > _MOST or density.dim != size:
        raise ValueError(
            f"density_grid expected a density of one or two coordinates, got points of shape "
            f"{tuple(density.event_shape)} with {density.dim} free coordinates."
        )
    given = density(context)
    limits = _limits(given) if limits is None else torch.as_tensor(limits)
    if limits.shape != (size, 2):
        raise ValueError(
            f"density_grid expected limits of shape ({size}, 2), got {tuple(limits.shape)}."
        )
    like = density.context_loc
    axes = [torch.linspace(float(a), float(b), num).to(like) for a, b in limits]
    points = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).reshape(-1, size)
    values = torch.cat([given.log_prob(part) for part in points.split(_AT_ONCE)])
    return axes, values.reshape([num] * size)


def _limits(given: Any) -> Tensor:
    draws = given.sample((_NUM_DRAWS,)).reshape(_NUM_DRAWS, -1).double().cpu()
    low, high = draws.quantile(torch.tensor([_TAIL, 1 - _TAIL], dtype=torch.float64), 0)
    margin = _MARGIN * (high - low)
    return torch.stack([low - margin, high + margin], -1)
