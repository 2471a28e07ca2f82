"""Reading the latents of a model from a run of it."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer.autoguide.initialization import init_to_median
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.distributions import MixtureSameFamily

from ..latents import Latents, Site, bijection_onto

__all__ = ["center", "init_to_center", "read_latents"]


def init_to_center(site: dict[str, Any]) -> Tensor:
    """The prior median; the center of unconstrained space where the prior cannot be drawn from.

    Args:
        site: A message of Pyro's, with the distribution under ``"fn"``.
    """
    try:
        with torch.random.fork_rng():  # the same median at every construction
            torch.manual_seed(0)
            return init_to_median(site)
    except NotImplementedError:
        return center(site["fn"])


def center(fn: Any) -> Tensor:
    """The center of unconstrained space, carried onto the support of a distribution."""
    transform = bijection_onto(fn.support)
    bounds = [v for v in vars(getattr(fn, "support", None)).values() if isinstance(v, Tensor)]
    options = {"dtype": bounds[0].dtype, "device": bounds[0].device} if bounds else {}
    return transform(torch.zeros(transform.inverse_shape(fn.shape()), **options))


def read_latents(trace: poutine.Trace, owner: str) -> Latents:
    """Read the latents from a trace of the model, or say why a guide cannot hold them.

    Args:
        trace: A trace of the model with values at every site.
        owner: Name of the guide's class, for messages.

    Raises:
        ValueError: For no latents, a discrete site that is not enumerated, a latent in a
            subsampled or sequential plate or observed in part, an angle, or a support without a
            bijection.
    """
    sites, enumerated, nesting = [], set(), 0
    for name, site in trace.nodes.items():
        if site["type"] != "sample" or site_is_subsample(site):
            continue
        dims = [f.dim for f in site["cond_indep_stack"] if f.vectorized]
        nesting = max([nesting, *(-d for d in dims)])
        if site["is_observed"]:
            continue
        if getattr(site["fn"].support, "is_discrete", False):
            _check_enumerated(name, site, owner)
            enumerated.add(name)
        else:
            _check_wholly_latent(name, site, trace, owner)
            sites.append(_read_site(name, site, owner))
    if not sites:
        raise ValueError(
            f"{owner} found no continuous latents in the model: there is nothing to fit. "
            "Were all sites given obs=, or the data not passed in model_args?"
        )
    return Latents(sites, max_plate_nesting=nesting, enumerated=frozenset(enumerated))


def _check_enumerated(name: str, site: dict, owner: str) -> None:
    if site["infer"].get("enumerate") != "parallel":
        raise ValueError(
            f"{owner} holds continuous latents only, but site {name!r} is discrete "
            f"({type(site['fn']).__name__}). Sum it out: mark it with "
            "infer={'enumerate': 'parallel'} or decorate the model with "
            "pyro.infer.config_enumerate."
        )


def _check_wholly_latent(name: str, site: dict, trace: poutine.Trace, owner: str) -> None:
    """``obs_mask=`` makes a latent of full shape, of which the observed part is flat."""
    stem = name.removesuffix("_unobserved")
    twin = trace.nodes.get(f"{stem}_observed")
    if stem == name or twin is None or not twin["is_observed"]:
        return
    mask = torch.as_tensor(site["mask"] if site["mask"] is not None else True)
    if not mask.all():
        raise ValueError(
            f"{owner} cannot hold site {name!r}: at {int((~mask).sum())} of {mask.numel()} "
            f"positions {stem!r} is observed, and nothing says where this latent is there. "
            "Instead of obs_mask=, sample the missing values alone, as a site with one value for "
            "each, and the observed ones with obs=."
        )


def _read_site(name: str, site: dict, owner: str) -> Site:
    fn = site["fn"]
    for frame in site["cond_indep_stack"]:
        if not frame.vectorized:
            raise ValueError(
                f"{owner} expected vectorized plates, but site {name!r} is in the sequential "
                f"plate {frame.name!r}: use `with pyro.plate(...)` instead of a loop over it."
            )
        if frame.full_size is not None and frame.full_size != frame.size:
            raise ValueError(
                f"{owner} cannot hold site {name!r}: plate {frame.name!r} is subsampled to "
                f"{frame.size} of {frame.full_size}, so every mini-batch's latents would share "
                "the same parameters. Run the plate in full, or keep local latents out of it "
                "(marginalise them, or use a guide that is a function of the data)."
            )
    base = _innermost(fn)
    if isinstance(base, dist.VonMises3D):
        raise ValueError(
            f"{owner} cannot hold site {name!r}, a direction (VonMises3D), and would treat it as "
            "three real numbers. Model it by unbounded coordinates."
        )
    is_angle = isinstance(base, dist.VonMises | dist.SineBivariateVonMises)
    try:
        return Site(name, fn.support, fn.shape(), fn.event_dim, is_angle)
    except NotImplementedError as error:
        raise ValueError(
            f"{owner} knows no bijection onto the support {fn.support} of site {name!r}: "
            "reparameterise the site (pyro.infer.reparam)."
        ) from error


def _innermost(fn: Any) -> Any:
    """The distribution that values come from, under wrappers and mixtures."""
    if isinstance(fn, MixtureSameFamily):
        return _innermost(fn.component_distribution)
    if hasattr(fn, "base_dist") and not isinstance(fn, dist.TransformedDistribution):
        return _innermost(fn.base_dist)
    return fn
