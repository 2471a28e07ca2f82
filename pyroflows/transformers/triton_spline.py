"""The rational-quadratic spline as Triton kernels: two launches a step, in place of a hundred.

A program takes a block of values; rows of parameters lie along memory, so a block reads and writes
each row at once, and all that belongs to a value stays in registers. The formulas are those of
:mod:`pyroflows.transformers.spline_kernel`. The way back finds the bin again: that reads the
parameters a second time, where keeping what the first way knew would write and read more rows than
there are parameters.
"""

from __future__ import annotations

import contextlib
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .fused import State
from .spline_kernel import Box

try:
    import triton
    from triton import language as tl
except ImportError:  # whoever imports every module can import this one
    HAS_TRITON = False

    def _jit(**_: object) -> Any:
        return lambda function: function

else:
    HAS_TRITON = True
    _jit = triton.jit

__all__ = ["HAS_TRITON", "TritonBox", "trial"]

_BLOCK = 128  # values of a program, one for each of its threads
_OPTIONS = {"num_warps": 4, "enable_fp_fusion": True}


class TritonBox(NamedTuple):
    """As :class:`~pyroflows.transformers.spline_kernel.Box`, with another state.

    It holds what was given, the values and the raw parameters, and after the inverse, third, the
    derivative of the log-slope in x.
    """

    num_bins: int
    bound: float
    limit: float

    def forward(self, x: Tensor, raws: Tensor) -> tuple[Tensor, Tensor, State]:
        (y, log_slope), state = self._evaluate(x, raws, inverse=False)
        return y, log_slope, state

    def inverse(self, y: Tensor, raws: Tensor) -> tuple[Tensor, Tensor, State]:
        (x, log_slope, log_slope_x), state = self._evaluate(y, raws, inverse=True)
        return x, log_slope, (*state, log_slope_x)

    def log_slope_x(self, state: State) -> Tensor:
        return state[2] if len(state) == 3 else self.pull(state, None, torch.ones_like(state[0]))[0]

    def pull(
        self, state: State, grad_y: Tensor | None, grad_log: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Cotangents of the value and of the log-slope, (N), as those of x and the raws, (P, N)."""
        value, raws = state[:2]
        grads = [value if g is None else g.contiguous() for g in (grad_y, grad_log)]
        outs = torch.empty_like(value), torch.empty_like(raws)
        flags = {"HAS_Y": grad_y is not None, "HAS_LOG": grad_log is not None}
        self._launch(_pull, value, raws, *grads, *outs, INVERSE=len(state) == 3, **flags)
        return outs

    def _evaluate(self, value: Tensor, raws: Tensor, *, inverse: bool) -> tuple[list, State]:
        value, raws = value.contiguous(), raws.contiguous()
        outs = [torch.empty_like(value) for _ in range(3 if inverse else 2)]
        # Without the third row a pointer is still asked for.
        self._launch(_evaluate, value, raws, *outs[:2], outs[-1], INVERSE=inverse)
        return outs, (value, raws)

    def _launch(self, kernel: Any, value: Tensor, *rest: Tensor, **flags: bool) -> None:
        size = len(value)
        if size == 0:
            return
        settings = {"K": self.num_bins, "BOUND": float(self.bound), "LIMIT": float(self.limit)}
        # Triton launches on the current device, wherever the tensors are.
        place = torch.cuda.device(value.device) if value.is_cuda else contextlib.nullcontext()
        with place:
            kernel[(-(-size // _BLOCK),)](
                value, *rest, size, **settings, **flags, BLOCK=_BLOCK, **_OPTIONS
            )


def trial(box: Box, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Values and raw parameters that visit all bins, both ends, and the outside."""
    near = torch.linspace(-1.1, 1.13, 381, dtype=dtype, device=device) * box.bound
    ends = near.new_tensor([-1.0, 1.0, -3.0, 3.0]) * box.bound
    value = torch.cat([near, ends])
    rows = torch.arange(3 * box.num_bins - 1, dtype=dtype, device=device)[:, None]
    columns = torch.arange(len(value), dtype=dtype, device=device)
    # No draw: the caller's generators stay as they are.
    return value, 2 * torch.sin(1 + 1.7 * rows + 0.37 * columns)


@_jit(do_not_specialize=["size"])
def _evaluate(
    value_at: tl.tensor,
    raws_at: tl.tensor,
    out_at: tl.tensor,
    log_slope_at: tl.tensor,
    log_slope_x_at: tl.tensor,
    size: int,
    K: tl.constexpr,
    BOUND: tl.constexpr,
    LIMIT: tl.constexpr,
    INVERSE: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    columns = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = columns < size
    given = tl.load(value_at + columns, mask=mask, other=0.0)
    at = raws_at + columns
    inside, value, per_w, per_h = _enter(given, at, size, mask, K, BOUND, LIMIT)
    index, x0, y0, w, h = _find(value, per_w, per_h, at, size, mask, K, LIMIT, INVERSE)
    d0, d1, _, _ = _knots(index, at, size, mask, K, LIMIT)
    z = _place(value, x0, y0, w, h, d0, d1, INVERSE)
    s, curve, _, rise, mixed, over, fraction = _ratio(z, w, h, d0, d1)
    out = x0 + w * z - BOUND if INVERSE else y0 + h * fraction - BOUND
    log_slope = tl.log(s * over * s * over * mixed)
    tl.store(out_at + columns, tl.where(inside, out, given), mask=mask)
    tl.store(log_slope_at + columns, tl.where(inside, log_slope, 0.0), mask=mask)
    if INVERSE:
        log_slope_x = 2 * (rise / mixed + curve * over * (2 * z - 1)) / w
        tl.store(log_slope_x_at + columns, tl.where(inside, log_slope_x, 0.0), mask=mask)


@_jit(do_not_specialize=["size"])
def _pull(
    value_at: tl.tensor,
    raws_at: tl.tensor,
    grad_y_at: tl.tensor,
    grad_log_at: tl.tensor,
    grad_x_at: tl.tensor,
    grad_raws_at: tl.tensor,
    size: int,
    K: tl.constexpr,
    BOUND: tl.constexpr,
    LIMIT: tl.constexpr,
    INVERSE: tl.constexpr,
    HAS_Y: tl.constexpr,
    HAS_LOG: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    columns = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = columns < size
    given = tl.load(value_at + columns, mask=mask, other=0.0)
    at = raws_at + columns
    inside, value, per_w, per_h = _enter(given, at, size, mask, K, BOUND, LIMIT)
    index, x0, y0, w, h = _find(value, per_w, per_h, at, size, mask, K, LIMIT, INVERSE)
    d0, d1, d0_by_raw, d1_by_raw = _knots(index, at, size, mask, K, LIMIT)
    z = _place(value, x0, y0, w, h, d0, d1, INVERSE)
    outside = tl.zeros_like(given)
    to_x, to_y, to_w, to_h, to_d0, to_d1 = outside, outside, outside, outside, outside, outside
    if HAS_Y:
        grad = tl.load(grad_y_at + columns, mask=mask, other=0.0)
        outside = grad
        grad = tl.where(inside, grad, 0.0)
        to_x, to_y, to_w, to_h, to_d0, to_d1 = _from_value(grad, z, w, h, d0, d1)
    if HAS_LOG:
        grad = tl.load(grad_log_at + columns, mask=mask, other=0.0)
        grad = tl.where(inside, grad, 0.0)
        by_x, by_w, by_h, by_d0, by_d1 = _from_log_slope(grad, z, w, h, d0, d1)
        to_x, to_w, to_h, to_d0, to_d1 = (
            to_x + by_x, to_w + by_w, to_h + by_h, to_d0 + by_d0, to_d1 + by_d1
        )  # fmt: skip
    tl.store(grad_x_at + columns, tl.where(inside, -to_x, outside), mask=mask)
    to = grad_raws_at + columns
    to_h, to_y = to_h / per_h, to_y / per_h
    to_w, to_x = to_w / per_w, to_x / per_w
    _store_sizes(to, at, size, mask, index, to_x, to_w, x0, w, K, BOUND, LIMIT)
    rows = tl.cast(size, tl.int64) * K
    _store_sizes(to + rows, at + rows, size, mask, index, to_y, to_h, y0, h, K, BOUND, LIMIT)
    _store_knots(to + 2 * rows, size, mask, index, to_d0 * d0_by_raw, to_d1 * d1_by_raw, K)


@_jit()
def _bounded_exp(raw: tl.tensor, LIMIT: tl.constexpr) -> Any:
    """The exponential of softly bounded raws, and its derivative."""
    # Quick division by more than 2^126 is zero; a raw as large is at the bound all the same.
    raw = tl.where(tl.abs(raw) > 1e30, raw * 1e-8, raw)
    by_soft = 1 / (1 + tl.abs(raw) * (1 / LIMIT))
    value = tl.exp(raw * by_soft)
    return value, value * by_soft * by_soft


@_jit()
def _enter(
    given: tl.tensor,
    at: tl.tensor,
    size: int,
    mask: tl.tensor,
    K: tl.constexpr,
    BOUND: tl.constexpr,
    LIMIT: tl.constexpr,
) -> Any:
    """Move values to [0, 2B], others to the middle; sum the weights of widths and of heights."""
    inside = tl.abs(given) < BOUND
    value = tl.where(inside, given, 0.0) + BOUND
    per_w, per_h = tl.zeros_like(given), tl.zeros_like(given)
    at_h = at + tl.cast(size, tl.int64) * K
    for _ in tl.static_range(K):
        per_w += _bounded_exp(tl.load(at, mask=mask, other=0.0), LIMIT / 2)[0]
        per_h += _bounded_exp(tl.load(at_h, mask=mask, other=0.0), LIMIT / 2)[0]
        at += size
        at_h += size
    return inside, value, per_w * (0.5 / BOUND), per_h * (0.5 / BOUND)


@_jit()
def _find(
    value: tl.tensor,
    per_w: tl.tensor,
    per_h: tl.tensor,
    at: tl.tensor,
    size: int,
    mask: tl.tensor,
    K: tl.constexpr,
    LIMIT: tl.constexpr,
    INVERSE: tl.constexpr,
) -> Any:
    """The bin of each value, its left ends and its sizes."""
    target = value * per_h if INVERSE else value * per_w
    index = tl.zeros_like(mask.to(tl.int32))
    zero = tl.zeros_like(value)
    sum_w, sum_h, x0, y0, w, h = zero, zero, zero, zero, zero, zero
    at_h = at + tl.cast(size, tl.int64) * K
    for k in tl.static_range(K):
        weight_w = _bounded_exp(tl.load(at, mask=mask, other=0.0), LIMIT / 2)[0]
        weight_h = _bounded_exp(tl.load(at_h, mask=mask, other=0.0), LIMIT / 2)[0]
        # Every value is in the first bin or later, also where it is not a number.
        later = target >= (sum_h if INVERSE else sum_w)
        if k == 0:
            later = mask | True
        index = tl.where(later, k, index)
        x0, w = tl.where(later, sum_w, x0), tl.where(later, weight_w, w)
        y0, h = tl.where(later, sum_h, y0), tl.where(later, weight_h, h)
        sum_w += weight_w
        sum_h += weight_h
        at += size
        at_h += size
    return index, x0 / per_w, y0 / per_h, w / per_w, h / per_h


@_jit()
def _knots(
    index: tl.tensor,
    at: tl.tensor,
    size: int,
    mask: tl.tensor,
    K: tl.constexpr,
    LIMIT: tl.constexpr,
) -> Any:
    """Slopes at the ends of the bin and their derivatives; one at the ends of the box."""
    at += (index.to(tl.int64) + (2 * K - 1)) * size
    raw0 = tl.load(at, mask=mask & (index > 0), other=0.0)
    raw1 = tl.load(at + size, mask=mask & (index < K - 1), other=0.0)
    d0, d0_by_raw = _bounded_exp(raw0, LIMIT)
    d1, d1_by_raw = _bounded_exp(raw1, LIMIT)
    return d0, d1, d0_by_raw, d1_by_raw


@_jit()
def _place(
    value: tl.tensor,
    x0: tl.tensor,
    y0: tl.tensor,
    w: tl.tensor,
    h: tl.tensor,
    d0: tl.tensor,
    d1: tl.tensor,
    INVERSE: tl.constexpr,
) -> Any:
    """The place in the bin, from 0 to 1."""
    if INVERSE:
        # As in the eager place: no differences that lose digits.
        s, t = h / w, (value - y0) / h
        t = tl.where(t < 0, 0.0, t)
        t = tl.where(t > 1, 1.0, t)
        up, down, e = 2 * s * t, 2 * s * (1 - t), d0 * (1 - t) - d1 * t
        far = tl.sqrt(e * e + up * down) + tl.where(e < 0, -e, e)
        z = tl.where(e < 0, far, up) / (far + tl.where(e < 0, down, up))
    else:
        z = (value - x0) / w
    z = tl.where(z < 0, 0.0, z)  # what is not a number stays so
    return tl.where(z > 1, 1.0, z)


@_jit()
def _ratio(z: tl.tensor, w: tl.tensor, h: tl.tensor, d0: tl.tensor, d1: tl.tensor) -> Any:
    """The parts of eqs. 4 and 5, named as in the eager state."""
    s = h / w
    curve, t = d0 + d1 - 2 * s, z * (1 - z)
    low, high = d0 + z * (s - d0), s + z * (d1 - s)
    rise = high - low
    over = 1 / (s + curve * t)
    return s, curve, t, rise, low + z * rise, over, low * z * over


@_jit()
def _from_value(
    grad: tl.tensor, z: tl.tensor, w: tl.tensor, h: tl.tensor, d0: tl.tensor, d1: tl.tensor
) -> Any:
    """A cotangent of the value as those of the left ends, sizes and slopes of its bin."""
    s, _, t, _, mixed, over, fraction = _ratio(z, w, h, d0, d1)
    by_x = s * over * s * over * mixed * grad
    by_s = (z * z - fraction * (1 - 2 * t)) * over * grad * s
    both = over * grad * t * h
    last = both * fraction
    return -by_x, grad, -by_x * z - s * by_s, by_s + fraction * grad, both - last, -last


@_jit()
def _from_log_slope(
    grad: tl.tensor, z: tl.tensor, w: tl.tensor, h: tl.tensor, d0: tl.tensor, d1: tl.tensor
) -> Any:
    """A cotangent of the log-slope as those of its bin; none is the lower end's."""
    s, curve, t, rise, mixed, over, _ = _ratio(z, w, h, d0, d1)
    per, over, u = grad / mixed, over * grad, 1 - z
    by_x = 2 * (rise * per + curve * over * (z - u)) / w
    by_h = 2 * (grad / s + t * per - (1 - 2 * t) * over) / w
    shared = 2 * t * over
    return -by_x, -by_x * z - by_h * s, by_h, u * u * per - shared, z * z * per - shared


@_jit()
def _store_sizes(
    to: tl.tensor,
    at: tl.tensor,
    size: int,
    mask: tl.tensor,
    index: tl.tensor,
    to_left: tl.tensor,
    to_size: tl.tensor,
    left: tl.tensor,
    width: tl.tensor,
    K: tl.constexpr,
    BOUND: tl.constexpr,
    LIMIT: tl.constexpr,
) -> None:
    """A weight moves all that lies right of it, and all of them share the box."""
    mean = (to_left * left + to_size * width) * (0.5 / BOUND)
    for k in tl.static_range(K):
        by_raw = _bounded_exp(tl.load(at, mask=mask, other=0.0), LIMIT / 2)[1]
        here = tl.where(index == k, to_size, tl.where(index > k, to_left, 0.0))
        tl.store(to, (here - mean) * by_raw, mask=mask)
        at += size
        to += size


@_jit()
def _store_knots(
    to: tl.tensor,
    size: int,
    mask: tl.tensor,
    index: tl.tensor,
    to_d0: tl.tensor,
    to_d1: tl.tensor,
    K: tl.constexpr,
) -> None:
    for k in tl.static_range(K - 1):
        here = tl.where(index == k, to_d1, tl.where(index == k + 1, to_d0, 0.0))
        tl.store(to, here, mask=mask)
        to += size
