"""The registry that finds bases by name.

A recipe is any callable ``(dim, *, context_dim=0, **options) -> Base``: a class, a function or a
partial.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable

from .base import Base

__all__ = ["Recipe", "available_bases", "build_base", "register_base"]

Recipe = Callable[..., Base]

_BASES: dict[str, Recipe] = {}


def register_base(name: str, *, replace: bool = False) -> Callable[[Recipe], Recipe]:
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
        >>> from pyroflows.bases import GaussianMixture
        >>> @register_base("two_hills", replace=True)
        ... def two_hills(dim, *, context_dim=0):
        ...     return GaussianMixture(dim, num_components=2, context_dim=context_dim)
        >>> base = build_base("two_hills", 3)
    """
    if not isinstance(name, str) or not name:
        raise TypeError(
            f"register_base expected a name, got {name!r}: write @register_base('name')."
        )

    def register(recipe: Recipe) -> Recipe:
        if not callable(recipe):
            raise TypeError(
                f"register_base({name!r}) expected a recipe to call, got {type(recipe).__name__}."
            )
        if name in _BASES and not replace:
            raise ValueError(
                f"A base named {name!r} is already registered: choose another name, or set "
                "replace=True."
            )
        _BASES[name] = recipe
        return recipe

    return register


def available_bases() -> list[str]:
    """Return the registered names, sorted.

    Example:
        >>> "student_t" in available_bases()
        True
    """
    return sorted(_BASES)


def build_base(
    base: str | Base | Recipe, dim: int, *, context_dim: int = 0, **options: object
) -> Base:
    """Build a base from its registered name or its recipe, or check one that is built.

    Args:
        base: A name out of :func:`available_bases`, a recipe, or a base, which is returned itself.
        dim: Size of the vectors.
        context_dim: Size of the context, or 0 for a base without.
        options: Passed to the recipe.

    Raises:
        TypeError: If the recipe cannot be called, does not take an option, or does not return a
            base.
        ValueError: If the name is unknown, an option has a bad value, or the base is of another
            size.

    Example:
        >>> base = build_base("student_t", 3, df=4.0)
        >>> base.distribution().rsample((5,)).shape
        torch.Size([5, 3])
    """
    if isinstance(base, Base):
        if options:
            raise TypeError(
                f"build_base takes no option {next(iter(options))!r} with a base that is built: "
                "set it when building the base."
            )
        return _of_size(base, type(base).__name__, dim, context_dim)
    recipe, name = find_base(base, options)
    built = recipe(dim, context_dim=context_dim, **options)
    if not isinstance(built, Base):
        raise TypeError(
            f"The base {name} returned {type(built).__name__}: a recipe returns a Base."
        )
    return _of_size(built, name, dim, context_dim)


def _of_size(base: Base, name: str, dim: int, context_dim: int) -> Base:
    if (base.dim, base.context_dim) != (dim, context_dim):
        raise ValueError(
            f"The base {name} was asked for dim={dim}, context_dim={context_dim} and is of "
            f"dim={base.dim}, context_dim={base.context_dim}."
        )
    return base


def find_base(base: str | Recipe, options: dict[str, object]) -> tuple[Recipe, str]:
    """Return the recipe of a base, and its name for messages; raise unless it takes the options."""
    recipe = _find(base)
    name = repr(base) if isinstance(base, str) else getattr(base, "__name__", repr(base))
    _check_options(name, recipe, options)
    return recipe, name


def _find(base: str | Recipe) -> Recipe:
    if callable(base):
        return base
    if not isinstance(base, str):
        raise TypeError(
            f"build_base expected a name, a recipe or a Base, got {type(base).__name__}."
        )
    if base not in _BASES:
        close = difflib.get_close_matches(base.lower(), _BASES, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ValueError(
            f"Unknown base {base!r}: choose one of {', '.join(available_bases())}.{hint}"
        )
    return _BASES[base]


def _check_options(name: str, recipe: Recipe, options: dict[str, object]) -> None:
    try:
        parameters = inspect.signature(recipe).parameters
    except ValueError:
        return  # some builtins have no signature
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return
    if "context_dim" not in parameters:
        raise TypeError(
            f"The base {name} takes no 'context_dim': a recipe is called as "
            "(dim, context_dim=0, **options)."
        )
    unknown = [option for option in options if option not in parameters]
    if unknown:
        known = [key for key in list(parameters)[1:] if key != "context_dim"]
        raise TypeError(
            f"The base {name} takes no option {unknown[0]!r}: it takes "
            f"{', '.join(known) or 'none'}."
        )
