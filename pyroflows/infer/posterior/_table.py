"""Tables of posteriors in plain text: one row for each element of each site."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

__all__ = ["MAX_ROWS", "as_table", "labels"]

MAX_ROWS = 100


def labels(shapes: Mapping[str, Sequence[int]]) -> list[str]:
    """Return the names of all elements: ``mu``, ``theta[0]``, ``theta[1]``, ..."""
    named = []
    for name, shape in shapes.items():
        indices = itertools.product(*map(range, shape))
        named += [f"{name}[{', '.join(map(str, i))}]" if i else name for i in indices]
    return named


def as_table(names: Sequence[str], columns: Mapping[str, Tensor]) -> str:
    """Write columns ``(C)`` of numbers beside the names of their rows.

    Args:
        names: Of the rows; those after the first hundred are counted, not shown.
        columns: By heading. Means and quantiles get as many digits as their errors ask for.
    """
    heads = list(columns)
    shown = names[:MAX_ROWS]
    numbers = torch.stack([columns[head] for head in heads], 1)[: len(shown)].tolist()
    rows = [
        [_number(head, value) for head, value in zip(heads, row, strict=True)] for row in numbers
    ]
    widths = [max(map(len, cells)) for cells in zip(heads, *rows, strict=True)]
    first = max(map(len, ["", *shown]))
    lines = [_line("", heads, first, widths)]
    lines += [_line(name, row, first, widths) for name, row in zip(shown, rows, strict=True)]
    if len(names) > len(shown):
        lines.append(f"... and {len(names) - len(shown)} more elements: ask for them by name.")
    return "\n".join(lines)


def _line(name: str, cells: Sequence[str], first: int, widths: Sequence[int]) -> str:
    padded = "  ".join(cell.rjust(width) for cell, width in zip(cells, widths, strict=True))
    return f"{name.ljust(first)}  {padded}"


def _number(head: str, value: float) -> str:
    if head == "ess":
        return f"{value:.0f}"
    if head == "r_hat":
        return f"{value:.3f}"
    return f"{value:.2g}" if head == "mcse" else f"{value:.4g}"
