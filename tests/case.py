"""A line of the table of bijectors."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pyroflows import Bijector

DIM, CONTEXT_DIM, HIDDEN = 3, 2, (8, 8)


@dataclass(frozen=True)
class Case:
    """A recipe and the context it takes."""

    build: Callable[[int], Bijector]
    context_dim: int = 0
    dim: int = DIM

    def bijector(self, dtype: torch.dtype | None = None) -> Bijector:
        """Build it and move it away from the identity, where laws would hold by luck."""
        bijector = self.build(self.dim)
        with torch.no_grad():
            for p in bijector.parameters():
                p.add_(0.2 * torch.randn_like(p))
        return bijector.to(dtype or torch.get_default_dtype())

    def x(self, *batch: int, dtype: torch.dtype | None = None) -> Tensor:
        return torch.randn(*batch, self.dim, dtype=dtype)

    def context(self, *batch: int, dtype: torch.dtype | None = None) -> Tensor | None:
        return torch.randn(*batch, self.context_dim, dtype=dtype) if self.context_dim else None
