"""A density as a module: a base, a flow, the scale of the data, and where they live."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from pyro.distributions import constraints
from torch import Size, Tensor, nn
from torch.distributions import biject_to
from torch.utils._python_dispatch import TorchDispatchMode

from ..bases import Base, build_base
from ..bases.normals import DiagonalNormal, StandardNormal
from ..bijector import Bijector, Compose
from ..bijectors import FullAffine, LocScale, LowRankAffine
from ..flows import Flow, build_flow
from ..guides.angles import periods_of
from ..supports import check_size, event_of
from ._points import as_points, check_independent, check_varied
from .distribution import DensityDistribution

__all__ = ["FlowDensity"]

_FULL_UP_TO = 256  # coordinates, whose covariance is a matrix
_AS_CHEAP = 1.5
_SEARCHES = 1_000_000  # operations, no matter how many
_AFFINE = (FullAffine, LocScale, LowRankAffine)


class FlowDensity(nn.Module):
    r"""A trainable density: called, it is a distribution of Pyro.

    .. math:: x = s(\mu + L\, f(z; c)), \qquad z \sim \text{base}

    with a flow :math:`f`, a location and scale of the data :math:`\mu, L`, and the map :math:`s`
    from all reals onto the support. The flow is taken in the direction that is cheaper to score.

    The distribution does all that one of Pyro's does: ``sample``, ``rsample``, ``log_prob``,
    ``expand``, ``mask``, ``to_event``. So a density may be the likelihood of data
    (``pyro.sample("x", density(c), obs=x)``) or the prior of a latent. Write
    ``pyro.module("density", density)`` in a model that is to train it.

    :func:`~pyroflows.fit_density` fits one to data, and starts it at their location and
    covariance. To train it in a model of your own, call :meth:`initialize` before.

    Args:
        dim: The number of coordinates of a point; may be left out where ``support`` tells it.
        flow: A name out of :func:`~pyroflows.available_flows`, or a recipe.
        context_dim: The number of covariates, or 0.
        support: Where points live, a constraint of ``torch.distributions``; all reals if not
            given. One on scalars, such as ``constraints.positive``, holds for each coordinate.
        base: A name out of :func:`~pyroflows.available_bases`, or a base of its own.
        standardize: Whether there are :math:`\mu` and :math:`L`, and covariates are taken in
            standard units. Without, data should be in units of about one.
        options: Passed to the flow's recipe.

    Attributes:
        bijector: The map from the base to all reals, :math:`\mu + L f(z; c)`.
        event_shape: The shape of a point.
        is_initialized: Whether location and scale were set from data.

    Raises:
        TypeError: If an option is unknown or of the wrong type.
        ValueError: If a size, a name or the support is wrong.

    Example:
        >>> import torch
        >>> density = FlowDensity(2, "realnvp", context_dim=1)
        >>> given = density(torch.zeros(5, 1))
        >>> given.sample().shape, given.log_prob(torch.zeros(5, 2)).shape
        (torch.Size([5, 2]), torch.Size([5]))
    """

    def __init__(
        self,
        dim: int | None = None,
        flow: str | Flow = "nsf",
        *,
        context_dim: int = 0,
        support: constraints.Constraint | None = None,
        base: str | Base = "normal",
        standardize: bool = True,
        **options: Any,
    ) -> None:
        super().__init__()
        if not isinstance(support, constraints.Constraint | None):
            raise TypeError(
                "FlowDensity expected support to be a constraint of torch.distributions, got "
                f"{type(support).__name__}."
            )
        self.is_unbounded = support is None or support in (
            constraints.real,
            constraints.real_vector,
        )
        self.support, self.event_shape = event_of(support, dim, "FlowDensity")
        size = biject_to(self.support).inverse_shape(self.event_shape)
        self.dim = Size(size).numel()
        self.context_dim = check_size("FlowDensity", "context_dim", context_dim, 0)
        if len(size) != 1:
            raise ValueError(
                f"FlowDensity expected a support whose points are vectors in the end, got "
                f"{self.support} with unconstrained points of shape {tuple(size)}."
            )
        self.base = base if isinstance(base, Base) else build_base(base, self.dim)
        self._check_base()
        inner = build_flow(flow, self.dim, context_dim=context_dim, **options)
        inner = cheaper_to_score(inner)
        _refuse_angles(inner, self.dim)
        parts = [inner]
        if standardize and not isinstance(inner, _AFFINE):
            parts.append(FullAffine(self.dim) if self.dim <= _FULL_UP_TO else LocScale(self.dim))
        self.bijector = Compose(*parts)
        self.standardizes = standardize
        self.register_buffer("context_loc", torch.zeros(context_dim))
        self.register_buffer("context_scale", torch.ones(context_dim))
        self.register_buffer("_is_initialized", torch.tensor(False))

    def forward(self, context: Tensor | None = None) -> DensityDistribution:
        """Return the distribution, given covariates of shape ``(*batch, context_dim)`` or none.

        Raises:
            TypeError: If covariates are missing, not wanted, or no floating tensor.
            ValueError: If they are of another number.
        """
        self._check_context(context)
        return DensityDistribution(self, context)

    @torch.no_grad()
    def initialize(self, x: Any, context: Any = None) -> FlowDensity:
        r"""Start at the data: at their mean and covariance, in coordinates that know no bounds.

        Args:
            x: Points, shape ``(N, *event_shape)``.
            context: Covariates of these, shape ``(N, context_dim)``.

        Returns:
            The density itself.

        Raises:
            TypeError: If these are no numbers.
            ValueError: If there are fewer than two, they are not finite, a column is constant, or
                some lie outside the support or on its edge.
        """
        x, context = as_points(self, x, context, owner="FlowDensity.initialize")
        y = self.unbounded(x.double())
        check_varied("FlowDensity.initialize", "column", y, x.dtype)
        check_independent("FlowDensity.initialize", y)
        if self.standardizes:
            _start_at(self.bijector.bijectors[-1], y)
            if context is not None:
                given = context.double()
                check_varied("FlowDensity.initialize", "covariate", given, context.dtype)
                self.context_loc.copy_(given.mean(0))
                self.context_scale.copy_(given.std(0))
        self._is_initialized.fill_(True)
        return self

    @property
    def is_initialized(self) -> bool:
        return bool(self._is_initialized)

    @property
    def is_affine(self) -> bool:
        """Whether the density is that of an affine map of uncorrelated noise."""
        affine = isinstance(self.bijector.bijectors[0], _AFFINE)
        plain = isinstance(self.base, StandardNormal | DiagonalNormal)
        return self.is_unbounded and plain and affine

    def standardized(self, context: Tensor) -> Tensor:
        """Covariates in units of their standard deviation."""
        return ((context - self.context_loc) / self.context_scale).to(self.context_loc.dtype)

    def unbounded(self, x: Tensor) -> Tensor:
        """Points of the support in coordinates that know no bounds, shape ``(*, dim)``."""
        return biject_to(self.support).inv(x)

    def extra_repr(self) -> str:
        return (
            f"dim={self.dim}, context_dim={self.context_dim}, support={self.support}, "
            f"is_initialized={self.is_initialized}"
        )

    def _check_base(self) -> None:
        if self.base.dim != self.dim or self.base.context_dim not in (0, self.context_dim):
            raise ValueError(
                f"FlowDensity expected a base of dim={self.dim} and context_dim 0 or "
                f"{self.context_dim}, got dim={self.base.dim}, context_dim={self.base.context_dim}."
            )
        support = getattr(self.base.support, "base_constraint", self.base.support)
        if support not in (constraints.real, constraints.real_vector):
            raise ValueError(
                f"FlowDensity expected a base on all reals, such as 'normal', got "
                f"{type(self.base).__name__} with the support {self.base.support}: bounds of "
                "points are told by support=..."
            )

    def _check_context(self, context: Any) -> None:
        if not self.context_dim:
            if context is not None:
                raise TypeError(
                    "FlowDensity takes no covariates (context_dim=0) but got some: leave them "
                    "out, or build it with context_dim=..."
                )
            return
        if not isinstance(context, Tensor) or not context.is_floating_point():
            found = f"{context.dtype}" if isinstance(context, Tensor) else type(context).__name__
            raise TypeError(
                f"FlowDensity needs a floating tensor of covariates of shape (*, "
                f"{self.context_dim}), got {found}: density(context)."
            )
        if context.shape[-1:] != (self.context_dim,):
            raise ValueError(
                f"FlowDensity expected covariates of shape (*, {self.context_dim}), got "
                f"{tuple(context.shape)}."
            )


class _Operations(TorchDispatchMode):
    """Counts what is run."""

    number = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.number += 1
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def cheaper_to_score(flow: Bijector) -> Bijector:
    """The flow, or its inverse where that scores a point in fewer operations.

    They are counted, not timed: the same on any machine. A way back that goes coordinate by
    coordinate, or searches, takes many times as many.
    """
    like = next(flow.parameters(), torch.zeros(()))
    points = torch.zeros(4, flow.dim, dtype=like.dtype, device=like.device)
    context = points.new_zeros(4, flow.context_dim) if flow.context_dim else None
    costs = []
    for run in (flow.inverse_and_log_det, flow.forward_and_log_det):
        with _Operations() as counter, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                run(points, context)
            except RuntimeError:
                if not points.is_meta:
                    raise
                counter.number = _SEARCHES  # which reads numbers, and there are none
        costs.append(counter.number)
    return flow if costs[0] <= _AS_CHEAP * costs[1] else flow.inv


def _refuse_angles(flow: Bijector, dim: int) -> None:
    angles = [i for i, period in enumerate(periods_of(flow, dim)) if period is not None]
    if angles:
        raise ValueError(
            f"FlowDensity expected a flow of real vectors, and this one turns coordinates {angles} "
            "as angles: take another flow, of their sines and cosines for instance, or make the "
            "distribution by hand: TransformedDistribution(build_base('uniform', dim)"
            ".distribution(), [flow])."
        )


def _start_at(affine: Bijector, y: Tensor) -> None:
    """Set an affine map to the mean and covariance of points."""
    loc, scale = y.mean(0), y.std(0)
    if isinstance(affine, FullAffine):
        affine.set_(loc, _cholesky(y, scale))
    elif isinstance(affine, LocScale):
        affine.set_(loc, scale)
    elif isinstance(affine, LowRankAffine):
        flat = scale.new_zeros(affine.dim, affine.rank)
        affine.set_(loc, scale, flat, scale.new_zeros(affine.rank))


def _cholesky(y: Tensor, scale: Tensor) -> Tensor:
    """Of the covariance, in units of one; of the variances where these are all that is known."""
    units = (y - y.mean(0)) / scale
    covariance = units.mT @ units / max(len(y) - 1, 1)
    factor, failed = torch.linalg.cholesky_ex(covariance)
    smallest = 64 * torch.finfo(y.dtype).eps ** 0.5
    if failed or float(factor.diagonal().min()) < smallest:
        return scale.diag()
    return scale[:, None] * factor
