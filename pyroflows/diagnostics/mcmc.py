"""From Pyro's own chains to ArviZ."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..arguments import check_arguments
from ..infer._given import given_draws
from . import _arviz
from ._groups import Groups, dataset
from ._inputs import input_names
from ._naming import Names, to_numpy
from .conversion import attributes, check_num_prior, data_groups, prior_groups

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["from_mcmc"]


def from_mcmc(
    mcmc: Any,
    model: Callable[..., Any] | None = None,
    *,
    model_args: tuple | None = None,
    model_kwargs: dict[str, Any] | None = None,
    num_prior_samples: int = 0,
    seed: int | None = None,
    batch_size: int | None = None,
    dims: Mapping[str, Sequence[str]] | None = None,
    coords: Mapping[str, Sequence] | None = None,
) -> Any:
    """Convert chains of ``pyro.infer.MCMC`` to what the installed ArviZ works with.

    The groups, names and dims are those of :func:`~pyroflows.to_inference_data`, so that chains can
    be set beside guides: ``posterior`` with deterministic sites, ``unconstrained_posterior``,
    ``log_likelihood``, ``posterior_predictive``, ``observed_data``, ``constant_data``. In
    ``sample_stats`` are ``lp``, the log joint density of latents and data as the model writes it
    (without Jacobians), and ``diverging``; there are no weights.

    Args:
        mcmc: a Pyro ``MCMC`` that has run.
        model: the model; that of the chains' kernel unless given.
        model_args: its positional arguments; those that the chains ran with unless given.
        model_kwargs: its keyword arguments, likewise.
        num_prior_samples: number of draws of the prior, and of data from it; 0 for none.
        seed: seed of new data; the caller's generators are left as they were. None: draw on.
        batch_size: draws that go through the model together; chosen by size unless given.
        dims: names of a site's or an argument's axes after chain and draw, in place of those found.
        coords: labels along dimensions.

    Returns:
        An ``arviz.InferenceData`` under ArviZ 0.x, an ``xarray.DataTree`` under 1.x.

    Raises:
        ImportError: if ArviZ is not installed.
        TypeError: if it holds no chains, or the model is not to be found.
        ValueError: if draws do not fit the model, or dims or coords the sites.

    Example:
        >>> import pyro, pyro.distributions as dist, torch, pyroflows as pf
        >>> from pyro.infer import MCMC, NUTS
        >>> def model(y):
        ...     mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("data", len(y)):
        ...         pyro.sample("y", dist.Normal(mu, 1.0), obs=y)
        >>> mcmc = MCMC(NUTS(model), num_samples=20, warmup_steps=20, disable_progbar=True)
        >>> mcmc.run(torch.tensor([0.1, 0.9]))
        >>> idata = pf.from_mcmc(mcmc)
        >>> idata["log_likelihood"]["y"].dims
        ('chain', 'draw', 'data')
    """
    owner = "from_mcmc"
    _arviz.require()
    chains = _chains(mcmc)
    model = _kernel(mcmc).model if model is None else model
    args = tuple(mcmc._args or ()) if model_args is None else tuple(model_args)
    kwargs = dict((mcmc._kwargs or {}) if model_kwargs is None else model_kwargs)
    check_arguments(owner, model, args, kwargs)
    check_num_prior(owner, num_prior_samples)
    values = {name: value.flatten(0, 1) for name, value in chains.items()}
    draws = given_draws(
        model, values, model_args=args, model_kwargs=kwargs, seed=seed, batch_size=batch_size
    )
    names = Names(draws.sites, dims, coords, input_names(model, args, kwargs))
    made = Groups(draws, names, num_chains=len(next(iter(chains.values()))))
    groups = data_groups(made, model, args, kwargs)
    groups["sample_stats"] = _sample_stats(mcmc, made)
    if num_prior_samples:
        groups |= prior_groups(
            names, model, args, kwargs, num_prior_samples, seed, batch_size, owner=owner
        )
    made.warn_of_omissions(owner)
    made.warn_of_squares()
    groups = {name: group for name, group in groups.items() if group.data_vars}
    return _arviz.build(groups, attributes(model, args, kwargs, kernel=_kernel(mcmc)))


def _chains(mcmc: Any) -> dict[str, torch.Tensor]:
    if not hasattr(mcmc, "get_samples") or not hasattr(mcmc, "_args"):
        raise TypeError(
            f"from_mcmc: expected a pyro.infer.MCMC that has run, got {type(mcmc).__name__}; "
            "to_inference_data converts guides and what polish returned."
        )
    if mcmc._samples is None:
        raise TypeError("from_mcmc: the chains have not run yet: call mcmc.run(...) first.")
    return mcmc.get_samples(group_by_chain=True)


def _kernel(mcmc: Any) -> Any:
    return mcmc.sampler.kernel


def _sample_stats(mcmc: Any, made: Groups) -> xr.Dataset:
    variables, num = {}, len(next(iter(made.draws.values.values())))
    if made.draws.log_p is not None:
        variables["lp"] = (("chain", "draw"), made.by_chain(to_numpy(made.draws.log_p)))
    divergences = [(found or {}).get("divergences") for found in mcmc._diagnostics]
    if all(found is not None for found in divergences):
        diverging = made.by_chain(np.zeros(num, bool))
        for chain, draws in enumerate(divergences):
            diverging[chain, list(draws)] = True
        variables["diverging"] = (("chain", "draw"), diverging)
    return dataset(variables, made.draw_coords(num))
