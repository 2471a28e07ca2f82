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
    curve: Tensor  # d0 + d1 - 2 s, of its end slopes
    t: Tensor  # z (1 - z)
    low: Tensor  # between d0 and s; times z, it is the numerator of the value
    high: Tensor  # between s and d1
    mixed: Tensor  # between both, the numerator of the slope
    over: Tensor  # of one over the denominator, at most 2 / s as z is in [0, 1]

    @classmethod
    def of(cls, value: Tensor, found: _Bin) -> _Piece:
        (w, h), (d0, d1) = found.size, found.slopes
        return cls.at(((value - found.left[0]) / w).clamp(0, 1), h / w, d0, d1)

    @classmethod
    def at(cls, z: Tensor, s: Tensor, d0: Tensor, d1: Tensor) -> _Piece:
        curve = torch.sub(d0 + d1, s, alpha=2)
        t = torch.addcmul(z, z, z, value=-1)
        low, high = torch.lerp(d0, s, z), torch.lerp(s, d1, z)
        over = torch.addcmul(s, curve, t).reciprocal()
        return cls(z, s, curve, t, low, high, torch.lerp(low, high, z), over)

    def fraction(self) -> Tensor:
        """How far up its bin the value is."""
        return self.low * self.z * self.over

    def slope(self) -> Tensor:
        return (self.s * self.over).square() * self.mixed


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
        y = self._from_box(torch.addcmul(found.left[1], found.size[1], piece.fraction()))
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
            slope, fraction = piece.slope(), piece.fraction()
            y = self._from_box(torch.addcmul(found.left[1], found.size[1], fraction))
            shown = inside.to(x.dtype)
            by_bin = _bin_partials(piece, slope, fraction, *found.size)
            log_slope_x = by_bin[1, 0] * (shown / (-2 * self.bound))  # moving x, not the bin
            by_bin[0].mul_(2 * self.bound)
            y_params, log_params = self._to_raw(by_bin.mul_(shown), found)
            partials = Partials(y_params, log_slope_x, log_params)
            y, log_slope = torch.where(inside, y, x), torch.where(inside, slope.log(), 0)
            return y, log_slope, partials

    def _to_box(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map [-B, B] to [0, 1] and what is outside to the middle, so that gradients are finite."""
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
        by_box, slopes = by_bin[:, :4].unflatten(1, (2, 2)), by_bin[:, 4:]
        out = by_bin.new_empty(2, *index.shape, self.num_params)
        # A share moves all that lies right of it, and the shares sum to one (softmax).
        left, size = (by_box / found.total).unbind(1)
        mean = torch.addcmul(left * found.left, size, found.size)
        left, size, mean = left[..., None], size[..., None], mean[..., None]
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


def _bin_partials(piece: _Piece, slope: Tensor, fraction: Tensor, w: Tensor, h: Tensor) -> Tensor:
    """Of the value and of the log-slope, in the numbers that define the bin.

    Those are, second: left end on x, on y, width, height, left slope, right slope.
    """
    z, s, curve, t, low, high, mixed, over = piece
    u, fall, inverse = 1 - z, torch.rsub(t, 1, alpha=2), mixed.reciprocal()
    # Of the value; its derivative by s, times s.
    by_s = torch.addcmul(z * z, fraction, fall, value=-1) * (s * over)
    y_width = torch.addcmul(slope * z, s, by_s).neg_()
    y_d0 = h * t * over
    y_d1 = -fraction * y_d0
    value = [-slope, torch.ones_like(z), y_width, fraction + by_s, y_d0 + y_d1, y_d1]
    # Of the log-slope.
    over = 2 * over
    log_x = (2 * (high - low) * inverse - curve * (u - z) * over) / w
    log_h = (2 * torch.addcmul(s.reciprocal(), t, inverse) - fall * over) / w
    log_width = torch.addcmul(log_x * z, log_h, s).neg_()
    shared = t * over
    log_d0, log_d1 = u * u * inverse - shared, z * z * inverse - shared
    log_slope = [-log_x, torch.zeros_like(z), log_width, log_h, log_d0, log_d1]
    return torch.stack(value + log_slope).unflatten(0, (2, 6))
