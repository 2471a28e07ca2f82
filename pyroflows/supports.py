"""Where points live: a constraint, and the shape of a point that it holds for."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import biject_to, constraints

__all__ = ["check_size", "contains", "event_of", "touches_edge"]


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
        TypeError: If the number is none.
        ValueError: If they contradict each other, or there is no way to the support.
    """
    _check_known(support, owner)
    implied = None if support is None else _implied_dim(support)
    if dim is None and implied is None:
        raise ValueError(
            f"{owner}: expected dim, the number of coordinates, because support={support} does not "
            "tell it: pass dim=..."
        )
    if None not in (dim, implied) and dim != implied:
        raise ValueError(f"{owner}: got dim={dim}, but {support} has {implied} coordinates.")
    dim = check_size(owner, "dim", implied if dim is None else dim, 1)
    support = constraints.real if support is None else support
    if support.event_dim == 0:
        support = constraints.independent(support, 1)
    event_shape = torch.Size((dim,) * support.event_dim)
    _check_support(support, event_shape, owner)
    return support, event_shape


def check_size(owner: str, name: str, value: int, least: int) -> int:
    """Return a size, or raise.

    Raises:
        TypeError: If it is no int.
        ValueError: If it is too small.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        found = f"{value!r}" if value is None else f"{value!r} of type {type(value).__name__}"
        raise TypeError(f"{owner} expected {name} to be an int, got {found}.")
    if value < least:
        raise ValueError(f"{owner} expected {name} >= {least}, got {value}.")
    return value


def _check_known(support: constraints.Constraint | None, owner: str) -> None:
    """Raise if it cannot be told what the support holds for."""
    if constraints.is_dependent(support):
        raise ValueError(
            f"{owner}: the support {support} depends on parameters that are not known here: pass "
            "that of a distribution that has them, dist.Uniform(0.0, 1.0).support."
        )
    if isinstance(support, constraints.stack | constraints.cat) and support.dim >= 0:
        kind = type(support).__name__.strip("_").lower()
        raise ValueError(
            f"{owner}: a support joined along dim={support.dim}, counted from the left, does not "
            f"hold for batches of points: write constraints.{kind}(..., dim=-1)."
        )


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
    """Whether points are inside a support, or on an edge of it to which rounding takes draws.

    Args:
        support: A constraint on whole points.
        x: Points, shape ``(*batch, *event_shape)``.

    Returns:
        Shape ``(*batch)``.
    """
    batch = x.shape[: x.dim() - support.event_dim]
    free = biject_to(support).inv(x)
    inside = free.isfinite().flatten(len(batch)).all(-1)
    try:
        found = support.check(x)
    except RuntimeError:  # a concatenation of constraints on vectors cannot check itself
        found = inside
    return inside & found if found.shape == batch else inside


def touches_edge(support: constraints.Constraint, x: Tensor) -> Tensor:
    """Whether points are where a support ends, at infinity in coordinates that know no bounds.

    Maps to the support clamp these, so that finite numbers say nothing.

    Args:
        support: A constraint on whole points.
        x: Points, shape ``(*batch, *event_shape)``.

    Returns:
        Shape ``(*batch)``.
    """
    batch = x.dim() - support.event_dim
    return _at_edge(support, x).flatten(batch).any(-1)


def _at_edge(support: constraints.Constraint, x: Tensor) -> Tensor:
    """The same for each number of ``x``."""
    if isinstance(support, constraints.independent):
        return _at_edge(support.base_constraint, x)
    if isinstance(support, constraints.stack):
        parts = zip(support.cseq, x.unbind(support.dim), strict=True)
        return torch.stack([_at_edge(c, part) for c, part in parts], support.dim)
    if isinstance(support, constraints.cat):
        parts = zip(support.cseq, x.split(support.lengths, support.dim), strict=True)
        return torch.cat([_at_edge(c, part) for c, part in parts], support.dim)
    if support is constraints.simplex:
        return x == 0
    bounds = [getattr(support, bound, None) for bound in ("lower_bound", "upper_bound")]
    at_edge = torch.zeros_like(x, dtype=torch.bool)
    for bound in bounds:
        at_edge = at_edge if bound is None else at_edge | (x == bound)
    return at_edge
