"""Where points live: a constraint, and the shape of a point that it holds for."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import biject_to, constraints

__all__ = ["contains", "event_of"]


def event_of(
    support: constraints.Constraint | None, dim: int | None, owner: str
) -> tuple[constraints.Constraint, torch.Size]:
    """The support as a constraint on whole points, and the shape of a point.

    Args:
        support: A constraint; on scalars it holds for each coordinate. ``None`` for all reals.
        dim: The number of coordinates; of rows for a support on square matrices. ``None`` where
            the support tells it.
        owner: Whose arguments these are, for messages.

    Raises:
        ValueError: If they contradict each other, or there is no way to the support.
    """
    implied = None if support is None else _implied_dim(support)
    if dim is None and implied is None:
        raise ValueError(
            f"{owner}: expected dim, the number of coordinates, because support={support} does not "
            "tell it: pass dim=..."
        )
    if None not in (dim, implied) and dim != implied:
        raise ValueError(f"{owner}: got dim={dim}, but {support} has {implied} coordinates.")
    dim = implied if dim is None else dim
    support = constraints.real if support is None else support
    if support.event_dim == 0:
        support = constraints.independent(support, 1)
    event_shape = torch.Size((dim,) * support.event_dim)
    _check_support(support, event_shape, owner)
    return support, event_shape


def _implied_dim(support: constraints.Constraint) -> int | None:
    """The number of coordinates that a constraint fixes by itself, if it does."""
    if isinstance(support, constraints.independent):
        return _implied_dim(support.base_constraint)
    if isinstance(support, constraints.stack):
        return len(support.cseq)
    if isinstance(support, constraints.cat):
        return sum(support.lengths)
    bounds = [getattr(support, bound, None) for bound in ("lower_bound", "upper_bound")]
    sizes = [len(bound) for bound in bounds if isinstance(bound, Tensor) and bound.dim() == 1]
    return max(sizes, default=None)


def _check_support(support: constraints.Constraint, event_shape: torch.Size, owner: str) -> None:
    if support.is_discrete:
        raise ValueError(f"{owner}: expected a continuous support, got {support}.")
    try:
        to_support = biject_to(support)
        to_support.inverse_shape(event_shape)
    except NotImplementedError as error:
        raise ValueError(
            f"{owner}: torch.distributions.biject_to does not know the support {support}. "
            "Use one that it knows, or register a bijection for yours."
        ) from error
    except ValueError as error:
        raise ValueError(
            f"{owner}: points of shape {tuple(event_shape)} do not fit the support "
            f"{support}: {error}"
        ) from error


def contains(support: constraints.Constraint, x: Tensor) -> Tensor:
    """Whether points are inside a support, on whose edge no density can be told.

    Args:
        support: A constraint on whole points.
        x: Points, shape ``(*batch, *event_shape)``.

    Returns:
        Shape ``(*batch)``.
    """
    batch = x.shape[: x.dim() - support.event_dim]
    free = biject_to(support).inv(x)
    inside = free.isfinite().reshape(*batch, -1).all(-1)
    try:
        found = support.check(x)
    except RuntimeError:  # a concatenation of constraints on vectors cannot check itself
        found = inside
    return inside & found if found.shape == batch else inside
