"""The rational-quadratic spline transformer."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from .base import Partials, Transformer, bounded, bounded_slope

__all__ = ["RationalQuadraticSpline"]


class _Bin(NamedTuple):
    """The bin that holds each value, in a box of unit size, and the tables it was read from."""

    index: Tensor  # (*)
    left: Tensor  # (*, 2), on x and on y
    size: Tensor  # (*, 2)
    slopes: Tensor  # (*, 2), at the left and the right end
    shares: Tensor  # (*, 2, K), the sizes of all bins
    ends: Tensor  # (*, K + 1), the slopes at all knots


class _Piece(NamedTuple):
    """A rational quadratic at :math:`z` in its bin: eqs. 4 and 5 of Durkan et al. (2019)."""

    z: Tensor
    s: Tensor  # mean slope of the bin
    d0: Tensor
    d1: Tensor
    t: Tensor  # z (1 - z)
    curve: Tensor  # d0 + d1 - 2 s
    top: Tensor  # of the value
    bottom: Tensor  # of both, at least s / 2 as z is in [0, 1]
    top_slope: Tensor  # of the slope

    @classmethod
    def at(cls, z: Tensor, s: Tensor, d0: Tensor, d1: Tensor) -> _Piece:
        t = z * (1 - z)
        curve = d0 + d1 - 2 * s
        top = (s * z + d0 * (1 - z)) * z
        top_slope = (d1 * z + s * (1 - z)) * z + (s * z + d0 * (1 - z)) * (1 - z)
        return cls(z, s, d0, d1, t, curve, top, s + curve * t, top_slope)

    def slope(self) -> Tensor:
        return (self.s / self.bottom).square() * self.top_slope


@dataclass(frozen=True)
class RationalQuadraticSpline(Transformer):
    r"""A monotone rational-quadratic spline on :math:`[-B, B]`, the identity outside.

    The slope is 1 at both ends, so the map is continuously differentiable everywhere. Raw
    parameters are softly bounded, which bounds slopes on both sides: a bound on one side only
    leaves the inverse ill-conditioned in single precision.

    References:
        | Neural Spline Flows (Durkan et al., 2019)
        | https://arxiv.org/abs/1906.04032

    Args:
        num_bins: Number :math:`K` of bins.
        bound: End :math:`B` of the interval.
        max_slope: Largest slope at a knot, and inverse of the smallest.

    Raises:
        ValueError: If ``num_bins`` is not an int of at least 2, ``bound`` not positive and
            finite, or ``max_slope`` not more than 1.

    Example:
        >>> spline = RationalQuadraticSpline(num_bins=4, bound=3.0)
        >>> y, log_slope = spline.forward_and_log_det(torch.ones(2), torch.zeros(2, 11))
        >>> print(y)
        tensor([1., 1.])
    """

    num_bins: int = 8
    bound: float = 5.0
    max_slope: float = 1e3

    def __post_init__(self) -> None:
        if not isinstance(self.num_bins, int) or self.num_bins < 2:
            raise ValueError(f"num_bins expected an int of at least 2, got {self.num_bins}.")
        if not 0 < self.bound < math.inf:
            raise ValueError(f"bound expected a positive, finite number, got {self.bound}.")
        if not 1 < self.max_slope < math.inf:
            raise ValueError(f"max_slope expected a finite number above 1, got {self.max_slope}.")

    @property
    def num_params(self) -> int:
        return 3 * self.num_bins - 1

    def forward_and_log_det(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        value, inside = self._to_box(x)
        found = self._find(value, params, axis=0)
        (x0, y0), (w, h) = found.left.unbind(-1), found.size.unbind(-1)
        piece = _Piece.at(((value - x0) / w).clamp(0, 1), h / w, *found.slopes.unbind(-1))
        y = self._from_box(y0 + h * piece.top / piece.bottom)
        return torch.where(inside, y, x), torch.where(inside, piece.slope().log(), 0)

    def inverse_and_log_det(self, y: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        value, inside = self._to_box(y)
        found = self._find(value, params, axis=1)
        (x0, y0), (w, h) = found.left.unbind(-1), found.size.unbind(-1)
        d0, d1 = found.slopes.unbind(-1)
        s = h / w
        # The root in [0, 1] of a z^2 + b z + c (eqs. 26-29), all divided by h.
        t = (value - y0) / h
        curve = t * (d0 + d1 - 2 * s)
        a, b, c = s - d0 + curve, d0 - curve, -s * t
        # Where rounding makes it negative; at zero itself the square root has no slope.
        root = (b.square() - 4 * a * c).clamp_min(torch.finfo(s.dtype).tiny).sqrt()
        piece = _Piece.at((-2 * c / (b + root)).clamp(0, 1), s, d0, d1)
        x = self._from_box(x0 + w * piece.z)
        return torch.where(inside, x, y), torch.where(inside, -piece.slope().log(), 0)

    def partials(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor, Partials]:
        with torch.no_grad():
            value, inside = self._to_box(x)
            found = self._find(value, params, axis=0)
            (x0, y0), (w, h) = found.left.unbind(-1), found.size.unbind(-1)
            piece = _Piece.at(((value - x0) / w).clamp(0, 1), h / w, *found.slopes.unbind(-1))
            slope = piece.slope()
            y = self._from_box(y0 + h * piece.top / piece.bottom)
            by_bin, log_slope_x = _bin_partials(piece, slope, w, h, 2 * self.bound)
            by_bin = by_bin.masked_fill_(~inside[..., None], 0)
            y_params, log_params = self._to_raw(by_bin, found, params).unbind(0)
            partials = Partials(
                y_params, torch.where(inside, log_slope_x / (2 * self.bound), 0), log_params
            )
            y, log_slope = torch.where(inside, y, x), torch.where(inside, slope.log(), 0)
            return y, log_slope, partials

    def _to_box(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map [-B, B] to [0, 1], clamped: gradients of what lies outside stay finite."""
        inside = x.abs() < self.bound
        return torch.where(inside, x, 0) * (0.5 / self.bound) + 0.5, inside

    def _from_box(self, value: Tensor) -> Tensor:
        return 2 * self.bound * value - self.bound

    def _find(self, value: Tensor, params: Tensor, axis: int) -> _Bin:
        limit, num_bins = math.log(self.max_slope), self.num_bins
        sizes = params[..., : 2 * num_bins].unflatten(-1, (2, num_bins))
        shares = bounded(sizes, limit / 2).softmax(-1)
        ends = F.pad(bounded(params[..., 2 * num_bins :], limit), (1, 1)).exp()
        knots = shares.cumsum(-1)
        index = (value[..., None] >= knots[..., axis, :-1]).sum(-1)
        batch = index.shape
        at = index[..., None, None].expand(*batch, 2, 1)
        size = shares.expand(*batch, 2, num_bins).gather(-1, at)[..., 0]
        left = F.pad(knots[..., :-1], (1, 0)).expand(*batch, 2, num_bins).gather(-1, at)[..., 0]
        pair = torch.stack([index, index + 1], dim=-1)
        slopes = ends.expand(*batch, num_bins + 1).gather(-1, pair)
        return _Bin(index, left, size, slopes, shares, ends)

    def _to_raw(self, by_bin: Tensor, found: _Bin, params: Tensor) -> Tensor:
        """Derivatives in a bin's (left, size) on both axes and slopes, as those in the raws."""
        limit, num_bins = math.log(self.max_slope), self.num_bins
        left, size, slopes = by_bin.unflatten(-1, (3, 2)).unbind(-2)  # (2, *, 2) each
        # A share moves all that lies right of it, and the shares sum to one (softmax).
        mean = left * found.left + size * found.size
        bins = torch.arange(num_bins, device=params.device)
        index = found.index[..., None, None]
        pulled = torch.where(bins == index, size[..., None], 0)
        pulled = torch.where(bins < index, left[..., None], pulled) - mean[..., None]
        sizes = params[..., : 2 * num_bins].unflatten(-1, (2, num_bins))
        pulled = pulled * (found.shares * bounded_slope(sizes, limit / 2))
        at = torch.stack([found.index, found.index + 1], dim=-1)
        ends = slopes.new_zeros(*slopes.shape[:-1], num_bins + 1)
        ends = ends.scatter(-1, at.expand_as(slopes), slopes * found.slopes)[..., 1:-1]
        ends = ends * bounded_slope(params[..., 2 * num_bins :], limit)
        return torch.cat([pulled.flatten(-2), ends], dim=-1)


