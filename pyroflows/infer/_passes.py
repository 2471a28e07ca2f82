"""Points sent through a log density in passes that fit memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["InPasses", "numbers_per_point", "where_defined"]

_NUMBERS_PER_PASS = 2**24


class InPasses:
    """A log density of any number of points, of which so many go through it together as fit.

    The sum over all data has one number a point, and is made of as many as there are data: so the
    largest tensor that grows with the points is looked for.

    Args:
        log_density: the log density of points ``(S, D)``.
        size: points in a pass; chosen by the tensors made unless given.
    """

    def __init__(self, log_density: Callable[[Tensor], Tensor], size: int | None = None) -> None:
        self._log_density, self._size = log_density, size

    def __call__(self, u: Tensor) -> Tensor:
        """Score points ``(S, D)``; NaN where the model refuses one, such as a singular matrix."""
        if len(u) > 3 and self._size is None:
            largest = _largest_per_point(self._log_density, u.detach())
            self._size = max(_NUMBERS_PER_PASS // max(largest, 1), 1)
        parts = u.split(self._size) if len(u) > 3 else [u]
        return torch.cat([where_defined(self._log_density, part) for part in parts])


def where_defined(log_density: Callable[[Tensor], Tensor], points: Tensor) -> Tensor:
    """Log densities; NaN at a point that the model refuses, such as a singular matrix."""
    try:
        return log_density(points)
    except torch.linalg.LinAlgError:
        halves = points.chunk(2)
        if len(halves) < 2:
            return points.new_full((len(points),), torch.nan)
        return torch.cat([where_defined(log_density, half) for half in halves])


class _Sizes(TorchDispatchMode):
    """Notes how many numbers each tensor made has."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[int] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        self.found += [t.numel() for t in pytree.tree_leaves(out) if isinstance(t, Tensor)]
        return out


def numbers_per_point(log_density: Callable[[Tensor], Tensor], u: Tensor) -> int:
    """How many numbers are made for a point: what it costs, the same on any machine."""
    return sum(_sizes(log_density, u[:3])) // 3


def _sizes(log_density: Callable[[Tensor], Tensor], u: Tensor) -> list[int]:
    with _Sizes() as sizes, torch.no_grad():
        where_defined(log_density, u)
    return sizes.found


def _largest_per_point(log_density: Callable[[Tensor], Tensor], u: Tensor) -> int:
    """By how much the tensor that grows most grows with each point more."""
    few, more = (_sizes(log_density, u[:number]) for number in (2, 3))
    if len(few) != len(more):  # of another course: count all as if it grew
        return max(more, default=0) // 3
    return max((b - a for a, b in zip(few, more, strict=True)), default=0)
