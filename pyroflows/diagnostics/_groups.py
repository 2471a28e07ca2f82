"""The groups of an ArviZ object, one function each."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..infer.draws import GuideDraws, Site
from ..infer.importance import ImportanceDiagnostics, rounding_tolerance
from ..psis import psis
from ._naming import Names, deterministic_event_dims, to_numpy

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["Groups", "dataset", "fit_stats", "sample_stats", "warn"]

_SCALARS = {
    "elbo": "elbo",
    "elbo_se": "elbo_se",
    "log_z": "log_z",
    "log_z_se": "log_z_se",
    "pareto_k": "pareto_k",
    "pareto_k_se": "pareto_k_se",
    "good_k": "good_k",
    "ess_is": "ess",
}
_OF_FIT = (
    "seconds",
    "stop_reason",
    "num_particles",
    "num_skipped_steps",
    "num_nonfinite_particles",
    "race_factor",
    "seed",
)


def dataset(variables: dict[str, tuple], coords: Mapping[str, Any]) -> xr.Dataset:
    """Make a dataset; xarray is imported no sooner."""
    import xarray as xr

    return xr.Dataset(variables, coords=coords)


def warn(message: str, owner: str = "to_inference_data") -> None:
    """Say what is left out."""
    warnings.warn(f"{owner}: {message}.", stacklevel=4)


class Groups:
    """What draws of a model become in ArviZ.

    Args:
        draws: Draws, S of them, chains joined.
        names: What sites, plates and axes are called.
        num_chains: Number of chains that S is made of.
    """

    def __init__(self, draws: GuideDraws, names: Names, num_chains: int = 1) -> None:
        self.draws, self.names, self.num_chains = draws, names, num_chains

    def by_chain(self, array: np.ndarray) -> np.ndarray:
        """Part draws into chains: ``(S, ...)`` to ``(C, S / C, ...)``."""
        return array.reshape(self.num_chains, -1, *array.shape[1:])

    def draw_coords(self, num_samples: int) -> dict[str, Sequence]:
        """Labels along chain and draw."""
        size = num_samples // self.num_chains
        return {"chain": np.arange(self.num_chains), "draw": np.arange(size)}

    def values(self, values: Mapping[str, torch.Tensor], *, kinds: bool = True) -> xr.Dataset:
        """Sites with dims (chain, draw, plates, events)."""
        variables, coords = {}, {}
        for name, value in values.items():
            site = self.draws.sites[name]
            dims, array = self.names.value(name, site, to_numpy(value))
            coords |= self.draw_coords(len(array)) | self.names.labels(dims, array.shape[1:])
            attrs = {"kind": site.kind} if kinds else {}
            dims = ("chain", "draw", *dims)
            variables[self.names.variables[name]] = (dims, self.by_chain(array), attrs)
        return dataset(variables, coords)

    def unconstrained(self) -> xr.Dataset:
        """Latents on unconstrained coordinates; axes whose size changes lose their names."""
        variables, coords = {}, {}
        for name, value in self.draws.unconstrained.items():
            site, array = self.draws.sites[name], to_numpy(value)
            constrained = self.draws.values.get(name)
            if constrained is None:
                continue
            variable = self.names.variables[name]
            if value.shape == constrained.shape:
                dims, array = self.names.value(name, site, array)
            else:
                dims = [f"{variable}_unconstrained_dim_{i}" for i in range(array.ndim - 1)]
            coords |= self.draw_coords(len(array)) | self.names.labels(dims, array.shape[1:])
            variables[variable] = (("chain", "draw", *dims), self.by_chain(array))
        return dataset(variables, coords)

    def observed_data(self) -> xr.Dataset:
        """What was observed."""
        variables, coords = {}, {}
        for name, site in {} if self.draws.subsampled else self.draws.sites.items():
            if site.kind == "observed":
                dims, array = self.names.value(name, site, to_numpy(site.value)[None])
                coords |= self.names.labels(dims, array.shape[1:])
                variables[self.names.variables[name]] = (dims, array[0])
        return dataset(variables, coords)

    def constant_data(self, inputs: Mapping[str, tuple[tuple[str, ...], np.ndarray]]) -> xr.Dataset:
        """Arguments of the model that are not observed."""
        variables, coords = {}, {}
        for name, (dims, array) in inputs.items():
            coords |= self.names.labels(dims, array.shape)
            variables[name] = (dims, array)
        return dataset(variables, coords)

    def log_likelihood(self) -> xr.Dataset:
        """Unscaled, without masked observations, or NaN in their place."""
        found = self._likelihoods()
        variables, coords, holes = {}, {}, []
        for name, (dims, array, keep) in found.items():
            labels = self.names.labels(dims, array.shape[1:])
            if len(dims) == 1 and _is_shared(dims[0], keep, found):
                array = array[:, keep]
                labels[dims[0]] = [labels[dims[0]][i] for i in keep.nonzero()[0]]
            elif not keep.all():
                array, holes = np.where(keep, array, np.nan), [*holes, name]
            coords |= self.draw_coords(len(array)) | labels
            variables[self.names.variables[name]] = (
                ("chain", "draw", *dims),
                self.by_chain(array),
            )
        if holes:
            warn(
                f"masked observations of {_listed(holes)} are NaN in log_likelihood; pf.loo leaves "
                "them out, ArviZ wants them dropped"
            )
        return dataset(variables, coords)

    def _likelihoods(self) -> dict[str, tuple]:
        found = {}
        for name, value in self.draws.log_likelihood.items():
            site = self.draws.sites[name]
            keep = _keep(site)
            if not keep.any():
                continue
            dims, array = self.names.batch(name, site, to_numpy(value))
            found[name] = (tuple(dims), array, keep.reshape(array.shape[1:]))
            if not dims:
                warn(
                    f"'{name}' has one log likelihood for all its data, so that leave-one-out "
                    "leaves out everything: use a plate in place of to_event"
                )
        return found

    def warn_of_omissions(self, owner: str = "to_inference_data") -> None:
        """Say what is not there, and why."""
        draws = self.draws
        if draws.subsampled:
            warn(
                f"plates {sorted(draws.subsampled)} are subsampled, so log p is only an estimate: "
                "latents in these plates, weights, log_likelihood, posterior_predictive and "
                "observed_data are left out; pass the full data",
                owner,
            )
        elif draws.missing:
            source = "guide" if owner == "to_inference_data" else "chains"
            warn(
                f"latents {list(draws.missing)} are missing from the {source}: they, "
                "deterministic sites, weights, log_likelihood and posterior_predictive are left "
                "out",
                owner,
            )
        elif draws.marginalized:
            warn(
                f"discrete latents {list(draws.marginalized)} are summed out in the weights: they, "
                "deterministic sites, log_likelihood and posterior_predictive are left out; see "
                "pyro.infer.infer_discrete",
                owner,
            )

    def warn_of_squares(self) -> None:
        """Say where an event cannot be told from a plate."""
        squares = [
            name
            for name in self.draws.values
            if self.draws.sites[name].kind == "deterministic"
            and name not in self.names.given
            and len(deterministic_event_dims(self.draws.sites[name])) > 1
        ]
        if squares:
            warn(
                f"{_listed(squares)} have an event axis as large as a plate, and which is which "
                "cannot be seen, so their axes keep neutral names; give pyro.deterministic "
                "event_dim=, or dims"
            )


def _keep(site: Site) -> np.ndarray:
    """Which observations of a site are not masked, in the shape of its batch."""
    if site.mask is None:
        return np.ones(site.batch_shape, bool)
    mask = site.mask if isinstance(site.mask, bool) else to_numpy(site.mask)
    return np.broadcast_to(mask, site.batch_shape).astype(bool)


def _is_shared(dim: str, keep: np.ndarray, found: Mapping[str, tuple]) -> bool:
    """Whether all sites along a dimension leave out the same of it, so that it can be left out."""
    return all(
        dims == (dim,) and np.array_equal(other, keep)
        for dims, _, other in found.values()
        if dim in dims
    )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)


def sample_stats(groups: Groups, report: ImportanceDiagnostics) -> xr.Dataset:
    """Log densities, weights and what they say, of draws of a guide."""
    draws = groups.draws
    smoothed, _ = psis(report.log_weights, tolerance=rounding_tolerance(draws))
    columns = {
        "lp": draws.log_p,
        "lp_approx": draws.log_q,
        "log_weight": report.log_weights,
        "log_weight_psis": smoothed,
    }
    variables: dict[str, tuple] = {
        name: (("chain", "draw"), groups.by_chain(to_numpy(column)))
        for name, column in columns.items()
    }
    variables |= {name: ((), getattr(report, part)) for name, part in _SCALARS.items()}
    made = dataset(variables, groups.draw_coords(report.num_samples))
    made.attrs = {
        "verdict": report.verdict,
        "reasons": "; ".join(report.reasons),
        "report": str(report),
    }
    return made


def fit_stats(fit: Any) -> xr.Dataset:
    """The course of a fit by step."""
    losses = np.asarray(fit.losses, dtype=float)
    variables = {"elbo": (("step",), -losses)}
    rates = getattr(fit, "learning_rates", None)
    if rates is not None and len(rates) == len(losses):
        variables["learning_rate"] = (("step",), np.asarray(rates, dtype=float))
    made = dataset(variables, {"step": np.arange(len(losses))})
    found = {name: getattr(fit, name, None) for name in _OF_FIT}
    events = getattr(fit, "events", ())
    found["event_steps"] = [step for step, _ in events] or None
    found["event_names"] = "; ".join(name for _, name in events) or None
    found["report"] = str(fit) if hasattr(fit, "diagnostics") else None
    made.attrs = {name: value for name, value in found.items() if value is not None}
    return made
