"""The rational-quadratic spline by hand: values, and cotangents back, on rows of numbers.

Memory and the number of operations cost more than arithmetic here, so what is large is written in
place, and what the way back needs is kept. Rows are numbers of a bin, columns are values, so that
every operation runs along memory.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Bin", "Box", "SplineState", "bounded_exp", "place"]


class SplineState(NamedTuple):
    """What the way back needs: the bin that holds each of the N values, and the place in it.

    In its bin the spline is a rational quadratic: eqs. 4 and 5 of Durkan et al. (2019).
    """

    by_raw: Tensor  # (2, K, N), derivatives of the sizes of all bins, up to a factor
    per: Tensor  # (2, N), that factor
    inside: Tensor  # (N), booleans
    index: Tensor  # (N), the bin
    left: Tensor  # (2, N), its left end on x and on y
    size: Tensor  # (2, N)
    slope_by_raw: Tensor  # (2, N), derivatives of the slopes at its ends
    z: Tensor  # (N), the place in the bin, from 0 to 1
    s: Tensor  # mean slope of the bin
    curve: Tensor  # d0 + d1 - 2 s, of its end slopes
    t: Tensor  # z (1 - z)
    rise: Tensor  # from low, between d0 and s, to high, between s and d1
    mixed: Tensor  # between both, the numerator of the slope
    over: Tensor  # one over the denominator, at most 2 / s as z is in [0, 1]
    fraction: Tensor  # how far up its bin the value is
    slope: Tensor


class Bin(NamedTuple):
    """Where values are: the first fields of the state, and the slopes at the ends of the bin."""

    by_raw: Tensor
    per: Tensor
    inside: Tensor
    index: Tensor
    left: Tensor
    size: Tensor
    slope_by_raw: Tensor
    slopes: Tensor

    def at(self, z: Tensor) -> SplineState:
        s, (d0, d1) = self.size[1] / self.size[0], self.slopes
        curve = (d0 + d1).sub_(s, alpha=2)
        t = torch.addcmul(z, z, z, value=-1)
        low, high = torch.lerp(d0, s, z), torch.lerp(s, d1, z)
        mixed = torch.lerp(low, high, z)
        over = torch.addcmul(s, curve, t).reciprocal_()
        slope = (s * over).square_().mul_(mixed)
        fraction = (low * z).mul_(over)
        return SplineState(*self[:-1], z, s, curve, t, high.sub_(low), mixed, over, fraction, slope)


class Box(NamedTuple):
    """A spline's settings: K bins on [-B, B], and the largest log-slope at a knot."""

    num_bins: int
    bound: float
    limit: float

    def forward(self, x: Tensor, raws: Tensor) -> tuple[Tensor, Tensor, SplineState]:
        state = self._at(x, raws)
        y = torch.addcmul(state.left[1], state.size[1], state.fraction).sub_(self.bound)
        inside = state.inside
        return torch.where(inside, y, x), torch.where(inside, state.slope.log(), 0), state

    def inverse(self, y: Tensor, raws: Tensor) -> tuple[Tensor, Tensor, SplineState]:
        value, found = self._find(y, raws, axis=1)
        (x0, y0), (w, h), (d0, d1) = found.left, found.size, found.slopes
        state = found.at(place((value - y0).div_(h), h / w, d0, d1))
        x = torch.addcmul(x0, w, state.z).sub_(self.bound)
        inside = found.inside
        return torch.where(inside, x, y), torch.where(inside, state.slope.log(), 0), state

    def log_slope_x(self, state: SplineState) -> Tensor:
        z, rise = state.z, state.rise
        by_z = (rise / state.mixed).addcmul_(state.curve * state.over, z * 2 - 1).mul_(2)
        return torch.where(state.inside, by_z.div_(state.size[0]), 0)

    def pull(
        self, state: SplineState, grad_y: Tensor | None, grad_log: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Cotangents of the value and of the log-slope, (N), as those of x and the raws, (P, N)."""
        by_bin = state.z.new_zeros(6, len(state.z))
        grad_x = self._pull_to_bin(state, grad_y, grad_log, by_bin.unbind())
        return grad_x, self._pull_to_raws(state, by_bin)

    def _pull_to_bin(
        self,
        state: SplineState,
        grad_y: Tensor | None,
        grad_log: Tensor | None,
        by_bin: tuple[Tensor, ...],
    ) -> Tensor:
        """Add to cotangents of left ends, sizes and slopes of the bin; return that of x."""
        square, fall = state.z * state.z, torch.rsub(state.t, 1, alpha=2)
        if grad_y is not None:
            inner = torch.where(state.inside, grad_y, 0)
            _add_value(state, square, fall, inner, by_bin)
        if grad_log is not None:
            inner = torch.where(state.inside, grad_log, 0)
            _add_log_slope(state, square, fall, inner, by_bin)
        grad_x = -by_bin[0]  # moving the value, not the bin
        return grad_x if grad_y is None else torch.where(state.inside, grad_x, grad_y)

    def _at(self, x: Tensor, raws: Tensor) -> SplineState:
        value, found = self._find(x, raws, axis=0)
        return found.at((value - found.left[0]).div_(found.size[0]).clamp_(0, 1))

    def _find(self, value: Tensor, raws: Tensor, axis: int) -> tuple[Tensor, Bin]:
        """Move values from [-B, B] to [0, 2B], and find their bins; others go to the middle."""
        num_bins = self.num_bins
        inside = value.abs() < self.bound
        value = torch.where(inside, value, 0).add_(self.bound)
        weights, by_raw = bounded_exp(raws[: 2 * num_bins], self.limit / 2)
        weights, by_raw = (v.view(2, num_bins, -1) for v in (weights, by_raw))
        sums = _running_sums(weights)
        per = sums[:, -1] / (2 * self.bound)
        later = torch.empty_like(raws[: num_bins - 1])
        torch.ge(value * per[axis], sums[axis, :-1], out=later)
        index = later.sum(0).to(torch.int64)
        at = index.expand(2, 1, -1)
        size = weights.gather(1, at)[:, 0]
        left = sums.gather(1, at)[:, 0].sub_(size).div_(per)
        size.div_(per)
        # Knots inside the box have a slope of their own, at its ends it is one.
        ends = torch.zeros_like(raws[: num_bins + 1])
        ends[1:-1] = raws[2 * num_bins :]
        ends = ends.gather(0, torch.stack([index, index + 1]))
        slopes, slope_by_raw = bounded_exp(ends, self.limit)
        return value, Bin(by_raw, per, inside, index, left, size, slope_by_raw, slopes)

    def _pull_to_raws(self, state: SplineState, by_bin: Tensor) -> Tensor:
        """Cotangents of the left ends, sizes and slopes of bins, (6, N), as those of the raws."""
        num_bins, dtype = self.num_bins, by_bin.dtype
        out = by_bin.new_empty(3 * num_bins - 1, by_bin.shape[1])
        # Row k of the steps is one where the bin is k or later.
        rows = torch.arange(-1, num_bins, device=by_bin.device, dtype=dtype)
        steps = (state.index.to(dtype) - rows[:, None]).clamp_(0, 1)
        # A weight moves all that lies right of it, and all of them share the box.
        left, size, slopes = by_bin.view(3, 2, -1)
        left.div_(state.per)
        size.div_(state.per)
        mean = torch.addcmul(left * state.left, size, state.size).mul_(0.5 / self.bound)
        of_sizes = out[: 2 * num_bins].view(2, num_bins, -1)
        torch.mul(size[:, None], steps[:-1], out=of_sizes)
        of_sizes.addcmul_(left.sub_(size)[:, None], steps[1:]).sub_(mean[:, None]).mul_(
            state.by_raw
        )
        d0, d1 = slopes.mul_(state.slope_by_raw)
        here = steps[:-1] - steps[1:]
        torch.mul(here[1:], d0, out=out[2 * num_bins :]).addcmul_(here[:-1], d1)
        return out


def bounded_exp(raws: Tensor, limit: float) -> tuple[Tensor, Tensor]:
    """The exponential of softly bounded raws, and its derivative."""
    soft = torch.rsub(raws.abs(), 1, alpha=-1 / limit)
    value = (raws / soft).exp_()
    return value, torch.div(value, soft.square_(), out=soft)


def _running_sums(weights: Tensor) -> Tensor:
    """Sums along the second of three dimensions, row by row: far faster than one by one."""
    sums = weights.clone()
    for row, following in pairwise(sums.unbind(1)):
        following.add_(row)
    return sums


def _add_value(
    state: SplineState, square: Tensor, fall: Tensor, grad: Tensor, by_bin: tuple[Tensor, ...]
) -> None:
    """Add a cotangent of the value to those of the left ends, sizes and slopes of its bin."""
    x0, y0, width, height, d0, d1 = by_bin
    over, fraction = state.over * grad, state.fraction
    by_s = torch.addcmul(square, fraction, fall, value=-1).mul_(over).mul_(state.s)
    by_x = state.slope * grad
    x0.sub_(by_x)
    y0.add_(grad)
    width.addcmul_(by_x, state.z, value=-1).addcmul_(state.s, by_s, value=-1)
    height.add_(by_s).addcmul_(fraction, grad)
    both = over.mul_(state.t).mul_(state.size[1])
    d0.add_(both)
    both.mul_(fraction)
    d0.sub_(both)
    d1.sub_(both)


def _add_log_slope(
    state: SplineState, square: Tensor, fall: Tensor, grad: Tensor, by_bin: tuple[Tensor, ...]
) -> None:
    """Add a cotangent of the log-slope to those of its bin."""
    x0, _, width, height, d0, d1 = by_bin
    z, s, w = state.z, state.s, state.size[0]
    inverse, over, u = grad / state.mixed, state.over * grad, 1 - z
    by_x = (state.rise * inverse).addcmul_(state.curve * over, z - u).mul_(2).div_(w)
    by_h = (grad / s).addcmul_(state.t, inverse).addcmul_(fall, over, value=-1).mul_(2).div_(w)
    x0.sub_(by_x)
    height.add_(by_h)
    width.addcmul_(by_x, z, value=-1).addcmul_(by_h, s, value=-1)
    shared = over.mul_(state.t)
    d0.addcmul_(u.square_(), inverse).sub_(shared, alpha=2)
    d1.addcmul_(square, inverse).sub_(shared, alpha=2)


def place(t: Tensor, s: Tensor, d0: Tensor, d1: Tensor) -> Tensor:
    r"""How far along its bin the value is that is a part :math:`t` up it, both from 0 to 1.

    The root of eq. 29 without its differences, which lose all digits where slopes are uneven: the
    discriminant is :math:`e^2 + 4 s^2 t (1 - t)` with :math:`e = d_0 (1 - t) - d_1 t`, and where
    :math:`e < 0` the equation is that of the bin seen from its other end.
    """
    t = t.clamp(0, 1)
    rest = 1 - t
    twice = s + s
    up, down, e = twice * t, twice * rest, torch.addcmul(d0 * rest, d1, t, value=-1)
    ahead = e >= 0
    far = torch.addcmul(e.square(), up, down).sqrt() + torch.where(ahead, e, -e)
    return torch.where(ahead, up, far) / (far + torch.where(ahead, up, down))