def _bin_partials(
    piece: _Piece, slope: Tensor, w: Tensor, h: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """Of ``scale`` times the value and of the log-slope, in the numbers that define the bin.

    Those are, last: left end on x, on y, width, height, left slope, right slope. The second
    result is the derivative of the log-slope in x.
    """
    z, s, d0, d1, t, curve, top, bottom, top_slope = piece
    u, over = 1 - z, bottom.reciprocal()
    turn = u - z  # the derivative of t
    ratio = top * over
    # Of the value: its fraction of the bin's height by z, s and the slopes.
    by_s = (z * z - ratio * (1 - 2 * t)) * over
    by_d0, by_d1 = t * (1 - ratio) * over, -t * ratio * over
    y_width, y_height = -(slope * z + s * s * by_s), ratio + s * by_s
    value = [-slope, torch.ones_like(z), y_width, y_height, h * by_d0, h * by_d1]
    # Of the log-slope.
    inverse = top_slope.reciprocal()
    log_z = 2 * ((d1 * z + s * turn - d0 * u) * inverse - curve * turn * over)
    log_s = 2 * (1 / s + t * inverse - (1 - 2 * t) * over)
    log_d0, log_d1 = u * u * inverse - 2 * t * over, z * z * inverse - 2 * t * over
    log_x = log_z / w
    log_width = -(log_z * z + log_s * s) / w
    log_slope = [-log_x, torch.zeros_like(z), log_width, log_s / w, log_d0, log_d1]
    both = torch.stack([torch.stack(value, -1) * scale, torch.stack(log_slope, -1)])
    return both, log_x
