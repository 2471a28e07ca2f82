"""From a guide to ArviZ."""

from __future__ import annotations

import datetime
import importlib.metadata
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..arguments import check_arguments
from ..infer.draws import GuideDraws, Site, draw_from_guide
from ..infer.importance import ImportanceDiagnostics, diagnose, rounding_tolerance
from ..infer.posterior import Polished
from ..psis import psis
from . import _arviz
from ._naming import Names, deterministic_event_dims, to_numpy
from .chains import from_chains

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["to_inference_data"]

_SCALARS = {
    "elbo": "elbo",
    "elbo_se": "elbo_se",
    "log_z": "log_z",
    "log_z_se": "log_z_se",
    "pareto_k": "pareto_k",
    "good_k": "good_k",
    "ess_is": "ess",
}


def to_inference_data(
    guide: Callable[..., Any] | Polished,
    model: Callable[..., Any] | None = None,
    *,
    model_args: tuple = (),
    model_kwargs: dict[str, Any] | None = None,
    num_samples: int = 4000,
    fit: Any = None,
    seed: int | None = None,
    dims: Mapping[str, Sequence[str]] | None = None,
    coords: Mapping[str, Sequence] | None = None,
) -> Any:
    """Convert draws of a guide to what the installed ArviZ works with.

    Groups:

    - ``posterior``: latent and deterministic sites, dims (chain=1, draw=S, plates, events);
    - ``sample_stats``: ``lp`` (log joint density), ``lp_approx`` (of the guide), ``log_weight``
      (their difference), ``log_weight_psis`` (smoothed and normalised), and one number each of
      ``elbo``, ``elbo_se``, ``log_z``, ``log_z_se``, ``pareto_k``, ``good_k``, ``ess_is``; the
      verdict is in its attributes;
    - ``log_likelihood``: unscaled, without masked observations, or with NaN in their place where
      sites of one plate are masked differently;
    - ``posterior_predictive`` and ``observed_data``: observed sites;
    - ``fit_stats``: the ELBO by step, where a fit is given.

    Axes are called after plates; a site's ``infer={"event_dims": [...]}`` names its event axes.
    Names that ArviZ keeps for itself (chain, draw, sample, pred_id) get a suffix; a ``/`` in a
    name becomes a ``.``. Where a plate is subsampled, or a latent is missing from the guide or
    summed out, the groups that would be wrong are left out with a warning.

    Of chains (:func:`~pyroflows.polish`), which hold their draws already, there are ``posterior``
    and ``sample_stats``: ``lp`` and ``lp_approx`` (on unconstrained coordinates),
    ``acceptance_rate``, ``diverging`` (proposals without a finite density included) and
    ``step_size``.

    Args:
        guide: a Pyro guide; or what ``polish`` returned, without a model and its arguments.
        model: its model, conditioned on data.
        model_args: positional arguments of both.
        model_kwargs: keyword arguments of both.
        num_samples: number of draws S.
        fit: what ``fit_guide`` returned; its losses become ``fit_stats``.
        seed: seed of the draws; the caller's generators are left as they were. None: draw on.
        dims: names of a site's axes after chain and draw, in place of those found.
        coords: labels along dimensions.

    Returns:
        An ``arviz.InferenceData`` under ArviZ 0.x, an ``xarray.DataTree`` under 1.x.

    Raises:
        ImportError: if ArviZ is not installed.
        ValueError: if dims or coords do not fit the sites.
        TypeError: if a guide comes without its model, or chains with one.

    Example:
        >>> import pyro.distributions as dist
        >>> import pyro, pyroflows as pf
        >>> def model():
        ...     with pyro.plate("school", 3):
        ...         pyro.sample("theta", dist.Normal(0.0, 1.0))
        >>> idata = pf.to_inference_data(model, model, seed=0)
        >>> idata["posterior"]["theta"].dims
        ('chain', 'draw', 'school')
    """
    _arviz.require()
    _check_source(guide, model)
    if isinstance(guide, Polished):
        return from_chains(guide, dims, coords)
    check_arguments("to_inference_data", model, model_args, model_kwargs, guide)
    draws = draw_from_guide(
        model,
        guide,
        model_args=model_args,
        model_kwargs=model_kwargs,
        num_samples=num_samples,
        seed=seed,
        everything=True,
        predictive=True,
    )
    names = Names(draws.sites, dims, coords)
    groups = {"posterior": _draw_group(draws.values, draws, names)}
    if draws.log_p is not None:
        groups["sample_stats"] = _sample_stats(draws, diagnose(draws))
    groups["log_likelihood"] = _log_likelihood(draws, names)
    groups["posterior_predictive"] = _draw_group(draws.predictive, draws, names)
    groups["observed_data"] = _observed_data(draws, names)
    if fit is not None:
        groups["fit_stats"] = _fit_stats(fit)
    _warn_of_omissions(draws)
    _warn_of_squares(draws, names)
    groups = {name: group for name, group in groups.items() if group.data_vars}
    return _arviz.build(groups, _attributes(guide, model))


def _check_source(guide: Any, model: Any) -> None:
    if isinstance(guide, Polished) and model is not None:
        raise TypeError(
            "to_inference_data: chains hold their draws, so that no model is taken with them: "
            "write to_inference_data(chains)."
        )
    if not isinstance(guide, Polished) and model is None:
        raise TypeError(
            f"to_inference_data expected a model with the guide {type(guide).__name__}: write "
            "to_inference_data(guide, model)."
        )


def _dataset(variables: dict[str, tuple], coords: dict[str, Sequence]) -> xr.Dataset:
    import xarray as xr

    return xr.Dataset(variables, coords=coords)


