"""Draws of a posterior, from wherever they come, side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..infer.posterior import Polished, PosteriorDraws
from . import _arviz
from ._naming import to_numpy
from .chains import chains_posterior

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["common_draws", "flat_draws", "posterior_of"]


def posterior_of(source: Any, name: str) -> xr.Dataset:
    """Return a posterior with dims (chain, draw, ...).

    Args:
        source: an ``InferenceData`` or ``DataTree``; a Pyro ``MCMC`` that has run; what ``polish``
            returned, or ``posterior_draws``, resampled; or a mapping of site name to draws
            ``(S, *shape)``.
        name: what the caller calls it, for messages.

    Raises:
        TypeError: if it is none of these.
        ValueError: if it holds no posterior.
    """
    _arviz.require()
    if _arviz.has_groups(source):
        posterior = _arviz.get_group(source, "posterior")
        if posterior is None:
            raise ValueError(f"'{name}': expected a posterior group, got none.")
        return posterior
    if isinstance(source, Polished):
        return chains_posterior(source)
    if isinstance(source, PosteriorDraws):  # weights do not come along, so draws follow them
        source = source.resample(seed=0)
    if hasattr(source, "get_samples"):
        return _from_arrays(source.get_samples(group_by_chain=True), by_chain=True)
    if isinstance(source, Mapping) and source:
        return _from_arrays(source, by_chain=False)
    raise TypeError(
        f"'{name}': expected InferenceData, a DataTree, an MCMC that has run or a mapping of site "
        f"name to draws, got {type(source).__name__}; convert a guide by to_inference_data."
    )


def _from_arrays(samples: Mapping[str, Any], *, by_chain: bool) -> xr.Dataset:
    import xarray as xr

    variables = {}
    for name, value in samples.items():
        array = to_numpy(value) if isinstance(value, torch.Tensor) else np.asarray(value)
        array = array if by_chain else array[None]
        variable = name.replace("/", ".")
        axes = [f"{variable}_dim_{i}" for i in range(array.ndim - 2)]
        variables[variable] = (("chain", "draw", *axes), array)
    return xr.Dataset(variables)


def common_draws(
    posteriors: Mapping[str, xr.Dataset], var_names: Sequence[str] | None = None
) -> dict[str, dict[str, xr.DataArray]]:
    """Check that posteriors hold the same variables, and take those.

    Deterministic sites that one of them lacks are left out; any other difference is refused:
    xarray would broadcast, and compare what is not comparable.

    Args:
        posteriors: datasets by name.
        var_names: variables to take; all unless given.

    Returns:
        By name, by variable: arrays with dims (chain, draw, ...), the same dims for all.

    Raises:
        ValueError: if variables, dims, shapes or labels differ.
    """
    names = list(var_names) if var_names is not None else _shared(posteriors)
    for label, posterior in posteriors.items():
        absent = [n for n in names if n not in posterior.data_vars]
        if absent:
            raise ValueError(
                f"'{label}' has no variables {absent}; it has {sorted(posterior.data_vars)}."
            )
    chosen = {label: {n: p[n] for n in names} for label, p in posteriors.items()}
    for name in names:
        _check_same({label: variables[name] for label, variables in chosen.items()}, name)
    return chosen


def _shared(posteriors: Mapping[str, xr.Dataset]) -> list[str]:
    everywhere = set.intersection(*(set(p.data_vars) for p in posteriors.values()))
    first = next(iter(posteriors.values()))
    for label, posterior in posteriors.items():
        lone = [
            name
            for name, array in posterior.data_vars.items()
            if name not in everywhere and array.attrs.get("kind") != "deterministic"
        ]
        if lone:
            others = sorted(set(posteriors) - {label})
            raise ValueError(
                f"variables {lone} are in '{label}' but not in all of {others}; name the ones to "
                f"compare by var_names={sorted(everywhere)}."
            )
    return [str(name) for name in first.data_vars if name in everywhere]


def _check_same(arrays: Mapping[str, xr.DataArray], name: str) -> None:
    (first, reference), *rest = arrays.items()
    for label, array in rest:
        if array.shape[2:] != reference.shape[2:] or not _dims_agree(reference, array, name):
            raise ValueError(
                f"'{name}' differs between fits: {_describe(reference)} in '{first}' and "
                f"{_describe(array)} in '{label}'; compare fits of one model, or choose others by "
                "var_names."
            )
        for dim in set(array.dims[2:]) & set(reference.dims[2:]):
            if _labels_differ(array, reference, str(dim)):
                raise ValueError(
                    f"'{name}' has other labels along '{dim}' in '{first}' than in '{label}'; "
                    "give both the same coords."
                )


def _describe(array: xr.DataArray) -> str:
    return str(dict(zip(array.dims[2:], array.shape[2:], strict=True)))


def _dims_agree(one: xr.DataArray, other: xr.DataArray, name: str) -> bool:
    return all(
        a == b or any(str(d).startswith(f"{name}_dim_") for d in (a, b))
        for a, b in zip(one.dims[2:], other.dims[2:], strict=True)
    )


def _labels_differ(one: xr.DataArray, other: xr.DataArray, dim: str) -> bool:
    if dim not in one.coords or dim not in other.coords:
        return False
    mine, theirs = one.coords[dim].values, other.coords[dim].values
    # Integers are what an unlabelled axis gets.
    if any(np.issubdtype(labels.dtype, np.integer) for labels in (mine, theirs)):
        return False
    return bool((mine != theirs).any())


def flat_draws(array: xr.DataArray) -> np.ndarray:
    """Join chains and flatten events: ``(S, coordinates)``, float64."""
    values = array.values
    return values.reshape(values.shape[0] * values.shape[1], -1).astype(float)
