"""A line of the table of bijectors."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from pyroflows import Bijector

SEARCH = "a search takes as many steps as the values ask for, which a graph cannot"
DIM, CONTEXT_DIM, HIDDEN = 3, 2, (8, 8)


@dataclass(frozen=True)
class Case:
    """A recipe, the context it takes, and by law a bar of its own, where that is wider."""

    build: Callable[[int], Bijector]
    context_dim: int = 0
    dim: int = DIM
    tolerances: Mapping[str, float] = field(default_factory=dict, compare=False)

    def at(self, dim: int) -> "Case":
        return replace(self, dim=dim)

    def tolerance(self, law: str) -> float:
        return self.tolerances.get(law, 0.0)

    def bijector(self, dtype: torch.dtype | None = None, noise: float = 0.2) -> Bijector:
        """Build it and move it away from the identity, where laws would hold by luck."""
        bijector = self.build(self.dim)
        with torch.no_grad():
            for p in bijector.parameters():
                p.add_(noise * torch.randn_like(p))
        return bijector.to(dtype or torch.get_default_dtype())

    def x(self, *batch: int, dtype: torch.dtype | None = None) -> Tensor:
        return torch.randn(*batch, self.dim, dtype=dtype)

    def context(self, *batch: int, dtype: torch.dtype | None = None) -> Tensor | None:
        return torch.randn(*batch, self.context_dim, dtype=dtype) if self.context_dim else None
