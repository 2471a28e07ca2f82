"""What splines share: the bins of an interval, and which of them holds a value."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ._checks import check_bound, check_count
from .fused import bounded

__all__ = ["Found", "at_ends", "check_spline", "find_bin", "raws_first", "to_box"]


class Found(NamedTuple):
    """The bin that holds each value: its index, its left end and size on x and on y."""

    index: Tensor  # (*)
    left: Tensor  # (2, *)
    size: Tensor  # (2, *)


def check_spline(num_bins: int, bound: float, max_slope: float) -> None:
    """Raise unless these are settings of a spline."""
    check_count("num_bins", num_bins, 2)
    check_bound(bound)
    if not 1 < max_slope < math.inf:
        raise ValueError(f"max_slope expected a finite number above 1, got {max_slope}.")


def to_box(x: Tensor, bound: float) -> tuple[Tensor, Tensor]:
    """Map [-B, B] to [0, 2B] and what is outside to the middle: gradients are finite."""
    inside = x.abs() < bound
    return torch.where(inside, x, 0) + bound, inside


def raws_first(value: Tensor, params: Tensor) -> Tensor:
    """Raw parameters ``(P, *)`` of values ``(*)``: every operation runs along the values."""
    number = max(value.dim(), params.dim() - 1)
    return params[(None,) * (number + 1 - params.dim())].movedim(-1, 0)


def find_bin(value: Tensor, sizes: Tensor, bound: float, limit: float, axis: int) -> Found:
    """Find the bins of values in [0, 2B].

    Args:
        value: The values, with shape ``(*)``.
        sizes: Raw sizes of the K bins on x, then on y, with shape ``(2 K, *)``.
        bound: B.
        limit: Largest logarithm of the ratio of two sizes.
        axis: 0 if the values are on x, 1 if they are on y.
    """
    num_bins = sizes.shape[0] // 2
    batch = torch.broadcast_shapes(value.shape, sizes.shape[1:])
    weights = bounded(sizes.unflatten(0, (2, num_bins)), limit / 2).exp()  # needs no shift
    sums = weights.cumsum(1)
    per = sums[:, -1] / (2 * bound)
    index = (value * per[axis] >= sums[axis, :-1]).sum(0)
    at = index.expand(2, 1, *batch)
    size = weights.expand(2, num_bins, *batch).gather(1, at)[:, 0]
    left = sums.expand(2, num_bins, *batch).gather(1, at)[:, 0] - size
    return Found(index, left / per, size / per)


def at_ends(knots: Tensor, index: Tensor) -> Tensor:
    """Numbers of the K + 1 knots, ``(K + 1, *)``, at both ends of each bin, ``(2, *)``."""
    return knots.expand(-1, *index.shape).gather(0, torch.stack([index, index + 1]))
