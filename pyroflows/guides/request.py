"""What a guide is asked to be: refused where it is asked for, not where it is first called."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ..arguments import check_arguments
from ..bases import Base
from ..bases.registry import Recipe, find_base
from ..flows import Flow
from ..flows.registry import find_flow

__all__ = ["OUTERS", "check_outer", "check_request"]

OUTERS = ("auto", "full", "diagonal", "low_rank", None)


def check_request(
    model: Callable,
    recipe: Mapping[str, Any],
    base: str | Base | Recipe,
    init: Mapping[str, Any],
    model_args: tuple | None,
    model_kwargs: Mapping[str, Any] | None,
) -> None:
    """Raise unless there is such a guide, as far as can be said before the model is run.

    Args:
        model: The model.
        recipe: The ``flow``, its ``options`` and the ``outer`` map.
        base: What the flow starts from.
        init: How the initialisation goes, ``init``, and its ``init_scale``.
        model_args: Positional arguments of the model, or None.
        model_kwargs: Keyword arguments of the model, or None.

    Raises:
        TypeError: If model, flow or base cannot be called, the flow does not take an option, or
            the model not these arguments.
        ValueError: If a name or a value is not one of those that there are.
    """
    if model_args is not None or model_kwargs is not None:
        args = () if model_args is None else model_args
        check_arguments("AutoFlow", model, args, model_kwargs)
    elif not callable(model):
        raise TypeError(f"AutoFlow expected a callable model, got {type(model).__name__}.")
    if init["init"] not in ("auto", "point"):
        raise ValueError(f"AutoFlow expected init 'auto' or 'point', got {init['init']!r}.")
    if not init["init_scale"] > 0:
        raise ValueError(f"AutoFlow expected init_scale > 0, got {init['init_scale']}.")
    _check_flow(**recipe)
    if not isinstance(base, Base):
        find_base(base, {})


def _check_flow(flow: str | Flow, outer: str | None, options: dict[str, object]) -> None:
    check_outer(outer)
    find_flow(flow, options)


def check_outer(outer: str | None) -> None:
    """Raise unless there is such an outer map."""
    if outer not in OUTERS:
        raise ValueError(f"AutoFlow expected outer to be one of {OUTERS}, got {outer!r}.")
