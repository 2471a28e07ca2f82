"""What the flow of a guide starts from."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor

from ..bases import Base, StandardNormal, build_base
from ..bases.registry import Recipe

__all__ = ["Recipe", "center_of", "distribution_of", "make_base"]


def make_base(base: str | Base | Recipe, like: Tensor) -> Base | None:
    """Build the base of a guide; None for the standard normal, which has nothing to train.

    Args:
        base: A name, a recipe or a base.
        like: A vector whose size, dtype and device it takes.

    Raises:
        ValueError: If its vectors are not real, or of another size.
    """
    if isinstance(base, str) and base == "normal":
        return None
    built = build_base(base, len(like)).to(like)
    if built.support is not constraints.real_vector:
        raise ValueError(
            f"AutoFlow expected a base of real vectors, as its flow is a map of them, got "
            f"{type(built).__name__} with support {built.support}: take one of 'normal', "
            "'diagonal_normal', 'full_normal', 'student_t', 'gaussian_mixture'."
        )
    return None if isinstance(built, StandardNormal) else built


def distribution_of(base: Base | None, like: Tensor) -> dist.Distribution:
    """Return the law of the noise; without a base, a standard normal like a vector of zeros."""
    if base is None:
        return dist.Normal(like, torch.ones_like(like)).to_event(1)
    return base.distribution()


def center_of(base: Base | None, like: Tensor) -> Tensor:
    """Return the middle of the noise, shape ``(D)``; without a base, a vector of zeros."""
    return like if base is None else base.center()
