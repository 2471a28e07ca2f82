"""Transformers applied one after the other, as one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .base import Transformer

__all__ = ["Stacked"]


class Stacked(Transformer):
    r"""Scalar maps in the order given, :math:`y = \tau_k(\dots \tau_1(x; p_1) \dots; p_k)`.

    Within one layer, so that what its coordinates depend on stays as it is; each has raw
    parameters of its own.

    Args:
        transformers: One or more transformers.

    Raises:
        TypeError: If one is no transformer, or there is none.

    Example:
        >>> from pyroflows.transformers import Affine, RationalQuadraticSpline
        >>> both = Stacked(RationalQuadraticSpline(num_bins=4), Affine())
        >>> print(both.num_params)
        13
    """

    def __init__(self, *transformers: Transformer) -> None:
        wrong = [type(t).__name__ for t in transformers if not isinstance(t, Transformer)]
        if wrong or not transformers:
            found = ", ".join(wrong) or "none"
            raise TypeError(f"Stacked expected one or more transformers, got {found}.")
        self.transformers = transformers
        self._sizes = [t.num_params for t in transformers]

    @property
    def num_params(self) -> int:
        return sum(self._sizes)

    @property
    def differs(self) -> bool:
        return any(t.differs for t in self.transformers)

    def at(self, indices: Sequence[int]) -> Transformer:
        return Stacked(*(t.at(indices) for t in self.transformers)) if self.differs else self

    def period(self, index: int) -> float | None:
        return self.transformers[0].period(index)

    def forward_and_log_det(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        total = torch.zeros_like(x)
        for transformer, raws in self._parts(params):
            x, log_slope = transformer.forward_and_log_det(x, raws)
            total = total + log_slope
        return x, total

    def inverse_and_log_det(self, y: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        total = torch.zeros_like(y)
        for transformer, raws in reversed(self._parts(params)):
            y, log_slope = transformer.inverse_and_log_det(y, raws)
            total = total + log_slope
        return y, total

    def __repr__(self) -> str:
        return f"Stacked({', '.join(map(repr, self.transformers))})"

    def _parts(self, params: Tensor) -> list[tuple[Transformer, Tensor]]:
        return list(zip(self.transformers, params.split(self._sizes, dim=-1), strict=True))
