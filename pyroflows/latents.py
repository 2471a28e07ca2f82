"""Where the latents of a model live: their order, shapes and supports on one flat vector."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from math import prod

import torch
from torch import Size, Tensor
from torch.distributions import Transform, biject_to, constraints, mixture_same_family
from torch.distributions.constraints import Constraint
from torch.distributions.transforms import (
    CorrCholeskyTransform,
    IndependentTransform,
    StickBreakingTransform,
)

from .stick_breaking import CorrCholesky, StickBreaking

__all__ = ["Latents", "Site"]


@dataclass
class Site:
    """One latent: its name, its shape and the map from unconstrained coordinates.

    Args:
        name: Name of the sample site.
        support: Where its values live.
        shape: Shape of a value, batch and event together.
        event_dim: Number of event dimensions of a value.
        is_angle: Whether a value is one of angles, which only some flows hold.
    """

    name: str
    support: Constraint
    shape: Size
    event_dim: int
    is_angle: bool = False
    transform: Transform = field(init=False)
    unconstrained_shape: Size = field(init=False)

    def __post_init__(self) -> None:
        self.transform = bijection_onto(self.support)
        self.unconstrained_shape = Size(self.transform.inverse_shape(self.shape))

    @property
    def num_batch_dims(self) -> int:
        return len(self.shape) - self.event_dim

    @property
    def size(self) -> int:
        return prod(self.unconstrained_shape)


class Latents:
    """The latents of a model as one vector of unconstrained coordinates.

    Args:
        sites: The latents in the order of the model.
        max_plate_nesting: Number of plate dimensions of the model, its data included.
        enumerated: Names of discrete sites that are summed out.
    """

    def __init__(
        self,
        sites: list[Site],
        *,
        max_plate_nesting: int = 0,
        enumerated: frozenset[str] = frozenset(),
    ) -> None:
        self.sites = {site.name: site for site in sites}
        self.max_plate_nesting = max_plate_nesting
        self.enumerated = enumerated

    @property
    def dim(self) -> int:
        return sum(site.size for site in self.sites.values())

    def split(self, u: Tensor) -> Iterator[tuple[Site, Tensor]]:
        """Yield each site with its slice of ``u``, flat: ``(*batch, size)``."""
        sizes = [site.size for site in self.sites.values()]
        yield from zip(self.sites.values(), u.split(sizes, dim=-1), strict=True)

    def constrain(
        self, u: Tensor, *, pad_plates: bool = False, skip_jacobian: bool = False
    ) -> tuple[dict[str, Tensor], Tensor]:
        r"""Return site values and :math:`\log |\partial z / \partial u|`.

        Args:
            u: Unconstrained points, shape ``(*batch, D)``.
            pad_plates: Insert dimensions of size 1 so that batch dimensions stand to the left of
                every plate of the model.
            skip_jacobian: Return zeros for the log-determinant.

        Returns:
            Values of shape ``(*batch, *site.shape)`` by name, and the log-determinant ``(*batch)``.
        """
        batch = u.shape[:-1]
        values: dict[str, Tensor] = {}
        total = u.new_zeros(batch)
        for site, flat in self.split(u):
            pad = self.max_plate_nesting - site.num_batch_dims if pad_plates else 0
            raw = flat.reshape(batch + (1,) * pad + site.unconstrained_shape)
            values[site.name] = value = site.transform(raw)
            if not skip_jacobian:
                log_det = site.transform.log_abs_det_jacobian(raw, value)
                total = total + log_det.reshape(*batch, -1).sum(-1)
        return values, total

    def unconstrain(self, values: dict[str, Tensor]) -> Tensor:
        """Return the flat vector of some site values, shape ``(*batch, D)``."""
        flat = []
        for site in self.sites.values():
            raw = site.transform.inv(values[site.name])
            num_batch = raw.dim() - len(site.unconstrained_shape)
            flat.append(raw.reshape(*raw.shape[:num_batch], site.size))
        batch = torch.broadcast_shapes(*(f.shape[:-1] for f in flat))
        return torch.cat([f.expand(*batch, -1) for f in flat], dim=-1)

    def check_values(self, values: dict[str, Tensor], owner: str) -> None:
        """Raise unless ``values`` holds every latent with its shape at the right."""
        missing = [name for name in self.sites if name not in values]
        unknown = [name for name in values if name not in self.sites]
        if missing or unknown:
            raise ValueError(
                f"{owner} expected a value for each of {list(self.sites)}, got {list(values)}: "
                f"missing {missing}, unknown {unknown}."
            )
        for name, site in self.sites.items():
            shape = values[name].shape
            if shape[len(shape) - len(site.shape) :] != site.shape or len(shape) < len(site.shape):
                raise ValueError(
                    f"{owner} expected site {name!r} of shape (*batch, "
                    f"{', '.join(map(str, site.shape))}), got {tuple(shape)}."
                )

    def move(self, fn: Callable[[Tensor], Tensor]) -> None:
        """Apply ``fn`` (a change of dtype or device) to the bounds of every support."""
        for site in self.sites.values():
            site.support = _map_tensors(site.support, fn)
            site.transform = bijection_onto(site.support)


def bijection_onto(support: Constraint) -> Transform:
    """The map of :func:`torch.distributions.biject_to`, with sticks broken in logarithms.

    A ``MixtureSameFamily`` lives where its components do, if they all live in one place.

    Raises:
        NotImplementedError: For a support without a known bijection.
    """
    return _in_logarithms(biject_to(_without_components(support)))


def _without_components(support: Constraint) -> Constraint:
    if isinstance(support, constraints.independent):
        base = _without_components(support.base_constraint)
        return constraints.independent(base, support.reinterpreted_batch_ndims)
    # Releases of torch before it gave the support of the components itself.
    of_mixture = getattr(mixture_same_family, "MixtureSameFamilyConstraint", ())
    if not isinstance(support, of_mixture):
        return support
    axis = -1 - support.event_dim  # of the components, in their bounds

    def shared(bound: Tensor) -> Tensor:
        if bound.dim() < -axis:
            return bound
        first = bound.select(axis, 0)
        if not (bound == first.unsqueeze(axis)).all():
            raise NotImplementedError(f"components with bounds of their own: {support}")
        return first

    return _map_tensors(_without_components(support.base_constraint), shared)


def _in_logarithms(transform: Transform) -> Transform:
    if isinstance(transform, IndependentTransform):
        base = _in_logarithms(transform.base_transform)
        return IndependentTransform(base, transform.reinterpreted_batch_ndims)
    if type(transform) is StickBreakingTransform:
        return StickBreaking()
    return CorrCholesky() if type(transform) is CorrCholeskyTransform else transform


def _map_tensors(constraint: Constraint, fn: Callable[[Tensor], Tensor]) -> Constraint:
    """A copy of a constraint with ``fn`` applied to the tensors that it holds."""
    result = copy.copy(constraint)
    for key, value in vars(constraint).items():
        if isinstance(value, Tensor):
            setattr(result, key, fn(value))
        elif isinstance(value, Constraint):
            setattr(result, key, _map_tensors(value, fn))
        elif isinstance(value, list | tuple) and any(isinstance(v, Constraint) for v in value):
            setattr(result, key, type(value)(_map_tensors(v, fn) for v in value))
    return result


def constraint_tensors(constraint: Constraint) -> list[Tensor]:
    """The tensors that a constraint holds, such as the bounds of an interval."""
    found: list[Tensor] = []
    _map_tensors(constraint, lambda t: (found.append(t), t)[1])
    return found
