"""The affine transformer."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .base import Partials, Transformer, bounded, bounded_slope

__all__ = ["Affine"]


@dataclass(frozen=True)
class Affine(Transformer):
    r"""The map :math:`y = e^a x + b`, with :math:`a` softly bounded.

    References:
        | Density estimation using Real NVP (Dinh et al., 2016)
        | https://arxiv.org/abs/1605.08803

    Args:
        max_log_scale: Bound of :math:`|a|`.

    Raises:
        ValueError: If the bound is not positive.

    Example:
        >>> y, log_slope = Affine().forward_and_log_det(torch.ones(2), torch.zeros(2, 2))
        >>> print(y)
        tensor([1., 1.])
    """

    max_log_scale: float = 5.0
    num_params = 2

    def __post_init__(self) -> None:
        if not self.max_log_scale > 0:
            raise ValueError(f"Affine expected max_log_scale > 0, got {self.max_log_scale}.")

    def forward_and_log_det(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        shift, log_scale = self._unpack(params)
        y = torch.addcmul(shift, log_scale.exp(), x)
        return y, log_scale.expand_as(y)

    def inverse_and_log_det(self, y: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        shift, log_scale = self._unpack(params)
        x = (y - shift) * (-log_scale).exp()
        return x, -log_scale.expand_as(x)

    def partials(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor, Partials]:
        x, params = x.detach(), params.detach()
        shift, log_scale = self._unpack(params)
        moved = log_scale.exp() * x
        slope = bounded_slope(params[..., 1], self.max_log_scale)
        y_params = torch.stack([torch.ones_like(x), moved * slope], dim=-1)
        log_slope_params = torch.stack([torch.zeros_like(x), slope], dim=-1)
        partials = Partials(y_params, torch.zeros_like(x), log_slope_params)
        return moved + shift, log_scale, partials

    def _unpack(self, params: Tensor) -> tuple[Tensor, Tensor]:
        shift, raw = params.unbind(-1)
        return shift, bounded(raw, self.max_log_scale)
