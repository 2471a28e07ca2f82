"""Pyro's guides and its ELBO of all draws at once, as its users write them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from pyro import poutine
from pyro.distributions import ImproperUniform
from pyro.distributions.transforms import iterated, spline_autoregressive
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoGuide, AutoMultivariateNormal, AutoNormalizingFlow
from pyro.infer.autoguide.initialization import InitMessenger
from torch import Tensor
from torch.distributions import transform_to

from tests.benchmarks._peers import Task, pyro_flow

__all__ = ["pyro_guide", "vectorized_elbo"]


def _start_of_flat(site: dict) -> Tensor | None:
    """Where Pyro starts what it cannot draw a median of; of a flat prior it cannot even this."""
    if not isinstance(site["fn"], ImproperUniform):
        return None
    onto = transform_to(site["fn"].support)
    return onto(torch.zeros(onto.inverse_shape(site["fn"].shape())))


def _normal(model: Callable, _: int) -> AutoGuide:
    return AutoMultivariateNormal(model)


def _flow(model: Callable, dim: int) -> AutoGuide:
    """With the networks and splines that the other contestants of a race have."""
    return AutoNormalizingFlow(model, lambda _: pyro_flow(Task("energy", dim)))


def _iterated(model: Callable, _: int) -> AutoGuide:
    """Pyro's own helpers at their defaults."""
    return AutoNormalizingFlow(model, partial(iterated, 2, spline_autoregressive))


_GUIDES = {"normal": _normal, "flow": _flow, "iterated": _iterated}


def pyro_guide(kind: str, model: Callable, dim: int) -> AutoGuide:
    return _GUIDES[kind](InitMessenger(_start_of_flat)(model), dim)


def vectorized_elbo(model: Callable, guide: Callable, num_particles: int) -> Trace_ELBO:
    """The plates are counted here: Pyro does it too, and prints the number."""
    latents = poutine.trace(guide).get_trace()
    trace = poutine.trace(poutine.replay(model, trace=latents)).get_trace()
    plates = {frame.dim for site in trace.nodes.values() for frame in _frames(site)}
    nesting = -min(plates, default=0)
    return Trace_ELBO(num_particles, vectorize_particles=True, max_plate_nesting=nesting)


def _frames(site: dict) -> list:
    return [frame for frame in site.get("cond_indep_stack", ()) if frame.vectorized]
