"""From a guide to ArviZ."""

from __future__ import annotations

import datetime
import importlib.metadata
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..arguments import check_arguments
from ..guides.prototype import device_of
from ..infer._given import prior_draws
from ..infer.draws import draw_from_guide
from ..infer.importance import diagnose
from ..infer.posterior import Polished
from . import _arviz
from ._fingerprint import fingerprint
from ._groups import Groups, dataset, fit_stats, sample_stats, warn
from ._inputs import constant_inputs, input_names
from ._naming import Names
from .chains import from_chains

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["attributes", "data_groups", "to_inference_data"]


def to_inference_data(
    guide: Callable[..., Any] | Polished,
    model: Callable[..., Any] | None = None,
    *,
    model_args: tuple = (),
    model_kwargs: dict[str, Any] | None = None,
    num_samples: int = 4000,
    num_prior_samples: int = 0,
    fit: Any = None,
    seed: int | None = None,
    batch_size: int | None = None,
    dims: Mapping[str, Sequence[str]] | None = None,
    coords: Mapping[str, Sequence] | None = None,
) -> Any:
    """Convert draws of a guide to what the installed ArviZ works with.

    Groups:

    - ``posterior``: latent and deterministic sites, dims (chain=1, draw=S, plates, events);
    - ``unconstrained_posterior``: latents where they are free, by ``torch``'s ``biject_to``;
    - ``sample_stats``: ``lp`` (log joint density), ``lp_approx`` (of the guide), ``log_weight``
      (their difference), ``log_weight_psis`` (smoothed and normalised), and one number each of
      ``elbo``, ``elbo_se``, ``log_z``, ``log_z_se``, ``pareto_k``, ``pareto_k_se``, ``good_k``,
      ``ess_is``; the verdict is in its attributes;
    - ``log_likelihood``: unscaled, without masked observations, or with NaN in their place where
      sites of one plate are masked differently;
    - ``posterior_predictive`` and ``observed_data``: observed sites;
    - ``constant_data``: numbers and arrays among the model's arguments that are not observed;
    - ``prior`` and ``prior_predictive``: if ``num_prior_samples`` asks for them;
    - ``fit_stats``: the ELBO by step, where a fit is given.

    Axes are called after plates; a site's ``infer={"event_dims": [...]}`` names its event axes; an
    axis of an argument is called after the only plate of its length, if no other axis has it.
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
        num_prior_samples: number of draws of the prior, and of data from it; 0 for none.
        fit: what ``fit_guide`` returned; its losses become ``fit_stats``.
        seed: seed of the draws; the caller's generators are left as they were. None: draw on.
        batch_size: draws that go through the model together; chosen by size unless given.
        dims: names of a site's or an argument's axes after chain and draw, in place of those found.
        coords: labels along dimensions.

    Returns:
        An ``arviz.InferenceData`` under ArviZ 0.x, an ``xarray.DataTree`` under 1.x.

    Raises:
        ImportError: if ArviZ is not installed.
        ValueError: if dims or coords do not fit the sites, or a number is out of range.
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
    check_num_prior("to_inference_data", num_prior_samples)
    args, kwargs = tuple(model_args), dict(model_kwargs or {})
    draws = draw_from_guide(
        model, guide,
        model_args=args, model_kwargs=kwargs, num_samples=num_samples, seed=seed,
        batch_size=batch_size, everything=True, predictive=True,
    )  # fmt: skip
    made = Groups(draws, Names(draws.sites, dims, coords, input_names(model, args, kwargs)))
    groups = data_groups(made, model, args, kwargs)
    if draws.log_p is not None:
        groups["sample_stats"] = sample_stats(made, diagnose(draws))
    if num_prior_samples:
        groups |= prior_groups(
            made.names, model, args, kwargs, num_prior_samples, seed, batch_size,
            owner="to_inference_data",
        )  # fmt: skip
    if fit is not None:
        groups["fit_stats"] = fit_stats(fit)
    made.warn_of_omissions()
    made.warn_of_squares()
    groups = {name: group for name, group in groups.items() if group.data_vars}
    noted = attributes(model, args, kwargs, guide=guide)
    return _arviz.build(groups, noted | {"device": str(device_of(guide, args, kwargs))})


def check_num_prior(owner: str, number: Any) -> None:
    """Raise unless it is a number of draws, or zero."""
    if isinstance(number, bool) or not isinstance(number, int) or number < 0:
        raise ValueError(f"{owner}: num_prior_samples: expected 0 or more draws, got {number!r}.")


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


def data_groups(
    made: Groups, model: Callable[..., Any], args: tuple, kwargs: dict[str, Any]
) -> dict[str, xr.Dataset]:
    """The groups of draws and data that guides and chains have in common."""
    draws = made.draws
    inputs = constant_inputs(model, args, kwargs, draws, made.names)
    return {
        "posterior": made.values(draws.values),
        "unconstrained_posterior": made.unconstrained(),
        "log_likelihood": made.log_likelihood(),
        "posterior_predictive": made.values(draws.predictive),
        "observed_data": made.observed_data(),
        "constant_data": dataset({}, {}) if draws.subsampled else made.constant_data(inputs),
    }


def prior_groups(
    names: Names,
    model: Callable[..., Any],
    args: tuple,
    kwargs: dict[str, Any],
    num_samples: int,
    seed: int | None,
    batch_size: int | None,
    *,
    owner: str,
) -> dict[str, xr.Dataset]:
    """Draws of the prior and of data from it; nothing, with a word, of an improper prior."""
    try:
        draws = prior_draws(
            model, model_args=args, model_kwargs=kwargs,
            num_samples=num_samples, seed=seed, batch_size=batch_size,
        )  # fmt: skip
    except NotImplementedError as error:
        warn(f"the prior has no draws ({error or 'it is improper'}), so it is left out", owner)
        return {}
    made = Groups(draws, names)
    return {
        "prior": made.values(draws.values),
        "prior_predictive": made.values(draws.predictive),
    }


def attributes(
    model: Callable[..., Any], args: tuple, kwargs: dict[str, Any], **sources: Any
) -> dict[str, Any]:
    """What is noted of where draws come from."""
    from .. import __version__

    found = {
        "name": getattr(model, "__name__", type(model).__name__),
        **{
            what: getattr(source, "__name__", type(source).__name__)
            for what, source in sources.items()
        },
        "created_at": datetime.datetime.now(datetime.UTC).isoformat(),
        "inference_library": "pyroflows",
        "inference_library_version": __version__,
        "pyro_version": importlib.metadata.version("pyro-ppl"),
        "torch_version": importlib.metadata.version("torch"),
    }
    mark = fingerprint(model, args, kwargs)
    return found if mark is None else found | {"model_fingerprint": mark}
