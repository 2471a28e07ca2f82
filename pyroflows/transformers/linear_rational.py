"""The linear rational spline transformer."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from .base import Transformer
from .fused import bounded
from .spline_bins import at_ends, check_spline, find_bin, raws_first, to_box

__all__ = ["LinearRationalSpline"]

_LIMIT = math.log(39.0)  # a part of a bin is at least 1/40 of it


@dataclass(frozen=True)
class LinearRationalSpline(Transformer):
    r"""A monotone spline of homographic functions on :math:`[-B, B]`, the identity outside.

    Each bin has two parts, the first a share :math:`\lambda` of its width. In both the map is
    :math:`t = q c u / (\ell - u + q u)`, with :math:`u` the distance from the near end of the bin
    over its width, :math:`\ell` the share of the part and :math:`c` the height at which the
    parts meet. So its inverse is of the same form: no equation is solved, no digits are lost to a
    discriminant. The slope is 1 at both ends, so the map is continuously differentiable
    everywhere, and softly bounded raw parameters bound slopes on both sides.

    References:
        | Invertible Generative Modeling using Linear Rational Splines (Dolatabadi et al., 2020)
        | https://arxiv.org/abs/2001.05168

    Args:
        num_bins: Number :math:`K` of bins.
        bound: End :math:`B` of the interval.
        max_slope: Largest slope at a knot, and inverse of the smallest.

    Raises:
        ValueError: If ``num_bins`` is not an int of at least 2, ``bound`` not positive and
            finite, or ``max_slope`` not more than 1.

    Example:
        >>> spline = LinearRationalSpline(num_bins=4, bound=3.0)
        >>> y, log_slope = spline.forward_and_log_det(torch.ones(2), torch.zeros(2, 15))
        >>> print(y)
        tensor([1., 1.])
    """

    num_bins: int = 8
    bound: float = 5.0
    max_slope: float = 1e3

    def __post_init__(self) -> None:
        check_spline(self.num_bins, self.bound, self.max_slope)

    @property
    def num_params(self) -> int:
        return 4 * self.num_bins - 1

    def forward_and_log_det(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        value, inside = to_box(x, self.bound)
        found = self._find(value, params, axis=0)
        z = ((value - found.left[0]) / found.size[0]).clamp(0, 1)
        is_first = z <= found.share
        part = found.part(is_first)
        u = torch.where(is_first, z, 1 - z)
        over = 1 / (part.share - u + part.ratio * u)
        t = part.ratio * part.height * u * over
        y = found.left[1] + found.size[1] * torch.where(is_first, t, 1 - t) - self.bound
        log_slope = (part.log_slope + 2 * over.log()) + found.log_mean
        return torch.where(inside, y, x), torch.where(inside, log_slope, 0)

    def inverse_and_log_det(self, y: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        value, inside = to_box(y, self.bound)
        found = self._find(value, params, axis=1)
        z = ((value - found.left[1]) / found.size[1]).clamp(0, 1)
        is_first = z <= found.height
        part = found.part(is_first)
        t = torch.where(is_first, z, 1 - z)
        u = part.share * t / (part.ratio * (part.height - t) + t)
        x = found.left[0] + found.size[0] * torch.where(is_first, u, 1 - u) - self.bound
        log_slope = part.log_slope - 2 * (part.share - u + part.ratio * u).log() + found.log_mean
        return torch.where(inside, x, y), torch.where(inside, -log_slope, 0)

    def _find(self, value: Tensor, params: Tensor, axis: int) -> _Bin:
        limit, number = math.log(self.max_slope), self.num_bins
        raws = raws_first(value, params)
        sizes, inner, shares = raws.split([2 * number, number - 1, number])
        index, left, size = find_bin(value, sizes, self.bound, limit, axis)
        ends = F.pad(inner, (0, 0) * (raws.dim() - 1) + (1, 1))
        first, last = (bounded(at_ends(ends, index), limit) / 2).exp()
        share = shares.expand(-1, *index.shape).gather(0, index[None])[0]
        share = bounded(share, _LIMIT).sigmoid()
        return _Bin(left, size, first, last, share)


class _Part(NamedTuple):
    """One of the two parts of a bin, seen from its own end."""

    share: Tensor
    height: Tensor
    ratio: Tensor
    log_slope: Tensor  # at the end, but for the square of the share


class _Bin(NamedTuple):
    """The bins that hold values; first and last are the square roots of the slopes there."""

    left: Tensor
    size: Tensor
    first: Tensor
    last: Tensor
    share: Tensor

    @property
    def height(self) -> Tensor:
        """Of the point where the parts meet."""
        return self.share * self.first / torch.lerp(self.last, self.first, self.share)

    @property
    def log_mean(self) -> Tensor:
        return (self.size[1] / self.size[0]).log()

    def part(self, is_first: Tensor) -> _Part:
        near = torch.where(is_first, self.first, self.last)
        far = torch.where(is_first, self.last, self.first)
        share = torch.where(is_first, self.share, 1 - self.share)
        mixed = torch.lerp(far, near, share)
        height = share * near / mixed
        ratio = near * mixed * self.size[0] / self.size[1]
        return _Part(share, height, ratio, (share * ratio * height).log())
