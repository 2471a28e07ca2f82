"""The inverse of an increasing function of one variable, with gradients that are right."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["monotone_inverse"]

_MAX_STEPS = 200
_STEPS_UNSEEN = 60  # where nobody may look at the values
_ROUNDING = 8.0  # units of it that an image may be off
_GROWTH = 4.0


class _State(NamedTuple):
    """Where the search is: a point, the slope there, its bracket, and how it went."""

    x: Tensor
    slope: Tensor
    low: Tensor
    high: Tensor
    width: Tensor  # of the next step of a search that has no bracket yet, and of the last step
    done: Tensor


def monotone_inverse(
    function: Callable[[Tensor], Tensor], y: Tensor, *, start: Tensor | None = None
) -> Tensor:
    r"""Solve :math:`f(x) = y` for each number alone, :math:`f` increasing on the whole line.

    Steps are Newton's where they stay inside the bracket and shrink it; else the bracket is grown
    until it holds the root, or halved. Gradients come from the implicit function theorem: two
    chord steps :math:`x \leftarrow x - (f(x) - y) / f'` from the solution, with a constant slope,
    are right up to second derivatives in :math:`y` and in what :math:`f` holds.

    References:
        | Numerical Recipes (Press et al., 2007), section 9.4, on Newton's method with a bracket

    Args:
        function: Increasing, applied to each number alone, with a derivative that autograd knows.
        y: Images, with any shape.
        start: Where to start, with the shape of ``y``; ``y`` itself unless given.

    Returns:
        The solutions, to the precision of the dtype, with the shape of ``y``.

    Raises:
        RuntimeError: If some numbers have no solution that is found. It says how many. Under
            ``torch.vmap``, where nobody may look at values, these are NaN.

    Example:
        >>> x = monotone_inverse(lambda x: x + x**3, torch.tensor([2.0, 10.0, -30.0]))
        >>> print(x)
        tensor([ 1.,  2., -3.])
    """
    with torch.no_grad():
        x, slope = _solve(function, y.detach(), (y if start is None else start).detach())
    if torch.is_grad_enabled():
        for _ in range(2):
            x = x - (function(x) - y) / slope
    return x


def _solve(function: Callable[[Tensor], Tensor], y: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
    unseen = y.is_meta or torch._C._are_functorch_transforms_active()
    infinite = torch.full_like(y, torch.inf)
    state = _State(
        start.expand_as(y).clone(),
        torch.ones_like(y),
        -infinite,
        infinite,
        1 + start.abs().expand_as(y),
        torch.zeros_like(y, dtype=torch.bool),
    )
    steps = 1 if y.is_meta else _STEPS_UNSEEN if unseen else _MAX_STEPS
    for _ in range(steps):
        state = _advance(function, y, state)
        if not unseen and state.done.all():
            return state.x, state.slope
    if unseen:
        return torch.where(state.done, state.x, torch.nan), state.slope
    failed = int((~state.done).sum())
    raise RuntimeError(
        f"monotone_inverse: {failed} of {y.numel()} numbers did not converge in {_MAX_STEPS} "
        "steps. Is the function increasing and onto the real line, and are its parameters finite?"
    )


def _advance(function: Callable[[Tensor], Tensor], y: Tensor, state: _State) -> _State:
    """One evaluation, and where to go from there; numbers that are done stay where they are."""
    x, done = state.x, state.done
    value, slope = _value_and_slope(function, x)
    error = value - y
    low = torch.where(error <= 0, torch.maximum(state.low, x), state.low)
    high = torch.where(error >= 0, torch.minimum(state.high, x), state.high)
    eps = torch.finfo(x.dtype).eps
    # An image near zero may be the difference of numbers near one, as wrong as these are.
    rounding = _ROUNDING * eps * (y.abs() + slope * (1 + x.abs())) + torch.finfo(x.dtype).tiny
    near = error.isfinite() & (error.abs() <= rounding)
    bracketed = low.isfinite() & high.isfinite()
    tight = bracketed & (high - low <= 2 * eps * torch.maximum(low.abs(), high.abs()))
    done = done | near | tight
    slope = torch.where(state.done, state.slope, slope)

    newton = x - error / slope
    grown = x - torch.sign(error) * state.width
    # Without a bracket a step is at least as long as the last one, so that one is soon found.
    farther = torch.where(error > 0, torch.minimum(newton, grown), torch.maximum(newton, grown))
    farther = torch.where(farther.isfinite(), farther, grown)
    inside = (newton > low) & (newton < high)
    falls = (newton - x).abs() <= state.width / 2
    following = torch.where(inside & falls, newton, _middle(low, high))
    following = torch.where(bracketed, following, torch.where(inside & falls, newton, farther))
    width = torch.where(bracketed, (following - x).abs(), _GROWTH * state.width)
    width = torch.where(bracketed & ~(inside & falls), high - low, width)
    return _State(torch.where(done, x, following), slope, low, high, width, done)


def _middle(low: Tensor, high: Tensor) -> Tensor:
    """Half way, in orders of magnitude where the ends differ in these."""
    wide = (high - low) > 1 + 8 * torch.minimum(low.abs(), high.abs())
    magnitudes = torch.sinh((torch.asinh(low) + torch.asinh(high)) / 2)
    return torch.where(wide & magnitudes.isfinite(), magnitudes, low + (high - low) / 2)


def _value_and_slope(function: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    if torch._C._are_functorch_transforms_active():
        value, pull = torch.func.vjp(function, x)
        return value.detach(), pull(torch.ones_like(value))[0].detach()
    with torch.enable_grad():
        point = x.detach().requires_grad_()
        value = function(point)
        (slope,) = torch.autograd.grad(value.sum(), point)
    return value.detach(), slope
