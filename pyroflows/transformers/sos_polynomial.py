"""Sums of squares of polynomials, integrated."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ._checks import check_bound, check_count
from .fused import bounded
from .numerical import NumericalTransformer

__all__ = ["SOSPolynomial"]

_LIMIT = 3.0  # of each coefficient
_LEAST_SLOPE = 1e-2


@dataclass(frozen=True)
class SOSPolynomial(NumericalTransformer):
    r"""An integral of a mean of squares of polynomials on :math:`[-B, B]`, linear outside.

    .. math:: y = \int_0^x \epsilon + \frac{1 - \epsilon}{K} \sum_{k=1}^K
        \Bigl(1 + \sum_{l=0}^L a_{kl} (t / B)^l \Bigr)^2 \mathrm{d} t

    Polynomials of high degree overflow far out, so the map goes on with the slope that it has at
    the ends of the interval: it is continuously differentiable, and onto the real line. The raw
    coefficients are softly bounded, which bounds the slopes. The inverse is searched for.

    References:
        | Sum-of-Squares Polynomial Flow (Jaini et al., 2019)
        | https://arxiv.org/abs/1905.02325

    Args:
        degree: Degree :math:`L` of the polynomials; that of the map is :math:`2 L + 1`.
        num_polynomials: Their number :math:`K`.
        bound: End :math:`B` of the interval.

    Raises:
        ValueError: If a number is not a positive int, or ``bound`` not positive and finite.

    Example:
        >>> polynomial = SOSPolynomial(degree=2)
        >>> y, log_slope = polynomial.forward_and_log_det(torch.ones(2), torch.zeros(2, 6))
        >>> print(y)
        tensor([1., 1.])
    """

    degree: int = 4
    num_polynomials: int = 2
    bound: float = 5.0

    def __post_init__(self) -> None:
        check_count("degree", self.degree)
        check_count("num_polynomials", self.num_polynomials)
        check_bound(self.bound)

    @property
    def num_params(self) -> int:
        return self.num_polynomials * (self.degree + 1)

    def forward_and_log_det(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        u = x / self.bound
        inner = u.clamp(-1, 1)
        squares = self._slope_coefficients(params)
        slope = _horner(squares, inner)
        powers = range(1, squares.shape[-1] + 1)
        integral = squares / torch.tensor(powers, dtype=x.dtype, device=x.device)
        y = inner * _horner(integral, inner) + (u - inner) * slope
        return self.bound * y, slope.log()

    def _slope_coefficients(self, params: Tensor) -> Tensor:
        """Those of the slope as a polynomial of :math:`x / B`, constant first."""
        raws = params.unflatten(-1, (self.num_polynomials, self.degree + 1))
        a = F.pad(bounded(raws[..., 1:], _LIMIT), (1, 0))
        a = a + F.pad(1 + bounded(raws[..., :1], _LIMIT), (0, self.degree))
        # Products of all pairs of coefficients, each pair moved to where its power is.
        rows = [F.pad(a[..., [i]] * a, (i, self.degree - i)) for i in range(self.degree + 1)]
        mean = torch.stack(rows).sum(0).mean(-2) * (1 - _LEAST_SLOPE)
        return mean + F.pad(torch.full_like(mean[..., :1], _LEAST_SLOPE), (0, 2 * self.degree))


def _horner(coefficients: Tensor, u: Tensor) -> Tensor:
    *rest, value = coefficients.unbind(-1)
    for coefficient in reversed(rest):
        value = value * u + coefficient
    return value.expand(torch.broadcast_shapes(value.shape, u.shape))
