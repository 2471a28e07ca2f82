"""From chains that polished a guide to ArviZ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..infer.posterior import Polished
from . import _arviz
from ._naming import Names, to_numpy

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["chains_posterior", "from_chains"]


def from_chains(
    chains: Polished,
    dims: Mapping[str, Sequence[str]] | None = None,
    coords: Mapping[str, Sequence] | None = None,
) -> Any:
    """Return groups ``posterior`` and ``sample_stats`` of chains; see ``to_inference_data``."""
    stats = {
        "lp": chains.log_p,
        "lp_approx": chains.log_q,
        "acceptance_rate": chains.acceptance,
        "diverging": chains.diverging | chains.nonfinite,
    }
    variables = {name: (("chain", "draw"), to_numpy(value)) for name, value in stats.items()}
    if chains.step_size is not None:
        variables["step_size"] = ((), chains.step_size)
    attrs = {
        "inference_library": "pyroflows",
        "sampling_time": chains.seconds,
        "tuning_steps": chains.num_warmup,
        "method": chains.method,
    }
    sample_stats = _dataset(variables, _coords(chains))
    posterior = chains_posterior(chains, dims, coords)
    return _arviz.build({"posterior": posterior, "sample_stats": sample_stats}, attrs)


def chains_posterior(
    chains: Polished,
    dims: Mapping[str, Sequence[str]] | None = None,
    coords: Mapping[str, Sequence] | None = None,
) -> xr.Dataset:
    """Return the draws with dims (chain, draw, plates, events)."""
    names = Names(chains.sites, dims, coords)
    variables, labels = {}, _coords(chains)
    for name, value in chains.values.items():
        site = chains.sites[name]
        axes, array = names.value(name, site, to_numpy(value.flatten(0, 1)))
        labels |= names.labels(axes, array.shape[1:])
        array = array.reshape(*value.shape[:2], *array.shape[1:])
        variables[names.variables[name]] = (("chain", "draw", *axes), array, {"kind": site.kind})
    return _dataset(variables, labels)


def _coords(chains: Polished) -> dict[str, Any]:
    return {"chain": np.arange(chains.num_chains), "draw": np.arange(chains.num_samples)}


def _dataset(variables: dict[str, tuple], coords: dict[str, Any]) -> xr.Dataset:
    import xarray as xr

    return xr.Dataset(variables, coords=coords)
