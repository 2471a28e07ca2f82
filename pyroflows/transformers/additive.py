"""The additive transformer."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .base import Partials, Transformer

__all__ = ["Additive"]


@dataclass(frozen=True)
class Additive(Transformer):
    r"""The map :math:`y = x + b`, which keeps volumes.

    References:
        | NICE: Non-linear Independent Components Estimation (Dinh et al., 2014)
        | https://arxiv.org/abs/1410.8516

    Example:
        >>> y, log_slope = Additive().forward_and_log_det(torch.zeros(2), torch.ones(2, 1))
        >>> print(y)
        tensor([1., 1.])
    """

    num_params = 1

    def forward_and_log_det(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        y = x + params[..., 0]
        return y, torch.zeros_like(y)

    def inverse_and_log_det(self, y: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        x = y - params[..., 0]
        return x, torch.zeros_like(x)

    def partials(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor, Partials]:
        y, log_slope = self.forward_and_log_det(x.detach(), params.detach())
        zeros = torch.zeros_like(params)
        return y, log_slope, Partials(torch.ones_like(params), torch.zeros_like(x), zeros)
