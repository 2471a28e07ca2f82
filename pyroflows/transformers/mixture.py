r"""Maps made of a mixture of distribution functions: what the neural ones share."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from .fused import bounded
from .numerical import NumericalTransformer

__all__ = ["Components", "MixtureTransformer", "log_sum_exp"]


@dataclass(frozen=True)
class Components:
    """Locations, log-scales and log-weights, each with shape ``(*, K)``; weights sum to one."""

    loc: Tensor
    log_scale: Tensor
    log_weight: Tensor


@dataclass(frozen=True)
class MixtureTransformer(NumericalTransformer):
    r"""A mixture of distribution functions, sent back by the quantile function.

    .. math::

        y = T(x; p) + \lambda \, (x - T(x; 0)), \qquad
        T(x; p) = G^{-1} \Bigl( \sum_k w_k \, G \bigl( (x - m_k) / s_k \bigr) \Bigr)

    A family says what :math:`G` is. Where the raws are zero, scales are 1, weights are alike,
    locations are spread evenly and :math:`\lambda = 1`, so that the map is the identity although
    its components differ: they have something to learn from the first step on. The second term
    never falls, as :math:`T(\cdot; 0)` has slopes of at most 1. Without it (:math:`\lambda` near
    zero) the map is :math:`T`.
    """

    num_components: int = 8
    bound: float = 10.0
    max_slope: float = 1e3

    def __post_init__(self) -> None:
        number = self.num_components
        if isinstance(number, bool) or not isinstance(number, int) or number < 2:
            raise ValueError(f"num_components expected an int of at least 2, got {number!r}.")
        if not 0 < self.bound < math.inf:
            raise ValueError(f"bound expected a positive, finite number, got {self.bound}.")
        if not 1 < self.max_slope < math.inf:
            raise ValueError(f"max_slope expected a finite number above 1, got {self.max_slope}.")

    @property
    def num_params(self) -> int:
        return 3 * self.num_components + 1

    @abstractmethod
    def mix(self, x: Tensor, components: Components) -> tuple[Tensor, Tensor]:
        r"""Return :math:`T(x)` and its slope, for values ``(*)`` and components ``(*, K)``."""

    def forward_and_log_det(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        loc, log_scale, weight, rest = params.split([*[self.num_components] * 3, 1], -1)
        limit, start = math.log(self.max_slope), self._start(params)
        components = Components(
            start.loc + bounded(loc, self.bound),
            bounded(log_scale, limit),
            bounded(weight, limit / 2).log_softmax(-1),
        )
        rest = 1 + bounded(rest[..., 0], 1 - 1 / self.max_slope)
        y, slope = self.mix(x, components)
        at_start, slope_at_start = self.mix(x, start)
        y = y + rest * (x - at_start)
        return y, (slope + rest * (1 - slope_at_start).clamp_min(0)).log()

    def _start(self, like: Tensor) -> Components:
        """What zero raws mean: two apart from one end to the other, at most six."""
        number = self.num_components
        end = min(3.0, number - 1.0)
        steps = torch.arange(number, dtype=like.dtype, device=like.device)
        loc = end * (2 * steps / (number - 1) - 1)
        return Components(loc, torch.zeros_like(loc), torch.full_like(loc, -math.log(number)))


def log_sum_exp(values: Tensor) -> Tensor:
    """The logarithm of a sum over the last axis, whose derivatives add up to one far out too.

    Those of torch divide by the rounded result, which in single precision is wrong by factors.
    """
    top = values.detach().amax(-1, keepdim=True)
    return top[..., 0] + (values - top).exp().sum(-1).log()
