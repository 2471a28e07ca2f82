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
_NOISE = 256.0  # the same where another step does not help
_GROWTH = 4.0


class _State(NamedTuple):
    """Where the search is: a point, the slope there, its bracket, and how it went."""

    x: Tensor
    slope: Tensor
    error: Tensor  # of the last image
    low: Tensor
    high: Tensor
    width: Tensor  # of the last step, or of the bracket that was halved; at first of growth
    follows: Tensor  # whether the last step was Newton's
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
            ``torch.vmap``, where nobody may look at values, these are NaN; ``torch.compile``
            breaks its graph for the search (``fullgraph=False``).

    Example:
        >>> x = monotone_inverse(lambda x: x + x**3, torch.tensor([2.0, 10.0, -30.0]))
        >>> print(x)
        tensor([ 1.,  2., -3.])
    """
    # A compiler would unroll the search, or take it to pieces.
    solve = torch.compiler.disable(_solve) if torch.compiler.is_compiling() else _solve
    with torch.no_grad():
        x, slope, error = solve(function, y.detach(), (y if start is None else start).detach())
    # A step is free of search, and all that tells a root of 1e-12 from zero. But where images are
    # rounded to much more than roots are, the slope may change within a rounding: look first.
    if not torch.is_grad_enabled():
        stepped = x - error / slope
        return torch.where((function(stepped) - y).abs() <= error.abs(), stepped, x)
    error = function(x) - y
    stepped = x - error / slope
    rest = function(stepped) - y
    root = stepped - rest / slope  # for its derivatives; the value is one that was looked at
    best = torch.where(rest.abs() <= error.abs(), stepped, x)
    return root + (best - root).detach()


def _solve(
    function: Callable[[Tensor], Tensor], y: Tensor, start: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The solutions, the slopes there and what their images are off by, without a graph."""
    unseen = y.is_meta or _is_transformed()
    infinite = torch.full_like(y, torch.inf)
    state = _State(
        start.expand_as(y).clone(),
        torch.ones_like(y),
        infinite,
        -infinite,
        infinite,
        1 + start.abs().expand_as(y),
        torch.zeros_like(y, dtype=torch.bool),
        torch.zeros_like(y, dtype=torch.bool),
    )
    steps = 1 if y.is_meta else _STEPS_UNSEEN if unseen else _MAX_STEPS
    for _ in range(steps):
        state = _advance(function, y, state)
        if not unseen and state.done.all():
            return state.x, state.slope, state.error
    if unseen:
        return torch.where(state.done, state.x, torch.nan), state.slope, state.error
    failed = int((~state.done).sum())
    raise RuntimeError(
        f"monotone_inverse: {failed} of {y.numel()} numbers did not converge in {_MAX_STEPS} "
        f"steps. {not_finite(y)}Is the function increasing and onto the real line, and are its "
        "parameters finite?"
    )


def not_finite(y: Tensor) -> str:
    """What to say of images that have no solution as they are NaN or infinite."""
    bad = int((~y.isfinite()).sum())
    return (
        f"{bad} of {y.numel()} values given are NaN or infinite: leave these out. " if bad else ""
    )


def _advance(function: Callable[[Tensor], Tensor], y: Tensor, state: _State) -> _State:
    """One evaluation, and where to go from there; numbers that are done stay where they are."""
    x = state.x
    value, slope = _value_and_slope(function, x)
    error = value - y
    low = torch.where(error <= 0, torch.maximum(state.low, x), state.low)
    high = torch.where(error >= 0, torch.minimum(state.high, x), state.high)
    newton = x - error / slope
    near = _is_near(error, slope, y, state)
    eps = torch.finfo(x.dtype).eps
    bracketed = low.isfinite() & high.isfinite()
    tight = bracketed & (high - low <= 2 * eps * torch.maximum(low.abs(), high.abs()))
    done = state.done | near | tight

    # Newton's steps have to halve inside a bracket; before there is one the errors have to fall, as
    # along an exponential these steps would creep.
    falls = (newton > low) & (newton < high) & ((newton - x).abs() <= state.width / 2)
    falls = falls & (bracketed | (error.abs() < state.error.abs() / 4))
    grown = x - torch.sign(error) * state.width
    farther = torch.where(error > 0, torch.minimum(newton, grown), torch.maximum(newton, grown))
    farther = torch.where(farther.isfinite(), farther, grown)
    other = torch.where(bracketed, _middle(low, high), farther)
    other_width = torch.where(bracketed, high - low, _GROWTH * state.width)
    return _State(
        torch.where(done, x, torch.where(falls, newton, other)),
        torch.where(state.done, state.slope, slope),
        torch.where(state.done, state.error, error),
        low,
        high,
        torch.where(falls, torch.where(bracketed, (newton - x).abs(), state.width), other_width),
        falls,
        done,
    )


def _is_near(error: Tensor, slope: Tensor, y: Tensor, state: _State) -> Tensor:
    """Whether an error is rounding: small, or not so small but Newton's step did not lower it.

    An image near zero may be the difference of numbers near one, as wrong as these are.
    """
    rounding = torch.finfo(y.dtype).eps * (y.abs() + slope * (1 + state.x.abs()))
    stalls = state.follows & (error.abs() >= state.error.abs() / 4)
    stalls = stalls & (error.abs() <= _NOISE * rounding)
    return rounding.isfinite() & ((error.abs() <= _ROUNDING * rounding) | stalls)


def _middle(low: Tensor, high: Tensor) -> Tensor:
    """Half way, in orders of magnitude where the ends differ in these."""
    wide = (high - low) > 1 + 8 * torch.minimum(low.abs(), high.abs())
    magnitudes = torch.sinh((torch.asinh(low) + torch.asinh(high)) / 2)
    return torch.where(wide & magnitudes.isfinite(), magnitudes, low + (high - low) / 2)


def _value_and_slope(function: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    if _is_transformed():
        value, pull = torch.func.vjp(function, x)
        return value.detach(), pull(torch.ones_like(value))[0].detach()
    with torch.enable_grad():
        point = x.detach().requires_grad_()
        value = function(point)
        (slope,) = torch.autograd.grad(value.sum(), point)
    return value.detach(), slope


def _is_transformed() -> bool:
    """Whether a transform of functions runs this, which sees no values."""
    return torch._C._are_functorch_transforms_active()
