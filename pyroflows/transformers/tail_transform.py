"""The transformer of heavy tails."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .base import Transformer
from .fused import bounded
from .normal_tails import tail_quantile, tails

__all__ = ["TailTransform"]

_FAR = 8.0


@dataclass(frozen=True)
class TailTransform(Transformer):
    r"""Gaussian tails become power laws, each with a weight of its own.

    Beyond a threshold :math:`b`, on either side :math:`s = \pm 1`,

    .. math::

        y = s \left( b + \frac{e^{\lambda_s w} - 1}{\lambda_s \, h(b)} \right), \qquad
        w = \log \frac{1 - \Phi(b)}{1 - \Phi(|x|)},

    where :math:`h` is the hazard of the standard normal; between the thresholds :math:`y = x`. So
    a standard normal :math:`x` gives :math:`y` a generalised Pareto tail,
    :math:`P(|y| > t) \sim t^{-1 / \lambda}`, and the map is continuously differentiable. A tail
    may be as light as an exponential (:math:`\lambda \to 0`), not as a Gaussian, so zero raws
    are the identity between the thresholds alone; there :math:`\lambda` is ``start_weight``. With
    :math:`b = 0` it is the map of the paper, times :math:`\sqrt{\pi / 2}`.

    Beyond :math:`|x| = 8`, where a standard normal is with probability :math:`10^{-15}`, the map
    goes on with the slope there: an exponential of :math:`x^2` would overflow.

    References:
        | Flexible Tails for Normalizing Flows (Hickling and Prangle, 2024)
        | https://arxiv.org/abs/2406.16971

    Args:
        threshold: Where the tails start, :math:`b`.
        start_weight: :math:`\lambda` where raws are zero.
        max_weight: Largest :math:`\lambda`.

    Raises:
        ValueError: If ``threshold`` is not between 0 and 5, ``max_weight`` not above 0 and at
            most 1.5, or ``start_weight`` not between a hundredth of it and itself.

    Example:
        >>> transformer = TailTransform()
        >>> x = torch.tensor([-5.0, 0.5, 5.0])
        >>> print(transformer.forward_and_log_det(x, torch.zeros(3, 2))[0])
        tensor([-10.8067,   0.5000,  10.8067])
    """

    threshold: float = 2.0
    start_weight: float = 0.1
    max_weight: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.threshold <= 5:
            raise ValueError(
                f"TailTransform expected threshold between 0 and 5, got {self.threshold}."
            )
        if not 0 < self.max_weight <= 1.5:
            raise ValueError(
                "TailTransform expected max_weight above 0 and at most 1.5 (more overflows), got "
                f"{self.max_weight}."
            )
        if not self.max_weight / 100 < self.start_weight < self.max_weight:
            raise ValueError(
                "TailTransform expected start_weight between max_weight / 100 and max_weight "
                f"{self.max_weight}, got {self.start_weight}."
            )

    @property
    def num_params(self) -> int:
        return 2

    def forward_and_log_det(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        size, beyond = self._beyond(x)
        weight, start = self._weight(x, params), self._start(x)
        near = size.clamp(max=_FAR)
        excess, log_slope = _rise(near, weight, start)
        excess = excess + (size - near) * log_slope.exp()
        y = x.sign() * (self.threshold + excess)
        return torch.where(beyond, y, x), torch.where(beyond, log_slope, 0)

    def inverse_and_log_det(self, y: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        size, beyond = self._beyond(y)
        weight, start = self._weight(y, params), self._start(y)
        far = torch.full_like(y, _FAR)
        largest, log_steepest = _rise(far, weight, start)
        excess = size - self.threshold
        inner = torch.where(excess < largest, excess, 0)
        w = (weight * inner * start.hazard).log1p() / weight
        x, hazard = tail_quantile(start.log_tail - w)
        log_slope = (hazard / start.hazard).log() + weight * w
        outer = far + (excess - largest) * (-log_steepest).exp()
        is_far = excess >= largest
        x = y.sign() * torch.where(is_far, outer, x)
        log_slope = torch.where(is_far, log_steepest, log_slope)
        return torch.where(beyond, x, y), torch.where(beyond, -log_slope, 0)

    def _beyond(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """Sizes of values, those between the thresholds as if they were there."""
        beyond = value.abs() > self.threshold
        return torch.where(beyond, value.abs(), self.threshold), beyond

    def _weight(self, value: Tensor, params: Tensor) -> Tensor:
        """The weight of the tail that each value is in, which raws move between its bounds."""
        raw = torch.where(value < 0, params[..., 0], params[..., 1])
        share = self.start_weight / self.max_weight
        limit = 4.0
        return self.max_weight * (math.log(share / (1 - share)) + bounded(raw, limit)).sigmoid()

    def _start(self, like: Tensor) -> _Start:
        found = tails(torch.full_like(like, self.threshold))
        return _Start(found.log_above, found.hazard_above)


class _Start(NamedTuple):
    """The standard normal at the threshold."""

    log_tail: Tensor
    hazard: Tensor


def _rise(size: Tensor, weight: Tensor, start: _Start) -> tuple[Tensor, Tensor]:
    """How far beyond the threshold an image is, and the log-slope."""
    found = tails(size)
    w = start.log_tail - found.log_above
    excess = (weight * w).expm1() / (weight * start.hazard)
    return excess, (found.hazard_above / start.hazard).log() + weight * w
