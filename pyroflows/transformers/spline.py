"""The rational-quadratic spline transformer."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from .fused import FusedTransformer, State, bounded
from .spline_bins import at_ends, check_spline, find_bin, raws_first, to_box
from .spline_dispatch import kernels_for, restored
from .spline_kernel import Box, place

__all__ = ["RationalQuadraticSpline"]


@dataclass(frozen=True)
class RationalQuadraticSpline(FusedTransformer):
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
        check_spline(self.num_bins, self.bound, self.max_slope)

    @property
    def num_params(self) -> int:
        return 3 * self.num_bins - 1

    def plain_forward(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        value, inside = to_box(x, self.bound)
        (x0, y0), (w, h), d0, d1 = self._find(value, params, axis=0)
        z, s = ((value - x0) / w).clamp(0, 1), h / w
        y, slope = rational_quadratic(z, s, d0, d1)
        y = torch.addcmul(y0, h, y) - self.bound
        return torch.where(inside, y, x), torch.where(inside, slope.log(), 0)

    def plain_inverse(self, y: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        value, inside = to_box(y, self.bound)
        (x0, y0), (w, h), d0, d1 = self._find(value, params, axis=1)
        s = h / w
        z = place((value - y0) / h, s, d0, d1)
        x = torch.addcmul(x0, w, z) - self.bound
        slope = rational_quadratic(z, s, d0, d1)[1]
        return torch.where(inside, x, y), torch.where(inside, -slope.log(), 0)

    def evaluate(self, x: Tensor, raws: Tensor) -> tuple[Tensor, Tensor, State]:
        return kernels_for(self._box, x, raws).forward(x, raws)

    def evaluate_inverse(self, y: Tensor, raws: Tensor) -> tuple[Tensor, Tensor, State]:
        return kernels_for(self._box, y, raws).inverse(y, raws)

    def log_slope_x(self, state: State) -> Tensor:
        kernels, state = restored(self._box, state)
        return kernels.log_slope_x(state)

    def pull(
        self, state: State, grad_y: Tensor | None, grad_log: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        kernels, state = restored(self._box, state)
        return kernels.pull(state, grad_y, grad_log)

    @property
    def _box(self) -> Box:
        return Box(self.num_bins, self.bound, math.log(self.max_slope))

    def _find(
        self, value: Tensor, params: Tensor, axis: int
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Left ends and sizes, on x and on y, and the end slopes of the bin of each value."""
        limit, raws = math.log(self.max_slope), raws_first(value, params)
        sizes, inner = raws.split([2 * self.num_bins, self.num_bins - 1])
        index, left, size = find_bin(value, sizes, self.bound, limit, axis)
        ends = F.pad(inner, (0, 0) * (raws.dim() - 1) + (1, 1))
        d0, d1 = bounded(at_ends(ends, index), limit).exp()
        return left, size, d0, d1


def rational_quadratic(z: Tensor, s: Tensor, d0: Tensor, d1: Tensor) -> tuple[Tensor, Tensor]:
    """How far up its bin the value at z is, and the slope: eqs. 4 and 5 of Durkan et al. (2019)."""
    t = z * (1 - z)
    over = 1 / (s + (d0 + d1 - 2 * s) * t)
    low, high = torch.lerp(d0, s, z), torch.lerp(s, d1, z)
    return low * z * over, (s * over).square() * torch.lerp(low, high, z)
