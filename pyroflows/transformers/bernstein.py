"""Polynomials in Bernstein's form, whose coefficients increase."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional as F

from ._checks import check_bound, check_count
from .fused import bounded as softly_bounded
from .numerical import NumericalTransformer

__all__ = ["Bernstein"]


@dataclass(frozen=True)
class Bernstein(NumericalTransformer):
    r"""A polynomial of increasing Bernstein coefficients on :math:`[-B, B]`, linear outside.

    .. math:: y = \sum_{m=0}^M \theta_m \binom{M}{m} u^m (1 - u)^{M - m},
        \qquad u = \frac{x + B}{2 B}, \qquad \theta_0 < \theta_1 < \dots < \theta_M

    It is evaluated by de Casteljau's scheme, means of neighbours only, which loses no digits.
    Outside the interval the map goes on with the slope of its end. Steps between coefficients are
    exponentials of softly bounded raws, which bounds the slopes. The inverse is searched for.

    References:
        | Short-Term Density Forecasting of Low-Voltage Load using Bernstein-Polynomial
        | Normalizing Flows (Arpogaus et al., 2022), https://arxiv.org/abs/2204.13939
        | Robust normalizing flows using Bernstein-type polynomials (Ramasinghe et al., 2021)
        | https://arxiv.org/abs/2102.03509

    Args:
        degree: Degree :math:`M`.
        bound: End :math:`B` of the interval.
        bounded: Whether the interval is mapped onto itself; else its ends are free too.
        max_slope: Largest ratio of a step between coefficients to that of the identity, and
            inverse of the smallest; before the interval is mapped onto itself.

    Raises:
        ValueError: If ``degree`` is not a positive int, ``bound`` not positive and finite, or
            ``max_slope`` not more than 1 and finite.

    Example:
        >>> polynomial = Bernstein(degree=3)
        >>> y, log_slope = polynomial.forward_and_log_det(torch.ones(2), torch.zeros(2, 3))
        >>> print(y)
        tensor([1., 1.])
    """

    degree: int = 10
    bound: float = 5.0
    bounded: bool = False
    max_slope: float = 1e2

    def __post_init__(self) -> None:
        check_count("degree", self.degree)
        check_bound(self.bound)
        if not 1 < self.max_slope < math.inf:
            raise ValueError(f"max_slope expected a finite number above 1, got {self.max_slope}.")

    @property
    def num_params(self) -> int:
        return self.degree if self.bounded else self.degree + 1

    def forward_and_log_det(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        steps, first = self._steps(params)
        u = x / (2 * self.bound) + 0.5
        inner = u.clamp(0, 1)
        slope = _casteljau(steps, inner)
        # What is more than the identity, in units of the interval: x itself is not rounded by it.
        theta = F.pad((steps - 1).cumsum(-1) / self.degree, (1, 0))
        more = first + _casteljau(theta, inner) + (u - inner) * (slope - 1)
        return x + 2 * self.bound * more, slope.log()

    def _steps(self, params: Tensor) -> tuple[Tensor, Tensor]:
        """Steps between coefficients over those of the identity, and by what the first is more."""
        steps = softly_bounded(params[..., : self.degree], math.log(self.max_slope)).exp()
        if self.bounded:
            return steps / steps.mean(-1, keepdim=True), params.new_zeros(())
        # Growing from the middle out: a step in one half does not move the other.
        half = self.degree // 2
        more = steps - 1
        lower = more[..., :half].sum(-1) / self.degree
        if self.degree % 2:
            lower = lower + more[..., half] / (2 * self.degree)
        return steps, params[..., -1] / self.degree - lower


def _casteljau(coefficients: Tensor, u: Tensor) -> Tensor:
    rows = list(coefficients.unbind(-1))
    while len(rows) > 1:
        rows = [torch.lerp(a, b, u) for a, b in pairwise(rows)]
    return rows[0].expand(torch.broadcast_shapes(rows[0].shape, u.shape))
