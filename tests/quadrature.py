"""Integrals of densities over the whole line or plane, to a given error."""

import itertools
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

NODES = {1: 8, 2: 5}  # of each Gauss-Legendre rule and coordinate
FIRST = {1: 9, 2: 4}  # levels at which all cells are halved
MOST = 120_000  # evaluations
LEVELS = 16


class RoughDensity(Exception):
    """Not to be integrated to this error at this cost."""


def integral(log_density: Callable[[Tensor], Tensor], draws: Tensor, tolerance: float) -> float:
    r"""Integrate a density over all of :math:`R^D`, with D at most 2.

    A smooth change of variables, :math:`y = m + A u / (1 - u^2)`, takes the cube of all :math:`u`
    to the whole space, so that no tail is cut off. Cells are halved where that changes their
    integrals, and where many draws are but hardly any mass is found: a narrow part was missed.

    Args:
        log_density: Of points of shape (N, D), with shape (N).
        draws: Points of that density, with shape (S, D): they say where to look, no more.
        tolerance: Largest change at each level, over all the cells that are left alone together.

    Raises:
        RoughDensity: If that takes more than ``MOST`` evaluations.
    """
    dim, number = draws.shape[-1], len(draws)
    middle, matrix, u = _standardised(draws)
    integrals = _Integrals(log_density, middle, matrix)
    cells = draws.new_zeros(1, dim), draws.new_ones(1)
    home = torch.zeros(number, dtype=torch.long)  # the cell of each draw, or -1
    total, values = 0.0, integrals(cells)
    for level in range(LEVELS):
        home = _moved(home, u, cells[0])
        counts = torch.bincount(home[home >= 0], minlength=len(values) * 2**dim)
        parts = _halved(cells)
        by_part = integrals(parts).view(-1, 2**dim)
        found = counts.view(-1, 2**dim).sum(-1)
        missed = _differs(by_part.sum(-1) * number, found) | (level < FIRST[dim])
        change = torch.where(missed, torch.inf, (by_part.sum(-1) - values).abs())
        ascending = change.sort()
        settled = torch.empty_like(missed)
        settled[ascending.indices] = ascending.values.cumsum(0) <= tolerance
        total += float(by_part[settled].sum())
        again = ~settled[:, None].expand(-1, 2**dim).flatten()
        home = torch.where((home >= 0) & again[home], (again.cumsum(0) - 1)[home], -1)
        cells, values = (parts[0][again], parts[1][again]), by_part.flatten()[again]
        if not len(values):
            break
    return total + float(values.sum())


class _Integrals:
    """The integral over each of some cells, by the rule."""

    def __init__(self, log_density: Callable, middle: Tensor, matrix: Tensor) -> None:
        self.log_density, self.middle, self.matrix = log_density, middle, matrix
        self.nodes, self.weights = rule(NODES[len(middle)], len(middle))
        self.evaluations = 0

    def __call__(self, cells: tuple[Tensor, Tensor]) -> Tensor:
        u = cells[0][:, None] + cells[1][:, None, None] * self.nodes
        self.evaluations += u.shape[0] * u.shape[1]
        if self.evaluations > MOST:
            raise RoughDensity(f"{MOST} evaluations do not integrate it to this error.")
        y = self.middle + spread(u) @ self.matrix.mT
        log_by_u = log_spread(u).sum(-1) + torch.linalg.slogdet(self.matrix).logabsdet
        found = (self.log_density(y.flatten(0, 1)).view_as(log_by_u) + log_by_u).exp()
        return (found * self.weights).sum(-1) * cells[1] ** len(self.middle)


def spread(u: Tensor) -> Tensor:
    """From the cube to the whole space."""
    return u / (1 - u.square())


def log_spread(u: Tensor) -> Tensor:
    """The logarithm of the derivative of that, for each coordinate."""
    return ((1 + u.square()) / (1 - u.square()).square()).log()


def _standardised(draws: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Where the draws are, how wide and inclined, and where they are in the cube."""
    levels = torch.tensor([0.25, 0.5, 0.75], dtype=draws.dtype)
    low, middle, high = draws.quantile(levels, dim=0)
    t = (draws - middle) / (high - low)
    u = _to_cube(t)  # bounded, whatever the tails are
    inclined = torch.corrcoef(u.mT).view(draws.shape[-1], -1)
    if inclined.tril(-1).abs().max() < 0.9:  # kinks run along the axes
        inclined = torch.eye(draws.shape[-1], dtype=draws.dtype)
    matrix = torch.linalg.cholesky(inclined)
    u = _to_cube(torch.linalg.solve_triangular(matrix, t.mT, upper=False).mT)
    return middle, (high - low)[:, None] * matrix, u


def _to_cube(t: Tensor) -> Tensor:
    return 2 * t / (1 + (1 + 4 * t.square()).sqrt())


def _differs(expected: Tensor, found: Tensor) -> Tensor:
    """Whether so many draws are hardly those of a cell where so many were expected."""
    chance = 5 * (1 + torch.minimum(expected, found)).sqrt()
    return ((expected - found).abs() > chance) | ((found > 2) & (8 * expected < found))


def rule(number: int, dim: int) -> tuple[Tensor, Tensor]:
    """Nodes (M, D) and weights (M) of the Gauss-Legendre rule on the cube from -1 to 1."""
    points, sizes = (torch.as_tensor(v) for v in np.polynomial.legendre.leggauss(number))
    nodes = torch.stack(torch.meshgrid(*[points] * dim, indexing="ij"), -1).view(-1, dim)
    weights = torch.stack(torch.meshgrid(*[sizes] * dim, indexing="ij"), -1).prod(-1)
    return nodes, weights.flatten()


def _halved(cells: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """The parts of each cell, those of the first cell first."""
    centre, half = cells
    dim = centre.shape[-1]
    signs = torch.tensor(list(itertools.product((-0.5, 0.5), repeat=dim)), dtype=centre.dtype)
    parts = centre[:, None] + half[:, None, None] * signs
    return parts.flatten(0, 1), (half / 2).repeat_interleave(2**dim)


def _moved(home: Tensor, u: Tensor, centres: Tensor) -> Tensor:
    """The part of its cell that each draw is in."""
    place = 2 ** torch.arange(u.shape[-1] - 1, -1, -1)
    part = ((u > centres[home]).long() * place).sum(-1)
    return torch.where(home >= 0, home * 2 ** u.shape[-1] + part, -1)
