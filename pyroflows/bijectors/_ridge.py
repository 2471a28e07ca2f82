r"""Scalar maps :math:`t = s + (\lambda - 1)\, h(s)`, which are what planar layers do on a line.

The slope at zero is :math:`\lambda > 0`; :math:`h` has slopes in (0, 1], so that slopes are between
:math:`\lambda` and 1, and the map has an inverse.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from ..transformers.fused import bounded

__all__ = ["RIDGES", "Ridge", "find_ridge", "log_slope_at_zero"]

_LIMIT = 6.9  # slopes are between 1e-3 and 1e3
_NUM_STEPS = 12  # of Newton's method, which takes 10 at most


class Ridge(Protocol):
    """An activation, with what a layer needs of it."""

    def value(self, s: Tensor) -> Tensor:
        """The activation."""

    def log_slope(self, s: Tensor, log_slope: Tensor) -> Tensor:
        r"""The logarithm of :math:`1 + (\lambda - 1) h'(s)`."""

    def derivatives(self, s: Tensor, log_slope: Tensor) -> tuple[Tensor, Tensor]:
        r"""The slope :math:`h'(s)`, and that of :meth:`log_slope`."""

    def root(self, t: Tensor, log_slope: Tensor) -> Tensor:
        r"""The solution of :math:`s + (\lambda - 1) h(s) = t`."""


class Tanh:
    """The hyperbolic tangent. Its root takes Newton's method, which converges from one side."""

    def value(self, s: Tensor) -> Tensor:
        return s.tanh()

    def log_slope(self, s: Tensor, log_slope: Tensor) -> Tensor:
        return _slope(s.tanh(), log_slope.exp()).log()

    def derivatives(self, s: Tensor, log_slope: Tensor) -> tuple[Tensor, Tensor]:
        h = s.tanh()
        by_s = 1 - h.square()
        return by_s, -2 * log_slope.expm1() * h * by_s / _slope(h, log_slope.exp())

    def root(self, t: Tensor, log_slope: Tensor) -> Tensor:
        slope, excess = log_slope.exp(), log_slope.expm1()
        t, slope, excess = torch.broadcast_tensors(t, slope, excess)
        with torch.no_grad():
            s = _one_sided_newton(t, slope, excess)
            steepness = _slope(s.tanh(), slope)
        for _ in range(2 if torch.is_grad_enabled() else 0):
            # Chord steps from the root are right up to second derivatives.
            s = s - (s + excess * s.tanh() - t) / steepness
        return s


class LeakyReLU:
    """The identity above zero, a hundredth of it below. Its root is in closed form."""

    leak = 0.01

    def value(self, s: Tensor) -> Tensor:
        return torch.where(s < 0, self.leak * s, s)

    def log_slope(self, s: Tensor, log_slope: Tensor) -> Tensor:
        return torch.where(s < 0, (self.leak * log_slope.expm1()).log1p(), log_slope)

    def derivatives(self, s: Tensor, log_slope: Tensor) -> tuple[Tensor, Tensor]:
        return torch.where(s < 0, self.leak, torch.ones_like(s)), torch.zeros_like(s)

    def root(self, t: Tensor, log_slope: Tensor) -> Tensor:
        return t * (-self.log_slope(t, log_slope)).exp()  # the sign of a root is that of t


RIDGES: dict[str, Ridge] = {"tanh": Tanh(), "leaky_relu": LeakyReLU()}


def find_ridge(owner: type, name: str) -> Ridge:
    """The activation of this name, or an error that lists the names."""
    if name not in RIDGES:
        raise ValueError(
            f"{owner.__name__} expected activation to be one of {', '.join(RIDGES)}, got {name!r}."
        )
    return RIDGES[name]


def log_slope_at_zero(raw: Tensor) -> Tensor:
    r"""The bounded :math:`\log \lambda` of a raw parameter; 0 at 0, with slope 1."""
    return bounded(raw, _LIMIT)


def _slope(h: Tensor, slope: Tensor) -> Tensor:
    """The slope where tanh is ``h``: a sum of positive terms, so that nothing cancels."""
    return h.square() + slope * (1 - h.square())


def _one_sided_newton(t: Tensor, slope: Tensor, excess: Tensor) -> Tensor:
    r"""Solve for :math:`|s|`, where the map is concave (excess > 0) or convex (excess < 0).

    From below where it is concave, and from above where it is convex, each step stays on its side
    and gets closer. Both bounds hold: :math:`|s| = |t| - a \tanh |s|` and the chord at zero.
    """
    size = t.abs()
    start, other = size - excess, size / slope
    s = torch.where(excess > 0, torch.maximum(start, other), torch.minimum(start, other))
    for _ in range(_NUM_STEPS):
        h = s.tanh()
        s = s - (s + excess * h - size) / _slope(h, slope)
    return torch.where(t < 0, -s, s)
