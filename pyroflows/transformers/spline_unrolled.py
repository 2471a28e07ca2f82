"""The rational-quadratic spline for a compiler: number by number, without rows of bins.

Eager operations are cheap when they are few and long. A compiler makes one loop over the values of
all that has their length, keeps what lies between in registers and uses vector instructions, as
long as nothing is looked up or summed along another axis. So the bin is chosen by comparisons here,
and what the way back needs is computed again, which costs less than to store and to load it.
"""

from __future__ import annotations

from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from .spline_kernel import Bin, Box, SplineState, bounded_exp

__all__ = ["UnrolledBox"]


class _Index(NamedTuple):
    """The bin of each value, in booleans ``(N)``: one for each bin after the first."""

    reached: list[Tensor]  # whether its left end is at or below the value

    def choose(self, numbers: list[Tensor]) -> Tensor:
        """The numbers of the bin."""
        chosen = numbers[0]
        for reached, number in zip(self.reached, numbers[1:], strict=True):
            chosen = torch.where(reached, number, chosen)
        return chosen

    def ends_at(self, knot: int) -> Tensor:
        """Whether the bin is the one left of a knot inside the box, counted from zero."""
        here = ~self.reached[knot]
        return here & self.reached[knot - 1] if knot else here


class UnrolledBox(Box):
    """As :class:`Box`, with lists of rows in the place of tensors of them.

    Its own state holds places :math:`x` and the raw parameters.
    """

    def forward(self, x: Tensor, raws: Tensor) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
        y, log_slope, _ = super().forward(x, raws)
        return y, log_slope, (x, raws)

    def inverse(self, y: Tensor, raws: Tensor) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
        x, log_slope, _ = super().inverse(y, raws)
        return x, log_slope, (x, raws)

    def log_slope_x(self, state: tuple[Tensor, Tensor]) -> Tensor:
        return super().log_slope_x(self._at(*state))

    def pull(
        self, state: tuple[Tensor, Tensor], grad_y: Tensor | None, grad_log: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        found = self._at(*state)
        by_bin = tuple(torch.zeros_like(found.z) for _ in range(6))
        grad_x = self._pull_to_bin(found, grad_y, grad_log, by_bin)
        return grad_x, self._pull_to_raws(found, by_bin)

    def _find(self, value: Tensor, raws: Tensor, axis: int) -> tuple[Tensor, Bin]:
        num_bins, rows = self.num_bins, raws.unbind()
        inside = value.abs() < self.bound
        value = torch.where(inside, value, 0) + self.bound
        pairs = [bounded_exp(row, self.limit / 2) for row in rows[: 2 * num_bins]]
        weights, by_raw = zip(*pairs, strict=True)
        weights = weights[:num_bins], weights[num_bins:]
        sums = [list(accumulate(w)) for w in weights]
        per = [s[-1] / (2 * self.bound) for s in sums]
        along = value * per[axis]
        index = _Index([along >= s for s in sums[axis][:-1]])
        zero = torch.zeros_like(value)
        left = [index.choose([zero, *s[:-1]]) / p for s, p in zip(sums, per, strict=True)]
        size = [index.choose(list(w)) / p for w, p in zip(weights, per, strict=True)]
        knots = [zero, *rows[2 * num_bins :], zero]  # at the ends of the box the slope is one
        ends = index.choose(knots[:-1]), index.choose(knots[1:])
        slopes, slope_by_raw = zip(*(bounded_exp(e, self.limit) for e in ends), strict=True)
        return value, Bin(by_raw, per, inside, index, left, size, slope_by_raw, slopes)

    def _pull_to_raws(self, state: SplineState, by_bin: tuple[Tensor, ...]) -> Tensor:
        reached, out = state.index.reached, []
        for axis in (0, 1):  # a weight moves all right of it, and all of them share the box
            of_left, of_size = (by_bin[i + axis] / state.per[axis] for i in (0, 2))
            mean = (of_left * state.left[axis] + of_size * state.size[axis]) * (0.5 / self.bound)
            for k in range(self.num_bins):
                own = torch.where(reached[k - 1], of_size, 0) if k else of_size
                moved = torch.where(reached[k], of_left, own) if k < len(reached) else own
                out.append((moved - mean) * state.by_raw[axis * self.num_bins + k])
        of_first, of_last = (by_bin[4 + i] * state.slope_by_raw[i] for i in (0, 1))
        for knot in range(self.num_bins - 1):
            starts = reached[-1] if knot == self.num_bins - 2 else state.index.ends_at(knot + 1)
            at_end = torch.where(state.index.ends_at(knot), of_last, 0)
            out.append(torch.where(starts, of_first, at_end))
        return torch.stack(out)
