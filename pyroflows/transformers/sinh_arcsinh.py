"""The sinh-arcsinh transformer."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from .base import Transformer
from .fused import bounded

__all__ = ["SinhArcsinh"]


@dataclass(frozen=True)
class SinhArcsinh(Transformer):
    r"""Skewness and the weight of tails.

    .. math:: y = \sinh \left( \frac{\operatorname{arsinh} x + \epsilon}{\delta} \right)

    Far out the map is a power, :math:`|y| \sim |x|^{1 / \delta}`: tails are heavier than those of
    :math:`x` for :math:`\delta < 1` and lighter for :math:`\delta > 1`, and
    :math:`\epsilon > 0` skews to the right. Slopes are found in logarithms. Softly bounded raws
    keep :math:`\delta` between ``1 / max_power`` and ``max_power`` and :math:`|\epsilon|` below
    ``max_skewness``, so nothing overflows up to :math:`10^{10}` in single precision.

    References:
        | Sinh-arcsinh distributions (Jones and Pewsey, 2009)
        | https://doi.org/10.1093/biomet/asp053

    Args:
        max_power: Largest :math:`\delta`, and inverse of the smallest.
        max_skewness: Largest :math:`|\epsilon|`.

    Raises:
        ValueError: If ``max_power`` is not above 1 and at most 3, or ``max_skewness`` not above 0
            and at most 5.

    Example:
        >>> y, log_slope = SinhArcsinh().forward_and_log_det(torch.ones(2), torch.zeros(2, 2))
        >>> print(y)
        tensor([1., 1.])
    """

    max_power: float = 2.0
    max_skewness: float = 3.0

    def __post_init__(self) -> None:
        if not 1 < self.max_power <= 3:
            raise ValueError(
                "SinhArcsinh expected max_power above 1 and at most 3 (more overflows), got "
                f"{self.max_power}."
            )
        if not 0 < self.max_skewness <= 5:
            raise ValueError(
                "SinhArcsinh expected max_skewness above 0 and at most 5 (more overflows), got "
                f"{self.max_skewness}."
            )

    @property
    def num_params(self) -> int:
        return 2

    def forward_and_log_det(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        skewness, log_power = self._params(params)
        v = x.asinh()
        u = (v + skewness) * (-log_power).exp()
        return u.sinh(), _log_cosh(u) - _log_cosh(v) - log_power

    def inverse_and_log_det(self, y: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        skewness, log_power = self._params(params)
        u = y.asinh()
        v = u * log_power.exp() - skewness
        return v.sinh(), _log_cosh(v) - _log_cosh(u) + log_power

    def _params(self, params: Tensor) -> tuple[Tensor, Tensor]:
        skewness, log_power = params.unbind(-1)
        limit = math.log(self.max_power)
        return bounded(skewness, self.max_skewness), bounded(log_power, limit)


def _log_cosh(u: Tensor) -> Tensor:
    return u + F.softplus(-2 * u) - math.log(2)
