"""The circular spline transformer."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .base import Transformer
from .fused import bounded
from .spline import rational_quadratic
from .spline_bins import at_ends, check_spline, find_bin, raws_first
from .spline_kernel import place

__all__ = ["CircularSpline"]


@dataclass(frozen=True)
class CircularSpline(Transformer):
    r"""A rational-quadratic spline of angles, then a rotation.

    .. math:: y = s(x) + \delta \mod 2 B, \qquad s(\pm B) = \pm B, \quad s'(-B) = s'(B)

    An angle on :math:`[-B, B)` stays there, and its density is continuous where the circle
    closes: the slopes at both ends are one learned number, and networks of a layer see cosine and
    sine. The shift :math:`\delta` is learned too, so no point of the circle is special.

    A value outside is an angle and a number of whole turns: the angle moves, the turns stay. So the
    map is one to one on the real line as well, but it jumps there, and a gradient through draws
    does not see what crosses a jump: take a base and a target that are periodic, such as
    :class:`~pyroflows.bases.Uniform` and :class:`~pyroflows.bases.VonMises`. Both ends of the
    circle count as one point.

    References:
        | Normalizing Flows on Tori and Spheres (Rezende et al., 2020)
        | https://arxiv.org/abs/2002.02428

    Args:
        num_bins: Number :math:`K` of bins.
        bound: End :math:`B` of the circle, half its period.
        max_slope: Largest slope at a knot, and inverse of the smallest.

    Raises:
        ValueError: If ``num_bins`` is not an int of at least 2, ``bound`` not positive and
            finite, or ``max_slope`` not more than 1.

    Example:
        >>> shift = torch.tensor([0.0] * 12 + [1.0])
        >>> print(CircularSpline(num_bins=4).forward_and_log_det(torch.tensor(3.0), shift)[0])
        tensor(-2.2832)
    """

    num_bins: int = 8
    bound: float = math.pi
    max_slope: float = 1e2

    def __post_init__(self) -> None:
        check_spline(self.num_bins, self.bound, self.max_slope)

    @property
    def num_params(self) -> int:
        return 3 * self.num_bins + 1

    def period(self, index: int) -> float | None:
        return 2 * self.bound

    def forward_and_log_det(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        turns, angle = self._turns(x)
        value = angle + self.bound
        (x0, y0), (w, h), (d0, d1) = self._find(value, params, axis=0)
        z = _held((value - x0) / w, 0, 1)
        t, slope = rational_quadratic(z, h / w, d0, d1)
        shifted = y0 + h * t - self.bound + self._shift(params)
        return self._joined(turns, self._lowered(self._lowered(shifted))), slope.log()

    def inverse_and_log_det(self, y: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        turns, angle = self._turns(y)
        angle = angle - self._shift(params)
        angle = torch.where(angle < -self.bound, angle + 2 * self.bound, angle)
        value = angle + self.bound
        (x0, y0), (w, h), (d0, d1) = self._find(value, params, axis=1)
        z = place(_held((value - y0) / h, 0, 1), h / w, d0, d1)
        slope = rational_quadratic(z, h / w, d0, d1)[1]
        return self._joined(turns, self._lowered(x0 + w * z - self.bound)), -slope.log()

    def _turns(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """The whole turns in a value, in its own units, and the angle that is left."""
        given = value.detach()
        number = ((given.abs() - self.bound) / (2 * self.bound)).ceil().clamp_min(0)
        turns = 2 * self.bound * number * given.sign()
        return turns, _held(value - turns, -self.bound, self.bound)

    def _joined(self, turns: Tensor, angle: Tensor) -> Tensor:
        """The angle after so many turns, where rounding must not add another."""
        value = turns + angle
        given = value.detach()
        inward = torch.nextafter(given, turns) - given
        return value + torch.where(self._turns(given)[0] == turns, 0, inward)

    def _lowered(self, angle: Tensor) -> Tensor:
        return torch.where(angle >= self.bound, angle - 2 * self.bound, angle)

    def _shift(self, params: Tensor) -> Tensor:
        return params[..., -1].remainder(2 * self.bound)

    def _find(
        self, value: Tensor, params: Tensor, axis: int
    ) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
        """Left ends and sizes, on x and on y, and the end slopes of the bin of each value."""
        limit, raws = math.log(self.max_slope), raws_first(value, params)
        sizes, slopes, _ = raws.split([2 * self.num_bins, self.num_bins, 1])
        index, left, size = find_bin(value, sizes, self.bound, limit, axis)
        ends = at_ends(torch.cat([slopes, slopes[:1]]), index)
        return left, size, bounded(ends, limit).exp().unbind()


def _held(value: Tensor, low: float, high: float) -> Tensor:
    """The value, which rounding alone may have taken beyond its range: the slope stays."""
    return value - (value - value.clamp(low, high)).detach()
