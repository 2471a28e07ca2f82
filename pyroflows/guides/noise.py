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

_RECIPE = "partial(build_base, 'circular', indices=[...], circle='von_mises')"


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
        return _round(periods).to(like) if is_normal else _on_circles(base, like, periods)
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


def _on_circles(base: str | Base | Recipe, like: Tensor, periods: Sequence[float | None]) -> Base:
    built = build_base(base, len(like)).to(like)
    if built.support is constraints.real_vector:
        raise ValueError(
            f"AutoFlow expected a base with angles, as its flow turns them, got "
            f"{type(built).__name__}, whose draws a circle would cut: take 'normal', with which "
            f"angles are uniform, 'uniform', 'von_mises', or a recipe with indices, {_RECIPE}."
        )
    for i, period in enumerate(periods):
        if not _is_on(built, i, period):
            circle = None if period is None else f"an angle on all of +-{period / 2:.4g}"
            angles = [k for k, p in enumerate(periods) if p is not None]
            raise ValueError(
                f"AutoFlow expected a base whose coordinate {i} is {circle or 'a real number'}, as "
                f"in its flow, got {type(built).__name__} with another support there: take "
                "'normal', with which angles are uniform, or name the angles "
                f"{angles} in the base too, {_RECIPE}."
            )
    return built


def _is_on(base: Base, i: int, period: float | None) -> bool:
    """Whether a coordinate of the base takes the whole circle and no more, or the whole line."""
    end = 1e30 if period is None else period / 2
    probes = base.center().detach().expand(4, -1).clone()
    probes[:, i] = probes.new_tensor([-0.999, 0.999, -1.001, 1.001]) * end
    inside = base.support.check(probes).tolist()
    return inside == [True, True, period is None, period is None]


def distribution_of(base: Base | None, like: Tensor) -> dist.Distribution:
    """Return the law of the noise; without a base, a standard normal like a vector of zeros."""
    if base is None:
        return dist.Normal(like, torch.ones_like(like)).to_event(1)
    return base.distribution()


def center_of(base: Base | None, like: Tensor) -> Tensor:
    """Return the middle of the noise, shape ``(D)``; without a base, a vector of zeros."""
    return like if base is None else base.center()
