"""The affine transformer."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .fused import FusedTransformer, State, bounded, bounded_slope

__all__ = ["Affine"]


@dataclass(frozen=True)
class Affine(FusedTransformer):
    r"""The map :math:`y = e^a x + b`, with :math:`a` softly bounded.

    References:
        | Density estimation using Real NVP (Dinh et al., 2016)
        | https://arxiv.org/abs/1605.08803

    Args:
        max_log_scale: Bound :math:`B` of :math:`|a|`.
        sharpness: How late the bound is felt, :math:`k` in
            :math:`a = r / (1 + |r / B|^k)^{1 / k}`: 1, or an even number. With 4, a log-scale that
            is linear in what decides it, as in a funnel, stays so up to half the bound.

    Raises:
        ValueError: If the bound is not positive, or the sharpness none of these.

    Example:
        >>> y, log_slope = Affine().forward_and_log_det(torch.ones(2), torch.zeros(2, 2))
        >>> print(y)
        tensor([1., 1.])
    """

    max_log_scale: float = 5.0
    sharpness: int = 1
    num_params = 2

    def __post_init__(self) -> None:
        if not self.max_log_scale > 0:
            raise ValueError(f"Affine expected max_log_scale > 0, got {self.max_log_scale}.")
        k = self.sharpness
        if isinstance(k, bool) or not isinstance(k, int) or not (k == 1 or (k > 0 and k % 2 == 0)):
            raise ValueError(f"Affine expected sharpness to be 1 or an even int > 0, got {k!r}.")

    def plain_forward(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        shift, log_scale = self._unpack(params)
        y = torch.addcmul(shift, log_scale.exp(), x)
        return y, log_scale.expand_as(y)

    def plain_inverse(self, y: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        shift, log_scale = self._unpack(params)
        x = (y - shift) * (-log_scale).exp()
        return x, -log_scale.expand_as(x)

    def evaluate(self, x: Tensor, raws: Tensor) -> tuple[Tensor, Tensor, State]:
        log_scale = bounded(raws[1], self.max_log_scale, self.sharpness)
        scale = log_scale.exp()
        moved = scale * x
        return moved + raws[0], log_scale, (raws, scale, moved)

    def evaluate_inverse(self, y: Tensor, raws: Tensor) -> tuple[Tensor, Tensor, State]:
        log_scale = bounded(raws[1], self.max_log_scale, self.sharpness)
        moved = y - raws[0]
        scale = log_scale.exp()
        return moved / scale, log_scale, (raws, scale, moved)

    def log_slope_x(self, state: State) -> Tensor:
        return torch.zeros_like(state[2])

    def pull(
        self, state: State, grad_y: Tensor | None, grad_log: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        raws, scale, moved = state
        by_scale = grad_log if grad_y is None else grad_y * moved
        if grad_y is not None and grad_log is not None:
            by_scale = by_scale + grad_log
        shift = torch.zeros_like(moved) if grad_y is None else grad_y
        by_raw = by_scale * bounded_slope(raws[1], self.max_log_scale, self.sharpness)
        return shift * scale, torch.stack([shift, by_raw])

    def _unpack(self, params: Tensor) -> tuple[Tensor, Tensor]:
        shift, raw = params.unbind(-1)
        return shift, bounded(raw, self.max_log_scale, self.sharpness)
