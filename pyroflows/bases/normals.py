"""Normal bases: standard, with a diagonal covariance, with a full one."""

from __future__ import annotations

from collections.abc import Sequence

import pyro.distributions as dist
import torch
from torch import Tensor

from .base import Base
from .registry import register_base

__all__ = ["DiagonalNormal", "FullNormal", "StandardNormal"]


@register_base("normal")
class StandardNormal(Base):
    r"""A normal with nothing to train: :math:`z \sim N(0, I)`.

    Args:
        dim: Size :math:`D` of the vectors.
        context_dim: Size of a context, which only gives its batch, or 0.

    Example:
        >>> StandardNormal(3).distribution().event_shape
        torch.Size([3])
    """

    def __init__(self, dim: int, *, context_dim: int = 0) -> None:
        super().__init__(dim, context_dim=context_dim)
        self.register_buffer("_loc", torch.zeros(dim), persistent=False)

    def distribution(self, context: Tensor | None = None) -> dist.Distribution:
        self.check_context(context)
        batch = () if context is None else context.shape[:-1]
        loc = self._loc.expand(*batch, self.dim)
        return dist.Normal(loc, torch.ones_like(loc), validate_args=False).to_event(1)


@register_base("diagonal_normal")
class DiagonalNormal(Base):
    r"""A normal with a trained location and scale in each coordinate.

    .. math:: z = \mu + e^{a} \odot \epsilon, \qquad \epsilon \sim N(0, I)

    Args:
        dim: Size :math:`D` of the vectors.
        context_dim: Size of the context that :math:`\mu` and :math:`a` depend on, or 0.
        hidden_dims: Sizes of the hidden layers of the network of the context.

    Example:
        >>> print(DiagonalNormal(2).distribution().variance.detach())
        tensor([1., 1.])
    """

    def __init__(
        self, dim: int, *, context_dim: int = 0, hidden_dims: Sequence[int] = (64, 64)
    ) -> None:
        shapes = {"loc": (dim,), "log_scale": (dim,)}
        super().__init__(dim, shapes, context_dim=context_dim, hidden_dims=hidden_dims)

    def distribution(self, context: Tensor | None = None) -> dist.Distribution:
        raws = self.raws(context)
        scale = raws["log_scale"].exp()
        return dist.Normal(raws["loc"], scale, validate_args=False).to_event(1)


@register_base("full_normal")
class FullNormal(Base):
    r"""A normal with a trained location and Cholesky factor.

    .. math:: z = \mu + L \epsilon, \qquad L = \operatorname{diag}(e^{a}) (I + T)

    with :math:`T` strictly lower triangular.

    Args:
        dim: Size :math:`D` of the vectors.
        context_dim: Size of the context that :math:`\mu, a, T` depend on, or 0.
        hidden_dims: Sizes of the hidden layers of the network of the context.

    Example:
        >>> FullNormal(3).distribution().scale_tril.shape
        torch.Size([3, 3])
    """

    def __init__(
        self, dim: int, *, context_dim: int = 0, hidden_dims: Sequence[int] = (64, 64)
    ) -> None:
        shapes = {"loc": (dim,), "log_scale": (dim,)}
        if dim > 1:  # one coordinate has nothing below its diagonal to train
            shapes["lower"] = (dim, dim)
        super().__init__(dim, shapes, context_dim=context_dim, hidden_dims=hidden_dims)

    def distribution(self, context: Tensor | None = None) -> dist.Distribution:
        raws = self.raws(context)
        scale = raws["log_scale"].exp()
        unit = torch.eye(self.dim, dtype=scale.dtype, device=scale.device)
        if "lower" in raws:
            unit = unit + raws["lower"].tril(-1)
        tril = scale[..., None] * unit
        return dist.MultivariateNormal(raws["loc"], scale_tril=tril, validate_args=False)
