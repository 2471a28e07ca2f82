"""Which coordinates see which: orders, passes and graphs, and the units of a network that obey."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Adjacency", "Structure", "by_adjacency", "by_order"]

Adjacency = Tensor | Sequence[Sequence[bool]] | Mapping[int, Sequence[int]]


class Structure(NamedTuple):
    """When each coordinate and each unit can be computed, and the masks that make it so.

    A coordinate of level k sees coordinates of levels below k only. A unit of degree k sees
    coordinates of levels up to k; the context has degree -1. Degrees of hidden units ascend.
    """

    order: list[int]  # of the coordinates, by level
    levels: list[int]  # of each coordinate
    degrees: list[tuple[int, ...]]  # of the inputs, then of each hidden layer
    masks: list[Tensor]  # of each linear map; the last has a row for each coordinate


def by_order(
    order: Sequence[int], num_passes: int | None, context_dim: int, hidden_dims: Sequence[int]
) -> Structure:
    """Each coordinate sees those before it, or those of the groups before its own."""
    dim = len(order)
    number = dim if num_passes is None else min(_checked_passes(num_passes), dim)
    groups = torch.arange(dim, device="cpu") * number // dim
    levels = groups[torch.tensor(order, device="cpu").argsort()]
    # Some hidden units must have degree -1, or the first coordinate would ignore the context.
    lowest = -1 if context_dim or number == 1 else 0
    degrees = [torch.cat([levels, torch.full((context_dim,), -1, device="cpu")])]
    degrees += [_spread(lowest, number - 2, width) for width in hidden_dims]
    masks = [after[:, None] >= before for before, after in pairwise(degrees)]
    masks.append(levels[:, None] > degrees[-1])
    return Structure(list(order), levels.tolist(), [tuple(d.tolist()) for d in degrees], masks)


def by_adjacency(
    adjacency: Adjacency, dim: int, context_dim: int, hidden_dims: Sequence[int]
) -> Structure:
    """Each coordinate sees those that its row names: so do units that take the row of a coordinate.

    A unit sees units whose row is part of its own, so that what a unit sees is its row at most.
    """
    sees = _matrix(adjacency, dim, context_dim)
    levels = _levels(sees[:, :dim])
    of_inputs = torch.tensor(levels + [-1] * context_dim, device="cpu")
    rows = torch.unique(sees, dim=0)
    rows = rows[rows.any(-1)] if sees.any() else rows  # a unit that sees nothing is a bias
    highest = torch.where(rows, of_inputs, -1).amax(-1)
    by_degree = highest.argsort(stable=True)
    rows, highest = rows[by_degree], highest[by_degree]
    degrees, masks, seen = [of_inputs], [], None
    for width in hidden_dims:
        if width < len(rows):
            raise ValueError(
                f"hidden_dims expected at least {len(rows)} units in each layer, one for each set "
                f"of coordinates that the adjacency names, got {width}."
            )
        units = torch.arange(width, device="cpu") * len(rows) // width
        masks.append(rows[units] if seen is None else _contains(rows[units], seen))
        seen = rows[units]
        degrees.append(highest[units])
    masks.append(sees if seen is None else _contains(sees, seen))
    order = sorted(range(dim), key=lambda i: levels[i])
    return Structure(order, levels, [tuple(d.tolist()) for d in degrees], masks)


def _contains(rows: Tensor, parts: Tensor) -> Tensor:
    """Whether each row has all that each part has."""
    return ~(parts & ~rows[:, None]).any(-1)


def _matrix(adjacency: Adjacency, dim: int, context_dim: int) -> Tensor:
    """Booleans (D, D + C) without the diagonal: which row sees which column."""
    if isinstance(adjacency, Mapping):
        matrix = torch.zeros(dim, dim, dtype=torch.bool, device="cpu")
        for i, parents in adjacency.items():
            for j in parents:
                if not (i in range(dim) and j in range(dim)):
                    raise ValueError(f"adjacency expected edges in 0..{dim - 1}, got {i}: {j}.")
                matrix[i, j] = True
    else:
        given = isinstance(adjacency, Tensor)
        matrix = adjacency.cpu() if given else torch.tensor(adjacency, device="cpu")
        if matrix.dtype != torch.bool:
            raise TypeError(f"adjacency expected booleans or a mapping, got {matrix.dtype}.")
    shapes = sorted({(dim, dim), (dim, dim + context_dim)})
    if tuple(matrix.shape) not in shapes:
        expected = " or ".join(map(str, shapes))
        raise ValueError(f"adjacency expected shape {expected}, got {tuple(matrix.shape)}.")
    if matrix.shape[1] < dim + context_dim:
        every = torch.ones(dim, context_dim, dtype=torch.bool, device="cpu")
        matrix = torch.cat([matrix, every], dim=1)
    return matrix & ~torch.eye(dim, dim + context_dim, dtype=torch.bool, device="cpu")


def _levels(sees: Tensor) -> list[int]:
    """How many steps each coordinate has to wait for."""
    parents = [row.nonzero()[:, 0].tolist() for row in sees]
    levels: dict[int, int] = {}
    while len(levels) < len(parents):
        ready = [
            i
            for i, above in enumerate(parents)
            if i not in levels and all(j in levels for j in above)
        ]
        if not ready:
            raise ValueError(
                f"adjacency expected a graph without cycles, got {_cycle(parents, levels)}: "
                "leave out one of these edges."
            )
        found = {i: 1 + max((levels[j] for j in parents[i]), default=-1) for i in ready}
        levels |= found
    return [levels[i] for i in range(len(parents))]


def _cycle(parents: list[list[int]], known: Mapping[int, int]) -> str:
    """Coordinates that wait for each other, in words."""
    i = next(i for i in range(len(parents)) if i not in known)
    path: list[int] = []
    while i not in path:
        path.append(i)
        i = next(j for j in parents[i] if j not in known)
    return " depends on ".join(map(str, [*path[path.index(i) :], i]))


def _checked_passes(num_passes: int) -> int:
    if isinstance(num_passes, bool) or not isinstance(num_passes, int) or num_passes < 1:
        raise ValueError(f"num_passes expected a positive int, got {num_passes!r}.")
    return num_passes


def _spread(low: int, high: int, width: int) -> Tensor:
    """Degrees for hidden units, in ascending order: all of them, or evenly spread if too few."""
    number = high - low + 1
    units = torch.arange(width, device="cpu")
    if width >= number:
        return low + units * number // width
    return high - (width - 1 - units) * number // width  # the highest sees all it may
