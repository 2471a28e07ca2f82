"""What the flow of a guide starts from."""

from __future__ import annotations

from collections.abc import Sequence

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor, nn

from ..bases import Base, Product, StandardNormal, Uniform, build_base
from ..bases.registry import Recipe
from ..latents import Latents
from .angles import check_angles, periods_of

__all__ = ["Recipe", "center_of", "distribution_of", "make_base"]


def make_base(
    base: str | Base | Recipe, like: Tensor, flow: nn.Module, latents: Latents
) -> Base | None:
    """Build the base of a guide; None for the standard normal, which has nothing to train.

    Args:
        base: A name, a recipe or a base. For ``"normal"`` angles are uniform on their circle.
        like: A vector whose size, dtype and device it takes.
        flow: The map that follows; where it turns angles, the base must have them.
        latents: What the flow's coordinates are.

    Raises:
        ValueError: If its vectors are not what the flow maps, of another size, or if the flow
            would break an angle.
    """
    check_angles(flow, latents)
    periods = periods_of(flow, len(like))
    is_normal = isinstance(base, str) and base == "normal"
    if any(periods):
        return _round(periods).to(like) if is_normal else _on_circles(base, like)
    if is_normal:
        return None
    built = build_base(base, len(like)).to(like)
    if built.support is not constraints.real_vector:
        raise ValueError(
            f"AutoFlow expected a base of real vectors, as its flow is a map of them, got "
            f"{type(built).__name__} with support {built.support}: take one of 'normal', "
            "'diagonal_normal', 'full_normal', 'student_t', 'gaussian_mixture'; or a flow of "
            "angles, 'ncsf'."
        )
    return None if isinstance(built, StandardNormal) else built


def _round(periods: Sequence[float | None]) -> Base:
    """Uniform on the circles, normal on the lines."""
    angles = [i for i, period in enumerate(periods) if period is not None]
    lines = [i for i, period in enumerate(periods) if period is None]
    ends = [period / 2 for period in periods if period is not None]
    circles = Uniform(len(angles), low=[-end for end in ends], high=ends)
    if not lines:
        return circles
    return Product([(circles, angles), (StandardNormal(len(lines)), lines)])


def _on_circles(base: str | Base | Recipe, like: Tensor) -> Base:
    built = build_base(base, len(like)).to(like)
    if built.support is constraints.real_vector:
        raise ValueError(
            f"AutoFlow expected a base with angles, as its flow turns them, got "
            f"{type(built).__name__}, whose draws a circle would cut: take 'normal', with which "
            "angles are uniform, 'uniform', 'von_mises', or a recipe with indices, such as "
            "lambda dim: build_base('circular', dim, indices=[0], circle='von_mises')."
        )
    return built


def distribution_of(base: Base | None, like: Tensor) -> dist.Distribution:
    """Return the law of the noise; without a base, a standard normal like a vector of zeros."""
    if base is None:
        return dist.Normal(like, torch.ones_like(like)).to_event(1)
    return base.distribution()


def center_of(base: Base | None, like: Tensor) -> Tensor:
    """Return the middle of the noise, shape ``(D)``; without a base, a vector of zeros."""
    return like if base is None else base.center()
