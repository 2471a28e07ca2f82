"""One transformer for some coordinates and another for others."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .base import Transformer

__all__ = ["ByIndex"]


class ByIndex(Transformer):
    r"""A transformer for each group of coordinates.

    .. math:: y_i = \tau_g(x_i; p_i), \qquad i \in I_g

    Each takes as many of the raw parameters as it needs. Networks of a layer see the coordinates
    that are angles as such.

    Args:
        parts: Pairs of a transformer and the indices :math:`I_g` of its coordinates; together, each
            index from 0 to :math:`D - 1` once.

    Raises:
        TypeError: If a part is no transformer.
        ValueError: If indices are missing or repeated, or when used for other coordinates.

    Example:
        >>> from pyroflows.bijectors import Coupling
        >>> from pyroflows.transformers import CircularSpline, RationalQuadraticSpline
        >>> mixed = ByIndex([(CircularSpline(), [0, 2]), (RationalQuadraticSpline(), [1])])
        >>> y = Coupling(3, transformer=mixed)(torch.ones(5, 3))
    """

    def __init__(self, parts: Sequence[tuple[Transformer, Sequence[int]]]) -> None:
        wrong = [type(t).__name__ for t, _ in parts if not isinstance(t, Transformer)]
        if wrong:
            raise TypeError(f"ByIndex expected transformers, got {', '.join(wrong)}.")
        self._parts = [(t, [int(i) for i in index]) for t, index in parts if len(index)]
        found = sorted(i for _, index in self._parts for i in index)
        if not found or found != list(range(len(found))):
            raise ValueError(f"ByIndex expected each index from 0 on once, got {found}.")
        self._owner = {i: t for t, index in self._parts for i in index}
        order = [i for _, index in self._parts for i in index]
        self._place = [order.index(i) for i in range(len(order))]

    @property
    def num_params(self) -> int:
        return max(t.num_params for t, _ in self._parts)

    @property
    def differs(self) -> bool:
        return len(self._parts) > 1 or self._parts[0][0].differs

    def at(self, indices: Sequence[int]) -> Transformer:
        for i in indices:
            self._of(i)  # or an error that names it
        return ByIndex(
            [(t, [k for k, i in enumerate(indices) if i in own]) for t, own in self._parts]
        )

    def period(self, index: int) -> float | None:
        return self._of(index).period(index)

    def forward_and_log_det(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        return self._apply("forward_and_log_det", x, params)

    def inverse_and_log_det(self, y: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        return self._apply("inverse_and_log_det", y, params)

    def __repr__(self) -> str:
        return f"ByIndex({self._parts})"

    def _of(self, index: int) -> Transformer:
        if index not in self._owner:
            raise ValueError(
                f"ByIndex of coordinates 0..{len(self._owner) - 1} was asked for coordinate "
                f"{index}: give every coordinate of the layer a transformer."
            )
        return self._owner[index]

    def _apply(self, method: str, value: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        if not self.differs:  # each scalar alone, wherever it comes from
            transformer = self._parts[0][0]
            return getattr(transformer, method)(value, params[..., : transformer.num_params])
        self._check(value)
        images, log_slopes = [], []
        for transformer, index in self._parts:
            raws = _taken(params, index, -2)[..., : transformer.num_params]
            image, log_slope = getattr(transformer, method)(_taken(value, index, -1), raws)
            images += image.unbind(-1)
            log_slopes += log_slope.unbind(-1)
        rows = (torch.stack([v[k] for k in self._place], dim=-1) for v in (images, log_slopes))
        return tuple(rows)

    def _check(self, value: Tensor) -> None:
        if not torch.jit.is_tracing() and value.shape[-1] != len(self._owner):
            raise ValueError(
                f"ByIndex of {len(self._owner)} coordinates expected values of shape "
                f"(*, {len(self._owner)}), got {tuple(value.shape)}."
            )


def _taken(value: Tensor, index: list[int], dim: int) -> Tensor:
    """Some of the entries, without an index that would have to be sent to the device."""
    if index == list(range(index[0], index[0] + len(index))):
        return value.narrow(dim, index[0], len(index))
    return torch.stack([value.select(dim, i) for i in index], dim)
