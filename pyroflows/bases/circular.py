"""Bases on a box and on the circle."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Size, Tensor

from .base import Base, VectorDistribution
from .registry import register_base

__all__ = ["Uniform", "VonMises"]

_NUM_NODES = 64
_CUT = 40.0  # nats below the integrand's peak
_NARROW = 1e8  # concentration from which the density is normal to rounding
_SERIES_FROM = 1e3  # concentration from which the series is exact to rounding
_CIRCLE = constraints.independent(constraints.interval(-math.pi, math.pi), 1)


@register_base("uniform")
class Uniform(Base):
    r"""Uniform on a fixed box; by default the circle :math:`[-\pi, \pi)` in each coordinate.

    Args:
        dim: Size :math:`D` of the vectors.
        low: Lower ends, one number or one for each coordinate.
        high: Upper ends.
        context_dim: Size of a context, which only gives its batch, or 0.

    Raises:
        ValueError: Unless ``low < high``, finite, of shape ``()`` or ``(D,)``.

    Example:
        >>> print(Uniform(2, low=0.0, high=0.5).log_prob(torch.tensor([0.25, 0.25])).exp())
        tensor(4.)
    """

    def __init__(
        self,
        dim: int,
        *,
        low: float | Sequence[float] | Tensor = -math.pi,
        high: float | Sequence[float] | Tensor = math.pi,
        context_dim: int = 0,
    ) -> None:
        super().__init__(dim, context_dim=context_dim)
        for name, value in {"low": low, "high": high}.items():
            value = torch.as_tensor(value)
            if not value.is_floating_point():
                value = value.to(torch.get_default_dtype())
            if value.shape not in ((), (dim,)):
                raise ValueError(
                    f"Uniform expected {name} of shape () or ({dim},), got {tuple(value.shape)}."
                )
            self.register_buffer(name, value.expand(dim).clone())
        if not (self.low < self.high).all() or not (self.high - self.low).isfinite().all():
            raise ValueError(
                f"Uniform expected low < high, both finite, got low={low} and high={high}."
            )

    @property
    def support(self) -> constraints.Constraint:
        return constraints.independent(constraints.interval(self.low, self.high), 1)

    def distribution(self, context: Tensor | None = None) -> dist.Distribution:
        self.check_context(context)
        batch = () if context is None else context.shape[:-1]
        low, high = (end.expand(*batch, self.dim) for end in (self.low, self.high))
        return dist.Uniform(low, high, validate_args=False).to_event(1)


@register_base("von_mises")
class VonMises(Base):
    r"""Independent von Mises distributions of angles, with trained locations and concentrations.

    .. math:: q(z) = \prod_i \frac{e^{\kappa_i \cos(z_i - \mu_i)}}{2 \pi I_0(\kappa_i)},
        \qquad \kappa_i = \kappa_0 e^{a_i}

    Draws lie in :math:`[-\pi, \pi)`; densities are periodic. A draw moves with the concentration as
    the implicit function theorem says of the distribution function :math:`F`, for an angle
    :math:`\delta` from the location

    .. math:: \frac{\partial z}{\partial \kappa}
        = - \frac{\partial F / \partial \kappa}{q}
        = - \int_0^\delta e^{\kappa (\cos t - \cos \delta)}
        \left( \cos t - \frac{I_1(\kappa)}{I_0(\kappa)} \right) dt,

    by Gauss-Legendre quadrature in double precision, from the far end of the circle where
    that is nearer.

    References:
        | Implicit Reparameterization Gradients (Figurnov et al., 2018)
        | https://arxiv.org/abs/1805.08498

    Args:
        dim: Size :math:`D` of the vectors.
        concentration: :math:`\kappa_0`, at the start.
        context_dim: Size of the context that all parameters depend on, or 0.
        hidden_dims: Sizes of the hidden layers of the network of the context.

    Raises:
        ValueError: If the concentration is not positive and finite.

    Example:
        >>> angles = VonMises(2).distribution().rsample((5,))
        >>> bool((angles.abs() <= torch.pi).all())
        True
    """

    support = _CIRCLE

    def __init__(
        self,
        dim: int,
        *,
        concentration: float = 1.0,
        context_dim: int = 0,
        hidden_dims: Sequence[int] = (64, 64),
    ) -> None:
        if not 0 < concentration < math.inf:
            raise ValueError(f"VonMises expected concentration > 0, got {concentration}.")
        shapes = {"loc": (dim,), "log_concentration": (dim,)}
        super().__init__(dim, shapes, context_dim=context_dim, hidden_dims=hidden_dims)
        self._start = float(concentration)

    def distribution(self, context: Tensor | None = None) -> VectorDistribution:
        raws = self.raws(context)
        return _VonMises(raws["loc"], self._start * raws["log_concentration"].exp())


class _VonMises(VectorDistribution):
    support = _CIRCLE

    def __init__(self, loc: Tensor, concentration: Tensor) -> None:
        params = {"loc": loc, "concentration": concentration}
        super().__init__(loc.shape[-1], params, {"loc": 1, "concentration": 1})

    @property
    def mean(self) -> Tensor:
        """The circular mean."""
        return _wrapped(self.loc)

    def log_prob(self, value: Tensor) -> Tensor:
        # 1 - cos by the half angle, which is exact for small ones.
        fall = 2 * (0.5 * (value - self.loc)).sin().square()
        log_i0e = _log_i0e(self.concentration)
        return (-self.concentration * fall - log_i0e - math.log(2 * math.pi)).sum(-1)

    def rsample(self, sample_shape: Size = Size()) -> Tensor:
        shape = self._extended_shape(sample_shape)
        concentration = self.concentration.expand(shape)
        with torch.no_grad():
            plain = concentration.detach()
            angle = _drawn(plain)
        if torch.is_grad_enabled() and concentration.requires_grad:
            speed = _speed(angle, plain)
            angle = angle + speed * (concentration - plain)
        return _wrapped(angle + self.loc)


def _drawn(concentration: Tensor) -> Tensor:
    """Angles around zero: normal where they are so narrow that no dtype tells it.

    The loop that rejects would not end there, nor where a concentration is not a number.
    """
    is_wide = concentration < _NARROW
    around = torch.zeros_like(concentration)
    given = torch.where(is_wide, concentration, 1.0)
    angle = torch.distributions.VonMises(around, given, validate_args=False).sample()
    if is_wide.all():
        return angle
    return torch.where(is_wide, angle, torch.randn_like(around) * concentration.rsqrt())


def _log_i0e(concentration: Tensor) -> Tensor:
    """The log of the scaled Bessel function; for large ones by its series, slopes included."""
    is_large = concentration > _SERIES_FROM
    exact = torch.special.i0e(torch.where(is_large, 1.0, concentration)).log()
    large = torch.where(is_large, concentration, _SERIES_FROM)
    terms = (1 / 8, 1 / 16, 25 / 384, 13 / 128)  # of the log, in powers of one over it
    series = sum(term * large ** -(i + 1) for i, term in enumerate(terms))
    return torch.where(is_large, series - 0.5 * (2 * math.pi * large).log(), exact)


def _wrapped(angle: Tensor) -> Tensor:
    return (angle + math.pi) % (2 * math.pi) - math.pi


@torch.no_grad()
def _speed(angle: Tensor, concentration: Tensor) -> Tensor:
    """How draws move with the concentration: odd in the angle, so found for positive ones."""
    a, kappa = angle.double().abs(), concentration.double()
    fall = 1 - a.cos()
    near = kappa * fall < 1
    # From a to where the integrand is nothing, or from 0 to a: whichever end is nearer.
    edge = (a.cos() - _CUT / kappa).clamp_min(-1).acos()
    start, stop = a, torch.where(near, 0, edge)
    ratio = torch.special.i1e(kappa) / torch.special.i0e(kappa)
    nodes, weights = np.polynomial.legendre.leggauss(_NUM_NODES)
    total = torch.zeros_like(a)
    for node, weight in zip(0.5 + 0.5 * nodes, 0.5 * weights, strict=True):
        t = start + float(node) * (stop - start)
        total += float(weight) * (kappa * (t.cos() - a.cos())).exp() * (t.cos() - ratio)
    return ((stop - start) * total * angle.sign()).to(angle)
