"""Flows of one linear map: Gaussians."""

from __future__ import annotations

from collections.abc import Sequence

from ..bijector import Bijector
from ..bijectors import FullAffine, LocScale
from .registry import register_flow

__all__ = ["affine", "diagonal"]


@register_flow("affine")
def affine(dim: int, *, context_dim: int = 0, hidden_dims: Sequence[int] = (64, 64)) -> Bijector:
    """A location and a full triangular matrix: as a guide, a full-rank Gaussian."""
    return FullAffine(dim, context_dim=context_dim, hidden_dims=hidden_dims)


@register_flow("diagonal")
def diagonal(dim: int, *, context_dim: int = 0, hidden_dims: Sequence[int] = (64, 64)) -> Bijector:
    """A location and a scale for each coordinate: as a guide, mean field."""
    return LocScale(dim, context_dim=context_dim, hidden_dims=hidden_dims)
