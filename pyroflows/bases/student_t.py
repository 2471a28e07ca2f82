"""A base with tails that are learned."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Size, Tensor
from torch.distributions import Gamma

from .base import Base, VectorDistribution
from .registry import register_base

__all__ = ["StudentT"]

_SERIES_FROM = 50.0  # degrees of freedom from which the series is exact to rounding


@register_base("student_t")
class StudentT(Base):
    r"""Independent Student-t's with degrees of freedom that are learned, one for each coordinate.

    .. math:: q(z) = \prod_i t_{\nu_i}(z_i), \qquad
        \nu_i = \nu_{\min} + (\nu_0 - \nu_{\min}) \operatorname{softplus}(r_i + \log(e - 1))

    The raw parameters :math:`r` start at zero, where :math:`\nu = \nu_0`. Degrees of freedom stay
    above :math:`\nu_{\min}`, so that with the default the mean exists; they have no upper bound,
    and for large ones this is the normal. Location and scale are for the flow to give.
    A draw is :math:`x \sqrt{\nu / 2g}` with a normal :math:`x` and a gamma variable :math:`g`,
    which is differentiated with respect to :math:`\nu` by the implicit function theorem.

    References:
        | Implicit Reparameterization Gradients (Figurnov et al., 2018)
        | https://arxiv.org/abs/1805.08498
        | Tails of Lipschitz Triangular Flows (Jaini et al., 2020)
        | https://arxiv.org/abs/1907.04481

    Args:
        dim: Size :math:`D` of the vectors.
        df: Degrees of freedom :math:`\nu_0` at the start.
        min_df: What they stay above, :math:`\nu_{\min}`; positive.
        context_dim: Size of the context that they depend on, or 0.
        hidden_dims: Sizes of the hidden layers of the network of the context.

    Raises:
        ValueError: Unless ``0 < min_df < df``.

    Example:
        >>> print(StudentT(2, df=4.0).df())
        tensor([4., 4.], grad_fn=<AddBackward0>)
    """

    def __init__(
        self,
        dim: int,
        *,
        df: float = 5.0,
        min_df: float = 1.0,
        context_dim: int = 0,
        hidden_dims: Sequence[int] = (64, 64),
    ) -> None:
        if not 0 < min_df < df < math.inf:
            raise ValueError(f"StudentT expected 0 < min_df < df, got min_df={min_df} and df={df}.")
        super().__init__(dim, {"df": (dim,)}, context_dim=context_dim, hidden_dims=hidden_dims)
        self._start, self._min_df = float(df), float(min_df)

    def df(self, context: Tensor | None = None) -> Tensor:
        """Return the degrees of freedom of now, with shape ``(*, D)``."""
        raw = self.raws(context)["df"]
        return self._min_df + (self._start - self._min_df) * F.softplus(raw + math.log(math.e - 1))

    def distribution(self, context: Tensor | None = None) -> VectorDistribution:
        return _StudentTs(self.df(context))

    def center(self, context: Tensor | None = None) -> Tensor:
        return torch.zeros_like(self.df(context))


class _StudentTs(VectorDistribution):
    def __init__(self, df: Tensor) -> None:
        super().__init__(df.shape[-1], {"df": df}, {"df": 1})

    @property
    def mean(self) -> Tensor:
        return torch.where(self.df > 1, 0.0, math.nan).to(self.df)

    @property
    def variance(self) -> Tensor:
        heavy = torch.where(self.df > 1, math.inf, math.nan).to(self.df)
        return torch.where(self.df > 2, self.df / (self.df - 2), heavy)

    def rsample(self, sample_shape: Size = Size()) -> Tensor:
        df = self.df.expand(self._extended_shape(sample_shape))
        normal = torch.randn(df.shape, dtype=df.dtype, device=df.device)
        half = 0.5 * df
        gamma = Gamma(half, torch.ones_like(half), validate_args=False).rsample()
        return normal * (half / gamma).sqrt()

    def log_prob(self, value: Tensor) -> Tensor:
        kernel = -0.5 * (self.df + 1) * (value.square() / self.df).log1p()
        return (kernel + _log_constant(self.df)).sum(-1)


def _log_constant(df: Tensor) -> Tensor:
    r"""The log of the density at zero.

    The difference of two log-gamma functions is lost in rounding where both are large; there, its
    series in :math:`2 / \nu` is used.
    """
    large = df > _SERIES_FROM
    small = torch.where(large, _SERIES_FROM, df)
    exact = torch.lgamma(0.5 * (small + 1)) - torch.lgamma(0.5 * small) - 0.5 * small.log()
    y = 2 / torch.where(large, df, _SERIES_FROM)
    terms = (-1 / 8, 1 / 192, -1 / 640, 17 / 14336)
    series = sum(c * y ** (2 * i + 1) for i, c in enumerate(terms)) - 0.5 * math.log(2)
    return torch.where(large, series, exact) - 0.5 * math.log(math.pi)
