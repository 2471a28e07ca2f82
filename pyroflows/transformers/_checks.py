"""Checks of what a transformer is made with."""

from __future__ import annotations

import math

__all__ = ["check_bound", "check_count"]


def check_count(name: str, value: int, smallest: int = 1) -> None:
    """Raise unless a number of something is an int that is large enough."""
    if isinstance(value, bool) or not isinstance(value, int) or value < smallest:
        raise ValueError(f"{name} expected an int of at least {smallest}, got {value!r}.")


def check_bound(bound: float) -> None:
    """Raise unless the end of an interval is positive and finite."""
    if not 0 < bound < math.inf:
        raise ValueError(f"bound expected a positive, finite number, got {bound!r}.")
