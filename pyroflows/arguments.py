"""Whether a model, its arguments and a guide are what a function can work with."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["check_arguments"]


def check_arguments(
    owner: str,
    model: Callable,
    model_args: tuple,
    model_kwargs: Mapping[str, Any] | None,
    guide: Callable | None = None,
) -> None:
    """Raise unless the model can be called with these arguments, and the guide at all.

    Args:
        owner: Name of the function that was called, for messages.
        model: The model.
        model_args: Its positional arguments.
        model_kwargs: Its arguments by name.
        guide: The guide, if there is one.

    Raises:
        TypeError: If the model cannot be called, or not with these, or the guide cannot.
    """
    if not callable(model):
        raise TypeError(f"{owner} expected a callable model, got {type(model).__name__}.")
    if not isinstance(model_args, tuple | list):
        raise TypeError(
            f"{owner} expected model_args to be a tuple, got {type(model_args).__name__}: write "
            "model_args=(data,)."
        )
    if model_kwargs is not None and not isinstance(model_kwargs, Mapping):
        raise TypeError(
            f"{owner} expected model_kwargs to be a dict, got {type(model_kwargs).__name__}: write "
            "model_kwargs={'name': data}."
        )
    if guide is not None:
        _check_guide(owner, guide)
    try:
        signature = inspect.signature(model)
    except (TypeError, ValueError):
        return  # some callables have none
    try:
        signature.bind(*model_args, **(model_kwargs or {}))
    except TypeError as error:
        name = getattr(model, "__name__", type(model).__name__)
        raise TypeError(
            f"{owner}: the model {name}{signature} cannot be called with model_args of length "
            f"{len(model_args)} and model_kwargs {sorted(model_kwargs or {})}: {error}. Pass what "
            "it takes as model_args=(...) or model_kwargs={...}."
        ) from None


def _check_guide(owner: str, guide: Any) -> None:
    """Raise unless it is a guide, with what to write where it is the name of a flow."""
    if not callable(guide):
        hint = f": AutoFlow(model, {guide!r}) makes one" if isinstance(guide, str) else ""
        raise TypeError(f"{owner} expected a guide, got {type(guide).__name__}{hint}.")
