"""Angles among the inputs of a network."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["Angles"]


class Angles:
    """Inputs some of which are angles, which a network sees as cosine and sine.

    So what it returns is continuous where an angle comes full circle. The cosine stands in the
    place of the angle, sines come after all inputs.

    Args:
        periods: Of each input, its period, or ``None`` if it is not an angle.

    Raises:
        ValueError: If a period is not positive and finite.
    """

    def __init__(self, periods: Sequence[float | None]) -> None:
        self.index = [i for i, period in enumerate(periods) if period is not None]
        found = [periods[i] for i in self.index]
        if not all(0 < period < math.inf for period in found):
            raise ValueError(f"periods expected positive, finite numbers or None, got {found}.")
        self._rates = [2 * math.pi / period for period in found]

    def __len__(self) -> int:
        return len(self.index)

    def embed(self, x: Tensor) -> Tensor:
        """What the network sees of inputs of shape ``(*, D)``: more columns, as many as angles."""
        if not self.index:
            return x
        columns = list(x.unbind(-1))
        turned = [columns[i] * rate for i, rate in zip(self.index, self._rates, strict=True)]
        for i, angle in zip(self.index, turned, strict=True):
            columns[i] = angle.cos()
        return torch.stack([*columns, *(angle.sin() for angle in turned)], dim=-1)

    def pull(self, cotangents: Tensor, x: Tensor) -> Tensor:
        """Cotangents of what the network sees, taken back to the inputs ``x``."""
        if not self.index:
            return cotangents
        size = x.shape[-1]
        columns = list(cotangents.unbind(-1))
        for number, (i, rate) in enumerate(zip(self.index, self._rates, strict=True)):
            angle = x[..., i] * rate
            moved = columns[size + number] * angle.cos() - columns[i] * angle.sin()
            columns[i] = rate * moved
        return torch.stack(columns[:size], dim=-1)