def _draw_coords(num_samples: int) -> dict[str, Sequence]:
    return {"chain": [0], "draw": np.arange(num_samples)}


def _draw_group(values: dict, draws: GuideDraws, names: Names) -> xr.Dataset:
    variables, coords = {}, {}
    for name, value in values.items():
        site = draws.sites[name]
        dims, array = names.value(name, site, to_numpy(value))
        coords |= _draw_coords(len(array)) | names.labels(dims, array.shape[1:])
        attrs = {"kind": site.kind}
        variables[names.variables[name]] = (("chain", "draw", *dims), array[None], attrs)
    return _dataset(variables, coords)


def _observed_data(draws: GuideDraws, names: Names) -> xr.Dataset:
    variables, coords = {}, {}
    if draws.subsampled:
        return _dataset(variables, coords)
    for name, site in draws.sites.items():
        if site.kind == "observed":
            dims, array = names.value(name, site, to_numpy(site.value)[None])
            coords |= names.labels(dims, array.shape[1:])
            variables[names.variables[name]] = (dims, array[0])
    return _dataset(variables, coords)


def _log_likelihood(draws: GuideDraws, names: Names) -> xr.Dataset:
    found = {}
    for name, value in draws.log_likelihood.items():
        site = draws.sites[name]
        keep = _keep(site)
        if keep.any():
            dims, array = names.batch(name, site, to_numpy(value))
            found[name] = (tuple(dims), array, keep.reshape(array.shape[1:]))
        if keep.any() and not dims:
            _warn(
                f"'{name}' has one log likelihood for all its data, so that leave-one-out leaves "
                "out everything: use a plate in place of to_event"
            )
    variables, coords, holes = {}, {}, []
    for name, (dims, array, keep) in found.items():
        labels = names.labels(dims, array.shape[1:])
        if len(dims) == 1 and _is_shared(dims[0], keep, found):
            array = array[:, keep]
            labels[dims[0]] = [labels[dims[0]][i] for i in keep.nonzero()[0]]
        elif not keep.all():
            array, holes = np.where(keep, array, np.nan), [*holes, name]
        coords |= _draw_coords(len(array)) | labels
        variables[names.variables[name]] = (("chain", "draw", *dims), array[None])
    if holes:
        _warn(
            f"masked observations of {_listed(holes)} are NaN in log_likelihood; drop them before "
            "leave-one-out"
        )
    return _dataset(variables, coords)


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


def _sample_stats(draws: GuideDraws, report: ImportanceDiagnostics) -> xr.Dataset:
    smoothed, _ = psis(report.log_weights, tolerance=rounding_tolerance(draws))
    columns = {
        "lp": draws.log_p,
        "lp_approx": draws.log_q,
        "log_weight": report.log_weights,
        "log_weight_psis": smoothed,
    }
    variables: dict[str, tuple] = {
        name: (("chain", "draw"), to_numpy(column)[None]) for name, column in columns.items()
    }
    variables |= {name: ((), getattr(report, field)) for name, field in _SCALARS.items()}
    dataset = _dataset(variables, _draw_coords(report.num_samples))
    dataset.attrs = {"verdict": report.verdict, "reasons": "; ".join(report.reasons)}
    return dataset


def _fit_stats(fit: Any) -> xr.Dataset:
    losses = np.asarray(fit.losses, dtype=float)
    variables = {"elbo": (("step",), -losses)}
    rates = getattr(fit, "learning_rates", None)
    if rates is not None and len(rates) == len(losses):
        variables["learning_rate"] = (("step",), np.asarray(rates, dtype=float))
    dataset = _dataset(variables, {"step": np.arange(len(losses))})
    wanted = ("seconds", "stop_reason", "num_skipped_steps", "num_nonfinite_particles")
    found = {name: getattr(fit, name, None) for name in wanted}
    dataset.attrs = {name: value for name, value in found.items() if value is not None}
    return dataset


def _attributes(guide: Any, model: Any) -> dict[str, str]:
    from .. import __version__

    return {
        "name": getattr(model, "__name__", type(model).__name__),
        "guide": getattr(guide, "__name__", type(guide).__name__),
        "created_at": datetime.datetime.now(datetime.UTC).isoformat(),
        "inference_library": "pyroflows",
        "inference_library_version": __version__,
        "pyro_version": importlib.metadata.version("pyro-ppl"),
    }


def _warn_of_omissions(draws: GuideDraws) -> None:
    if draws.subsampled:
        _warn(
            f"plates {sorted(draws.subsampled)} are subsampled, so log p is only an estimate: "
            "latents in these plates, weights, log_likelihood, posterior_predictive and "
            "observed_data are left out; pass the full data"
        )
    elif draws.missing:
        _warn(
            f"latents {list(draws.missing)} are missing from the guide: they, deterministic "
            "sites, weights, log_likelihood and posterior_predictive are left out"
        )
    elif draws.marginalized:
        _warn(
            f"discrete latents {list(draws.marginalized)} are summed out in the weights: they, "
            "deterministic sites, log_likelihood and posterior_predictive are left out; see "
            "pyro.infer.infer_discrete"
        )


def _warn_of_squares(draws: GuideDraws, names: Names) -> None:
    squares = [
        name
        for name in draws.values
        if draws.sites[name].kind == "deterministic"
        and name not in names.given
        and len(deterministic_event_dims(draws.sites[name])) > 1
    ]
    if squares:
        _warn(
            f"{_listed(squares)} have an event axis as large as a plate, and which is which cannot "
            "be seen, so their axes keep neutral names; give pyro.deterministic event_dim=, or dims"
        )


def _warn(message: str) -> None:
    warnings.warn(f"to_inference_data: {message}.", stacklevel=4)
