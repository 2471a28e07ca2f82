"""Rows of data, and which of them are for what."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from ._points import as_points

if TYPE_CHECKING:
    from .module import FlowDensity

__all__ = ["Rows", "Split", "gathered", "split_rows"]

_OWNER = "fit_density"


class Rows(NamedTuple):
    """Points and what is known of them.

    Args:
        x: Points, shape ``(N, *event_shape)``.
        context: Covariates, shape ``(N, C)``, or ``None``.
    """

    x: Tensor
    context: Tensor | None

    def __getitem__(self, index: Any) -> Rows:
        return Rows(self.x[index], None if self.context is None else self.context[index])

    @property
    def number(self) -> int:
        return len(self.x)


class Split(NamedTuple):
    """Rows to learn from, to choose weights by, and to judge by.

    Args:
        train: Those that gradients are of.
        validation: Those that choose the weights, or ``None``.
        test: Those that are seen once, at the end, or ``None``.
    """

    train: Rows
    validation: Rows | None
    test: Rows | None


def gathered(data: Any, context: Any) -> tuple[Any, Any, int | None]:
    """Arrays out of what may be a data set or its loader, and the size of its batches.

    Args:
        data: An array, a ``Dataset`` or a ``DataLoader`` of points, or of pairs of point and
            covariates.
        context: Covariates, where the first is an array.

    Raises:
        TypeError: If covariates come twice, or items are neither points nor pairs.
    """
    if not isinstance(data, DataLoader | Dataset):
        return data, context, None
    if context is not None:
        raise TypeError(
            f"{_OWNER}: with a {type(data).__name__}, covariates are the second of each pair that "
            "it gives, (x, context): leave context= out."
        )
    is_loader = isinstance(data, DataLoader)
    items: Iterable = data
    if not is_loader and not isinstance(data, IterableDataset):
        items = (data[i] for i in range(len(data)))
    points, contexts = [], []
    for item in items:
        pair = item if isinstance(item, tuple | list) else (item,)
        if not 1 <= len(pair) <= 2 or not all(isinstance(p, Tensor) for p in pair):
            raise TypeError(
                f"{_OWNER} expected a data set of tensors x or pairs (x, context), got items of "
                f"{[type(p).__name__ for p in pair]}."
            )
        points.append(pair[0])
        contexts += pair[1:]
    join = torch.cat if is_loader else torch.stack
    batch_size = data.batch_size if is_loader else None
    if not points:
        raise ValueError(f"{_OWNER}: the {type(data).__name__} is empty.")
    return join(points), join(contexts) if contexts else None, batch_size


def split_rows(
    density: FlowDensity, x: Any, context: Any, validation: Any, test: Any, seed: int | None
) -> Split:
    """Check data and share them out.

    Args:
        density: Says of what shape they are.
        x: Points.
        context: Covariates, or ``None``.
        validation: A share of the rows from 0 to 1, or rows of their own, ``x`` or
            ``(x, context)``.
        test: The same.
        seed: Of the order in which shares are taken; ``None`` for that of torch's generator.

    Raises:
        TypeError: If data are of the wrong type.
        ValueError: If they are of the wrong shape, or too few.
    """
    rows = Rows(*as_points(density, x, context, owner=_OWNER))
    shares = {"test": test, "validation": validation}
    sizes = {name: _size(name, share, rows.number) for name, share in shares.items()}
    num_train = rows.number - sum(sizes.values())
    if num_train < 2:
        raise ValueError(
            f"{_OWNER}: of {rows.number} rows {sizes['validation']} are for validation and "
            f"{sizes['test']} for the test, which leaves {num_train} to learn from: pass more "
            "data, or validation=0 and test=0."
        )
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    order = torch.randperm(rows.number, generator=generator).to(rows.x.device)
    parts, start = {}, 0
    for name, share in shares.items():
        parts[name] = rows[order[start : start + sizes[name]]] if sizes[name] else None
        start += sizes[name]
        if not isinstance(share, int | float):
            parts[name] = _given_rows(density, name, share)
    return Split(rows[order[start:]], parts["validation"], parts["test"])


def _given_rows(density: FlowDensity, name: str, given: Any) -> Rows:
    pair = given if isinstance(given, tuple) else (given, None)
    if len(pair) != 2:
        raise ValueError(
            f"{_OWNER} expected {name} to be x or (x, context), got {len(pair)} parts."
        )
    return Rows(*as_points(density, *pair, owner=f"{_OWNER}({name}=)", least=1))


def _size(name: str, share: Any, number: int) -> int:
    """How many rows a share is; none where rows of their own were given."""
    if isinstance(share, bool) or share is None:
        raise TypeError(
            f"{_OWNER} expected {name} to be a share of the rows, such as 0.1, or rows of their "
            f"own, got {share!r}."
        )
    if not isinstance(share, int | float):
        return 0
    if not 0 <= share < 1:
        raise ValueError(f"{_OWNER} expected {name} to be a share in [0, 1), got {share!r}.")
    return max(round(share * number), 1) if share else 0
