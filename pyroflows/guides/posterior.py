"""The distribution over unconstrained latents that a guide hands to Pyro at each call."""

from __future__ import annotations

import math
from typing import ClassVar, NamedTuple

import torch
from pyro.distributions import TorchDistribution, constraints
from pyro.distributions.score_parts import ScoreParts
from torch import Size, Tensor

from ..bases import Base
from ..bijector import Bijector

__all__ = ["FlowDistribution"]


class _Draw(NamedTuple):
    noise: Tensor
    value: Tensor
    log_prob: Tensor
    version: int
    with_grad: bool


class FlowDistribution(TorchDistribution):
    r"""A base, the standard normal unless given, pushed through a bijector, :math:`x = f(z)`.

    It lives for one call of a guide and remembers its last draw, so that a draw is scored
    without inverting the flow. A point that it did not draw is scored by the inverse.

    Its :meth:`score_parts` stop the gradient of :math:`\log q` with respect to the parameters and
    keep the one with respect to the draw ("sticking the landing"), so that every Pyro objective
    that asks for them gets gradients whose variance vanishes as the guide becomes exact.

    References:
        | Sticking the Landing: Simple, Lower-Variance Gradient Estimators for Variational
          Inference (Roeder et al., 2017)
        | https://arxiv.org/abs/1703.09194

    Args:
        bijector: The map from noise to draws.
        like: A tensor whose dtype and device the noise takes.
        batch_shape: Shape of independent copies.
        base: What the noise is drawn from; the standard normal unless given.
    """

    arg_constraints: ClassVar[dict] = {}
    support = constraints.real_vector
    has_rsample = True

    def __init__(
        self,
        bijector: Bijector,
        like: Tensor,
        batch_shape: Size = Size(),
        base: Base | None = None,
    ) -> None:
        self.bijector = bijector
        self.base = base
        self._like = like
        self._draw: _Draw | None = None
        super().__init__(Size(batch_shape), Size((bijector.dim,)), validate_args=False)

    def expand(self, batch_shape: Size, _instance: None = None) -> FlowDistribution:
        """Return independent copies of this distribution, of the given batch shape."""
        return FlowDistribution(self.bijector, self._like, Size(batch_shape), self.base)

    def rsample(self, sample_shape: Size = Size()) -> Tensor:
        """Draw with gradients: shape ``(*sample_shape, *batch_shape, D)``."""
        return self.rsample_and_log_prob(sample_shape)[0]

    def rsample_and_log_prob(self, sample_shape: Size = Size()) -> tuple[Tensor, Tensor]:
        r"""Draw, and score the draw, in one pass of the flow.

        Returns:
            Draws, shape ``(*sample_shape, *batch_shape, D)``, and :math:`\log q`, without the
            last dimension.
        """
        noise = self.draw_noise(sample_shape)
        value, log_det = self.bijector.forward_and_log_det(noise)
        log_prob = self._noise_log_prob(noise) - log_det
        self._remember(noise, value, log_prob)
        return value, log_prob

    def rsample_and_score(self, sample_shape: Size = Size()) -> tuple[Tensor, Tensor, Tensor]:
        r"""Draw, score, and differentiate the score with respect to the draw.

        Returns:
            Draws with gradients; :math:`\log q` of each; and
            :math:`\nabla_x \log q(x)` with parameters held fixed, shape of the draws, detached.
        """
        noise = self.draw_noise(sample_shape)
        value, log_det, score = self.bijector.forward_with_score(noise, self._noise_score(noise))
        log_prob = self._noise_log_prob(noise) - log_det
        self._remember(noise, value, log_prob)
        return value, log_prob, score

    def log_prob(self, value: Tensor) -> Tensor:
        """Score points of shape ``(*batch, D)``, one's own draw for free."""
        if (draw := self._recall(value)) is not None:
            return draw.log_prob
        noise, log_det = self.bijector.inverse_and_log_det(value)
        return self._noise_log_prob(noise) + log_det

    def score_parts(self, x: Tensor) -> ScoreParts:
        """Return what Pyro's objectives need, with the path gradient as entropy term."""
        draw = self._recall(x)
        if draw is None or not draw.value.requires_grad or torch._C._get_tracing_state():
            log_prob = self.log_prob(x)
            return ScoreParts(log_prob, 0, log_prob)
        with torch.no_grad():
            noise_score = self._noise_score(draw.noise)
            score = self.bijector.forward_with_score(draw.noise, noise_score)[2]
        return ScoreParts(draw.log_prob, 0, _with_gradient(draw.log_prob, x, score))

    def draw_noise(self, sample_shape: Size = Size()) -> Tensor:
        """Draw what a draw is made of, with gradients to the base: shape of the draw."""
        if self.base is not None:
            return self.base.distribution().rsample(Size(sample_shape) + self.batch_shape)
        shape = Size(sample_shape) + self.batch_shape + self.event_shape
        return torch.randn(shape, dtype=self._like.dtype, device=self._like.device)

    def _noise_log_prob(self, noise: Tensor) -> Tensor:
        return _standard_normal(noise) if self.base is None else self.base.log_prob(noise)

    def _noise_score(self, noise: Tensor) -> Tensor:
        return -noise if self.base is None else self.base.score(noise)

    def _remember(self, noise: Tensor, value: Tensor, log_prob: Tensor) -> None:
        version = 0 if value.is_inference() else value._version
        self._draw = _Draw(noise, value, log_prob, version, torch.is_grad_enabled())

    def _recall(self, value: Tensor) -> _Draw | None:
        draw = self._draw
        if draw is None or draw.value is not value:
            return None
        if not value.is_inference() and value._version != draw.version:
            return None
        return draw if draw.with_grad or not torch.is_grad_enabled() else None


def _standard_normal(noise: Tensor) -> Tensor:
    return -0.5 * noise.square().sum(-1) - 0.5 * noise.shape[-1] * math.log(2 * math.pi)


def _with_gradient(value: Tensor, x: Tensor, gradient: Tensor) -> Tensor:
    """The number ``value``, whose gradient with respect to ``x`` is ``gradient``."""
    return value.detach() + ((x - x.detach()) * gradient).sum(-1)
