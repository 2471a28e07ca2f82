"""The registry that finds flows by name.

A recipe is any callable ``(dim, *, context_dim=0, **options) -> Bijector``: a function, a
partial, or a bijector class. Pyro's own ``AutoNormalizingFlow`` accepts one too.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable

from ..bijector import Bijector

__all__ = ["Flow", "available_flows", "build_flow", "register_flow"]

Flow = Callable[..., Bijector]

_FLOWS: dict[str, Flow] = {}


def register_flow(name: str, *, replace: bool = False) -> Callable[[Flow], Flow]:
    """Register a recipe under a name.

    Args:
        name: The name.
        replace: Whether a recipe of the same name gives way.

    Returns:
        A decorator, which returns the recipe as it is.

    Raises:
        TypeError: If the name is not a string or the recipe cannot be called.
        ValueError: If the name is taken and ``replace`` is not set.

    Example:
        >>> from pyroflows.bijectors import LULinear
        >>> @register_flow("rotated", replace=True)
        ... def rotated(dim, *, context_dim=0):
        ...     return LULinear(dim, context_dim=context_dim)
        >>> flow = build_flow("rotated", 3)
    """
    if not isinstance(name, str) or not name:
        raise TypeError(
            f"register_flow expected a name, got {name!r}: write @register_flow('name')."
        )

    def register(flow: Flow) -> Flow:
        if not callable(flow):
            raise TypeError(
                f"register_flow({name!r}) expected a recipe to call, got {type(flow).__name__}."
            )
        if name in _FLOWS and not replace:
            raise ValueError(
                f"A flow named {name!r} is already registered: choose another name, or set "
                "replace=True."
            )
        _FLOWS[name] = flow
        return flow

    return register


def available_flows() -> list[str]:
    """Return the registered names, sorted.

    Example:
        >>> "nsf" in available_flows()
        True
    """
    return sorted(_FLOWS)


def build_flow(flow: str | Flow, dim: int, *, context_dim: int = 0, **options: object) -> Bijector:
    """Build a flow from its registered name or its recipe.

    Args:
        flow: A name out of :func:`available_flows`, or a recipe.
        dim: Size of the vectors.
        context_dim: Size of the context, or 0 for an unconditional flow.
        options: Passed to the recipe.

    Raises:
        TypeError: If the recipe cannot be called, does not take an option, or does not return a
            bijector.
        ValueError: If the name is unknown, an option has a bad value, or the recipe returns a
            bijector of another size.

    Example:
        >>> import torch
        >>> flow = build_flow("nsf", 3, num_layers=2)
        >>> y = flow(torch.ones(5, 3))
    """
    recipe, name = find_flow(flow, options)
    built = recipe(dim, context_dim=context_dim, **options)
    if not isinstance(built, Bijector):
        raise TypeError(
            f"The flow {name} returned {type(built).__name__}: a recipe returns a Bijector."
        )
    if (built.dim, built.context_dim) != (dim, context_dim):
        raise ValueError(
            f"The flow {name} was asked for dim={dim}, context_dim={context_dim} and returned "
            f"dim={built.dim}, context_dim={built.context_dim}."
        )
    return built


def find_flow(flow: str | Flow, options: dict[str, object]) -> tuple[Flow, str]:
    """Return the recipe of a flow, and its name for messages; raise unless it takes the options."""
    recipe = _find(flow)
    name = repr(flow) if isinstance(flow, str) else getattr(flow, "__name__", repr(flow))
    _check_options(name, recipe, options)
    return recipe, name


def _find(flow: str | Flow) -> Flow:
    if isinstance(flow, Bijector):
        kind = type(flow).__name__
        raise TypeError(
            f"build_flow expected a name or a recipe, got a {kind} that is built already: pass "
            f"the class, or a function that builds it for any size, lambda dim, **_: {kind}(dim)."
        )
    if callable(flow):
        return flow
    if not isinstance(flow, str):
        raise TypeError(f"build_flow expected a name or a recipe, got {type(flow).__name__}.")
    if flow not in _FLOWS:
        close = difflib.get_close_matches(flow.lower(), _FLOWS, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ValueError(
            f"Unknown flow {flow!r}: choose one of {', '.join(available_flows())}.{hint}"
        )
    return _FLOWS[flow]


def _check_options(name: str, recipe: Flow, options: dict[str, object]) -> None:
    try:
        parameters = inspect.signature(recipe).parameters
    except ValueError:
        return  # some builtins have no signature
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return
    if "context_dim" not in parameters:
        raise TypeError(
            f"The flow {name} takes no 'context_dim': a recipe is called as "
            "(dim, context_dim=0, **options)."
        )
    unknown = [option for option in options if option not in parameters]
    if unknown:
        known = [key for key in list(parameters)[1:] if key != "context_dim"]
        raise TypeError(
            f"The flow {name} takes no option {unknown[0]!r}: it takes "
            f"{', '.join(known) or 'none'}."
        )
