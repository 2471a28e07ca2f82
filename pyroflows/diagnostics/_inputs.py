"""What a model is given beside the data that it observes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch

from ..infer.draws import GuideDraws
from ._naming import Names, to_numpy

__all__ = ["constant_inputs", "input_names"]


def constant_inputs(
    model: Callable[..., Any],
    args: tuple,
    kwargs: Mapping[str, Any],
    draws: GuideDraws,
    names: Names,
) -> dict[str, tuple[tuple[str, ...], np.ndarray]]:
    """Arrays among the arguments of a model that are not observed, by name: dims and values.

    An axis that is as long as exactly one plate, and the only one of the array that is, is called
    after it; others keep neutral names.
    """
    observed = [s.value for s in draws.sites.values() if s.kind == "observed"]
    sizes = {
        names.plates[plate]: size
        for site in draws.sites.values()
        for plate, size in site.plates.values()
    }
    found = {}
    for name, value in _named(model, args, kwargs):
        array = _as_array(value)
        if array is None or any(_is_same(array, to_numpy(data)) for data in observed):
            continue
        variable = names.constant(name)
        found[variable] = (_dims(names.given.get(name), variable, array, sizes), array)
    return found


def _named(
    model: Callable[..., Any], args: tuple, kwargs: Mapping[str, Any]
) -> Iterator[tuple[str, Any]]:
    try:
        signature = inspect.signature(model)
        bound = signature.bind(*args, **kwargs).arguments
    except (TypeError, ValueError):
        return
    for name, value in bound.items():
        kind = signature.parameters[name].kind
        if kind is inspect.Parameter.VAR_KEYWORD:
            yield from value.items()
        elif kind is inspect.Parameter.VAR_POSITIONAL:
            yield from ((f"{name}_{i}", one) for i, one in enumerate(value))
        else:
            yield name, value


def _as_array(value: Any) -> np.ndarray | None:
    if isinstance(value, torch.Tensor):
        return None if value.is_sparse else to_numpy(value)
    if isinstance(value, np.ndarray) and value.dtype.kind in "biufc":
        return value
    if isinstance(value, int | float):  # a number of rows, or a fixed parameter
        return np.asarray(value)
    return None


def _is_same(one: np.ndarray, other: np.ndarray) -> bool:
    return one.shape == other.shape and np.array_equal(one, other)


def _dims(
    given: list[str] | None, variable: str, array: np.ndarray, sizes: Mapping[str, int]
) -> tuple[str, ...]:
    if given is not None:
        if len(given) != array.ndim:
            raise ValueError(
                f"to_inference_data: dims of '{variable}' are {given}, but it has {array.ndim} "
                "axes; name every axis."
            )
        return tuple(given)
    dims = []
    for axis, size in enumerate(array.shape):
        fits = [plate for plate, length in sizes.items() if length == size]
        is_sure = len(fits) == 1 and array.shape.count(size) == 1
        dims.append(fits[0] if is_sure else f"{variable}_dim_{axis}")
    return tuple(dims)


def input_names(model: Callable[..., Any], args: tuple, kwargs: Mapping[str, Any]) -> list[str]:
    """Names of the arguments that are arrays or numbers."""
    return [name for name, value in _named(model, args, kwargs) if _as_array(value) is not None]
