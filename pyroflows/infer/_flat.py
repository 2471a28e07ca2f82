"""Look for directions in which a posterior does not fall off, as one that is improper does not.

A guide of an improper posterior may look good from inside: it is as wide as its steps took it, and
a ridge that lies across its coordinates is met by no draw whose noise is widened along one of them.
The curvature at a draw tells the direction that falls off least; going far along it tells the rest.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..guides import AutoFlow
from ..guides.angles import periods_of
from ..guides.gaussians import moments
from ..guides.outer import in_double
from ..guides.start import hessian
from ..log_density import LogDensity

__all__ = ["flat_direction"]

_NUM_DRAWS = 256
_NUM_POINTS = 8
_NUM_POINTS_ONE_BY_ONE = 4
_ENOUGH = 2  # a proper posterior may have one, far out, from where the other side is as high
_UP_TO = 128
_UP_TO_ONE_BY_ONE = 16
# Standard deviations of the guide. Even a Student-t with three degrees of freedom has lost eight
# nats at the first. Farther out, single precision would blur a ridge that is a million times as
# long as wide.
_STEPS = (8.0, 16.0)


def flat_direction(
    model: Callable, guide: Callable, args: tuple, kwargs: dict[str, Any], vectorized: bool
) -> str | None:
    """Name the latents along which the log density does not fall off; None where it does.

    Args:
        model: the model.
        guide: the guide; only an ``AutoFlow`` is looked at, and none that holds angles.
        args: positional arguments of the model.
        kwargs: keyword arguments of the model.
        vectorized: whether the model takes many draws together.
    """
    limit = _UP_TO if vectorized else _UP_TO_ONE_BY_ONE
    if not isinstance(guide, AutoFlow) or guide.latent_dim > limit:
        return None
    if any(periods_of(guide.unregistered_bijector(), guide.latent_dim)):
        return None  # along an angle no density falls off for good: it comes round again
    draws = guide.unregistered_posterior().rsample((_NUM_DRAWS,)).double()
    if not torch.isfinite(draws).all():
        return None
    tril = moments(draws, draws.new_full((_NUM_DRAWS,), 1 / _NUM_DRAWS))[1]
    if not (tril.diagonal() > 0).all():
        return None
    method = "auto" if vectorized else "loop"
    log_density = LogDensity(model, guide.latents, args, kwargs, method=method)
    with warnings.catch_warnings():  # far out on a ridge, rounding looks like a lack of broadcast
        warnings.simplefilter("ignore")
        density = in_double(log_density, guide.median_latent().double()[None], guide.dtype)
    points = draws[: _NUM_POINTS if vectorized else _NUM_POINTS_ONE_BY_ONE]
    found = [_flattest(density, u, tril) for u in points]
    flat = [way for way in found if way is not None]
    if len(flat) < min(_ENOUGH, len(points)):
        return None
    return _names(guide, flat[0] / draws.std(0))


def _flattest(density: Callable[[Tensor], Tensor], u: Tensor, tril: Tensor) -> Tensor | None:
    """The least concave direction at ``u``, in guide standard deviations, if it stays as high."""
    steps = u.new_tensor([[1.0], [-1.0]]) * u.new_tensor(_STEPS)
    try:
        curvature = tril.mT @ hessian(density, u) @ tril
        if not torch.isfinite(curvature).all():
            return None
        way = tril @ torch.linalg.eigh(curvature)[1][:, -1]
        with torch.no_grad():
            far = density(u + steps.reshape(-1, 1) * way).reshape(2, -1)
            here = density(u[None])
    except (RuntimeError, ValueError):  # no density so far out, as of a matrix that overflows
        return None
    stays = (far > here - math.log(2)) & torch.isfinite(far)
    return way if bool(stays.all(-1).any()) else None


def _names(guide: AutoFlow, way: Tensor) -> str:
    reach = {site.name: part.abs().max() for site, part in guide.latents.split(way) if site.size}
    most = max(reach.values())
    return ", ".join(f"'{name}'" for name, part in reach.items() if part > 0.1 * most)
