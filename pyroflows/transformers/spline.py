"""The rational-quadratic spline transformer."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from .base import Partials, Transformer

__all__ = ["RationalQuadraticSpline"]


class _Bin(NamedTuple):
    """The bin that holds each value, in a box of unit size, and what it was read from."""

    index: Tensor  # (*)
    left: Tensor  # (2, *), on x and on y
    size: Tensor  # (2, *)
    slopes: Tensor  # (2, *), at the left and the right end
    weights: Tensor  # (2, *, K), the sizes of all bins up to a factor
    total: Tensor  # (2, *), that factor
    weights_soft: Tensor  # (2, *, K), the divisors that bound the raws of the sizes
    slopes_soft: Tensor  # (2, *), those of the two slopes


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
    def of(cls, value: Tensor, found: _Bin) -> _Piece:
        (w, h), (d0, d1) = found.size, found.slopes
        return cls.at(((value - found.left[0]) / w).clamp(0, 1), h / w, d0, d1)

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
        piece = _Piece.of(value, found)
        y = self._from_box(found.left[1] + found.size[1] * piece.top / piece.bottom)
        return torch.where(inside, y, x), torch.where(inside, piece.slope().log(), 0)

    def inverse_and_log_det(self, y: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        value, inside = self._to_box(y)
        found = self._find(value, params, axis=1)
        (x0, y0), (w, h), (d0, d1) = found.left, found.size, found.slopes
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
            piece = _Piece.of(value, found)
            slope = piece.slope()
            y = self._from_box(found.left[1] + found.size[1] * piece.top / piece.bottom)
            shown = inside.to(x.dtype)
            by_bin, log_slope_x = _bin_partials(piece, slope, *found.size, 2 * self.bound)
            y_params, log_params = self._to_raw(by_bin * shown, found)
            partials = Partials(y_params, log_slope_x * (shown / (2 * self.bound)), log_params)
            y, log_slope = torch.where(inside, y, x), torch.where(inside, slope.log(), 0)
            return y, log_slope, partials

    def _to_box(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map [-B, B] to [0, 1], clamped: gradients of what lies outside stay finite."""
        inside = x.abs() < self.bound
        return torch.where(inside, x, 0) * (0.5 / self.bound) + 0.5, inside

    def _from_box(self, value: Tensor) -> Tensor:
        return 2 * self.bound * value - self.bound

    # Small last dimensions make softmax, where and stack slow, tables of few columns fast to
    # gather from, and the first dimension the one to stack and split along.

    def _find(self, value: Tensor, params: Tensor, axis: int) -> _Bin:
        limit, num_bins = math.log(self.max_slope), self.num_bins
        params = params[(None,) * (value.dim() + 1 - params.dim())]  # the axes come first
        raws = params[..., : 2 * num_bins].unflatten(-1, (2, num_bins)).movedim(-2, 0)
        soft = raws.abs().mul_(2 / limit).add_(1)  # in place: memory costs more than arithmetic
        weights = (raws / soft).exp_()  # bounded raws need no shift
        sums = weights.cumsum(-1)
        total = sums[..., -1]
        index = ((value * total[axis])[..., None] >= sums[axis][..., :-1]).sum(-1)
        at = index.expand(2, *index.shape)[..., None]
        table = (2, *index.shape, num_bins)
        size = weights.expand(table).gather(-1, at)[..., 0]
        left = sums.expand(table).gather(-1, at)[..., 0] - size
        ends = F.pad(params[..., 2 * num_bins :], (1, 1)).expand(*index.shape, num_bins + 1)
        ends = ends.gather(-1, torch.stack([index, index + 1], dim=-1)).movedim(-1, 0)
        ends_soft = 1 + ends.abs() / limit
        return _Bin(
            index,
            left / total,
            size / total,
            (ends / ends_soft).exp(),
            weights,
            total,
            soft,
            ends_soft,
        )

    def _to_raw(self, by_bin: Tensor, found: _Bin) -> Tensor:
        """Derivatives in a bin's left ends, sizes and slopes, as those in the raws."""
        num_bins, dtype, index = self.num_bins, by_bin.dtype, found.index
        left, size, slopes = by_bin.unflatten(1, (3, 2)).unbind(1)  # (2, 2, *) each
        out = by_bin.new_empty(2, *index.shape, self.num_params)
        # A share moves all that lies right of it, and the shares sum to one (softmax).
        mean = left * found.left + size * found.size
        left, size, mean = (v.div_(found.total)[..., None] for v in (left, size, mean))
        bins = torch.arange(num_bins, device=index.device)
        before, here = (m.to(dtype) for m in (bins < index[..., None], bins == index[..., None]))
        pulled = (left * before).addcmul_(size, here).sub_(mean)
        pulled.mul_(found.weights / found.weights_soft.square())
        out[..., : 2 * num_bins].unflatten(-1, (2, num_bins)).copy_(pulled.movedim(1, -2))
        slopes = (slopes * (found.slopes / found.slopes_soft.square())).movedim(1, -1)
        at = torch.stack([index, index + 1], dim=-1).expand(slopes.shape)
        ends = slopes.new_zeros(*slopes.shape[:-1], num_bins + 1).scatter_(-1, at, slopes)
        out[..., 2 * num_bins :].copy_(ends[..., 1:-1])
        return out


def _bin_partials(
    piece: _Piece, slope: Tensor, w: Tensor, h: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """Of ``scale`` times the value and of the log-slope, in the numbers that define the bin.

    Those are, second: left end on x, on y, width, height, left slope, right slope. The other
    result is the derivative of the log-slope in x.
    """
    z, s, d0, d1, t, curve, top, bottom, top_slope = piece
    u, over, inverse = 1 - z, bottom.reciprocal(), top_slope.reciprocal()
    turn, fall = u - z, (u - t - t) + z  # the derivative of t; 1 - 2 t
    ratio = top * over
    # Of the value.
    by_s = s * (z * z - ratio * fall) * over
    y_d0 = h * t * over
    y_d1 = -ratio * y_d0
    value = [-slope, torch.ones_like(z), -(slope * z + s * by_s), ratio + by_s, y_d0 + y_d1, y_d1]
    # Of the log-slope.
    shared = 2 * over
    log_x = (2 * inverse * (d1 * z + s * turn - d0 * u) - shared * curve * turn) / w
    log_h = (2 * (1 / s + t * inverse) - shared * fall) / w
    shared = shared * t
    log_d0, log_d1 = u * u * inverse - shared, z * z * inverse - shared
    log_slope = [-log_x, torch.zeros_like(z), -(log_x * z + log_h * s), log_h, log_d0, log_d1]
    return torch.stack([torch.stack(value) * scale, torch.stack(log_slope)]), log_x
