"""What families are held to in numbers, as functions of a bijector.

Points are normal with spread 3, and as far out as 1e4. Errors are relative to one plus the size.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd.functional import jacobian

from pyroflows import Bijector

ROUND_TRIP = {torch.float64: 1e-8, torch.float32: 1e-4}
LOG_DET = 1e-8
MASS = 1e-4


def moved(build: Callable, dim: int, noise: float, **options: object) -> Bijector:
    """A bijector in double precision, its parameters moved off the start."""
    bijector = build(dim, **options).double()
    with torch.no_grad():
        for p in bijector.parameters():
            p.add_(noise * torch.randn_like(p))
    return bijector


def points(dim: int) -> Tensor:
    far = torch.tensor([1e2, -1e2, 1e4, -1e4], dtype=torch.float64)
    signs = 1.0 - 2.0 * (torch.arange(dim) % 2)
    near = 3 * torch.randn(32, dim, dtype=torch.float64)
    return torch.cat([near, far[:, None] * signs, far[:, None].expand(-1, dim)])


def round_trip_error(bijector: Bijector, x: Tensor, context: Tensor | None = None) -> Tensor:
    y, log_det = bijector.forward_and_log_det(x, context)
    again, back = bijector.inverse_and_log_det(y, context)
    size = 1 + x.abs().amax(-1)
    return torch.maximum((again - x).abs().amax(-1) / size, (log_det + back).abs())


def log_det_error(bijector: Bijector, x: Tensor, context: Tensor | None = None) -> Tensor:
    matrix = jacobian(lambda v: bijector.forward_and_log_det(v, context)[0], x)
    exact = torch.linalg.slogdet(matrix).logabsdet
    return (bijector.forward_and_log_det(x, context)[1] - exact).abs() / (1 + exact.abs())


@torch.no_grad()
def mass(bijector: Bijector, context: Tensor | None = None) -> float:
    """The integral of the density over a grid that holds the draws from a normal base."""
    dim = bijector.dim
    base = torch.distributions.Normal(torch.zeros(dim).double(), 1.0)
    draws = bijector.forward_and_log_det(base.sample((4000,)), context)[0]
    low, high = draws.amin(0), draws.amax(0)
    axis = torch.linspace(-0.6, 1.6, 8000 if dim == 1 else 500).double()[:, None]
    axes = (low + (high - low) * axis).unbind(-1)
    grid = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).flatten(0, -2)
    x, log_det = bijector.inverse_and_log_det(grid, context)
    cell = torch.stack([a[1] - a[0] for a in axes]).prod()
    return float((base.log_prob(x).sum(-1) + log_det).exp().sum() * cell)
