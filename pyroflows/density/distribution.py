"""The distribution of Pyro that a density hands out at each call."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Size, Tensor
from torch.distributions import biject_to

from ..memory import _State as Snapshot
from ..supports import contains

if TYPE_CHECKING:
    from .module import FlowDensity

__all__ = ["DensityDistribution"]

_NUM_DRAWS = 10_000  # of an estimate, if they fit memory
_FEWEST_DRAWS, _MOST_POINTS = 200, 1_000_000


class _Draw(NamedTuple):
    value: Tensor
    log_prob: Tensor
    version: int
    with_grad: bool
    state: Snapshot  # of the parameters and covariates


class DensityDistribution(TorchDistribution):
    r"""A flow over a base, carried onto a support: :math:`x = s(f(z; c))`, :math:`z \sim` base.

    .. math:: \log p(x \mid c) = \log p_z(z) - \log |\det \partial f / \partial z|
        - \log |\det \partial s / \partial f|

    Made by calling a :class:`~pyroflows.FlowDensity`, whose parameters it holds no copy of: it is
    for one use, and its density is that of the parameters of now. It remembers its last draw, and
    scores that without inverting the flow, until a parameter changes.

    Args:
        density: The module.
        context: Contexts, shape ``(*batch, C)``; ``None`` without.
        batch_shape: Shape of independent copies; that of the contexts unless given.
    """

    arg_constraints: ClassVar[dict] = {}
    has_rsample = True

    def __init__(
        self, density: FlowDensity, context: Tensor | None, batch_shape: Size | None = None
    ) -> None:
        self.density, self.context = density, context
        self._draw: _Draw | None = None
        if batch_shape is None:
            batch_shape = Size() if context is None else context.shape[:-1]
        super().__init__(Size(batch_shape), density.event_shape, validate_args=False)

    @property
    def support(self) -> constraints.Constraint:
        return self.density.support

    def expand(self, batch_shape: Size, _instance: None = None) -> DensityDistribution:
        """Return independent copies of this distribution, of the given batch shape.

        Raises:
            ValueError: If this batch shape does not expand to that one.
        """
        ends = list(batch_shape)[len(batch_shape) - len(self.batch_shape) :]
        fits = [n in (1, wanted) for n, wanted in zip(self.batch_shape, ends, strict=False)]
        if len(ends) != len(self.batch_shape) or not all(fits):
            raise ValueError(
                f"{type(self).__name__} of batch shape {tuple(self.batch_shape)} does not expand "
                f"to {tuple(batch_shape)}: covariates need a row for each point of the plate."
            )
        return DensityDistribution(self.density, self.context, Size(batch_shape))

    def rsample(self, sample_shape: Size = Size()) -> Tensor:
        """Draw with gradients: shape ``(*sample_shape, *batch_shape, *event_shape)``."""
        return self.rsample_and_log_prob(sample_shape)[0]

    def rsample_and_log_prob(self, sample_shape: Size = Size()) -> tuple[Tensor, Tensor]:
        """Draw, and score the draw, in one pass of the flow.

        Returns:
            Draws, shape ``(*sample_shape, *batch_shape, *event_shape)``, and their log densities.
        """
        shape = Size(sample_shape) + self.batch_shape
        context = self._standardized()
        base = self.density.base.distribution(context if self._base_has_context else None)
        noise = base.expand(self.batch_shape).rsample(Size(sample_shape)).expand(*shape, -1)
        y, log_det = self.density.bijector.forward_and_log_det(noise, context)
        to_support = biject_to(self.support)
        value = to_support(y)
        log_prob = base.log_prob(noise) - log_det - self._support_log_det(y, value)
        self._draw = None
        if not value.is_inference():  # whose edits leave no trace
            state, with_grad = Snapshot(self._dependencies()), torch.is_grad_enabled()
            self._draw = _Draw(value, log_prob, value._version, with_grad, state)
        return value, log_prob

    def log_prob(self, value: Tensor) -> Tensor:
        """Score points of shape ``(*batch, *event_shape)``, one's own draw for free.

        Raises:
            TypeError: If the points are no floating tensor.
            ValueError: If they have another event shape.
        """
        if (draw := self._recall(value)) is not None:
            return draw.log_prob
        self._check(value)
        to_support, inside = biject_to(self.support), None
        if not self.density.is_unbounded:
            # what is outside must not reach the flow, whose gradients it would spoil
            inside = contains(self.support, value)
            within = to_support(value.new_zeros(self.density.dim))
            value = torch.where(inside.reshape(*inside.shape, *[1] * within.dim()), value, within)
        y = to_support.inv(value)
        context = self._standardized()
        z, log_det = self.density.bijector.inverse_and_log_det(y, context)
        base = self.density.base.log_prob(z, context if self._base_has_context else None)
        log_prob = base + log_det - self._support_log_det(y, value)
        log_prob = log_prob.expand(torch.broadcast_shapes(log_prob.shape, self.batch_shape))
        return log_prob if inside is None else torch.where(inside, log_prob, -torch.inf)

    def entropy(self, num_samples: int = _NUM_DRAWS) -> Tensor:
        r"""Estimate :math:`-\mathrm E \log p(x)` from draws, in nats: shape ``batch_shape``."""
        return -self.rsample_and_log_prob(Size((num_samples,)))[1].mean(0)

    @property
    def mean(self) -> Tensor:
        """The mean: exact where the flow is affine and the support all reals, else of draws."""
        return self._moments()[0]

    @property
    def variance(self) -> Tensor:
        """The variance of each coordinate, known or estimated as the mean is."""
        return self._moments()[1]

    # -- parts ---------------------------------------------------------------------------------

    @property
    def _base_has_context(self) -> bool:
        return self.density.base.context_dim > 0

    def _standardized(self) -> Tensor | None:
        return None if self.context is None else self.density.standardized(self.context)

    def _support_log_det(self, y: Tensor, value: Tensor) -> Tensor:
        to_support = biject_to(self.support)
        log_det = to_support.log_abs_det_jacobian(y, value)
        extra = log_det.dim() - (y.dim() - 1)
        return log_det.flatten(-extra).sum(-1) if extra > 0 else log_det

    def _check(self, value: Tensor) -> None:
        if not isinstance(value, Tensor):
            raise TypeError(
                f"{type(self).__name__} expected a tensor of points, got {type(value).__name__}."
            )
        if not value.is_floating_point():
            raise TypeError(
                f"{type(self).__name__} expected floating points, got {value.dtype}: convert them, "
                "and add uniform noise to counts, as whole numbers have no density."
            )
        shape = self.event_shape
        if value.shape[value.dim() - len(shape) :] != shape:
            raise ValueError(
                f"{type(self).__name__} expected points of shape (*, "
                f"{', '.join(map(str, shape))}), got {tuple(value.shape)}."
            )

    def _recall(self, value: Tensor) -> _Draw | None:
        draw = self._draw
        if draw is None or draw.value is not value:
            return None
        if value._version != draw.version or not draw.state.same(self._dependencies()):
            return None
        return draw if draw.with_grad or not torch.is_grad_enabled() else None

    def _dependencies(self) -> list[Tensor]:
        tensors = [*self.density.parameters(), *self.density.buffers()]
        return tensors if self.context is None else [*tensors, self.context]

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_draw": None}  # a graph cannot be copied

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(batch_shape={tuple(self.batch_shape)}, "
            f"event_shape={tuple(self.event_shape)}, support={self.support})"
        )

    def _moments(self) -> tuple[Tensor, Tensor]:
        if self.density.is_affine:
            return self._affine_moments()
        fitting = _MOST_POINTS // max(self.batch_shape.numel(), 1)
        draws = self.rsample(Size((min(_NUM_DRAWS, max(_FEWEST_DRAWS, fitting)),)))
        return draws.mean(0), draws.var(0)

    def _affine_moments(self) -> tuple[Tensor, Tensor]:
        """Those of z -> A z + b for a base with coordinates that are not correlated."""
        context = self._standardized()
        base = self.density.base.distribution(context if self._base_has_context else None)
        base = base.expand(self.batch_shape)
        push: Callable[[Tensor], Tensor] = lambda z: self.density.bijector.forward_and_log_det(  # noqa: E731
            z, context
        )[0]
        center = push(base.mean)
        unit = torch.eye(center.shape[-1], dtype=center.dtype, device=center.device)
        unit = unit.reshape(len(unit), *(1,) * len(self.batch_shape), len(unit))
        columns = push(base.mean + unit) - center
        sd = base.variance.movedim(-1, 0).sqrt()[..., None]
        return center, (columns * sd).square().sum(0)
