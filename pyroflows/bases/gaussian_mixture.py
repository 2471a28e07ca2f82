"""A mixture of Gaussians whose draws can be differentiated."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Size, Tensor

from .base import Base, VectorDistribution
from .registry import register_base

__all__ = ["GaussianMixture"]

_NUM_NODES = 32
_SPREAD = 0.5  # of the means at the start, whose mixture has about unit variance


@register_base("gaussian_mixture")
class GaussianMixture(Base):
    r"""A mixture of Gaussians with diagonal covariances, all of it trained.

    .. math:: q(z) = \sum_k w_k \prod_i N(z_i; \mu_{ki}, \sigma_{ki}^2)

    A draw :math:`z` moves with a parameter :math:`\theta` at a velocity :math:`v` that carries the
    density along, :math:`\partial q / \partial \theta + \nabla \cdot (q v) = 0`. For a mean
    :math:`v = r_k(z) e_i` and for a scale
    :math:`v = r_k(z) (z_i - \mu_{ki}) / \sigma_{ki} \, e_i`, with the
    responsibility :math:`r_k`. Raising a log weight takes mass from each other component along the
    path on which means and scales change linearly, :math:`q_t = N(\mu_t, \sigma_t^2)`:

    .. math:: v = \frac{w_k}{q(z)} \sum_l w_l \int_0^1 q_t^{l \to k}(z)
        \left( \dot\mu_t + \frac{\dot\sigma_t}{\sigma_t} (z - \mu_t) \right) dt

    by Gauss-Legendre quadrature with 32 nodes, :math:`O(K^2 D)` for a draw. Where components lie
    many standard deviations apart, what a weight changes is seen by rare draws only: the gradient
    is right in the mean, but noisy.

    References:
        | Pathwise Derivatives for Multivariate Distributions (Jankowiak and Karaletsos, 2019)
        | https://arxiv.org/abs/1806.01856

    Args:
        dim: Size :math:`D` of the vectors.
        num_components: Number :math:`K` of Gaussians.
        context_dim: Size of the context that all parameters depend on, or 0.
        hidden_dims: Sizes of the hidden layers of the network of the context.

    Raises:
        ValueError: If ``num_components`` is less than one.

    Example:
        >>> base = GaussianMixture(2, num_components=3)
        >>> base.distribution().probs.shape
        torch.Size([3])
    """

    def __init__(
        self,
        dim: int,
        *,
        num_components: int = 4,
        context_dim: int = 0,
        hidden_dims: Sequence[int] = (64, 64),
    ) -> None:
        if not isinstance(num_components, int) or num_components < 1:
            raise ValueError(
                "GaussianMixture expected num_components to be an int >= 1, got "
                f"{num_components!r}."
            )
        matrix = (num_components, dim)
        shapes = {"loc": matrix, "log_scale": matrix, "logits": (num_components,)}
        super().__init__(dim, shapes, context_dim=context_dim, hidden_dims=hidden_dims)
        anchor = _SPREAD * torch.randn(matrix)  # apart, or all would be trained alike
        self.register_buffer("anchor_loc", anchor - anchor.mean(0))

    def distribution(self, context: Tensor | None = None) -> VectorDistribution:
        raws = self.raws(context)
        scale = math.sqrt(1 - _SPREAD**2) * raws["log_scale"].exp()
        return _Mixture(self.anchor_loc + raws["loc"], scale, raws["logits"])


class _Mixture(VectorDistribution):
    """Means and scales ``(*batch, K, D)``, logits ``(*batch, K)``."""

    def __init__(self, loc: Tensor, scale: Tensor, logits: Tensor) -> None:
        params = {"loc": loc, "scale": scale, "logits": logits}
        super().__init__(loc.shape[-1], params, {"loc": 2, "scale": 2, "logits": 1})

    @property
    def probs(self) -> Tensor:
        """The weights."""
        return self.logits.softmax(-1)

    @property
    def mean(self) -> Tensor:
        return (self.probs[..., None] * self.loc).sum(-2)

    @property
    def variance(self) -> Tensor:
        square = (self.probs[..., None] * (self.scale.square() + self.loc.square())).sum(-2)
        return square - self.mean.square()

    def log_prob(self, value: Tensor) -> Tensor:
        return self._log_joint(value).logsumexp(-1)

    def rsample(self, sample_shape: Size = Size()) -> Tensor:
        with torch.no_grad():
            z = self._draw(Size(sample_shape))
        params = (self.loc, self.scale, self.logits)
        if not torch.is_grad_enabled() or not any(p.requires_grad for p in params):
            return z
        return self._moving(z)

    def _draw(self, sample_shape: Size) -> Tensor:
        shape = self._extended_shape(sample_shape)
        logits = self.logits.expand(*shape[:-1], self.logits.shape[-1])
        which = torch.distributions.Categorical(logits=logits, validate_args=False).sample()
        which = which[..., None, None].expand(*shape[:-1], 1, shape[-1])
        loc, scale = (
            p.expand(*shape[:-1], *p.shape[-2:]).gather(-2, which)[..., 0, :]
            for p in (self.loc, self.scale)
        )
        return loc + scale * torch.randn(shape, dtype=loc.dtype, device=loc.device)

    def _moving(self, z: Tensor) -> Tensor:
        """The same draws, with the velocities as their gradients."""
        with torch.no_grad():
            log_joint = self._log_joint(z)
            log_q = log_joint.logsumexp(-1, keepdim=True)
            share = (log_joint - log_q).exp()[..., None]
            white = (z[..., None, :] - self.loc) / self.scale
            by_logit = self._logit_velocity(z, log_q)
        terms = share * (_zero(self.loc) + white * _zero(self.scale))
        return z + (terms + by_logit * _zero(self.logits)[..., None]).sum(-2)

    def _log_joint(self, value: Tensor) -> Tensor:
        log_normal = _log_normal(value[..., None, :], self.loc, self.scale)
        return self.logits.log_softmax(-1) + log_normal

    def _logit_velocity(self, z: Tensor, log_q: Tensor) -> Tensor:
        """How draws move with each log weight, with shape ``(*, K, D)``."""
        num = self.logits.shape[-1]
        velocity = z.new_zeros(*z.shape[:-1], num, z.shape[-1])
        if num == 1:
            return velocity
        first, second = torch.triu_indices(num, num, 1, device=z.device)
        log_probs = self.logits.log_softmax(-1)
        log_weight = log_probs[..., first] + log_probs[..., second] - log_q  # (*, pairs)
        point, flux = z[..., None, :], 0.0
        start, stop = (
            tuple(p[..., index, :] for p in (self.loc, self.scale)) for index in (first, second)
        )
        speed, stretch = stop[0] - start[0], stop[1] - start[1]
        nodes, weights = np.polynomial.legendre.leggauss(_NUM_NODES)
        for t, weight in zip(0.5 + 0.5 * nodes, 0.5 * weights, strict=True):
            loc, scale = start[0] + float(t) * speed, start[1] + float(t) * stretch
            log_ratio = _log_normal(point, loc, scale) + log_weight
            drift = speed + stretch * (point - loc) / scale
            flux = flux + float(weight) * log_ratio.exp()[..., None] * drift
        velocity = velocity.index_add(-2, second, flux)
        return velocity.index_add(-2, first, -flux)


def _log_normal(value: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
    white = (value - loc) / scale
    terms = -0.5 * white.square() - scale.log() - 0.5 * math.log(2 * math.pi)
    return terms.sum(-1)


def _zero(param: Tensor) -> Tensor:
    """Zero, with a gradient to the parameter."""
    return param - param.detach()
