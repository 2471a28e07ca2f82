"""Densities in two dimensions whose truth is known: draws and log densities."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["TOYS", "Toy", "draw_conditional", "score_conditional"]

_NOISE = 0.05  # of the moons
_NODES = 2_000  # of the integral along a moon
_ANGLES = torch.arange(8, dtype=torch.float64) * math.pi / 4
_GAUSSIANS = 4 * torch.stack([_ANGLES.cos(), _ANGLES.sin()], -1) / 1.414
_RADII, _RADIAL_SD = torch.tensor([1.0, 2.5], dtype=torch.float64), 0.1


@dataclass(frozen=True)
class Toy:
    """A density that can be drawn from and scored, in double precision.

    Args:
        draw: Draws so many points, shape ``(N, 2)``.
        log_prob: Scores them, shape ``(N)``.
    """

    draw: Callable[[int], Tensor]
    log_prob: Callable[[Tensor], Tensor]


def _arcs(angle: Tensor) -> Tensor:
    """Points of the upper and of the lower moon at these angles, shape ``(2, N, 2)``."""
    upper = torch.stack([angle.cos(), angle.sin()], -1)
    lower = torch.stack([1 - angle.cos(), 0.5 - angle.sin()], -1)
    return torch.stack([upper, lower])


def _draw_moons(number: int) -> Tensor:
    angle = math.pi * torch.rand(number, dtype=torch.float64)
    arcs, which = _arcs(angle), torch.randint(2, (number,))
    points = arcs[which, torch.arange(number)]
    return points + _NOISE * torch.randn_like(points)


def _score_moons(x: Tensor) -> Tensor:
    """By the midpoint rule along both arcs."""
    angle = math.pi * (torch.arange(_NODES, dtype=torch.float64) + 0.5) / _NODES
    nodes = _arcs(angle).reshape(-1, 2)
    parts = [
        (-0.5 * torch.cdist(p, nodes).square() / _NOISE**2).logsumexp(-1) for p in x.split(500)
    ]
    return torch.cat(parts) - math.log(len(nodes)) - math.log(2 * math.pi * _NOISE**2)


def _draw_gaussians(number: int) -> Tensor:
    noise = torch.randn(number, 2, dtype=torch.float64)
    return _GAUSSIANS[torch.randint(8, (number,))] + 0.5 / 1.414 * noise


def _score_gaussians(x: Tensor) -> Tensor:
    variance = (0.5 / 1.414) ** 2
    squares = torch.cdist(x, _GAUSSIANS).square()
    parts = -0.5 * squares / variance - math.log(2 * math.pi * variance)
    return parts.logsumexp(-1) - math.log(8)


def _draw_checkerboard(number: int) -> Tensor:
    column = torch.randint(4, (number,))
    row = 2 * torch.randint(2, (number,)) + column % 2
    corner = torch.stack([column, row], -1).double()
    return 2 * (corner + torch.rand(number, 2, dtype=torch.float64)) - 4


def _score_checkerboard(x: Tensor) -> Tensor:
    cell = ((x + 4) / 2).floor()
    inside = ((cell >= 0) & (cell < 4)).all(-1) & ((cell[:, 0] - cell[:, 1]) % 2 == 0)
    return torch.where(inside, -math.log(32), -math.inf).double()


def _draw_rings(number: int) -> Tensor:
    radius = _RADII[torch.randint(2, (number,))]
    radius = radius + _RADIAL_SD * torch.randn(number, dtype=torch.float64)
    angle = 2 * math.pi * torch.rand(number, dtype=torch.float64)
    return radius[:, None] * torch.stack([angle.cos(), angle.sin()], -1)


def _score_rings(x: Tensor) -> Tensor:
    radius = x.norm(dim=-1)
    off = (radius[:, None] - _RADII) / _RADIAL_SD
    radial = -0.5 * off.square() - math.log(_RADIAL_SD * math.sqrt(2 * math.pi))
    return radial.logsumexp(-1) - math.log(2) - (2 * math.pi * radius).log()


TOYS = {
    "moons": Toy(_draw_moons, _score_moons),
    "8 gaussians": Toy(_draw_gaussians, _score_gaussians),
    "checkerboard": Toy(_draw_checkerboard, _score_checkerboard),
    "rings": Toy(_draw_rings, _score_rings),
}


def draw_conditional(number: int) -> tuple[Tensor, Tensor]:
    """Numbers and their covariates, shape ``(N, 1)`` each: two heaps of unequal mass."""
    c = 4 * torch.rand(number, 1, dtype=torch.float64) - 2
    middle, spread, share = _heaps(c)
    side = torch.where(torch.rand_like(c) < share, 1.0, -1.0)
    return side * middle + spread * torch.randn_like(c), c


def score_conditional(x: Tensor, c: Tensor) -> Tensor:
    """Log densities given the covariates, shape ``(N)``."""
    middle, spread, share = _heaps(c)
    parts = [
        torch.distributions.Normal(sign * middle, spread).log_prob(x) + mass.log()
        for sign, mass in ((1, share), (-1, 1 - share))
    ]
    return torch.cat(parts, -1).logsumexp(-1)


def _heaps(c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return 1 + 0.5 * (2 * c).sin(), 0.1 + 0.15 * c.abs(), c.sigmoid()
