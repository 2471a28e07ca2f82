"""Data as tensors, and what is wrong with them, in words."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..supports import contains, touches_edge

if TYPE_CHECKING:
    from .module import FlowDensity

__all__ = ["as_points", "check_independent", "check_varied"]

_NAMED = 5
_RESOLUTION = 1 / 8  # of the last digit, below which a column is one number many times
_DEPENDENT = 1e-6  # of its spread, which is all that other columns leave of a column
_ROUNDING = 8 * torch.finfo(torch.float64).eps  # of a mean


def as_points(
    density: FlowDensity, x: Any, context: Any, *, owner: str, least: int = 2
) -> tuple[Tensor, Tensor | None]:
    """Data as tensors of the density's dtype and device, or an error that says what to do.

    Args:
        density: Says of what shape points are, and where they live.
        x: Points, an array or a tensor.
        context: Covariates, or ``None``.
        owner: Who was given them.
        least: How many rows there have to be.

    Raises:
        TypeError: If these are no floating numbers, or covariates are missing or not wanted.
        ValueError: If shapes, numbers or places are wrong.
    """
    like = density.context_loc
    x = _tensor(owner, "x", x, like)
    event = tuple(density.event_shape)
    if x.dim() != 1 + len(event) or tuple(x.shape[1:]) != event:
        hint = "; write x[:, None] for one column" if x.dim() == 1 and event == (1,) else ""
        raise ValueError(
            f"{owner} expected x of shape (N, {', '.join(map(str, event))}), got "
            f"{tuple(x.shape)}{hint}."
        )
    if len(x) < least:
        raise ValueError(f"{owner} expected at least {least} rows of x, got {len(x)}.")
    _check_finite(owner, "x", x)
    _check_inside(owner, density, x)
    return x, _context(density, context, len(x), owner, like)


def _context(
    density: FlowDensity, context: Any, number: int, owner: str, like: Tensor
) -> Tensor | None:
    if not density.context_dim:
        if context is not None:
            raise TypeError(
                f"{owner}: the density takes no covariates (context_dim=0) but got a context: "
                "leave it out, or build the density with context_dim=..."
            )
        return None
    if context is None:
        raise TypeError(
            f"{owner}: the density takes {density.context_dim} covariates: pass context=..."
        )
    context = _tensor(owner, "context", context, like)
    if tuple(context.shape) != (number, density.context_dim):
        raise ValueError(
            f"{owner} expected context of shape ({number}, {density.context_dim}), a row for each "
            f"of x, got {tuple(context.shape)}."
        )
    _check_finite(owner, "context", context)
    return context


def _tensor(owner: str, name: str, value: Any, like: Tensor) -> Tensor:
    if not isinstance(value, Tensor):
        array = np.asarray(value)
        if array.dtype.kind not in "fiub":
            raise TypeError(f"{owner} expected {name} to hold numbers, got {array.dtype}.")
        value = torch.from_numpy(np.array(array))
    if not value.is_floating_point():
        if name == "context":
            return value.to(like)
        raise TypeError(
            f"{owner} expected floating {name}, got {value.dtype}: whole numbers have no density. "
            "Add uniform noise to counts, x + torch.rand(x.shape), or convert what is no count."
        )
    return value.detach().to(like)


def _check_finite(owner: str, name: str, value: Tensor) -> None:
    bad = ~value.isfinite()
    if not bad.any():
        return
    rows = bad.flatten(1).any(1).nonzero()[:, 0]
    columns = bad.flatten(1).any(0).nonzero()[:, 0]
    raise ValueError(
        f"{owner}: {name} has {int(bad.sum())} values that are NaN or infinite, in {len(rows)} of "
        f"{len(value)} rows (the first: {rows[:_NAMED].tolist()}), columns "
        f"{columns[:_NAMED].tolist()}. Leave these rows out, or fill them in."
    )


def _check_inside(owner: str, density: FlowDensity, x: Tensor) -> None:
    inside = contains(density.support, x) & ~touches_edge(density.support, x)
    if inside.all():
        return
    rows = (~inside).nonzero()[:, 0]
    raise ValueError(
        f"{owner}: {len(rows)} of {len(x)} rows of x lie outside the support {density.support} or "
        f"on its edge (the first: {rows[:_NAMED].tolist()}). Take a wider support, or move them."
    )


def check_varied(owner: str, what: str, value: Tensor, dtype: torch.dtype) -> None:
    """Raise if a column of points ``(N, D)`` is constant.

    Args:
        owner: Who was given them.
        what: What a column is.
        value: The points, in double precision.
        dtype: In what precision they were given.

    Raises:
        ValueError: If one is.
    """
    flat = value.flatten(1)
    spread = flat.std(0)
    digit = max(_RESOLUTION * torch.finfo(dtype).eps, _ROUNDING)
    constant = (spread <= digit * flat.abs().amax(0)).nonzero()[:, 0]
    if len(constant):
        raise ValueError(
            f"{owner}: {what} {constant[:_NAMED].tolist()} of {flat.shape[1]} is constant: "
            "such data have no density, and such a covariate says nothing. Leave it out."
        )


def check_independent(owner: str, value: Tensor) -> None:
    """Raise if a column of points ``(N, D)``, in double precision, follows from those before it.

    Fewer rows than twice the columns cannot tell.

    Raises:
        ValueError: If one does.
    """
    number, dim = value.flatten(1).shape
    if number < 2 * dim:
        return
    units = value.flatten(1)
    units = (units - units.mean(0)) / units.std(0)
    left = torch.linalg.qr(units, mode="r").R.diagonal().abs() / number**0.5
    following = (left < _DEPENDENT).nonzero()[:, 0]
    if len(following):
        raise ValueError(
            f"{owner}: column {following[:_NAMED].tolist()} of {dim} follows from the columns "
            "before it, to six digits: such data have no density. Leave it out, or add the noise "
            "that it was measured with."
        )
