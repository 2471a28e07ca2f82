"""What linear bijectors share: raw parameters, free or conditional, and products."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..bijector import Bijector
from ..networks import Conditioner

__all__ = ["RawLinear", "solve", "times"]


class RawLinear(Bijector):
    r"""Shared by linear maps: free raw parameters, plus a network of the context if there is one.

    The raws are one parameter per name; zeros are the identity.
    """

    def __init__(
        self,
        dim: int,
        shapes: dict[str, Sequence[int]],
        *,
        context_dim: int = 0,
        hidden_dims: Sequence[int] = (64, 64),
    ) -> None:
        super().__init__(dim, context_dim=context_dim)
        self._shapes = {name: torch.Size(shape) for name, shape in shapes.items()}
        for name, shape in self._shapes.items():
            self.register_parameter(name, nn.Parameter(torch.zeros(shape)))
        self.conditioner = None
        if context_dim:
            size = sum(shape.numel() for shape in self._shapes.values())
            self.conditioner = Conditioner(
                0, (size,), context_dim=context_dim, hidden_dims=hidden_dims
            )

    def raws(self, context: Tensor | None) -> list[Tensor]:
        free = [getattr(self, name) for name in self._shapes]
        if self.conditioner is None:
            return free
        sizes = [shape.numel() for shape in self._shapes.values()]
        moved = self.conditioner(None, context).split(sizes, dim=-1)
        return [
            raw + shift.unflatten(-1, shape) if shape else raw + shift[..., 0]
            for raw, shift, shape in zip(free, moved, self._shapes.values(), strict=True)
        ]

    @torch.no_grad()
    def reset(self, **buffers: Tensor) -> None:
        """Write buffers and make the free raws zero, in place."""
        for name, value in buffers.items():
            getattr(self, name).copy_(value)
        for name in self._shapes:
            getattr(self, name).zero_()

    def expect(self, name: str, value: Tensor, shape: tuple[int, ...]) -> None:
        owner = f"{type(self).__name__}.set_"
        if not isinstance(value, Tensor):
            raise TypeError(f"{owner} expected {name} to be a tensor, got {type(value).__name__}.")
        if tuple(value.shape) != shape:
            raise ValueError(f"{owner} expected {name} of shape {shape}, got {tuple(value.shape)}.")
        if not value.isfinite().all():
            raise ValueError(f"{owner} expected {name} to be finite.")


def times(matrix: Tensor, x: Tensor) -> Tensor:
    """The product of each matrix with each vector."""
    if matrix.dim() == 2:
        return x @ matrix.mT
    return (matrix @ x[..., None])[..., 0]


def solve(matrix: Tensor, y: Tensor, *, upper: bool = False, unit: bool = False) -> Tensor:
    """The solution of a triangular system for each vector."""
    if matrix.dim() == 2:
        return torch.linalg.solve_triangular(
            matrix.mT,
            y if y.dim() > 1 else y[None],
            upper=not upper,
            left=False,
            unitriangular=unit,
        ).view(y.shape)
    batch = torch.broadcast_shapes(matrix.shape[:-2], y.shape[:-1])
    y = y.expand(*batch, y.shape[-1])[..., None]
    return torch.linalg.solve_triangular(matrix, y, upper=upper, unitriangular=unit)[..., 0]
